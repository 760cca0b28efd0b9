"""One kept connection to one server: a request goes out in one piece, the head of its answer is taken apart here.

For what is asked a thousand times (requests and urllib3 take four times the CPU for a GET). Decides nothing: no
redirects, no cookies, no retries, no proxy; ``client.py`` has those. One thread at a time; ``hang_up`` from any.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import wait_for_read

from xnatfs.archives.http.numbers import whole_number

MAX_LINE = 65536
"""Bytes of one line of a head, and MAX_LINES of them: as http.client."""

MAX_LINES = 100

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER for 0 seconds."""

_STATUS = re.compile(rb"HTTP/1\.(\d) +(\d{3})(?: [^\r\n]*)?\r?\n")
_UNSAFE = re.compile(r"[\r\n\0]")

CLOSED = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
"""What a connection says that the server has closed before it answered."""

BODILESS = frozenset({204, 304})


class Headers(Mapping[str, str]):
    """The fields of a head, by name in any case; what came in several lines is joined by commas."""

    __slots__ = ("_fields",)

    def __init__(self) -> None:
        self._fields: dict[str, list[str]] = {}

    def add(self, name: str, value: str) -> None:
        self._fields.setdefault(name.lower(), []).append(value)

    def getlist(self, name: str) -> list[str]:
        """A value for each line, as Set-Cookie needs: its values have commas of their own."""
        return self._fields.get(name.lower(), [])

    def __getitem__(self, name: str) -> str:
        values = self._fields[name.lower()]
        return values[0] if len(values) == 1 else ", ".join(values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class LineResponse(http.client.HTTPResponse):
    """An answer on a ``Line``. The body is read as the standard library does; the head by fewer steps."""

    line: Line
    headers: Headers  # type: ignore[assignment]  # in place of an email message, which costs as much as all the rest

    def begin(self) -> None:
        """Read the head.

        Raises:
            HTTPException: it is none of HTTP/1.
        """
        status = 100
        while 100 <= status < 200:
            line = self._next_line()
            if not line:
                raise http.client.RemoteDisconnected("the server has closed the connection without an answer")
            match = _STATUS.fullmatch(line)
            if match is None:
                raise http.client.BadStatusLine(repr(line[:60]))
            self.version = 10 + min(1, int(match[1]))
            status = int(match[2])
            fields = self._read_fields()
        self.code = self.status = status
        self.headers = self.msg = fields  # type: ignore[assignment]
        self._frame(fields)

    def _frame(self, fields: Headers) -> None:
        """Find out where the body will end."""
        coding = fields.get("transfer-encoding", "").lower()
        if coding not in ("", "identity", "chunked"):
            raise http.client.HTTPException(f"transfer encoding {coding[:60]!r}")
        self.chunked = coding == "chunked"
        self.chunk_left = None
        self.length = None
        if lengths := set(fields.getlist("content-length")):
            length = whole_number(lengths.pop())
            if lengths or length is None:
                raise http.client.HTTPException(f"content length {fields['content-length'][:60]!r}")
            self.length = None if self.chunked else length
        if self._method == "HEAD" or self.status in BODILESS:  # type: ignore[attr-defined]
            self.chunked, self.length = False, 0
        said = fields.get("connection", "").lower()
        kept = "keep-alive" in said if self.version == 10 else "close" not in said
        self.will_close = not kept or (self.length is None and not self.chunked)

    def _read_fields(self) -> Headers:
        fields = Headers()
        name = value = ""
        for _ in range(MAX_LINES + 1):
            line = self._next_line().decode("latin-1")
            if name and line[:1] in (" ", "\t"):  # the one before goes on
                value = f"{value} {line.strip()}"
                continue
            if name:
                fields.add(name, value)
            if line in ("\r\n", "\n"):
                return fields
            name, colon, value = line.partition(":")
            if not (name and colon):
                raise http.client.HTTPException(f"not a header: {line[:60]!r}")
            value = value.strip()
        raise http.client.HTTPException(f"over {MAX_LINES} headers")

    def _next_line(self) -> bytes:
        line = self.fp.readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise http.client.LineTooLong("a header")
        return line

    def chunk_into(self, buffer: memoryview) -> int:
        """``read1`` of a chunked body into the caller's memory; 0 at its end.

        Raises:
            HTTPException: the body is no sequence of chunks, or ends too early.
        """
        left = self._get_chunk_left()  # type: ignore[attr-defined]
        if left is None:
            return 0
        count: int = self.fp.readinto1(buffer[:left])
        self.chunk_left -= count  # type: ignore[operator]
        if not count:
            raise http.client.IncompleteRead(b"", left)
        return count

    @property
    def is_read(self) -> bool:
        """Whether the whole body has been read, so that the next answer follows on the same connection."""
        return not self.will_close and (self.isclosed() if self.chunked else self.length == 0)


class Line:
    """A connection to one origin, made when needed and kept while both sides can.

    Args:
        tls: For https; None for http.
        options: Set on each new socket.
    """

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None, options: list[tuple[int, int, int]], head: str
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._options = options
        self._head = head
        self._connection: HTTPConnection | None = None
        self._interrupted = False

    @property
    def sock(self) -> socket.socket | None:
        connection = self._connection
        sock = None if connection is None else connection.sock
        return sock if isinstance(sock, socket.socket) else None

    def ask(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None, timeouts_s: tuple[float, float]
    ) -> LineResponse:
        """Send a request and read the head of the answer.

        Args:
            target: Path and query, quoted.
            timeouts_s: To connect, and of each wait for bytes.
        Raises:
            OSError, HTTPException, urllib3's errors: as they come; the connection is closed then.
        """
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        for value in headers.values():
            if _UNSAFE.search(value):
                raise ValueError("a header of more than one line")
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        request = f"{method} {target} HTTP/1.1\r\n{self._head}{lines}{length}\r\n".encode("latin-1") + (body or b"")
        kept = self.sock is not None
        try:
            try:
                return self._answered(method, request, timeouts_s)
            except CLOSED:
                # As a rule a kept connection that the server was closing: once more, at once. An interrupt looks alike.
                if not kept or self._interrupted:
                    raise
            self._drop()
            return self._answered(method, request, timeouts_s)
        except (ssl.SSLError, ssl.CertificateError) as error:
            self.hang_up()
            raise urllib3.exceptions.SSLError(error) from error
        except BaseException:
            self.hang_up()
            raise

    def _answered(self, method: str, request: bytes, timeouts_s: tuple[float, float]) -> LineResponse:
        """Send a request as it is, over a new connection where there is none, and read the head of the answer."""
        sock = self._connected(timeouts_s[0])
        if self._interrupted:  # while there was no socket to shut
            raise ConnectionAbortedError("interrupted")
        sock.settimeout(timeouts_s[1])
        sock.sendall(request)
        response = LineResponse(sock, method=method)
        try:
            response.begin()
        except BaseException:
            response.close()
            raise
        response.line = self
        return response

    def _connected(self, timeout_s: float) -> socket.socket:
        sock = self.sock
        if sock is not None:
            if not wait_for_read(sock, 0):  # readable now is closed by the server, or bytes that nobody asked for
                return sock
            self.hang_up()
        options: dict[str, Any] = {"timeout": timeout_s, "socket_options": self._options}
        if self._tls is None:
            connection = HTTPConnection(self._host, self._port, **options)
        else:
            connection = HTTPSConnection(
                self._host, self._port, ssl_context=self._tls, cert_reqs="CERT_REQUIRED", **options
            )
        self._connection = connection
        connection.connect()
        sock = self.sock
        assert sock is not None
        return sock

    def interrupt(self) -> None:
        """From any thread: the request under way, or else the next, fails soon."""
        self._interrupted = True
        shut(self.sock)

    def hang_up(self) -> None:
        """Close the connection; the next request makes a new one."""
        self._drop()
        self._interrupted = False

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()


def shut(sock: socket.socket | None) -> None:
    """Wake a thread that waits for bytes of this connection; it gets an error."""
    if sock is not None:
        with contextlib.suppress(OSError):  # closed already
            # Reset rather than finish: a server with a full window hears nothing of a close for up to a minute.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            sock.shutdown(socket.SHUT_RDWR)
