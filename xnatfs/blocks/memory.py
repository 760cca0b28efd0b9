"""A bounded store of recently used blocks in memory: what serves the many small reads of one block.

Not a second copy: values are the very objects that were put. Knows no files and starts no thread.
One lock guards everything and is never held longer than a few dictionary operations; any thread may call.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from xnatfs.blocks.base import Block, BlockKey
from xnatfs.model import ContentId

# Python objects around one block (key, dictionary slots, bytes header). tracemalloc on 3.11: 270 bytes for a block of
# a large content, 700 for a content of one block. Not counted, a million blocks of 100 bytes would take 8 x the limit.
OVERHEAD_BYTES = 700

# Notes are some 60 bytes each: this many cost about 2 MB.
NOTES_KEPT = 8192


class MemoryBlocks:
    """Least recently used blocks go first, those of contents that a reader holds after all others."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._free: OrderedDict[BlockKey, Block] = OrderedDict()  # guarded by _lock; oldest use first
        self._held: OrderedDict[BlockKey, Block] = OrderedDict()  # guarded by _lock; blocks of held contents
        self._holds: dict[ContentId, int] = {}  # guarded by _lock
        self._keys: dict[ContentId, set[BlockKey]] = {}  # guarded by _lock; every key kept, by content
        self._notes: OrderedDict[ContentId, str] = OrderedDict()  # guarded by _lock
        self._used = 0  # guarded by _lock; bytes, overhead included

    @property
    def used_bytes(self) -> int:
        """What the blocks take in memory, Python's own share included."""
        return self._used

    def get(self, key: BlockKey) -> Block | None:
        with self._lock:
            data = self._free.get(key)
            if data is not None:
                self._free.move_to_end(key)
                return data
            data = self._held.get(key)
            if data is not None:
                self._held.move_to_end(key)
            return data

    def get_span(self, key: BlockKey, start: int, stop: int) -> Block | None:
        data = self.get(key)
        return None if data is None else data[start:stop]

    def kept_bytes(self, content: ContentId) -> int:
        with self._lock:
            keys = self._keys.get(content, ())
            return sum(len(self._free.get(key) or self._held.get(key) or b"") for key in keys)

    def put(self, key: BlockKey, data: Block) -> None:
        cost = len(data) + OVERHEAD_BYTES
        with self._lock:
            self._forget(key)
            if cost > self._limit:
                return
            while self._used + cost > self._limit:
                self._forget(next(iter(self._free or self._held)))
            (self._held if key.content in self._holds else self._free)[key] = data
            self._keys.setdefault(key.content, set()).add(key)
            self._used += cost

    def get_note(self, content: ContentId) -> str | None:
        with self._lock:
            return self._notes.get(content)

    def put_note(self, content: ContentId, note: str) -> None:
        with self._lock:
            self._notes[content] = note
            self._notes.move_to_end(content)
            if len(self._notes) > NOTES_KEPT:
                self._notes.popitem(last=False)

    def discard(self, content: ContentId) -> None:
        with self._lock:
            for key in tuple(self._keys.get(content, ())):
                self._forget(key)
            self._notes.pop(content, None)

    def hold(self, content: ContentId) -> None:
        with self._lock:
            count = self._holds.get(content, 0)
            self._holds[content] = count + 1
            if not count:
                self._move(content, self._free, self._held)

    def release(self, content: ContentId) -> None:
        with self._lock:
            count = self._holds.get(content, 0)
            if count > 1:
                self._holds[content] = count - 1
            elif count:
                del self._holds[content]
                self._move(content, self._held, self._free)

    def close(self) -> None:
        """Let every block go. A later ``put`` is kept again: nothing here needs closing for good."""
        with self._lock:
            self._free.clear()
            self._held.clear()
            self._keys.clear()
            self._notes.clear()
            self._used = 0

    def _forget(self, key: BlockKey) -> None:
        """Drop one block if it is here. The caller holds ``_lock``."""
        data = self._free.pop(key, None)
        if data is None:
            data = self._held.pop(key, None)
        if data is None:
            return
        self._used -= len(data) + OVERHEAD_BYTES
        keys = self._keys[key.content]
        keys.discard(key)
        if not keys:
            del self._keys[key.content]

    def _move(self, content: ContentId, source: OrderedDict[BlockKey, Block], to: OrderedDict[BlockKey, Block]) -> None:
        """Carry a content's blocks over, as most recently used. The caller holds ``_lock``."""
        for key in sorted(self._keys.get(content, ()), key=lambda key: key.number):
            to[key] = source.pop(key)
