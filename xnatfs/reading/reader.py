"""Turns (file, offset, size) into bytes: cached blocks where there are any, else from a transfer as it passes.

Knows nothing of paths, HTTP or disks. Safe to call from any thread; a read blocks its own caller only.
"""

from __future__ import annotations

import threading
import time

from xnatfs import callers
from xnatfs.archives.base import Alone, Archive
from xnatfs.blocks.base import BlockCache, BlockKey, Claims
from xnatfs.buffers import BufferPool
from xnatfs.config import ReadConfig
from xnatfs.errors import CorruptContent, StaleContent, TimedOut, Unavailable
from xnatfs.model import ContentId, Entry
from xnatfs.reading.beside import Beside
from xnatfs.reading.bulk import BulkReader, Folder
from xnatfs.reading.flight import Flight, Need, with_validator
from xnatfs.reading.neighbours import Neighbours
from xnatfs.reading.prefetch import GRAIN, ReadPattern, request_stop
from xnatfs.reading.slots import TransferSlots
from xnatfs.reading.transfer import Transfer
from xnatfs.stats import Stats

BODY_TRIES = 3
"""Transfers that one read may start in a row when bodies break in the middle. The archive retries requests by itself;
this covers what it cannot see: a body that stops half-way."""

JOIN_LIMIT = 8 * GRAIN
"""Bytes a reader waits for a ranged transfer to come along before it starts one of its own nearer by; its own window
when that is more: the kernel reads ahead with several requests at once, and the furthest may come first."""

SCATTERED = 32 * 1024
"""Bytes up to which a read that follows no pattern takes its part of a cached block, not the block: reading and
verifying 1 MiB for 4 KiB costs 85 us, a sixteenth of it 16 us (measured on page-cached blocks)."""

CLOSE_S = 5.0
"""Seconds that ``close`` waits for transfers to end; their sockets are shut by then."""


class OpenFile:
    """One open handle. Holds no position: reads name their own offset."""

    __slots__ = ("entry", "flight", "folder", "pattern")

    def __init__(self, entry: Entry, flight: Flight, folder: Folder | None) -> None:
        self.entry = entry
        self.flight = flight
        self.folder = folder
        self.pattern = ReadPattern()


