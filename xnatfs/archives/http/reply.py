"""One answer of a server: its status and headers, and its body as it comes.

Judges nothing: ``client.py`` has looked at the status before, ``body.py`` and the archives look at the rest. One thread
reads; ``close`` and ``interrupt`` from any.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import urllib3

from xnatfs.archives.http.errors import raise_translated
from xnatfs.archives.http.line import LineResponse, shut
from xnatfs.archives.http.numbers import whole_number
from xnatfs.errors import UnexpectedReply
from xnatfs.stats import Stats

WIDEN_AFTER = 512 * 1024
"""Bytes of one body after which the kernel may tune the buffer again: a fixed one holds a line of 20 ms at 13 MB/s."""

SO_BUF_LOCK = 72
"""asm-generic/socket.h, Linux 5.14 and later: 0 takes back that the buffer size was set by hand. Python has no name."""

_PATH = re.compile(r";\s*path\s*=\s*\"?(/[^;\"\s]*)", re.IGNORECASE)
_UNSENT = re.compile(r"[^ -~]")


class Reply:
    """An answer whose body has not been read. Give it back with ``close``: until then it holds a connection.

    Args:
        give_back: Called once, when the connection is free for another request or has been ended.
        url: Where it came from.
        generation: Of the session that it was asked with.
    """

    def __init__(
        self,
        stats: Stats,
        give_back: Callable[[], None],
        raw: LineResponse | urllib3.BaseHTTPResponse,
        status: int,
        headers: Mapping[str, str],
        url: str,
        generation: int,
    ) -> None:
        self.generation = generation
        self._stats = stats
        self._give_back: Callable[[], None] | None = give_back
        self._lock = threading.Lock()
        self._raw = raw
        self.status = status
        self.headers = headers
        self.url = url
        self._until_wide = WIDEN_AFTER
        self._plain = _plain_body(raw)

    @property
    def cookies(self) -> dict[str, str]:
        """Names and values that the answer sets."""
        return set_cookies(self._raw.headers.getlist("Set-Cookie"), self.url)

    def read1(self, size: int) -> bytes:
        """At least one byte and at most ``size``; b"" at the end of the body.

        Raises:
            Unavailable, TimedOut
        """
        raw = self._raw
        try:
            piece = raw.read1(size) if isinstance(raw, LineResponse) else raw.read1(size, decode_content=False)
        except Exception as error:  # noqa: BLE001  # urllib3, ssl and http.client raise from many families
            raise_translated(error, f"reading {path_of(self.url)}")
        self._count(len(piece))
        return piece

    def readinto(self, buffer: memoryview) -> int:
        """``read1`` into the caller's memory; 0 at the end of the body.

        A plain body goes there straight from the socket, past urllib3, which makes a bytes object of each piece: two
        thirds of the CPU time of receiving (measured, 256 KiB at once).

        Raises:
            Unavailable, TimedOut
        """
        body = self._plain
        # fp is looked at once: ``close`` in another thread takes it away.
        fp = None if body is None else body.fp
        if body is None or not body.length or fp is None:
            return self._piece_into(buffer)
        try:
            count: int = fp.readinto1(buffer[: body.length])
        except Exception as error:  # noqa: BLE001  # as above
            raise_translated(error, f"reading {path_of(self.url)}")
        self._count(count)
        if count:
            body.length -= count
            if not isinstance(self._raw, LineResponse):
                self._raw.length_remaining = body.length
                if not body.length:
                    self._end(self._raw)
        return count

    def _piece_into(self, buffer: memoryview) -> int:
        """``readinto`` of a body in chunks, or of one whose bytes are not the body as they come."""
        raw = self._raw
        if not (isinstance(raw, LineResponse) and raw.chunked and len(buffer)):
            piece = self.read1(len(buffer))
            buffer[: len(piece)] = piece
            return len(piece)
        try:
            count = raw.chunk_into(buffer)
        except Exception as error:  # noqa: BLE001  # as above
            raise_translated(error, f"reading {path_of(self.url)}")
        self._count(count)
        return count

    def _end(self, raw: urllib3.BaseHTTPResponse) -> None:
        """Let urllib3 find that nothing is left, and take its connection back."""
        if raw.read1(1, decode_content=False):
            raise UnexpectedReply(f"reading {path_of(self.url)}: longer than its own length")

    def _count(self, count: int) -> None:
        self._stats.received_bytes += count
        if self._until_wide > 0:
            self._until_wide -= count
            if self._until_wide <= 0:
                self._widen()

    def _widen(self) -> None:
        sock = self._socket()
        if sock is not None:
            with contextlib.suppress(OSError):  # an older kernel: the buffer stays small
                sock.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, 0)

    def _socket(self) -> socket.socket | None:
        raw = self._raw
        if isinstance(raw, LineResponse):
            return raw.line.sock
        sock = getattr(getattr(raw, "connection", None), "sock", None)
        return sock if isinstance(sock, socket.socket) else None

    def close(self, reusable: bool = False) -> None:
        """Let the connection go; keep it for the next request when the body was read to its end."""
        with self._lock:
            give_back, self._give_back = self._give_back, None
        if give_back is None:
            return
        raw = self._raw
        if isinstance(raw, LineResponse):
            if not (reusable and raw.is_read):
                self.interrupt()
                raw.line.hang_up()
            raw.close()
        elif reusable:
            raw.release_conn()
        else:
            self.interrupt()
            raw.close()
        give_back()

    def interrupt(self) -> None:
        """Wake a thread that waits in ``read1``; it gets an error."""
        shut(self._socket())


def _plain_body(raw: Any) -> Any:
    """The standard library's response under urllib3's, when its bytes are the body as they come; else None."""
    body = raw if isinstance(raw, LineResponse) else getattr(raw, "_original_response", None)
    if not isinstance(body, http.client.HTTPResponse) or body.chunked or body.length is None:
        return None
    return body if isinstance(body.fp, io.BufferedReader) else None


def content_length(reply: Reply) -> int | None:
    return whole_number(reply.headers.get("Content-Length", ""))


def set_cookies(lines: Iterable[str], url: str) -> dict[str, str]:
    """Names and values that the Set-Cookie headers of an answer from ``url`` set.

    Those for another path are left out: beside XNAT's session there may be that of another program of the same server.
    """
    path = urlsplit(url).path
    cookies: dict[str, str] = {}
    for line in lines:
        wanted = _PATH.search(line)
        if wanted is None or f"{path}/".startswith(f"{wanted[1].rstrip('/')}/"):
            cookies.update(parse_set_cookie(line))
    return cookies


def parse_set_cookie(line: str) -> dict[str, str]:
    """Name and value of one Set-Cookie header; {} when it cannot be read, or takes a cookie back.

    Not by ``http.cookies``: it drops a cookie with an attribute that it does not know (``Partitioned``), and takes
    ``Priority=High`` for another cookie.
    """
    name, equals, value = line.split(";", 1)[0].partition("=")
    name, value = name.strip(), value.strip().strip('"')
    if not (name and equals and value) or _UNSENT.search(name + value):
        return {}  # an empty value comes with a date in the past
    return {name: value}


def path_of(url: str) -> str:
    """A URL for a message: without its query."""
    return url.split("?", 1)[0]
