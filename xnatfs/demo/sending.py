"""Puts bodies on the wire: large views, exact counts, shared bandwidth, and the cuts that faults ask for.

One thread a body writes straight to the connection's socket; the event loop only sends the head. So a slow client costs
no computing, back-pressure is the socket's own, and the count is what the kernel took, to the byte.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

SEND_BUFFER = 128 * 1024  # bytes; small, so that "sent" stays close to what the client has really pulled
GATHER = 64 * 1024  # bytes; smaller pieces of a chunked body share a chunk
POLL_MS = 200  # how often a blocked sender looks whether the server is stopping
DRIP_S = 0.05  # seconds between the single bytes of a dripping body
SLICE_S = 0.02  # seconds of bandwidth in one send on a limited link

Piece = bytes | memoryview


class ClientGone(ConnectionError):
    """The client closed or reset the connection before the body's end."""


class CutShort(Exception):
    """A fault ended the body; the connection must not be used again."""

    def __init__(self, reset: bool) -> None:
        super().__init__("reset" if reset else "closed")
        self.reset = reset


@dataclass(frozen=True, slots=True)
class Cut:
    """What happens to a body once ``at`` bytes of it are out. kind: "close", "reset", "stall" or "drip"."""

    kind: str
    at: int


@dataclass(slots=True)
class Meter:
    """Bytes of one body that the kernel has taken. Written by the sending thread, read by anyone."""

    sent: int = 0


class Pace:
    """When what goes out at a rate may go on. Guarded by whoever shares it."""

    def __init__(self) -> None:
        self._free_at_s = 0.0  # when all that was promised has been sent

    def pause_s(self, length: int, rate: float) -> float:
        """How long to wait after ``length`` bytes, in seconds."""
        now = time.monotonic()
        self._free_at_s = max(self._free_at_s, now - SLICE_S) + length / rate
        return self._free_at_s - now


class Link:
    """The bandwidth that all bodies share, and that of each connection; None is unlimited. Safe from any thread."""

    def __init__(self) -> None:
        self.bytes_per_s: float | None = None
        self.connection_bytes_per_s: float | None = None
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._pace = Pace()  # guarded by _lock

    @property
    def limited(self) -> bool:
        return bool(self.bytes_per_s or self.connection_bytes_per_s)

    def slice(self) -> int | None:
        """The most to send at once, or None without a limit."""
        rates = [rate for rate in (self.bytes_per_s, self.connection_bytes_per_s) if rate]
        return max(1024, int(min(rates) * SLICE_S)) if rates else None

    def wait(self, length: int, own: Pace) -> None:
        """After ``length`` bytes on a connection whose pace is ``own``."""
        shared_rate, own_rate = self.bytes_per_s, self.connection_bytes_per_s
        pause_s = own.pause_s(length, own_rate) if own_rate else 0.0
        if shared_rate:
            with self._lock:
                pause_s = max(pause_s, self._pace.pause_s(length, shared_rate))
        if pause_s > 0:
            self.stopping.wait(pause_s)