class BlockReader:
    """Reads files of one archive through one block cache."""

    def __init__(
        self,
        archive: Archive,
        cache: BlockCache,
        config: ReadConfig,
        block_size: int,
        stats: Stats | None = None,
        buffers: BufferPool | None = None,
        claims: Claims | None = None,
    ) -> None:
        if block_size % GRAIN:
            raise ValueError(f"block size {block_size} is not a multiple of {GRAIN}")
        self._archive = archive
        self._cache = cache
        self._config = config
        self._block_size = block_size
        self._buffers = buffers or BufferPool(block_size, config.max_window // block_size)
        self._slots = TransferSlots(config.max_transfers, config.timeout_s, config.brief_transfers)
        self._claims = claims
        self._neighbours = None if claims is None else Neighbours(claims, cache)
        self._beside = Beside(
            config,
            block_size,
            cache,
            self._slots,
            claims,
            lambda flight: self._transfer(flight, beside=True),
            alone=isinstance(archive, Alone) and archive.alone,
        )
        self._stats = stats or Stats()
        self._stats.gauges["transfers"] = lambda: self._slots.count
        self._lock = threading.Lock()
        self._flights: dict[ContentId, Flight] = {}  # guarded by _lock: versions that are open now
        self._bulk = BulkReader(
            archive,
            cache,
            config,
            block_size,
            self._slots,
            self._stats,
            self._flights.get,
            claims,
            lambda: self._slots.closed,
        )

    def open(self, entry: Entry, folder: Folder | None = None) -> OpenFile:
        """A handle on one version of a file. Makes no request.

        Args:
            entry: A file whose ``size`` is known (``ArchiveVFS.lookup`` sees to it).
            folder: The directory it was opened in: when many of its files are read, they come as one stream.
        """
        if entry.size is None:
            raise ValueError(f"{entry.key}: open needs a known size")
        if folder is not None:
            self._bulk.opened(folder, entry)
        base = ContentId(self._archive.id, entry.key, entry.version)
        with self._lock:
            flight = self._flights.get(base)
            if flight is not None and flight.error is None:
                return self._opened(flight, entry, folder)
        note = self._cache.get_note(base)
        with self._lock:
            flight = self._flights.get(base)
            if flight is None or flight.error is not None:
                flight = self._flights[base] = Flight(entry, base, entry.size, note)
            return self._opened(flight, entry, folder)

    def _opened(self, flight: Flight, entry: Entry, folder: Folder | None) -> OpenFile:
        """Under the reader's lock."""
        flight.opens += 1
        self._hold(flight)
        return OpenFile(entry, flight, folder)

    def _hold(self, flight: Flight) -> None:
        """Under the reader's lock: what is open is evicted last."""
        if flight.held is None and flight.content is not None and flight.opens:
            flight.held = flight.content
            self._cache.hold(flight.held)

    def release(self, file: OpenFile) -> None:
        flight = file.flight
        with self._lock:
            flight.opens -= 1
            if flight.opens:
                return
            held, flight.held = flight.held, None
            flight.spans.clear()
            for base, other in list(self._flights.items()):
                if other.opens == 0 and not other.transfers:  # this one, and those whose transfer ran on till now
                    del self._flights[base]
        if held is not None:
            self._cache.release(held)

    def pread(self, file: OpenFile, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of the file, cut at its end. Errors as ``pread_into``."""
        buffer = bytearray(max(0, min(size, file.flight.size - offset)))
        self.pread_into(file, offset, memoryview(buffer))
        return bytes(buffer)

    def pread_into(self, file: OpenFile, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` with the file's bytes from ``offset``; return how many.

        Always all of ``buffer`` before the end of the file: libfuse fills the rest of a short reply with zeroes
        (libfuse, include/fuse.h, ``read``), and zeroes look like pixels.

        Raises:
            Unavailable: no usable answer within the timeout and its retries.
            TimedOut: no progress within ``ReadConfig.timeout_s``.
            StaleContent: the archive now holds another version than the one opened.
            CorruptContent: the bytes do not match the archive's own digest.
            AccessDenied, NotFound: the archive refuses, or no longer has, the file.
        """
        flight = file.flight
        if flight.error is not None:
            flight.raise_error()
        stop = min(offset + len(buffer), flight.size)
        if offset >= stop:
            return 0
        window = file.pattern.observe(offset, stop, self._max_window())
        if flight.transfers:
            flight.advance(offset, stop, window)
        if flight.streams is not None and flight.streams.count > 1:
            self._beside.advance(flight, stop, window)
        if window == 0 and self._slots.ranged:
            self._look_ahead(file)
        at = offset
        rejections = flight.rejections
        while at < stop:
            block_stop = min(stop, (at // self._block_size + 1) * self._block_size)
            target = buffer[at - offset : block_stop - offset]
            count = self._from_cache(flight, at, target, window) if not self._is_ahead(flight, at) else 0
            if count:
                self._stats.hits += 1
            else:
                self._stats.misses += 1
                count = self._from_transfer(file, at, target, window)
                if stop == flight.size > self._block_size and file.folder is not None:
                    self._bulk.fetched(flight, file.folder)
            at += count
            if at == stop and not flight.gives_out(rejections):
                at, rejections = offset, flight.rejections  # a part is of a body that has proved wrong meanwhile
        self._stats.read_bytes += stop - offset
        return stop - offset

    def cached_bytes(self, entry: Entry) -> int:
        """How much of a file needs no request, in bytes."""
        if entry.size is None:
            return 0
        base = ContentId(self._archive.id, entry.key, entry.version)
        note = self._cache.get_note(base)
        return 0 if note is None else min(entry.size, self._cache.kept_bytes(with_validator(base, note)))

    @property
    def idle(self) -> bool:
        """True while no transfer is under way."""
        return self._slots.count == 0

    def close(self) -> None:
        """Stop every transfer, so that reads waiting for one fail, then close the cache. Safe to call twice."""
        self._slots.close(CLOSE_S)
        if self._claims is not None:
            self._claims.close()
        self._cache.close()

    # --- inside ------------------------------------------------------------------------------------------------

    def _max_window(self) -> int:
        """All transfers together run ahead by at most twice one window, however many there are."""
        return self._config.max_window // max(1, self._slots.led // 2)

    def _look_ahead(self, file: OpenFile) -> None:
        """Behind a jump: have fetched what lies at equal distances."""
        strides = file.pattern.strides
        if strides.sure:
            self._beside.fetch(file.flight, strides.ahead(file.flight.size, self._max_window()))
        elif file.flight.spans:
            self._beside.forget(file.flight)

    def _is_ahead(self, flight: Flight, at: int) -> bool:
        """Whether looking in the cache is a waste: the file was cold, and its transfer has not kept ``at`` yet."""
        return flight.cold and any(transfer.front <= at for transfer in flight.transfers)

    def _from_cache(self, flight: Flight, at: int, target: memoryview, window: int) -> int:
        """Copy what one cached block or grain holds at ``at``; 0 when neither is there."""
        content = flight.content
        if content is None:
            return 0
        for unit in (self._block_size, GRAIN):
            number, start = divmod(at, unit)
            length = min(unit, flight.size - number * unit)
            stop = min(start + len(target), length)
            key = BlockKey(content, number, unit)
            if window == 0 and stop - start <= SCATTERED < length:
                data, start = self._cache.get_span(key, start, stop), 0
                wanted = stop - at % unit
            else:
                data, wanted = self._cache.get(key), length
            if data is not None and len(data) == wanted:
                piece = memoryview(data)[start : start + len(target)]
                target[: len(piece)] = piece
                return len(piece)
        return 0

    def _from_transfer(self, file: OpenFile, at: int, target: memoryview, window: int) -> int:
        """Wait until the bytes at ``at`` pass, starting a transfer if none is on its way there."""
        flight = file.flight
        stop = at + len(target)
        tries = 0
        looked = short = False
        may_come = file.folder is not None  # in a bulk stream
        elsewhere = self._neighbours is not None  # another process may be fetching it
        began = time.monotonic()
        need = flight.add_need(at, stop)  # from here on every piece that passes is kept for us
        try:
            while True:
                flight.raise_error()
                with flight.cond:
                    piece = flight.passed(at, stop)
                    if piece is None:
                        transfer = flight.covering(at, max(JOIN_LIMIT, window), self._slots.ranged)
                        if transfer is None and looked and not may_come and not (elsewhere and flight.claim is None):
                            transfer, leads = self._new_transfer(flight, at, stop, window, short), True
                        else:
                            leads = False
                if piece is not None:
                    target[: len(piece)] = piece
                    return len(piece)
                if transfer is None and looked and may_come:
                    may_come = False
                    looked = not self._brought(file)
                    continue
                if transfer is None and looked:
                    elsewhere = False
                    if count := self._from_neighbour(flight, at, target, window):
                        return count
                    continue
                if transfer is None:
                    looked = True  # it may have passed between our first look and the need
                    if count := self._from_cache(flight, at, target, window):
                        return count
                    continue
                if leads:
                    self._make_way(flight, transfer)
                    self._run(transfer)
                    with self._lock:
                        self._hold(flight)
                else:
                    transfer.want(at, stop, window)
                self._await(flight, transfer, need)
                if transfer.error is not None and not transfer.beside:
                    tries += 1
                    if not _worth_another(transfer, tries):
                        raise transfer.error.again()
                elif transfer.gave_way:
                    callers.check()
                    if time.monotonic() - began > self._config.timeout_s:
                        raise TimedOut(f"{flight.entry.key}: no answer within {self._config.timeout_s:g} s")
                elif leads and transfer.ended and transfer.position <= at:
                    short = True  # the server sent less than was asked for, as it may
        finally:
            flight.drop_need(need)
            if flight.claim is not None:
                flight.unclaim()

    def _from_neighbour(self, flight: Flight, at: int, target: memoryview, window: int) -> int:
        """Copy what another process that fetches the file has put into the cache; 0 when it is ours to fetch."""
        assert self._neighbours is not None
        block_stop = min(flight.size, (at // self._block_size + 1) * self._block_size)
        # To the end of a block: only whole ones reach the cache.
        wanted = -(-(at + len(target) + window) // self._block_size) * self._block_size

        def look() -> int:
            return self._from_cache(flight, at, target, window)

        count = self._neighbours.bring(flight, at, block_stop, wanted, look, lambda: self._slots.closed)
        with self._lock:
            self._hold(flight)
        return count

    def _brought(self, file: OpenFile) -> bool:
        """Whether a bulk stream has just brought the file; waits for one that will."""
        if file.folder is None or not self._bulk.brings(file.flight, file.folder):
            return False
        with self._lock:
            self._hold(file.flight)
        return True

    def _new_transfer(self, flight: Flight, at: int, stop: int, window: int, exact: bool) -> Transfer:
        """Under the flight's condition. From the beginning of a grain, so that it can be kept, or ``exact``ly here."""
        transfer = self._transfer(flight)
        start = at if exact else at // GRAIN * GRAIN
        asked_stop = request_stop(start, stop, flight.size, window)
        if self._slots.ranged:
            asked_stop = flight.stop_before_next(start, asked_stop)
            asked_stop = self._beside.led(flight, start, asked_stop, stop, window)
        # Only a whole body can be held to its digest: a small file comes as one, and whatever has proved wrong before.
        if flight.rejections or (flight.cold and not exact and flight.size <= 2 * GRAIN):
            start, asked_stop = 0, flight.size
        transfer.begin(start, asked_stop, stop, window)
        flight.add(transfer)
        return transfer

    def _transfer(self, flight: Flight, beside: bool = False) -> Transfer:
        passed = self._beside.passed
        return Transfer(flight, self._archive, self._cache, self._config, self._slots, self._buffers, passed, beside)

    def _make_way(self, flight: Flight, transfer: Transfer) -> None:
        """A stream that starts over will pass all that a paused one of the same file still could."""
        if not self._slots.ranged:
            for other in flight.transfers:
                if other is not transfer and other.idle_since() is not None:
                    other.stop()

    def _run(self, transfer: Transfer) -> None:
        """Send the request here; read a short body here too, a long one in a thread of its own."""
        with callers.watched(transfer.give_way):
            if transfer.open():
                transfer.run()
                return
        threading.Thread(target=transfer.run, name="xnatfs-transfer", daemon=True).start()

    def _await(self, flight: Flight, transfer: Transfer, need: Need) -> None:
        """Sleep until the bytes needed have passed or the transfer has ended, as it does when the server is silent."""
        # Twice, because the transfer's own clock may start a timeout later than ours (a request, then its body).
        patience_s = 2 * self._config.timeout_s + 1
        position, deadline = transfer.position, time.monotonic() + patience_s
        while True:
            with flight.cond:
                if transfer.ended or flight.error is not None or flight.passed(need.start, need.stop) is not None:
                    return
                if transfer.opened and not transfer.will_pass(need.start, flight.size, ranged=True):
                    return  # what was thought to be all of the file has been answered as a part, and not this one
            now = time.monotonic()
            if transfer.position - position >= GRAIN:
                position, deadline = transfer.position, now + patience_s
            elif now >= deadline:
                break
            need.wait(deadline - now)
        transfer.stop()
        raise TimedOut(f"{flight.entry.key}: no answer within {self._config.timeout_s:g} s")


def _worth_another(transfer: Transfer, tries: int) -> bool:
    """A body that broke in the middle, or whose digest was wrong before anyone had a byte of it; not a refusal."""
    error = transfer.error
    if isinstance(error, CorruptContent):
        return tries < 2
    if isinstance(error, TimedOut | StaleContent) or not isinstance(error, Unavailable):
        return False
    return transfer.opened and tries < BODY_TRIES
