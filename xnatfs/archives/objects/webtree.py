"""A directory tree that a web server shows as index pages: ``web+https://host/path``.

One request a directory; a size that the page does not give in bytes is asked for by a HEAD request when it is needed,
those of the next files in a walk ahead of it.
What a page means is in ``index_page.py``. For guests: no login is known here. Safe to call from any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from urllib.parse import quote, unquote, urlsplit

from xnatfs.archives.base import RangeStream
from xnatfs.archives.http.account import Guest
from xnatfs.archives.http.body import checked_body, http_time_ns, is_compressed, is_page
from xnatfs.archives.http.client import HttpClient
from xnatfs.archives.http.errors import OddStatus
from xnatfs.archives.http.numbers import whole_number
from xnatfs.archives.objects.index_page import entries_of
from xnatfs.archives.objects.sizes_ahead import SizesAhead
from xnatfs.archives.objects.url_files import open_to_all
from xnatfs.config import Credentials, HttpConfig, TreeConfig
from xnatfs.errors import StaleContent, UnexpectedReply
from xnatfs.model import Entry, Listing
from xnatfs.stats import Stats

ANSWERED = "answered "
"""Begins a version that came with an answer's headers, as opposed to what an index page says."""


class WebTreeArchive:
    """What is linked from page to page below one directory.

    Args:
        url: ``web+https://host/path`` or ``web+http://...``; the path may be written encoded or not.
        credentials: Not used, like ``tree``.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials,
        http: HttpConfig,
        tree: TreeConfig,
        user_agent: str,
        stats: Stats | None = None,
    ) -> None:
        parts = urlsplit(url.removeprefix("web+"))
        self.id = f"{parts.scheme}://{parts.netloc}"
        self._root = quote(unquote(parts.path), safe="/-_.~").rstrip("/") + "/"
        self._http = HttpClient(self.id, http, Guest(), user_agent, stats)
        self._sizes = SizesAhead(self._asked_size, http.max_connections)

    def root(self) -> Entry:
        return Entry("", self._root, True, listing=self._root)

    @open_to_all()
    def children(self, directory: Entry) -> Listing:
        """See ``Archive.children``. One request."""
        page, url = self._http.get_page(directory.key)
        if urlsplit(url).path != directory.key and unquote(urlsplit(url).path) != unquote(directory.key):
            raise UnexpectedReply(f"GET {directory.key}: the server sends us to {urlsplit(url).path}")
        entries = entries_of(page, self.id + directory.key, directory.key)
        self._sizes.listed(directory.key, entries)
        return Listing(directory.listing, {directory.key: entries})

    def stat(self, entry: Entry) -> Entry:
        """See ``Archive.stat``. One HEAD request, made beforehand for those next in a directory that is walked."""
        return self._sizes.stat(entry)

    @open_to_all()
    def _asked_size(self, entry: Entry) -> Entry:
        try:
            headers = self._http.head(entry.key)
        except OddStatus as error:
            if error.status not in (405, 501):
                raise
            reply = self._http.open(entry.key, {})  # some servers know GET alone; the body is left where it is
            headers = reply.headers
            reply.close()
        if is_page(headers, entry):
            raise self._http.page_reply(f"HEAD {entry.key}")
        length = whole_number(headers.get("Content-Length", ""))
        if length is None:
            raise UnexpectedReply(f"HEAD {entry.key}: the server does not tell its size")
        mtime_ns = http_time_ns(headers.get("Last-Modified", "")) or entry.mtime_ns
        return replace(entry, size=length, mtime_ns=mtime_ns, version=ANSWERED + _validator(headers))

    @open_to_all()
    def open_range(self, entry: Entry, start: int, stop: int) -> RangeStream:
        """See ``Archive.open_range``."""
        reply = self._http.open(entry.key, {"Range": f"bytes={start}-{stop - 1}"})
        try:
            if reply.status == 200 and is_page(reply.headers, entry):
                raise self._http.page_reply(f"GET {entry.key}")
            validator = _validator(reply.headers)
            if entry.version.startswith(ANSWERED) and entry.version != ANSWERED + validator:
                raise StaleContent(f"GET {entry.key}: has changed on the server", "list the directory again")
            return checked_body(reply, entry, start, stop, validator, stored=is_compressed(entry.name))
        except BaseException:
            reply.close()
            raise

    def open_bulk(self, files: Sequence[Entry]) -> None:
        """See ``Archive.open_bulk``. Files come one by one."""

    def close(self) -> None:
        self._sizes.close()
        self._http.close()


def _validator(headers: Mapping[str, str]) -> str:
    """ETag and Last-Modified: the one sees what the other misses, a second change in one second or a weak tag."""
    return f"{headers.get('ETag', '')} {headers.get('Last-Modified', '')}".strip()
