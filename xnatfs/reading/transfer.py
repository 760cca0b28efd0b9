"""One response body being consumed, forward only: cuts it into blocks, keeps them, wakes their readers.

Knows nothing of paths, HTTP or files on disk. ``run`` belongs to one thread; everything else may be called from any.
Back-pressure: it runs ahead of its furthest reader by a window, then leaves the socket alone.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from xnatfs.archives.base import Archive, RangeStream
from xnatfs.blocks.base import Block, BlockCache, BlockKey
from xnatfs.buffers import BufferPool
from xnatfs.config import MIB, ReadConfig
from xnatfs.errors import ArchiveError, CorruptContent, TimedOut, Unavailable
from xnatfs.reading.flight import Flight, stale
from xnatfs.reading.prefetch import GRAIN
from xnatfs.turns import Turn

if TYPE_CHECKING:
    from xnatfs.model import ContentId

log = logging.getLogger(__name__)

LITTLE = 4 * MIB
"""Bytes: a rest smaller than this is fetched rather than thrown away. A guess: what reopening a connection costs."""

PATIENCE = 6
"""A paused transfer of a file that is still open is let go after this many idle times: proxies cut silent connections
after a minute, and a connection is better given to somebody else."""

HASH_AHEAD = 8
"""Blocks that may wait for the MD5 thread: MD5 runs at about 0.6 GB/s, a burst should not stop the socket."""

TELL_S = 0.02
"""How often other processes are told how far the stream is, and asked what they want of it: a system call each."""

STALLED_S = 4.0
"""Silence after which a transfer gives way to one that waits for a connection; twice as long each time, so that one
which needs longer for an answer is read as well. A guess: XNAT reads a large catalog in a second or two."""

MURMUR = 4096
"""Bytes that are no silence: a fifth of a line of 64 kb/s shared by eight."""

_FOREVER = 1 << 62


class Slots(Protocol):
    def acquire(self, transfer: Transfer) -> None: ...
    def answered(self, ranged: bool) -> None: ...
    def release(self, transfer: Transfer) -> None: ...


class Transfer:
    """From the first byte asked for to the end of one response.

    Attributes:
        position: Offset behind the last byte that has passed (guarded by the flight's condition; rising).
        error: Why it ended early, for those who waited for it.
        opened: True once the server's answer was accepted.
        moved: Bytes that have passed.
        gave_way: It was ended, or is ending, in favour of another: ask again.
        brief: Whether the whole file is a block at most, whatever the server makes of a range.
        beside: It fetches what no reader has asked for yet, on a connection that was to spare.
    """

    def __init__(
        self,
        flight: Flight,
        archive: Archive,
        cache: BlockCache,
        config: ReadConfig,
        slots: Slots,
        buffers: BufferPool,
        passed: Callable[[Flight, Transfer], None],
        beside: bool = False,
    ) -> None:
        """
        Args:
            passed: Told of each piece, in the thread that runs this.
        """
        self._flight = flight
        self._passed = passed
        self._archive = archive
        self._cache = cache
        self._config = config
        self._block_size = buffers.size
        self._slots = slots
        self._buffers = buffers
        self._stream: RangeStream | None = None
        self._stop = 0  # guarded by _cond: of what is read of it
        self._hashes = False
        self._content: ContentId | None = None
        self._cond = flight.cond
        self._piece_start = 0  # guarded by _cond, like the next one
        self._piece = bytearray()
        self._limit = 0  # guarded by _cond: run until here
        self._wanted = 0  # guarded by _cond: the furthest byte a reader has asked for
        self._wanted_at = time.monotonic()
        self._progress = 0  # the last position that counted as progress, and when it was reached
        self._progress_at = 0.0
        self._tell_after = 0.0
        self._heard = 0  # the last position that was no silence, and when it was reached
        self._heard_at = 0.0
        self._began_at = 0.0  # when the connection was ours
        self._stopping = False
        self._has_slot = False
        self._turn = Turn(flight.size <= buffers.size, self.give_way)
        self.gave_way = False
        self.brief = flight.size <= buffers.size
        self.beside = beside
        self.start = 0
        self.asked_stop = 0
        self.position = 0
        self.error: ArchiveError | None = None
        self.ended = False
        self.paused = False
        self.opened = False
        self.moved = 0

    # --- for readers -------------------------------------------------------------------------------------------

    def will_pass(self, at: int, far: int, ranged: bool) -> bool:
        """See ``Flight.covering``."""
        if self.ended or self._stopping:
            return False
        stream = self._stream
        if stream is None:  # not answered yet
            return not ranged or self.start <= at < self.asked_stop
        if not self._piece_start <= at < self._stop:  # not position: the read may straddle it
            return False
        return not stream.ranged or at - self.position <= far

    @property
    def front(self) -> int:
        """Offset of the piece being filled: what lies before has been kept."""
        return self._piece_start

    def current(self, start: int, stop: int) -> memoryview | None:
        """Under the condition: bytes of the piece being filled, if [start, stop) or the rest of that piece is there."""
        at = self._piece_start
        if not at <= start < self.position:
            return None
        end = min(stop, at + len(self._piece))
        return memoryview(self._piece)[start - at : end - at] if end <= self.position else None

    def want(self, start: int, stop: int, window: int) -> None:
        """A reader is at [start, stop) and worth ``window`` bytes of running ahead."""
        if start > self.position + self._config.max_window and start > self._wanted and not self._flight.has_needs():
            return  # read from the cache far ahead: no reason to hurry there
        limit = stop + max(window, GRAIN)
        if limit <= self._limit and stop <= self._wanted:
            return
        with self._cond:
            self._wanted = max(self._wanted, stop)
            self._wanted_at = time.monotonic()
            if limit > self._limit:
                self._limit = limit
                if self.paused:
                    self._cond.notify_all()

    def begin(self, start: int, asked_stop: int, stop: int, window: int) -> None:
        """What to ask for, and the first demand: a reader at [start, stop). Before anyone else knows this transfer."""
        self.start = self.position = self._piece_start = start
        self.asked_stop = asked_stop
        self._wanted = stop
        self._limit = stop + max(window, GRAIN)

    @property
    def limit(self) -> int:
        """Up to where readers want it for now."""
        return self._limit

    @property
    def may_be_cut(self) -> bool:
        stream = self._stream
        return stream is not None and stream.ranged and not self._hashes

    def cut(self, at: int, least: int) -> bool:
        """Under the condition, in the thread that runs it, between pieces: end at ``at``. False when that would save
        less than ``least`` bytes."""
        if self._stop - at < least:
            return False
        self._stop = at
        return True

    def stop(self) -> None:
        """End soon, keeping what has passed. Returns at once."""
        with self._cond:
            self._stopping = True
            self._cond.notify_all()
            stream = self._stream
        self._turn.interrupt()
        if stream is not None:
            stream.close()

    def give_way(self) -> None:
        """End soon, for another who waits for a connection; the readers of this one ask again. Returns at once."""
        with self._cond:
            if self.ended or self._stopping:
                return
            self.gave_way = True
            if not self.beside:
                self._flight.gave_way += 1
        self.stop()

    @property
    def leaving(self) -> bool:
        return self._stopping

    def overdue_s(self, now: float) -> float:
        """How much longer than is fair to others it has been silent, in seconds; negative while it is not."""
        if not self._has_slot or self.paused or self._stopping:
            return -1.0
        stream = self._stream
        # Asked again, a server without ranges sends all of that once more.
        lost_s = 0.0 if stream is None or stream.ranged else self._heard_at - self._began_at
        return now - self._heard_at - lost_s - float(STALLED_S * 2**self._flight.gave_way)

    def idle_since(self) -> float | None:
        """When a paused transfer that nobody waits for was last wanted; None while it is of use."""
        stream = self._stream
        if not self.paused or stream is None:
            return None
        with self._cond:
            return None if self._flight.needed_in(self.position, self._stop) else self._wanted_at

    # --- for the one thread that runs it -----------------------------------------------------------------------

    def open(self) -> bool:
        """Send the request and check its answer. True when the body is short enough to be read by the caller itself."""
        flight = self._flight
        if flight.claim is not None and not self.beside:
            flight.claim.moved(self.start, self.start, 0)
        try:
            if not self.beside:  # else it was given one before
                self._slots.acquire(self)
            self._began_at = self._heard_at = time.monotonic()
            self._has_slot = True
            with self._turn:
                stream = self._archive.open_range(flight.entry, self.start, self.asked_stop)
            content = self._checked(stream)
        except ArchiveError as error:
            self._end(error)
            return True
        except BaseException:
            self._end(Unavailable(f"{flight.entry.key}: reading was interrupted"))
            raise
        with self._cond:
            self._content = content
            self._stream = stream
            self._stop = stream.stop
            self.position = self._piece_start = self._progress = self._heard = stream.start
            self._progress_at = self._heard_at = time.monotonic()
            self.opened = True
            self._flight.wake_begun(0, stream.start)  # who took it for a stream from the beginning
            short = stream.stop - stream.start <= self._block_size
            if short:
                self._limit = _FOREVER  # its reader reads it: nobody would be left to wake it from a pause
                self._tell_after = time.monotonic() + TELL_S  # it may have ended by then
            stopping = self._stopping
        self._slots.answered(stream.ranged)
        if stopping:
            stream.close()
        return short

    def _checked(self, stream: RangeStream) -> ContentId:
        flight = self._flight
        try:
            if stream.total != flight.size or not stream.start <= self.start < stream.stop:
                raise stale(flight.entry)
            if self.beside and not stream.ranged:
                raise Unavailable(f"{flight.entry.key}: the range was not honoured")
            if flight.rejections and not (stream.start == 0 and stream.stop == stream.total):
                raise CorruptContent(f"{flight.entry.key}: a whole body was wrong, and only parts come now")
            content = flight.pin(stream.validator)
            if content is None:
                assert flight.content is not None
                self._cache.discard(flight.content)
                self._cache.put_note(flight.base, stream.validator)
                error = stale(flight.entry)
                flight.fail(error)
                raise error
        except BaseException:
            stream.close()
            raise
        if not flight.noted:
            flight.noted = True
            self._cache.put_note(flight.base, flight.validator or stream.validator)
        return content

    def run(self) -> None:
        """Consume the body until its end, an error, or until nobody wants the rest."""
        if self.ended:
            return
        try:
            self._consume()
        except ArchiveError as error:
            self._end(error)
        except BaseException as error:
            self._end(Unavailable(f"{self._flight.entry.key}: reading failed: {error!r}"))
            if not isinstance(error, Exception):
                raise
            log.exception("transfer of %s failed", self._flight.entry.key)
        else:
            self._end(None)

    def _consume(self) -> None:
        stream = self._stream
        assert stream is not None
        digest = self._flight.entry.digest
        whole = stream.start == 0 and stream.stop == stream.total
        hasher = _Hasher(stream.total > 4 * self._block_size) if digest and whole else None
        self._hashes = hasher is not None
        try:
            while self.position < self._stop:
                start, length, unit = self._next_piece(self._stop)
                piece = self._buffers.take(length)
                if not self._fill(stream, start, piece):
                    return
                data = memoryview(piece).toreadonly()  # nothing writes to it any more: kept as it is, not copied
                if hasher is not None:
                    hasher.update(data)
                    if start + length == stream.stop and hasher.hexdigest() != digest:
                        self._reject()
                self._publish(start, data, unit)
                self._passed(self._flight, self)
        finally:
            if hasher is not None:
                hasher.close()

    def _fill(self, stream: RangeStream, start: int, piece: bytearray) -> bool:
        """Read one piece from the socket, in view of its readers. False when the transfer is to end before that."""
        view = memoryview(piece)
        length, filled = len(piece), 0
        with self._cond:
            self._piece_start, self._piece = start, piece
        while filled < length:
            if self._stopping or (self.position >= self._limit and not self._wait_for_demand()):
                self._keep_grains(start, view[:filled])
                return False
            filled += self._readinto(stream, view[filled:])
            self._check_progress(start + filled)
            if filled < length and not self._flight.rejections:  # else nothing is given out before it has proved right
                self._advance_to(start + filled)
        return True

    def _publish(self, start: int, data: Block, unit: int) -> None:
        """Keep a whole piece, then let its readers have it: in this order a reader that comes late finds it kept."""
        if unit:
            assert self._content is not None
            self._cache.put(BlockKey(self._content, start // unit, unit), data)
        with self._cond:
            self._flight.keep(start, data)
            self.position = start + len(data)
            self.moved += len(data)
            self._flight.moved += len(data)
            self._flight.wake_begun(start, self.position)

    def _check_progress(self, position: int) -> None:
        """A server that drips a byte now and then never lets the socket time out: ask for a grain per timeout."""
        now = time.monotonic()
        if now >= self._tell_after and self._flight.claim is not None:
            self._tell(position)
        if position - self._heard >= MURMUR:
            self._heard, self._heard_at = position, now
        if position - self._progress >= GRAIN:
            self._progress, self._progress_at = position, now
        elif now - self._progress_at > self._config.timeout_s:
            raise TimedOut(f"{self._flight.entry.key}: under {GRAIN} bytes in {self._config.timeout_s:g} s")

    def _tell(self, position: int) -> None:
        """Let the processes that wait for this file know how far it is."""
        claim, stream = self._flight.claim, self._stream
        if claim is not None and stream is not None:
            claim.moved(*(self._flight.progress() or (stream.start, position, stream.stop)))
        self._tell_after = time.monotonic() + TELL_S

    def _heed(self) -> None:
        """Under the condition: go on for a process that wants more than our readers do."""
        claim = self._flight.claim
        wanted = 0 if claim is None else claim.wanted()
        if wanted > self._limit:
            self._limit, self._wanted_at = wanted, time.monotonic()

    def _readinto(self, stream: RangeStream, view: memoryview) -> int:
        try:
            count = stream.readinto(view)
        except (ArchiveError, OSError, ValueError):
            if self._stopping:  # stop() closed the connection under us
                return 0
            raise
        if self._stopping:
            return 0  # bytes of a socket that was shut meanwhile: under TLS they may be what was on the wire
        if count == 0:
            raise Unavailable(f"{self._flight.entry.key}: the body ended at {self.position} of {stream.stop} bytes")
        return count

    def _advance_to(self, position: int) -> None:
        with self._cond:
            self.position = position
            self._flight.wake_served(self._piece_start, position)

    def _next_piece(self, stream_stop: int) -> tuple[int, int, int]:
        """(start, length, unit to keep it under or 0): a block where a whole one comes, else a grain or less."""
        start, size = self.position, self._flight.size
        for unit in (self._block_size, GRAIN):
            length = min(unit, size - start)
            if start % unit == 0 and start + length <= stream_stop:
                return start, length, unit
        return start, min(GRAIN - start % GRAIN, stream_stop - start), 0

    def _wait_for_demand(self) -> bool:
        """Back-pressure: sleep until a reader comes near. False when the transfer should end instead."""
        with self._cond:
            self.paused = True
            self._tell(self.position)
            while self.position >= self._limit:
                self._heed()
                if self.position < self._limit:
                    break
                if self._stopping:
                    return False
                idle_s = time.monotonic() - self._wanted_at
                patience_s = self._config.idle_s * (PATIENCE if self._flight.opens else 1)
                if idle_s >= patience_s and not self._flight.has_needs():
                    if not self._worth_finishing():
                        return False
                    self._limit = _FOREVER
                    break
                self._cond.wait(max(patience_s - idle_s, 0.05) if self._flight.claim is None else TELL_S)
            self._heard, self._heard_at = self.position, time.monotonic()
            self.paused = False
        self._progress, self._progress_at = self.position, self._heard_at
        return True

    def _worth_finishing(self) -> bool:
        left = self._stop - self.position
        return not self.beside and (left <= LITTLE or left <= self._flight.size // 2)

    def _keep_grains(self, start: int, view: memoryview) -> None:
        """The part of a block that has passed before letting go, in whole grains."""
        content = self._content
        if start % GRAIN or content is None:
            return
        for at in range(0, len(view) - GRAIN + 1, GRAIN):
            key = BlockKey(content, (start + at) // GRAIN, GRAIN)
            self._cache.put(key, bytes(view[at : at + GRAIN]))

    def _reject(self) -> None:
        """The whole body has passed and is not what the archive's catalog says. Its last piece has not been given out.

        Asked for once more if it is one block and no reader has had a byte of it; else the handles that read it fail.
        """
        flight = self._flight
        if self._content is not None:
            self._cache.discard(self._content)
        error = CorruptContent(
            f"{flight.entry.key}: the MD5 of the bytes received differs from the archive's catalog",
            "damaged on its way, or the catalog is out of date: ask the archive's owner for a catalog refresh",
        )
        flight.reject(self, error, again=flight.size <= self._block_size)
        raise error

    def _end(self, error: ArchiveError | None) -> None:
        self._tell(self.position)
        with self._cond:
            if self.gave_way and isinstance(error, Unavailable):
                error = None
            self.error = error
            self.ended = True
            stream, self._stream = self._stream, None
            self._piece = bytearray()  # our turn refers to us: what we hold would be held until garbage is collected
            self._flight.remove(self)
            self._flight.wake_all()
        if self._flight.claim is not None:
            self._flight.unclaim()
        if stream is not None:
            stream.close()
        if self._has_slot:
            self._has_slot = False
            self._slots.release(self)


class _Hasher:
    """MD5 of a body as it passes; for large ones in a thread of its own, beside the network and the disk."""

    def __init__(self, threaded: bool) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._queue: queue.Queue[Block | None] | None = None
        if threaded:
            self._queue = queue.Queue(HASH_AHEAD)
            self._thread = threading.Thread(target=self._work, args=(self._queue,), name="xnatfs-md5", daemon=True)
            self._thread.start()

    def update(self, data: Block) -> None:
        if self._queue is None:
            self._md5.update(data)
        else:
            self._queue.put(data)

    def hexdigest(self) -> str:
        self.close()
        return self._md5.hexdigest()

    def close(self) -> None:
        if self._queue is not None:
            self._queue.put(None)
            self._thread.join()
            self._queue = None

    def _work(self, pieces: queue.Queue[Block | None]) -> None:
        while (data := pieces.get()) is not None:
            self._md5.update(data)
