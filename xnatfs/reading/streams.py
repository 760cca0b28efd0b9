"""How many streams one file is read by, learnt from what they bring. Pure arithmetic: no I/O, no threads, no locks.

A reader that waits for a slow stream gets a second one beside it, which stays when the two bring clearly more than one
did; then twice as many. Where the processor, the disk or the whole line is the limit, one is all there is.
"""

from __future__ import annotations

from typing import NamedTuple

MOST_STREAMS = 4
"""Streams of one file. A guess: servers that limit a connection seldom mind four, and often mind ten."""

ENOUGH = 100e6
"""Bytes a second of one stream from which another is not tried: on two cores the processor is soon the limit."""

SAMPLE_S = 0.5
"""Seconds that a rate is measured over: ten blocks of 1 MiB at 20 MB/s."""

SETTLE_S = 0.3
"""Seconds before a new stream's bytes count: a request, and TCP's slow start."""

WAITING = 0.5
"""The part of a sample in which somebody must have waited for bytes; else it tells how fast the reader is."""

BUSY = 0.8
"""The part of a sample for which our processor time, of one core, is taken for the limit: Python has one."""

GREW = 0.5
"""How much of what further streams could bring at best they must bring to stay. A guess, above the noise."""


class Sample(NamedTuple):
    """Totals since some moment, in seconds and bytes."""

    now_s: float
    moved: int
    waited_s: float
    busy_s: float


class StreamCount:
    """How many streams a file deserves.

    Attributes:
        count: Streams that may run now.
        settled: Nothing more will be tried.
    """

    __slots__ = ("_before", "_best", "_doubt", "_from_s", "_most", "_since", "count", "settled")

    def __init__(self, most: int, known: int = 0) -> None:
        """
        Args:
            most: Streams that there may be.
            known: What was found a short while ago; 0 when nothing was.
        """
        self._most = most
        self.count = min(max(1, known), most)
        self.settled = bool(known) or most < 2
        self._best = 0.0  # rate of as many streams as there were before
        self._before = 1
        self._doubt = False  # the last sample was too low
        self._since: Sample | None = None
        self._from_s = 0.0

    def restart(self) -> None:
        """Another stream has begun: what was measured so far says nothing about it."""
        self._since = None

    def note(self, totals: Sample) -> bool:
        """Look at what has passed in total. Returns True when ``count`` has changed."""
        since = self._since
        if self.settled or totals.now_s < self._from_s:
            return False
        if since is None:
            self._since = totals
            return False
        took_s = totals.now_s - since.now_s
        if took_s < SAMPLE_S:
            return False
        self._since = totals
        if totals.waited_s - since.waited_s < WAITING * took_s or totals.busy_s - since.busy_s > BUSY * took_s:
            return False
        return self._judge((totals.moved - since.moved) / took_s, totals.now_s)

    def give_up(self) -> None:
        """Side by side they fail: one at a time from now on."""
        self.count, self.settled = 1, True

    def _judge(self, rate: float, now_s: float) -> bool:
        if self.count > 1 and rate < self._best * (1 + GREW * (self.count / self._before - 1)):
            if self._doubt:
                self.count, self.settled = self._before, True
                return True
            self._doubt = True  # once more: a machine may have been busy for a moment
            return False
        self._doubt = False
        if rate >= self.count * ENOUGH:
            return False
        self._best = rate
        if self.count == self._most:
            self.settled = True
            return False
        self._before, self.count = self.count, min(2 * self.count, self._most)
        self._since, self._from_s = None, now_s + SETTLE_S
        return True
