"""What all readers of one file share while it is open or in transfer: its version, its transfers, the pieces to come.

Knows nothing of HTTP or disks. One condition per flight guards everything in it; nothing waits for the network or the
disk while holding it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from xnatfs import callers
from xnatfs.blocks.base import Block, Claim
from xnatfs.errors import ArchiveError, StaleContent
from xnatfs.model import ContentId, Entry
from xnatfs.reading.streams import StreamCount
from xnatfs.reading.strides import Span
from xnatfs.reading.validators import validators_agree

if TYPE_CHECKING:
    from xnatfs.reading.transfer import Transfer


class Need:
    """A reader waits for [start, stop). Compared by identity.

    Each sleeps on a lock of its own, so that bytes which are not its own leave it asleep: 1 GB comes in some 4,000
    pieces, and the kernel has several reads under way.
    """

    __slots__ = ("_asleep", "start", "stop")

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def wait(self, timeout_s: float) -> None:
        """Sleep until woken, since the last time too, or until the time is over.

        Raises:
            Interrupted: whoever asked is ending.
        """
        callers.wait(self._wait, timeout_s)

    def _wait(self, timeout_s: float | None) -> bool:
        return self._asleep.acquire(timeout=-1 if timeout_s is None else timeout_s)

    def wake(self) -> None:
        """Under the flight's condition."""
        if self._asleep.locked():
            self._asleep.release()


