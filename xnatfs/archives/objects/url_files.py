"""Files that a catalog names by whole URLs, on whatever host: for OpenNeuro's snapshots and OSF. Guests only.

Knows no catalog. One client a host, made when it is first needed; redirects to a store's signed addresses are followed.
Safe to call from any thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

from xnatfs.archives.base import RangeStream
from xnatfs.archives.http.account import Guest
from xnatfs.archives.http.body import checked_body, http_time_ns, is_compressed, is_page
from xnatfs.archives.http.client import HttpClient
from xnatfs.archives.http.reply import content_length
from xnatfs.config import HttpConfig
from xnatfs.errors import AccessDenied, UnexpectedReply
from xnatfs.model import Entry
from xnatfs.stats import Stats

LONGEST_COUNTED = 16 << 20
"""Bytes of a file that is read to its end to learn its size, where no header tells it: such files are small texts."""


GUESTS = "only what is open to everybody is read here: no login is used"


@contextlib.contextmanager
def open_to_all() -> Iterator[None]:
    """A refusal in the words of an archive that knows no login: others would send the user for a password."""
    try:
        yield
    except AccessDenied as error:
        raise AccessDenied(str(error), GUESTS) from error


class UrlFiles:
    """Opens files whose ``Entry.key`` is a URL.

    Args:
        trusted: Origin that may be plain http: the one that the user named. Every other must be https.
    """

    def __init__(self, http: HttpConfig, user_agent: str, stats: Stats, trusted: str) -> None:
        self._http = http
        self._user_agent = user_agent
        self._stats = stats
        self._trusted = trusted
        self._lock = threading.Lock()
        self._clients: dict[str, HttpClient] = {}  # guarded by _lock

    def client(self, url: str) -> tuple[HttpClient, str]:
        """The client of a URL's host, and the rest of the URL.

        Raises:
            UnexpectedReply: an address that is not https, and not of the server that the user named.
        """
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if parts.scheme != "https" and origin != self._trusted:
            raise UnexpectedReply(f"{url.split('?', 1)[0]}: the catalog names an address that is not https")
        with self._lock:
            client = self._clients.get(origin)
            if client is None:
                client = HttpClient(origin, self._http, Guest(), self._user_agent, self._stats, wander=True)
                self._clients[origin] = client
        return client, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    @open_to_all()
    def stat(self, entry: Entry) -> Entry:
        """The entry with the size that its host tells: by its headers, or else by sending the file."""
        client, path = self.client(entry.key)
        reply = client.open(path, {})  # no range: an empty file has none; the body is left where it is
        try:
            if is_page(reply.headers, entry):
                raise client.page_reply(f"GET {entry.name}")
            length = content_length(reply)
            if length is not None:
                size = length
            else:
                size = 0
                while piece := reply.read1(256 * 1024):
                    size += len(piece)
                    if size > LONGEST_COUNTED:
                        raise UnexpectedReply(f"GET {entry.name}: the server does not tell its size")
            modified = http_time_ns(reply.headers.get("Last-Modified", ""))
        finally:
            reply.close()
        return replace(entry, size=size, mtime_ns=entry.mtime_ns or modified, version=entry.version or str(size))

    @open_to_all()
    def open_range(self, entry: Entry, start: int, stop: int) -> RangeStream:
        client, path = self.client(entry.key)
        reply = client.open(path, {"Range": f"bytes={start}-{stop - 1}"})
        try:
            if reply.status == 200 and is_page(reply.headers, entry):
                raise client.page_reply(f"GET {entry.name}")
            validator = reply.headers.get("ETag") or reply.headers.get("Last-Modified") or ""
            return checked_body(reply, entry, start, stop, validator, stored=is_compressed(entry.name))
        except BaseException:
            reply.close()
            raise

    def close(self) -> None:
        with self._lock:
            clients = list(self._clients.values())
        for client in clients:
            client.close()
