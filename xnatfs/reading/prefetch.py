"""How far to read ahead, learnt from how one handle has been read so far. Pure arithmetic: no I/O, no bytes, no locks.

Dropping every piece of advice given here changes speed and bytes moved, never the bytes returned.
"""

from __future__ import annotations

from xnatfs.config import KIB, MIB
from xnatfs.reading.strides import Strides

GRAIN = 128 * KIB
"""Bytes: the unit of waiting and of small ranged reads. The kernel's own read-ahead asks for this much at a time; two
of them keep the header of any file under 256 KiB on a server that honours Range (contract 4, number 8)."""

NEAR = MIB
"""Bytes a read may lie off the expected offset and still count as sequential: the kernel sends its read-ahead from
several threads, and they arrive out of order."""

NEAR_READS = 8
"""The same in reads: on libfuse 3 a read-ahead is 1 MiB, and up to 12 are under way (libfuse's max_background). With
NEAR alone each that came early counted as a jump, and a file read in order came up to five times."""

STREAM_FROM = MIB
"""Bytes of window from which a ranged request asks for the rest of the file: back-pressure decides how much comes."""


class ReadPattern:
    """The recent past of one open file. Races between threads of one handle only make the advice a little worse."""

    __slots__ = ("_expected", "_window", "strides")

    def __init__(self) -> None:
        self._expected = -1
        self._window = 0
        self.strides = Strides()

    def observe(self, start: int, stop: int, max_window: int) -> int:
        """Note a read of [start, stop); return how many bytes behind ``stop`` are worth having already.

        0 for the first read and after a jump; then one grain, doubling with each sequential read up to ``max_window``.
        What is read at equal distances is not read on further than it was before.
        """
        expected = self._expected
        near = max(NEAR, NEAR_READS * (stop - start))
        if expected >= 0 and -near <= start - expected <= near:
            if stop > expected:
                self._expected = stop
                self._window = min(max(2 * self._window, GRAIN), max_window)
                if self.strides.read(stop) and self.strides.sure:
                    return min(self._window, self.strides.left())
        else:
            self._expected = stop
            self._window = 0
            self.strides.jump(start, stop)
        return self._window


def request_stop(start: int, stop: int, size: int, window: int) -> int:
    """Where a request that contains [start, stop) of a file should end: whole grains; the rest when it is little."""
    if window >= STREAM_FROM:
        return size
    wanted = max(stop, start + 4 * window)
    end = -(-wanted // GRAIN) * GRAIN
    return size if end + GRAIN >= size else end