class Flight:
    """One version of one file.

    Attributes:
        base: The content as the listing names it.
        content: The same with the validator of its bytes (Last-Modified) once a transfer or the cache's note has told
            it: what blocks are kept under. None before.
        noted: True when the cache has this version's validator.
        cold: True while nothing can be cached ahead of the one transfer: looking on disk for it is a waste.
        held: What the cache was told to evict last.
        opens: Handles open now.
        claim: On the file among the processes that share the cache, while we have it; guarded by cond, read without.
        moved: Bytes of pieces that have passed.
        streams: How many streams it deserves, once it has been read in order from an archive that honours ranges.
        stripes_from, stripes_at, stripes_goal: Several streams have been asked for [from, at), and go on up to goal.
        spans: What else is to be fetched beside its readers.
        workers: Threads that fetch beside its readers.
        error: Set for good when this version can no longer be read; every read raises it.
    """

    def __init__(self, entry: Entry, base: ContentId, size: int, validator: str | None) -> None:
        self.entry = entry
        self.base = base
        self.size = size
        self.cond = threading.Condition(threading.Lock())
        self.validator = validator  # guarded by cond, set once, like the next one
        self.content = None if validator is None else with_validator(base, validator)
        self.noted = validator is not None
        self.cold = validator is None
        self.held: ContentId | None = None  # guarded by the reader's lock
        self.opens = 0  # guarded by the reader's lock
        self.claim: Claim | None = None
        self.error: ArchiveError | None = None  # guarded by cond, set once
        self.transfers: tuple[Transfer, ...] = ()  # replaced under cond, read without
        self.rejections = 0  # guarded by cond: bodies whose digest was wrong
        self.served = False  # guarded by cond: True once bytes of this version have gone to a reader
        self.started = False  # True once a transfer has been
        self.gave_way = 0  # guarded by cond: transfers that others were let by
        self.moved = 0  # guarded by cond, like all down to workers; read without for advice
        self.streams: StreamCount | None = None
        self.stripes_from = self.stripes_at = self.stripes_goal = 0
        self.spans: deque[Span] = deque()
        self.workers = 0
        self._waited_s = 0.0  # guarded by cond, like the next two
        self._waiting_since = 0.0
        self._needs: list[Need] = []
        self._kept: list[tuple[int, Block]] = []  # guarded by cond: pieces some need overlaps, with their offset

    def pin(self, validator: str) -> ContentId | None:
        """The content to keep a response under, or None when it is not of the version pinned before."""
        with self.cond:
            if self.validator is None:
                self.validator = validator
                self.content = with_validator(self.base, validator)
            return self.content if validators_agree(self.validator, validator) else None

    def claimed(self, claim: Claim) -> Claim | None:
        """Keep a claim until the last transfer has ended; one that is there already is given back."""
        with self.cond:
            if self.claim is not None:
                return claim
            self.claim = claim
            return None

    def unclaim(self) -> None:
        """Give the claim up, unless a transfer is under way that needs it."""
        with self.cond:
            if self.transfers:
                return
            claim, self.claim = self.claim, None
        if claim is not None:
            claim.release()

    def fail(self, error: ArchiveError) -> None:
        with self.cond:
            if self.error is None:
                self.error = error
            self.wake_all()

    def reject(self, transfer: Transfer, error: ArchiveError, again: bool) -> None:
        """A whole body has proved wrong: nothing of it may go to a reader any more, and if some has, no more at all.

        Args:
            again: Whether another body can be held back until it has proved right.
        """
        with self.cond:
            self.rejections += 1
            self._kept = []
            self.remove(transfer)
            if self.error is None and (self.served or self.rejections > 1 or not again):
                self.error = error
            self.wake_all()

    def gives_out(self, rejections: int) -> bool:
        """Whether bytes may go to a reader that were gathered since so many bodies had been rejected."""
        if self.served:  # without the lock: a body that is rejected after this fails the version, as that finds it so
            return self.rejections == rejections
        with self.cond:
            if self.rejections != rejections:
                return False
            self.served = True
            return True

    def raise_error(self) -> None:
        error = self.error
        if error is not None:
            raise error.again()

    def add_need(self, start: int, stop: int) -> Need:
        need = Need(start, stop)
        with self.cond:
            if not self._needs:
                self._waiting_since = time.monotonic()
            self._needs.append(need)
        return need

    def drop_need(self, need: Need) -> None:
        with self.cond:
            self._needs.remove(need)
            if not self._needs:
                self._waited_s += time.monotonic() - self._waiting_since
            if self._kept:
                self._kept = [piece for piece in self._kept if self._needed(piece[0], piece[0] + len(piece[1]))]

    def waited_s(self) -> float:
        """For how long at least one reader has waited for bytes, all in all, in seconds."""
        with self.cond:
            return self._waited_s + (time.monotonic() - self._waiting_since if self._needs else 0.0)

    def has_needs(self) -> bool:
        return bool(self._needs)

    def needed_in(self, start: int, stop: int) -> bool:
        """Whether a reader waits for a byte of [start, stop). Call under ``cond``."""
        return self._needed(start, stop)

    def _needed(self, start: int, stop: int) -> bool:
        return any(need.start < stop and start < need.stop for need in self._needs)

    def wake_all(self) -> None:
        """Under ``cond``: let everybody look again, readers and transfers."""
        for need in self._needs:
            need.wake()
        self.cond.notify_all()

    def wake_served(self, start: int, position: int) -> None:
        """Under ``cond``: wake readers all of whose bytes are in [start, position)."""
        for need in self._needs:
            if start <= need.start and need.stop <= position:
                need.wake()

    def wake_begun(self, start: int, stop: int) -> None:
        """Under ``cond``: wake readers whose first byte is in [start, stop): they get what there is."""
        for need in self._needs:
            if start <= need.start < stop:
                need.wake()

    def keep(self, start: int, data: Block) -> None:
        """Hold a finished piece for the readers that wait for it. Call under ``cond``."""
        if self._needed(start, start + len(data)):
            self._kept.append((start, data))

    def passed(self, start: int, stop: int) -> memoryview | None:
        """Under ``cond``: the bytes at ``start`` that have passed: all of [start, stop), or up to their piece's end."""
        for at, data in self._kept:
            if at <= start < at + len(data):
                return memoryview(data)[start - at : stop - at]
        for transfer in self.transfers:
            view = transfer.current(start, stop)
            if view is not None:
                return view
        return None

    def covering(self, at: int, far: int, ranged: bool) -> Transfer | None:
        """Under ``cond``: a transfer that will pass byte ``at``, within ``far`` bytes if the server honours ranges.

        Unless the server is known to honour ranges, one that is not answered yet counts: its answer is likely the
        whole file, and asking beside it would fetch that twice.
        """
        for transfer in self.transfers:
            if transfer.will_pass(at, far, ranged):
                return transfer
        return None

    def stop_before_next(self, start: int, stop: int) -> int:
        """Under ``cond``: where a ranged transfer from ``start`` to ``stop`` meets one that was sent off ahead of it.

        Of two reads side by side the second may come first: without this both would ask for the rest of the file.
        """
        ahead = [transfer.start for transfer in self.transfers if start < transfer.start < stop and not transfer.ended]
        return min(ahead, default=stop)

    def progress(self) -> tuple[int, int, int] | None:
        """How far several streams are together: all of [start, position) has passed, and the rest is on its way.

        None while there is one at most. For other processes, who are told of one stream.
        """
        transfers = self.transfers
        if len(transfers) < 2 or self.streams is None or self.streams.count < 2:
            return None
        return self.stripes_from, max(self.stripes_from, min(other.position for other in transfers)), self.size

    def advance(self, start: int, stop: int, window: int) -> None:
        """A reader is at [start, stop): let the transfer before it run on."""
        for transfer in self.transfers:
            transfer.want(start, stop, window)

    def add(self, transfer: Transfer) -> None:
        """Under ``cond``."""
        if self.started:
            self.cold = False
        self.started = True
        self.transfers = (*self.transfers, transfer)

    def remove(self, transfer: Transfer) -> None:
        """Under ``cond``."""
        self.transfers = tuple(other for other in self.transfers if other is not transfer)


def stale(entry: Entry) -> StaleContent:
    return StaleContent(f"{entry.key}: the archive now holds another version", "open the file again")


def with_validator(base: ContentId, validator: str) -> ContentId:
    return ContentId(base.archive, base.key, f"{base.version}|{validator}")
