"""Memory of one block's size, used again once nobody looks at what it held.

A new block of 1 MiB is fresh memory each time: the kernel clears it page by page and takes it back (0.3 s of 1 s of
CPU for 1 GB read), or malloc keeps more of it than is in use. Knows nothing of files or blocks. Any thread may call.
"""

from __future__ import annotations

import sys
import threading


def _references(buffers: list[bytearray], index: int) -> int:
    return sys.getrefcount(buffers[index])


_UNUSED = _references([bytearray(1)], 0)
"""What ``_references`` says of a buffer that only its list refers to, on this Python."""

_COUNTED = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Without the interpreter's lock, counts of references are estimates: nothing is used again there."""


class BufferPool:
    """Buffers of one size. There is no call to give one back: it is free when the last view of it is gone.

    Args:
        limit: How many are kept for the next use; more may be in use at once.
    """

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self._limit = limit if _COUNTED else 0
        self._lock = threading.Lock()
        self._buffers: list[bytearray] = []  # guarded by _lock
        self._next = 0  # guarded by _lock: blocks are let go in about the order they were filled

    def take(self, size: int) -> bytearray:
        """A buffer of exactly ``size`` bytes, holding anything. Only full-sized ones come from the pool."""
        if size != self.size:
            return bytearray(size)
        with self._lock:
            buffers = self._buffers
            count = len(buffers)
            for step in range(count):
                index = (self._next + step) % count
                if _references(buffers, index) == _UNUSED:
                    self._next = index + 1
                    return buffers[index]
            made = bytearray(size)
            if count < self._limit:
                buffers.append(made)
            return made
