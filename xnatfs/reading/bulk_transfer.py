"""One bulk stream being consumed: its members are checked, kept as blocks, and handed to the readers who wait for them.

Knows nothing of how a walk is noticed. ``run`` belongs to one thread, which has a second keep what arrives;
everything else may be called from any.

A member counts for nothing until all of it is here and right: length, the container's CRC, the archive's digest where
there is one. Whatever is wrong with a member or with the stream, its readers fetch the file by itself.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from xnatfs import callers
from xnatfs.archives.base import Archive, BulkMember, BulkStream
from xnatfs.blocks.base import BlockCache, BlockKey, Claim
from xnatfs.config import KIB, MIB, ReadConfig
from xnatfs.errors import ArchiveError, TimedOut
from xnatfs.model import ContentId, Entry
from xnatfs.reading.flight import Flight, with_validator
from xnatfs.reading.validators import validators_agree
from xnatfs.stats import Stats
from xnatfs.turns import Turn

log = logging.getLogger(__name__)

LARGEST = 8 * MIB
"""Bytes of a member that is kept: it is held in memory until its CRC is known to be right."""

FIRST_AHEAD = 8 * MIB
"""Bytes that a stream brings before any reader has followed: a walk may end with its third file."""

MOST_AHEAD = 1.5
"""Windows of one transfer (a quarter of the memory for recent blocks each) that a stream may be ahead of what readers
have opened since it began: what is twice as far ahead pushes the files that are read next out of memory."""

RESUMED = 0.75
"""The part of that at which a stream that has paused goes on: not for each file that is opened, a wake-up each."""

LITTLE = 4 * MIB
"""Bytes: a rest smaller than this is fetched rather than thrown away."""

KEEP_AHEAD = 4
"""Members that may wait for their MD5: a burst should not stop the socket, and each may have 8 MiB."""

PATIENCE_S = 1.0
"""Seconds a reader waits at least for a member that is to come. Programs read folders in any order, and what
is fetched beside the stream comes twice."""

PATIENCE_BYTES = 32
"""... and until this many times the bytes of its file have passed: so at most a thirtieth comes twice."""

LONGEST_WAIT_S = 10.0  # whatever passes

THINKING_S = 0.3
"""A reader that comes so long after the last one has read is no copying program but somebody who looks at images..."""

HASTE_S = 0.1  # ... and is not kept waiting longer than this

SILENCE_S = 2.0
"""Seconds in which a stream has to bring PROGRESS bytes to be waited for: files come faster by themselves than from one
that drips. One whose reader has turned away is let go, unless its first bytes are still to come."""

PROGRESS = 64 * KIB

LOOK_S = 0.25  # between two looks of a waiting reader at how the stream is doing

TELL_S = 0.02
"""How often other processes are told how far the stream is, and asked what they want of it: a system call each."""


class Slots(Protocol):
    def acquire(self, transfer: BulkTransfer) -> None: ...
    def release(self, transfer: BulkTransfer) -> None: ...


def patience(size: int, hasty: bool) -> tuple[float, int]:
    """Seconds that a reader waits at least for a file of this size, and bytes that must pass until it gives up."""
    return (HASTE_S, 0) if hasty else (PATIENCE_S, PATIENCE_BYTES * size)


def has_passed(cache: BlockCache, flight: Flight) -> bool:
    """Whether the cache has learnt of this content since the flight began."""
    if flight.content is not None:
        return True  # perhaps since a moment ago: another look costs little
    note = cache.get_note(flight.base)
    if note is None or flight.pin(note) is None:
        return False
    flight.noted, flight.cold = True, False
    return True


class _Ticket:
    """A reader waits for one member. ``came`` says how it ended once ``done`` is set."""

    __slots__ = ("came", "done")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.came = False


class BulkTransfer:
    """From the request to the last member.

    Attributes:
        kept: Members that were kept.
        moved: Bytes of members that have passed, kept or not.
    """

    brief = False

    def __init__(
        self,
        archive: Archive,
        cache: BlockCache,
        config: ReadConfig,
        block_size: int,
        slots: Slots,
        stats: Stats,
        find: Callable[[ContentId], Flight | None],
    ) -> None:
        self._archive = archive
        self._cache = cache
        self._config = config
        self._block_size = block_size
        self._slots = slots
        self._stats = stats
        self._find = find
        self._cond = threading.Condition(threading.Lock())
        self._tickets: dict[str, list[_Ticket]] = {}  # guarded by _cond; by key of the file
        self._to_come: set[str] | None = None  # guarded by _cond; None while it is not known
        self._followed = 0  # guarded by _cond: bytes of files opened by readers since the stream began
        self._followed_at = time.monotonic()
        self._hasty = False  # whoever opened a file last had not been reading before
        self._progress_at = time.monotonic()  # when PROGRESS bytes had last come
        self._progress = 0  # since then
        self._paused = False
        self._stopping = False  # guarded by _cond
        self._ended = False  # guarded by _cond
        self._stream: BulkStream | None = None  # guarded by _cond
        self._turn = Turn(self.brief, self.give_way)
        self._arrived: queue.Queue[tuple[Entry, str, memoryview | None] | None] = queue.Queue(KEEP_AHEAD)
        self._claim: Claim | None = None  # on the folder; of the thread that runs the stream
        self._total = 0  # bytes of all files asked for
        self._passed = 0  # ``moved`` and what has come of the member under way
        self._tell_after = 0.0
        self.kept = 0
        self.moved = 0

    # --- for readers -------------------------------------------------------------------------------------------

    def follow(self, size: int) -> None:
        """A reader has opened a file of the folder: run on."""
        now = time.monotonic()
        with self._cond:
            self._followed += size
            self._hasty = now - self._followed_at > THINKING_S and not self._tickets
            self._followed_at = now
            if self._paused and self._is_near():
                self._cond.notify_all()

    def wait_for(self, flight: Flight) -> bool:
        """Wait for the member that is this file, if it is to come. True when it has: look in flight and cache again.

        Raises:
            Interrupted: whoever asked is ending.
        """
        key = flight.entry.key
        ticket = _Ticket()
        with self._cond:
            coming = not self._ended and (self._to_come is None or key in self._to_come)
            if coming:
                self._tickets.setdefault(key, []).append(ticket)
                self._followed_at = time.monotonic()
                if self._paused:
                    self._progress_at = self._followed_at  # it stood still because it had to
                    self._cond.notify_all()
        if not coming:
            return has_passed(self._cache, flight)
        try:
            self._await(ticket, flight)
        finally:
            self._drop(key, ticket)
        return ticket.came or has_passed(self._cache, flight)

    def _await(self, ticket: _Ticket, flight: Flight) -> None:
        started = now = time.monotonic()
        patience_s, enough = patience(flight.size, self._hasty)
        enough += self.moved
        while now - self._progress_at <= SILENCE_S:
            waited_s = now - started
            if waited_s > LONGEST_WAIT_S or (waited_s > patience_s and self.moved >= enough):
                return
            if callers.wait(ticket.done.wait, min(LOOK_S, max(patience_s - waited_s, 0.02))):
                return
            now = time.monotonic()
        if self.moved:
            self.stop()

    def _drop(self, key: str, ticket: _Ticket) -> None:
        """The wait is over. A file that is fetched by itself now is not waited for again."""
        with self._cond:
            self._followed_at = time.monotonic()
            if not ticket.done.is_set() and self._to_come is not None:
                self._to_come.discard(key)
            tickets = self._tickets.get(key)
            if tickets is not None and ticket in tickets:
                tickets.remove(ticket)
                if not tickets:
                    del self._tickets[key]

    # --- for whoever hands out connections ---------------------------------------------------------------------

    def idle_since(self) -> float | None:
        """When a paused stream was last of use; None while it is."""
        return self._followed_at if self._paused and not self._tickets else None

    @property
    def leaving(self) -> bool:
        return self._stopping

    def overdue_s(self, now: float) -> float:
        """Never: its readers turn away from one that is silent, and it ends then."""
        return -1.0

    def give_way(self) -> None:
        self.stop()

    def stop(self) -> None:
        """End soon, keeping what has passed. Returns at once."""
        with self._cond:
            self._stopping = True
            self._cond.notify_all()
            stream = self._stream
        self._turn.interrupt()
        if stream is not None:
            stream.close()

    # --- for the one thread that runs it -----------------------------------------------------------------------

    def run(self, files: Sequence[Entry], what: str, claim: Claim | None = None) -> bool:
        """Read the stream to its end, or until it breaks or nobody follows. Whether it came to its end.

        Args:
            claim: On the folder among the processes that share the cache: they are told how far the stream is.
        """
        has_slot = False
        self._claim = claim
        if claim is not None:
            claim.moved(0, 0, 0)
        try:
            self._slots.acquire(self)
            has_slot = True
            return self._consume(files, what)
        except ArchiveError as error:
            log.log(logging.DEBUG if self._stopping else logging.INFO, "%s: bulk stream ended early: %s", what, error)
        finally:
            with self._cond:
                stream, self._stream = self._stream, None
            if stream is not None:
                stream.close()
            if has_slot:
                self._slots.release(self)
        return False

    def end(self) -> None:
        """No member comes any more. Readers who wait for one go on by themselves."""
        with self._cond:
            self._ended = True
            tickets = [ticket for waiting in self._tickets.values() for ticket in waiting]
        for ticket in tickets:
            ticket.done.set()

    def _consume(self, files: Sequence[Entry], what: str) -> bool:
        with self._cond:
            self._to_come = {entry.key for entry in files if 0 < (entry.size or 0) <= LARGEST}
            known = self._to_come
            late = [ticket for key, waiting in self._tickets.items() if key not in known for ticket in waiting]
        for ticket in late:
            ticket.done.set()
        with self._turn:
            stream = self._archive.open_bulk(files)
        if stream is None:
            return False
        with self._cond:
            self._stream = stream
            self._progress_at = self._followed_at = time.monotonic()
            stopping = self._stopping
        if stopping:
            stream.close()
        keeper = threading.Thread(target=self._keep_arrived, name="xnatfs-bulk-keep", daemon=True)
        keeper.start()
        try:
            self._total = sum(entry.size or 0 for entry in files)
            self._tell()
            complete = self._receive(stream, self._total)
        finally:
            self._arrived.put(None)
            keeper.join()
            self._tell()
        log.info("%s: bulk stream %s: %d members kept", what, "complete" if complete else "let go", self.kept)
        return complete

    def _receive(self, stream: BulkStream, left: int) -> bool:
        while self._may_run(left - self.moved):
            found = stream.next()
            if found is None:
                return True
            entry, member = found
            data = self._read(entry, member) if (entry.size or 0) <= LARGEST else None
            self.moved += entry.size or 0
            self._passed = self.moved
            self._arrived.put((entry, member.validator, data))
        return False

    def _may_run(self, left: int) -> bool:
        """Back-pressure: wait until a reader follows. False when the stream should end instead."""
        with self._cond:
            while not self._stopping:
                if left <= LITTLE or self._tickets or self._is_near() or self._is_wanted():
                    if self._paused:
                        self._paused, self._progress_at = False, time.monotonic()
                    return True
                idle_s = time.monotonic() - self._followed_at
                if idle_s >= self._config.idle_s:
                    return False
                self._paused = True
                self._cond.wait(max(self._config.idle_s - idle_s, 0.05) if self._claim is None else TELL_S)
            return False

    def _is_near(self) -> bool:
        """Under the condition: whether readers are so close behind that the stream should go on."""
        most = max(FIRST_AHEAD, MOST_AHEAD * self._config.max_window)
        limit = min(most, FIRST_AHEAD + 4 * self._followed)
        return self.moved - self._followed <= (RESUMED * limit if self._paused else limit)

    def _is_wanted(self) -> bool:
        """Under the condition: whether another process waits for a member that is to come."""
        if self._claim is None or self._claim.wanted() <= self.moved:
            return False
        self._followed_at = time.monotonic()
        return True

    def _tell(self) -> None:
        """Let the processes that wait for members know how far it is."""
        if self._claim is not None:
            self._claim.moved(0, self._passed, max(1, self._total))
            self._tell_after = time.monotonic() + TELL_S

    def _keep_arrived(self) -> None:
        """A thread beside the one that reads the stream: an MD5 takes as long as the network does."""
        while (arrived := self._arrived.get()) is not None:
            entry, validator, data = arrived
            kept = False
            try:
                kept = data is not None and self._is_listed(entry, data) and self._keep(entry, validator, data)
            except Exception:
                log.exception("%s: a member was not kept", entry.key)
            self.kept += kept
            self._stats.bulk_members += kept
            with self._cond:
                if self._to_come is not None:
                    self._to_come.discard(entry.key)
                tickets = self._tickets.pop(entry.key, ())
            for ticket in tickets:
                ticket.came = kept
                ticket.done.set()

    def _read(self, entry: Entry, member: BulkMember) -> memoryview | None:
        """All of a member, or None when its length is not the listing's. An error of the stream is final."""
        size = entry.size or 0
        view = memoryview(bytearray(size))
        filled = 0
        while count := member.readinto(view[filled:] if filled < size else memoryview(bytearray(1))):
            filled += count
            if filled > size:
                break
            self._note_progress(count, entry.key)
        if filled != size:
            log.info("%s: another length in a bulk stream than the %d bytes listed", entry.key, size)
            return None
        return view.toreadonly()

    def _is_listed(self, entry: Entry, data: memoryview) -> bool:
        """Whether these are the bytes that the archive's catalog speaks of."""
        if not entry.digest or hashlib.md5(data, usedforsecurity=False).hexdigest() == entry.digest:
            return True
        log.info("%s: the MD5 of a bulk stream's member differs from the archive's catalog", entry.key)
        return False

    def _note_progress(self, count: int, what: str) -> None:
        self._progress += count
        self._passed += count
        now = time.monotonic()
        if now >= self._tell_after and self._claim is not None:
            self._tell()
        if self._progress >= PROGRESS:
            self._progress, self._progress_at = 0, now
        elif now - self._progress_at > self._config.timeout_s:
            raise TimedOut(f"{what}: under {PROGRESS} bytes in {self._config.timeout_s:g} s")

    def _keep(self, entry: Entry, validator: str, data: memoryview) -> bool:
        """Put a member's blocks into the cache and give them to readers. False when it is another version than known.

        In this order: blocks, the note that makes them count, and then the flight, so that whoever finds the one has
        the others. A file that is being fetched by itself is left to that.
        """
        base = ContentId(self._archive.id, entry.key, entry.version)
        flight = self._find(base)
        if flight is not None and (flight.transfers or flight.error is not None):
            return False
        known = flight.validator if flight is not None else None
        if known is None:
            known = self._cache.get_note(base)
        if known is not None and not validators_agree(known, validator):
            log.debug("%s: another version in a bulk stream than the one known", entry.key)
            return False
        content = with_validator(base, validator if known is None else known)
        unit = self._block_size
        pieces = [data] if len(data) <= unit else [data[at : at + unit] for at in range(0, len(data), unit)]
        for number, piece in enumerate(pieces):
            self._cache.put(BlockKey(content, number, unit), piece)
        if known is None:
            self._cache.put_note(base, validator)
        flight = self._find(base)
        if flight is not None and flight.pin(validator) == content:
            flight.noted, flight.cold = True, False
            with flight.cond:
                for number, piece in enumerate(pieces):
                    flight.keep(number * unit, piece)
                flight.wake_all()
        return True
