"""Lets a file that another process of this machine is fetching come from the cache, as it arrives there.

Who reads a cold file first has its claim and fetches; the others poll the cache for their block, and ask the owner to
go on where it would pause. An owner that stands still, or whose blocks do not show, is not waited for: the reader then
fetches by itself. Knows no archive and no disk. Safe from any thread; sleeps in the reader's thread, holding nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from xnatfs import callers
from xnatfs.blocks.base import BlockCache, Claims, Progress
from xnatfs.reading.flight import Flight

STALL_S = 3.0
"""Seconds without progress after which an owner is not waited for: it was stopped, or its server stands still. A guess;
an owner that has ended is noticed at once."""

UNANSWERED_S = 10.0
"""The same before the owner's server has answered at all: ours would not be faster. A guess."""

MISSING_S = 1.0
"""Seconds in which a block that has passed the owner should be in the cache: it is written behind, in a few
milliseconds; later than this, the cache does not take it."""

FIRST_POLL_S, LONGEST_POLL_S = 0.001, 0.016  # between looks into the cache, which cost about 0.1 ms


class Neighbours:
    """The processes that share our cache, as far as one reader meets them."""

    def __init__(self, claims: Claims, cache: BlockCache) -> None:
        self._claims = claims
        self._cache = cache

    def bring(
        self,
        flight: Flight,
        at: int,
        block_stop: int,
        wanted: int,
        look: Callable[[], int],
        closing: Callable[[], bool],
    ) -> int:
        """Wait for the byte ``at`` of a file that somebody else fetches; what ``look`` then found, or 0.

        0 means that it is ours to fetch: with the flight's claim, or without when its owner is not to be waited for.

        Args:
            block_stop: End of the block that holds it.
            wanted: Up to where the owner should go on: what is read now, and what is likely to be read next.
            look: Looks into the cache, and returns how many bytes it has taken from there.
        Raises:
            Interrupted: whoever asked is ending.
        """
        pause_s = FIRST_POLL_S
        patience = _Patience(at, block_stop)
        while not closing():
            flight.raise_error()
            claim = self._claims.take(flight.base)
            if claim is not None:
                spare = flight.claimed(claim)
                if spare is not None:
                    spare.release()  # another thread of ours was faster
                elif claim.before is not None and claim.before.position > at:
                    return self._look_again(flight, claim.before, look)
                return 0
            self._learn(flight)
            if count := look():
                return count
            if patience.is_over(self._claims.look(flight.base)):
                return 0
            self._claims.want(flight.base, wanted)
            callers.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_POLL_S)
        return 0

    def _look_again(self, flight: Flight, before: Progress, look: Callable[[], int]) -> int:
        """The former owner has had this byte: it is in the cache, on its way there, or gone again."""
        while True:
            self._learn(flight)
            count = look()
            if count or not 0 <= time.time() - before.when_s < MISSING_S:
                return count
            callers.sleep(LONGEST_POLL_S)

    def _learn(self, flight: Flight) -> None:
        """Find out under which version the blocks are kept."""
        flight.cold = False  # what is cached may lie ahead of a transfer of ours
        if flight.content is None:
            note = self._cache.get_note(flight.base)
            if note is not None and flight.pin(note) is not None:
                flight.noted = True


class _Patience:
    """Whether to wait on for an owner, by what it says of itself.

    Args:
        block_stop: End of the block that is wanted: behind it the block is whole, and on its way into the cache.
    """

    def __init__(self, at: int, block_stop: int) -> None:
        self._at = at
        self._block_stop = block_stop
        self._position = -1
        self._moved_s = time.monotonic()
        self._whole_s: float | None = None

    def is_over(self, progress: Progress | None) -> bool:
        now = time.monotonic()
        if progress is None or not progress.stop:
            return now - self._moved_s > UNANSWERED_S
        if not progress.start <= self._at < progress.stop:
            return True
        if progress.position != self._position:
            self._position, self._moved_s = progress.position, now
        if progress.position < min(self._block_stop, progress.stop):
            return now - self._moved_s > STALL_S
        self._whole_s = now if self._whole_s is None else self._whole_s
        return now - self._whole_s > MISSING_S
