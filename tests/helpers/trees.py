"""Builds what tests of the tree need around a ``MemoryArchive``, and a clock that moves when told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from xnatfs.archives.base import Archive
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.config import ListingConfig, ReadConfig, TreeConfig
from xnatfs.reading.reader import BlockReader
from xnatfs.tree.listing import ListingCache
from xnatfs.tree.vfs import ArchiveVFS

Result = TypeVar("Result")

BLOCK_SIZE = 1 << 20


class Clock:
    """Seconds since nothing in particular."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Gate:
    """For ``MemoryArchive(before=...)``: holds calls of one operation back until it is opened."""

    operation: str
    reached: threading.Event = field(default_factory=threading.Event)
    open: threading.Event = field(default_factory=threading.Event)

    def __call__(self, operation: str, key: str) -> None:
        if operation == self.operation:
            self.reached.set()
            assert self.open.wait(20), "nobody opened the gate"


def build_vfs(
    archive: Archive, *, inside: str = "/", ttl_s: float = 300.0, clock: Callable[[], float] | None = None
) -> tuple[ArchiveVFS, ListingCache]:
    """A VFS with its own memory cache over ``archive``, and the listings it uses."""
    config = ListingConfig(ttl_s=ttl_s)
    listings = ListingCache(archive, config) if clock is None else ListingCache(archive, config, clock)
    reader = BlockReader(archive, MemoryBlocks(64 << 20), ReadConfig(idle_s=0.2), BLOCK_SIZE)
    return ArchiveVFS(archive, reader, listings, TreeConfig(), inside), listings


def read_file(vfs: ArchiveVFS, path: str) -> bytes:
    """All bytes of a file, as a program that opens, reads to the end and closes it gets them."""
    handle = vfs.open(path)
    try:
        return vfs.pread(handle, 0, handle.node.size + 1)
    finally:
        vfs.release(handle)


def names(vfs: ArchiveVFS, path: str) -> list[str]:
    return sorted(node.name for node in vfs.listdir(path))


def run_together(tasks: Sequence[Callable[[], Result]]) -> list[Result | BaseException]:
    """Run each task in its own thread, all at once; results or what was raised, in order."""
    results: list[Result | BaseException] = [RuntimeError("not run")] * len(tasks)
    barrier = threading.Barrier(len(tasks))

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = tasks[number]()
        except BaseException as exc:  # noqa: BLE001  # handed to the test, whatever it is
            results[number] = exc

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads), "a task hangs"
    return results
