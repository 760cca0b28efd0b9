"""How many transfers run at once, and who goes when there is no room for one more.

Knows no file and no archive. Safe from any thread; the lock is held for a few list operations.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from xnatfs.errors import TimedOut, Unavailable

if TYPE_CHECKING:
    from xnatfs.reading.bulk_transfer import BulkTransfer
    from xnatfs.reading.transfer import Transfer

LOOK_S = 0.05
"""Seconds between two looks of who waits for a slot: at whether one has become idle, or silent for too long."""


class _Waiting:
    """Somebody in the queue for a slot."""

    __slots__ = ("has_one", "limit", "transfer")

    def __init__(self, transfer: Transfer | BulkTransfer, limit: int) -> None:
        self.transfer = transfer
        self.limit = limit
        self.has_one = threading.Event()


class TransferSlots:
    """At most so many transfers at once, first come first served.

    Who waits is made room for: a paused transfer that nobody needs ends, or else one that has been silent for long
    gives way and is asked for again, behind all who wait now. So a few dead files do not keep all others from readers.

    Args:
        brief: Further ones that may go beside those when they are brief: over after an answer and a block at most.
    """

    def __init__(self, limit: int, timeout_s: float, brief: int = 0) -> None:
        self._limit = limit
        self._brief = brief
        self._timeout_s = timeout_s
        self._cond = threading.Condition(threading.Lock())
        self._active: list[Transfer | BulkTransfer] = []  # guarded by _cond
        self._beside: list[Transfer] = []  # guarded by _cond: those of them that others need not wait for
        self._queue: list[_Waiting] = []  # guarded by _cond: nobody in it could go now
        self._closed = False
        self.ranged = False  # whether the archive honoured the last range it was asked for

    @property
    def count(self) -> int:
        return len(self._active)

    @property
    def led(self) -> int:
        """Transfers that some reader has asked for."""
        return len(self._active) - len(self._beside)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def has_spare(self) -> bool:
        """Whether one more could go, nobody would wait for it, and one would still be free."""
        return not self._closed and not self._queue and len(self._active) + 1 < self._limit

    def take_spare(self, transfer: Transfer) -> bool:
        """A slot for a transfer that nobody needs yet; it is asked to leave when somebody waits for one."""
        with self._cond:
            if not self.has_spare:
                return False
            self._active.append(transfer)
            self._beside.append(transfer)
            return True

    def acquire(self, transfer: Transfer | BulkTransfer) -> None:
        """Wait for a slot.

        Raises:
            Unavailable: none came free in time, or the reader is closing.
        """
        limit = self._limit + (self._brief if transfer.brief else 0)
        with self._cond:
            self._check_open()
            if len(self._active) < limit:
                self._active.append(transfer)
                return
            waiting = _Waiting(transfer, limit)
            self._queue.append(waiting)
        try:
            self._wait(waiting)
        except BaseException:
            with self._cond:
                if waiting in self._queue:
                    self._queue.remove(waiting)
                else:
                    self._leave(transfer)
            raise

    def _wait(self, waiting: _Waiting) -> None:
        deadline = time.monotonic() + self._timeout_s
        self._make_room()
        while not waiting.has_one.wait(LOOK_S):
            self._check_open()
            if waiting.transfer.leaving:
                raise Unavailable("not wanted any more")
            if time.monotonic() >= deadline:
                raise TimedOut(f"all {self._limit} connections are busy", "raise --connections")
            if self._queue[:1] == [waiting]:
                self._make_room()
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the file system is being unmounted")

    def _make_room(self) -> None:
        """End the transfer that is missed least, unless enough are about to end."""
        with self._cond:
            active, wanted = list(self._active), len(self._queue)
            beside = [other for other in self._beside if not other.leaving]
        if sum(other.leaving for other in active) >= wanted:
            return
        idle = [(since, other) for other in active if (since := other.idle_since()) is not None]
        if idle:
            min(idle, key=lambda pair: pair[0])[1].stop()
            return
        if beside:
            beside[-1].give_way()
            return
        now = time.monotonic()
        silent = max(active, key=lambda other: other.overdue_s(now), default=None)
        if silent is not None and silent.overdue_s(now) > 0:
            silent.give_way()

    def answered(self, ranged: bool) -> None:
        self.ranged = ranged

    def release(self, transfer: Transfer | BulkTransfer) -> None:
        with self._cond:
            self._leave(transfer)

    def _leave(self, transfer: Transfer | BulkTransfer) -> None:
        """Under the condition: the slot goes to whoever has waited longest and may have it."""
        self._active.remove(transfer)
        if transfer in self._beside:
            self._beside.remove(transfer)
        if self._closed:
            self._cond.notify_all()
            return
        for waiting in self._queue:
            if len(self._active) < waiting.limit:
                self._queue.remove(waiting)
                self._active.append(waiting.transfer)
                waiting.has_one.set()
                return

    def close(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        with self._cond:
            self._closed = True
            active = list(self._active)
        for transfer in active:
            transfer.stop()
        with self._cond:
            while self._active and time.monotonic() < deadline:
                self._cond.wait(deadline - time.monotonic())