@dataclass(slots=True)
class Sender:
    """Writes one body to one socket. ``sock`` is a duplicate that this sender closes."""

    sock: socket.socket
    link: Link
    meter: Meter
    cut: Cut | None = None
    _poll: select.poll = field(default_factory=select.poll)
    _pace: Pace = field(default_factory=Pace)  # one body at a time goes out on a connection

    def run(self, pieces: Iterable[Piece], chunked: bool) -> None:
        """Send every piece, framed as chunks where asked; the last, empty chunk is the caller's.

        Raises:
            ClientGone, CutShort
        """
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            self._poll.register(self.sock, select.POLLOUT)
            for piece in _gathered(pieces) if chunked else pieces:
                self._piece(memoryview(piece), chunked)
            if self.cut is not None and self.meter.sent >= self.cut.at:
                self._act(self.cut)
        except (ConnectionError, OSError) as exc:
            raise ClientGone(str(exc)) from exc
        finally:
            self.sock.close()

    def _piece(self, view: memoryview, chunked: bool) -> None:
        if not len(view):
            return
        head, tail = (b"%x\r\n" % len(view), b"\r\n") if chunked else (b"", b"")
        cut = self.cut
        if cut is not None and self.meter.sent + len(view) > cut.at:
            before = max(0, cut.at - self.meter.sent)
            self._write(view[:before], head, b"")
            self._act(cut)
            self._drip(view[before:])
            self._write(memoryview(b""), b"", tail)
        else:
            self._write(view, head, tail)

    def _act(self, cut: Cut) -> None:
        if cut.kind == "stall":
            self._stall()
        if cut.kind in ("close", "reset"):
            raise CutShort(cut.kind == "reset")

    def _stall(self) -> None:
        """Say nothing until the client gives up or the server stops."""
        watch = select.poll()
        watch.register(self.sock, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        while not self.link.stopping.is_set():
            if watch.poll(POLL_MS):
                raise ClientGone("gave up on a stalled body")
        raise CutShort(reset=False)

    def _drip(self, view: memoryview) -> None:
        for place in range(len(view)):
            self._write(view[place : place + 1])
            if self.link.stopping.wait(DRIP_S):
                raise CutShort(reset=False)

    def _write(self, view: memoryview, head: bytes = b"", tail: bytes = b"") -> None:
        """Send ``view`` between its chunk's marks; only bytes of ``view`` are counted."""
        limit = self.link.slice()
        done = 0  # of head, view and tail together
        end = len(head) + len(view) + len(tail)
        while done < end:
            parts = _rest((memoryview(head), view, memoryview(tail)), done)
            if limit is not None:
                parts = [parts[0][:limit]]
            try:
                taken = self.sock.send(parts[0]) if len(parts) == 1 else self.sock.sendmsg(parts)
            except BlockingIOError:
                self._writable()
                continue
            if limit is not None:  # what went out, not what was offered: the send buffer takes only part of it
                self.link.wait(taken, self._pace)
            self.meter.sent += _within(done + taken, len(head), len(view)) - _within(done, len(head), len(view))
            done += taken

    def _writable(self) -> None:
        while not self._poll.poll(POLL_MS):
            if self.link.stopping.is_set():
                raise CutShort(reset=False)


def _rest(parts: tuple[memoryview, ...], done: int) -> list[memoryview]:
    """What is left of ``parts`` when ``done`` bytes of them are out; no empty ones."""
    left = []
    for part in parts:
        if done < len(part):
            left.append(part[done:])
        done = max(0, done - len(part))
    return left


def _within(done: int, before: int, length: int) -> int:
    """How many of ``done`` bytes belong to the ``length`` bytes that come after ``before``."""
    return min(max(done - before, 0), length)


def _gathered(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same bytes with small pieces put together, so that a member's header does not travel alone."""
    small = bytearray()
    for piece in pieces:
        if len(piece) < GATHER:
            small += piece
        if len(small) >= GATHER or (len(piece) >= GATHER and small):
            yield bytes(small)
            small.clear()
        if len(piece) >= GATHER:
            yield piece
    yield bytes(small)


def abort_on_close(sock: socket.socket) -> None:
    """Make the close of this connection an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@dataclass(slots=True)
class Body:
    """What a reply carries. ``length`` None means it is not known beforehand: the body goes out in chunks.

    ``pieces(start, stop)`` makes the bytes; a body without length ignores both numbers.
    """

    length: int | None
    pieces: Callable[[int, int], Iterator[Piece]]
    sliceable: bool = False  # a file: Range applies


def of_bytes(data: bytes) -> Body:
    def pieces(start: int, stop: int) -> Iterator[Piece]:
        yield memoryview(data)[start:stop]

    return Body(len(data), pieces)
