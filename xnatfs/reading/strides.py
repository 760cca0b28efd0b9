"""Reads at equal distances, such as one slice of each volume: where the next will be. Pure arithmetic, as prefetch.py.

A *run* is what is read in order from one place; a *stride* leads from the start of a run to that of the next.
"""

from __future__ import annotations

from xnatfs.config import MIB

PAGE = 4096
"""Bytes: the kernel reads whole pages, so that runs at equal distances begin up to a page apart from that."""

SURE = 3
"""Equal strides in a row that are no accident: of places drawn from 1 GB three are so once in billions."""

MOST_RUNS = 32
"""Runs that are worth having ahead; a guess. At 20 ms over four connections a reader may take 200 a second."""

MOST_BYTES = 8 * MIB
"""The same in bytes: half of what one sequential reader may run ahead."""

Span = tuple[int, int]


class Strides:
    """The runs of one open file. Races between threads of one handle only make the advice a little worse."""

    __slots__ = ("_asked", "_depth", "_even", "_first", "_length", "_number", "_start", "_step", "_stop")

    def __init__(self) -> None:
        self._first = self._start = self._stop = 0  # of the first run of a row, and of the present one
        self._step = 0
        self._number = 0  # strides in the row so far
        self._even = True  # they were all the same, to the byte
        self._length = 0  # of the longest run of the row
        self._depth = 1
        self._asked = 0  # the number of the run up to which advice was given

    @property
    def sure(self) -> bool:
        return self._number >= SURE and abs(self._step) > self._length

    def read(self, stop: int) -> bool:
        """The run goes on to ``stop``. False when it has become longer than all before: that is no row of strides."""
        self._stop = max(self._stop, stop)
        if not self.sure or self._stop - self._start <= self._length + PAGE:
            return True
        self._begin(self._start)
        return False

    def left(self) -> int:
        """Bytes that the present run should still have, going by those before."""
        return max(0, self._start + self._length - self._stop)

    def jump(self, start: int, stop: int) -> None:
        """A run begins with a read of [start, stop)."""
        if not self._stop:
            self._begin(start)
            self._start, self._stop = start, stop
            return
        step, length = start - self._start, self._stop - self._start
        if self._number and abs(step - self._step) <= 2 * PAGE:
            # The first run does not count: at the start of a file the kernel reads more than it was asked for.
            self._length = length if self._number == 1 else max(self._length, length)
            self._number += 1
            self._even = self._even and step == self._step
        else:
            self._first, self._step, self._number, self._length = self._start, step, 1, length
            self._depth, self._asked, self._even = 1, 0, True
        self._start, self._stop = start, stop

    def ahead(self, size: int, most_bytes: int) -> list[Span]:
        """The runs that are worth fetching from a file of ``size`` bytes, and were not named before; nearest first."""
        if not self.sure or not self._length:
            return []
        self._depth = min(2 * self._depth, MOST_RUNS, max(1, min(most_bytes, MOST_BYTES) // self._length))
        step = (self._start - self._first) / self._number
        spans = []
        for number in range(max(self._asked, self._number) + 1, self._number + self._depth + 1):
            start = self._first + round(step * number)
            margin = 0 if self._even else -(-number // self._number) * PAGE  # what the mean of so many leaves open
            self._asked = number
            if not 0 <= start < size:
                break
            spans.append((max(0, start - margin), min(size, start + self._length + margin)))
        return spans

    def _begin(self, start: int) -> None:
        """The run that is being read is the first of whatever comes."""
        self._first, self._step, self._number, self._length = start, 0, 0, 0
        self._depth, self._asked, self._even = 1, 0, True
