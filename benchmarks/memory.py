"""Memory that is the machine's own while something is timed. Measures nothing.

A virtual machine gives memory that has been free for 2 s back to its host, and the first to use it again pays for that:
12 s for 5 GB on the machine where this was noticed, which would measure the order of the contenders. So the benchmarks
hold memory between two measurements, and let go of it right before a reading, for the kernel to keep file pages in. To
take it again while it is still the machine's own takes 0.7 s, in large pages.
"""

from __future__ import annotations

import mmap
from pathlib import Path

SIZE = 5 * 10**9  # a file's pages, those of a cache's blocks, and as much again
SMALL = 10**9  # what a job with small files, or with few bytes, may want
_STEP = 256 * 2**20
_held: list[mmap.mmap] = []


def hold(size: int = SIZE) -> None:
    """Take ``size`` bytes (at most half of what is free), and touch them, unless some are held."""
    size = min(size, free() // 2) // _STEP * _STEP
    if _held or size == 0:
        return
    held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.madvise(mmap.MADV_HUGEPAGE)
    touched = bytes(_STEP // mmap.PAGESIZE)
    for start in range(0, size, _STEP):
        held[start : start + _STEP : mmap.PAGESIZE] = touched
    _held.append(held)


def release() -> None:
    """Give what is held to the kernel, if anything is."""
    while _held:
        _held.pop().close()


def warm(size: int = SIZE) -> None:
    """Memory for what is read next: call it right before."""
    hold(size)
    release()


def free() -> int:
    """Bytes of memory that could be had without taking them from a process."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
