"""Has listings stored for the next mount, behind those who asked for them: storing takes as long as reading did.

Knows nothing of ages or of what is in memory. Safe from any thread; the lock is never held across a file operation. One
thread writes; it is started when there is something to write and ends with it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

from xnatfs.columns import lazy
from xnatfs.model import Listing

log = logging.getLogger(__name__)

UNWRITTEN = 256  # listings that may wait to be stored; a further one is stored by whoever brings it
PAUSE_S = 2.0  # at most that a listing waits for others to be asked for before it is stored; a guess
POLL_S = 0.05
FLUSH_S = 10.0  # for those to be written at the end
DOUBTS_KEPT = 1000  # then the old ones go


class Store(Protocol):
    """Where listings are kept for the next mount: ``stored.ListingStore``. Times are in seconds since the epoch."""

    def get(self, listing_id: str) -> tuple[Listing, float] | None: ...
    def put(self, listing: Listing, asked_at_s: float) -> None: ...
    def renew(self, listing_id: str, asked_at_s: float) -> bool: ...
    def forget(self, listing_id: str) -> None: ...


class _Task(NamedTuple):
    listing: Listing
    asked_at_s: float  # since the epoch
    same: bool  # as what was held before: only its time is new, as far as the store has it


class _Unwritten:
    """Listings that wait to be stored, oldest first. Calls are made under the owner's lock.

    Args:
        most: Entries that may wait; those of listings that memory has let go are kept by this alone.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries = 0
        self._tasks: OrderedDict[str, _Task] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tasks)

    def filled(self) -> float:
        """How full it is; 1.0 is full."""
        return max(len(self._tasks) / UNWRITTEN, self._entries / self._most)

    def add(self, task: _Task) -> None:
        self.discard(task.listing.id)
        self._tasks[task.listing.id] = task
        self._entries += lazy(task.listing.children).total

    def pop(self) -> _Task:
        task = self._tasks[next(iter(self._tasks))]
        self.discard(task.listing.id)
        return task

    def discard(self, listing_id: str) -> None:
        task = self._tasks.pop(listing_id, None)
        if task is not None:
            self._entries -= lazy(task.listing.children).total


class Keeper:
    """Puts listings into a store and gets them out again, but for those that have proved wrong meanwhile.

    Args:
        store: None: nothing is kept, though doubts are.
        most: Entries that may wait to be stored.
        in_use: Whether listings are being asked for or looked at now; called without a lock of this class held.
    """

    def __init__(self, store: Store | None, most: int, in_use: Callable[[], bool]) -> None:
        self._store = store
        self._in_use = in_use
        self._lock = threading.Lock()
        self._unwritten = _Unwritten(most)  # guarded by _lock
        self._doubts: OrderedDict[str, float] = OrderedDict()  # guarded by _lock: listing -> when, since the epoch
        self._writer: threading.Thread | None = None  # guarded by _lock
        self._closing = threading.Event()

    def get(self, listing_id: str) -> tuple[Listing, float] | None:
        """A stored listing, and when it was asked for. One that is doubted may be returned: see ``doubted``."""
        return None if self._store is None else self._store.get(listing_id)

    def doubted(self, listing_id: str, asked_at_s: float) -> bool:
        """Whether what was asked for at this time is older than the last doubt."""
        with self._lock:
            return asked_at_s <= self._doubts.get(listing_id, float("-inf"))

    def doubt(self, listing_id: str, epoch_s: float) -> None:
        """What was asked for until now has proved wrong. Touches no file; ``forget`` does."""
        with self._lock:
            self._doubts[listing_id] = epoch_s
            self._doubts.move_to_end(listing_id)
            self._unwritten.discard(listing_id)
            if len(self._doubts) > DOUBTS_KEPT:
                self._doubts.popitem(last=False)

    def forget(self, listing_id: str) -> None:
        if self._store is not None:
            self._store.forget(listing_id)

    def keep(self, listing: Listing, asked_at_s: float, same: bool) -> None:
        """Have a listing stored. Returns at once unless too many wait already.

        Args:
            same: It is as it was when it was last kept, and only its time is new.
        """
        if self._store is None:
            return
        task = _Task(listing, asked_at_s, same)
        with self._lock:
            behind = self._unwritten.filled() < 1.0
            if behind:
                self._unwritten.add(task)
                if self._writer is None:
                    writer = threading.Thread(target=self._write_all, name="xnatfs-store", daemon=True)
                    with contextlib.suppress(RuntimeError):  # no thread to be had: the next listing tries again
                        writer.start()
                        self._writer = writer
        if not behind:
            self._write(task)

    def close(self) -> None:
        """Wait until what waits is stored."""
        self._closing.set()
        with self._lock:
            writer = self._writer
        if writer is not None:
            writer.join(FLUSH_S)

    def _write_all(self) -> None:
        while True:
            self._await_pause()
            with self._lock:
                if not self._unwritten:
                    self._writer = None
                    return
                task = self._unwritten.pop()
            try:
                self._write(task)
            except Exception:
                log.exception("a listing is not stored")

    def _await_pause(self) -> None:
        """Let those who ask go first: a walk needs the processor more than the store does, answers at hand included."""
        until = time.monotonic() + PAUSE_S
        while time.monotonic() < until and not self._closing.is_set() and self._in_use():
            with self._lock:
                if self._unwritten.filled() >= 0.5:
                    return
            self._closing.wait(POLL_S)

    def _write(self, task: _Task) -> None:
        assert self._store is not None
        listing = task.listing
        if not task.same or not self._store.renew(listing.id, task.asked_at_s):
            self._store.put(listing, task.asked_at_s)
        if self.doubted(listing.id, task.asked_at_s):  # meanwhile
            self._store.forget(listing.id)
