"""Memory in front of disk, written behind: a block is readable at once and on disk a moment later.

Decides no eviction and knows no file format: both stores do that for themselves. The one writer thread starts with the
first ``put`` (the FUSE process has forked by then). Any thread may call. ``_changed`` guards the queue and is never
held while the disk is asked; ``kill -9`` loses what is queued, and nothing else.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass, field

from xnatfs.blocks.base import Block, BlockKey
from xnatfs.blocks.disk import DiskBlocks
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.model import ContentId

log = logging.getLogger(__name__)

WRITTEN_AT_ONCE = 64
"""Blocks and notes: of a fast transfer so many wait anyway, and they share the cost of a database transaction, which is
more than that of writing a small file."""

WRITTEN_BYTES = 8 * 1024 * 1024  # ... and blocks of this many bytes: they wait in memory until all are written


@dataclass(slots=True)
class _Load:
    """One block on its way from disk: the first thread reads it, the others wait for that."""

    done: threading.Event = field(default_factory=threading.Event)
    data: Block | None = None


class TieredBlocks:
    """A ``BlockCache`` of a memory store and, unless there is none, a disk store.

    Args:
        memory: Holds what was used last; a hit here costs a microsecond.
        disk: Asked on a miss, written behind; None keeps blocks in memory only.
        pending_bytes: How much may wait to be written; ``put`` waits for the disk when it is exceeded.
    """

    def __init__(self, memory: MemoryBlocks, disk: DiskBlocks | None, pending_bytes: int) -> None:
        self._memory = memory
        self._disk = disk
        self._pending_limit = pending_bytes
        self._changed = threading.Condition()
        self._queue: deque[BlockKey | ContentId] = (
            deque()
        )  # guarded by _changed; what is no longer in _blocks or _notes is skipped
        self._blocks: dict[BlockKey, Block] = {}  # guarded by _changed; queued or being written
        self._notes: dict[ContentId, str] = {}  # guarded by _changed; queued or being written
        self._pending_bytes = 0  # guarded by _changed; sum of _blocks
        self._writing: set[ContentId] = set()  # guarded by _changed
        self._writer: threading.Thread | None = None  # guarded by _changed
        self._closing = False  # guarded by _changed
        self._discards = 0  # guarded by _changed; counts calls, so that a slow load does not bring back the dropped
        self._loads: dict[BlockKey, _Load] = {}  # guarded by _loads_lock
        self._loads_lock = threading.Lock()

    def get(self, key: BlockKey) -> Block | None:
        data = self._memory.get(key)
        if data is not None or self._disk is None:
            return data
        # Looked up without the lock: dict.get is atomic, and a block leaves only once it is on disk.
        data = self._blocks.get(key)
        return data if data is not None else self._load(key, self._disk)

    def get_span(self, key: BlockKey, start: int, stop: int) -> Block | None:
        """Bytes [start, stop) of a block, cut at its end, for scattered small reads: a miss in memory reads and
        verifies a sixteenth of the block on disk, and memory keeps what it has."""
        data = self._memory.get(key)
        if data is None and self._disk is not None:
            data = self._blocks.get(key)
            if data is None:
                return self._disk.get_span(key, start, stop)
        return None if data is None else data[start:stop]

    def kept_bytes(self, content: ContentId) -> int:
        if self._disk is None:
            return self._memory.kept_bytes(content)
        with self._changed:
            pending = sum(len(data) for key, data in self._blocks.items() if key.content == content)
        return pending + self._disk.kept_bytes(content)

    def put(self, key: BlockKey, data: Block) -> None:
        self._memory.put(key, data)
        if self._disk is None:
            return
        with self._changed:
            self._start_writer(self._disk)
            while self._blocks and self._pending_bytes + len(data) > self._pending_limit and not self._closing:
                self._changed.wait()
            if self._closing or key in self._blocks:
                return
            self._blocks[key] = data
            self._pending_bytes += len(data)
            self._queue.append(key)
            self._changed.notify_all()

    def get_note(self, content: ContentId) -> str | None:
        note = self._memory.get_note(content)
        if note is None and self._disk is not None:
            note = self._notes.get(content)
            if note is None:
                note = self._disk.get_note(content)
        return note

    def put_note(self, content: ContentId, note: str) -> None:
        self._memory.put_note(content, note)
        if self._disk is None:
            return
        with self._changed:
            self._start_writer(self._disk)
            if not self._closing:
                self._notes[content] = note
                self._queue.append(content)
                self._changed.notify_all()

    def discard(self, content: ContentId) -> None:
        """Drop a content everywhere. Waits for a write of it that is under way, which would else survive."""
        with self._changed:
            self._discards += 1
            for key in [key for key in self._blocks if key.content == content]:
                self._pending_bytes -= len(self._blocks.pop(key))
            self._notes.pop(content, None)
            self._changed.notify_all()
            self._changed.wait_for(lambda: content not in self._writing)
            self._memory.discard(content)
        if self._disk is not None:
            self._disk.discard(content)

    def hold(self, content: ContentId) -> None:
        self._memory.hold(content)
        if self._disk is not None:
            self._disk.hold(content)

    def release(self, content: ContentId) -> None:
        self._memory.release(content)
        if self._disk is not None:
            self._disk.release(content)

    def flush(self) -> None:
        """Wait until everything put so far is on disk, or was refused by it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue and not self._writing)

    def close(self) -> None:
        """Write what is queued, then close both stores. Later calls find nothing and keep nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            writer = self._writer
        if writer is not None:
            writer.join()
        self._memory.close()
        if self._disk is not None:
            self._disk.close()

    def _load(self, key: BlockKey, disk: DiskBlocks) -> Block | None:
        """Read a block from disk into memory, once for all threads that ask: readahead asks in many small pieces."""
        with self._loads_lock:
            load = self._loads.get(key)
            is_first = load is None
            if load is None:
                load = self._loads[key] = _Load()
        if not is_first:
            load.done.wait()
            return load.data
        try:
            discards = self._discards
            load.data = disk.get(key)
            if load.data is not None:
                with self._changed:
                    if self._discards == discards:
                        self._memory.put(key, load.data)
        finally:
            with self._loads_lock:
                del self._loads[key]
            load.done.set()
        return load.data

    def _start_writer(self, disk: DiskBlocks) -> None:
        """Start the writer unless it runs. The caller holds ``_changed``."""
        if self._writer is None and not self._closing:
            # A daemon: a process that ends without close() loses what is queued, as by kill -9, and does not hang.
            self._writer = threading.Thread(target=self._write, args=(disk,), name="xnatfs-block-writer", daemon=True)
            self._writer.start()

    def _write(self, disk: DiskBlocks) -> None:
        """The writer thread: put queued items on disk, in order, until the queue is empty and ``close`` was called."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                blocks, notes = self._next_batch()
                self._writing = {key.content for key, _ in blocks} | {content for content, _ in notes}
            try:
                disk.put_many(blocks, notes)
            except Exception:
                # A store owes us not to raise; without a writer, put would hang.
                log.exception("blocks were not written")
            finally:
                with self._changed:
                    self._writing = set()
                    # Found by identity: discarded and put again meanwhile, it is another object that still waits.
                    for key, data in blocks:
                        if self._blocks.get(key) is data:
                            del self._blocks[key]
                            self._pending_bytes -= len(data)
                    for content, note in notes:
                        if self._notes.get(content) is note:
                            del self._notes[content]
                    self._changed.notify_all()

    def _next_batch(self) -> tuple[list[tuple[BlockKey, Block]], list[tuple[ContentId, str]]]:
        """What is to be written together, taken out of the queue. The caller holds ``_changed``."""
        blocks: list[tuple[BlockKey, Block]] = []
        notes: list[tuple[ContentId, str]] = []
        size = 0
        while self._queue and size < WRITTEN_BYTES and len(blocks) + len(notes) < WRITTEN_AT_ONCE:
            item = self._queue.popleft()
            if isinstance(item, BlockKey):
                data = self._blocks.get(item)
                if data is not None:
                    blocks.append((item, data))
                    size += len(data)
            else:
                note = self._notes.get(item)
                if note is not None:
                    notes.append((item, note))
        return blocks, notes
