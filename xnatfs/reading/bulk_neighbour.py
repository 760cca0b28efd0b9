"""Follows the bulk stream that another process of this machine has of a folder: members come from the shared cache.

Stands where a ``BulkTransfer`` of our own would, and is as patient as that. Knows no archive and no disk, has no thread
and no connection. Safe from any thread; sleeps in the reader's thread, holding nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from xnatfs import callers
from xnatfs.blocks.base import BlockCache, BlockKey, Claims, Progress
from xnatfs.model import ContentId
from xnatfs.reading import bulk_transfer
from xnatfs.reading.bulk_transfer import FIRST_AHEAD, PROGRESS, has_passed, patience
from xnatfs.reading.flight import Flight
from xnatfs.reading.neighbours import FIRST_POLL_S, LONGEST_POLL_S, MISSING_S, UNANSWERED_S


class BulkNeighbour:
    """One stream of another process.

    Attributes:
        over: It has ended, or is not to be waited for any more.
        stuck: The latter: it stood still.
        used_at: When a reader was last here.
    """

    def __init__(
        self, claims: Claims, cache: BlockCache, block_size: int, folder: ContentId, closing: Callable[[], bool]
    ) -> None:
        self._claims = claims
        self._cache = cache
        self._block_size = block_size
        self._folder = folder
        self._closing = closing
        self._hasty = False
        self.over = False
        self.stuck = False
        self._since = self.used_at = time.monotonic()

    def follow(self, size: int) -> None:
        """A reader has opened a file of the folder."""
        now = time.monotonic()
        self._hasty = now - self.used_at > bulk_transfer.THINKING_S
        self.used_at = now

    def wait_for(self, flight: Flight) -> bool:
        """Wait for a file that may be a member. True when it has come: look in flight and cache again.

        Raises:
            Interrupted: whoever asked is ending.
        """
        try:
            return self._wait_for(flight)
        finally:
            self.used_at = time.monotonic()

    def _wait_for(self, flight: Flight) -> bool:
        started = time.monotonic()
        patience_s, enough = patience(flight.size, self._hasty)
        watch = _Watch(started)
        pause_s = FIRST_POLL_S
        while not (self._closing() or self.over):
            flight.raise_error()
            if self._has_come(flight):
                return True
            claim = self._claims.take(self._folder)
            if claim is not None:
                claim.release()
                self.over = True
                return self._comes_late(flight, claim.before)
            moved = watch.moved(self._claims.look(self._folder))
            waited_s = time.monotonic() - started
            if watch.stands_still():
                self.over = self.stuck = watch.answered or time.monotonic() - self._since > UNANSWERED_S
                return False
            if waited_s > bulk_transfer.LONGEST_WAIT_S or (waited_s > patience_s and moved >= enough):
                return False
            self._claims.want(self._folder, watch.position + FIRST_AHEAD)
            callers.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_POLL_S)
        return self._has_come(flight)

    def _has_come(self, flight: Flight) -> bool:
        """Whether it can be read here. Its note may be in the cache a moment before its blocks are whole."""
        if flight.transfers:
            return True  # another thread of ours did not wait
        if not has_passed(self._cache, flight) or flight.content is None:
            return False
        last = (flight.size - 1) // self._block_size
        return self._cache.get(BlockKey(flight.content, last, self._block_size)) is not None

    def _comes_late(self, flight: Flight, before: Progress | None) -> bool:
        """The stream has ended: what it brought is in the cache, or on its way there."""
        while not self._has_come(flight):
            if before is None or not is_fresh(before) or self._closing():
                return False
            callers.sleep(LONGEST_POLL_S)
        return True


def is_fresh(progress: Progress) -> bool:
    """Whether what has passed may still be on its way into the cache."""
    return 0 <= time.time() - progress.when_s < MISSING_S


class _Watch:
    """What one waiting reader sees of the stream.

    Attributes:
        position: Bytes of members that have passed, as last told.
        answered: The archive sends.
    """

    def __init__(self, now: float) -> None:
        self.position = 0
        self.answered = False
        self._start = -1  # its position when we came
        self._mark = 0
        self._mark_at = now

    def moved(self, progress: Progress | None) -> int:
        """Bytes that have passed since we came."""
        if progress is None:
            return 0  # just taken, or not told
        self.answered = progress.stop > 0
        self.position = progress.position
        if self._start < 0 or self.position < self._start:  # what was told before was of a former stream
            self._start = self._mark = self.position
        if self.position - self._mark >= PROGRESS:
            self._mark, self._mark_at = self.position, time.monotonic()
        return self.position - self._start

    def stands_still(self) -> bool:
        return time.monotonic() - self._mark_at > bulk_transfer.SILENCE_S
