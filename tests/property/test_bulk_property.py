"""Folders read in any order by any number of readers, with streams that break: the bytes are those of the files."""

from __future__ import annotations

import random
import tempfile
import threading
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.rounds import rounds
from tests.helpers.trees import run_together
from xnatfs.archives.memory import MemoryArchive
from xnatfs.blocks.claims import FileClaims
from xnatfs.blocks.disk import DiskBlocks
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.blocks.tiered import TieredBlocks
from xnatfs.config import GIB, KIB, MIB, ReadConfig
from xnatfs.errors import CorruptContent, Unavailable
from xnatfs.model import Entry
from xnatfs.reading.reader import BlockReader

CONFIG = ReadConfig(max_window=MIB, idle_s=0.05, timeout_s=5.0)
BLOCK = 128 * KIB


class Folder:
    key = "folder"

    def __init__(self, own: list[Entry]) -> None:
        self._own = own

    def files(self) -> tuple[list[Entry], list[Entry]]:
        return self._own, []


@settings(max_examples=rounds(25), deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(8, 60),
    size=st.sampled_from([1, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5]),
    readers=st.sampled_from([1, 2, 8]),
    memory=st.sampled_from([300 * KIB, 64 * MIB]),
    ranged=st.booleans(),
    digests=st.booleans(),
    broken=st.sampled_from(["nothing", "next", "readinto", "open_bulk"]),
    rate=st.sampled_from([0.02, 0.2]),
)
def test_any_walk_gives_the_files_bytes(seed, count, size, readers, memory, ranged, digests, broken, rate):
    rng = random.Random(seed)
    files = {f"{number:03d}": rng.randbytes(size) for number in range(count)}
    lock = threading.Lock()
    in_bulk = threading.local()

    def before(operation: str, key: str) -> None:
        in_bulk.now = operation in ("next", "open_bulk") or (operation == "readinto" and getattr(in_bulk, "now", False))
        if operation == broken and in_bulk.now:
            with lock:
                fails = rng.random() < rate
            if fails:
                raise rng.choice([Unavailable, CorruptContent])("broken on purpose")

    archive = MemoryArchive(files, ranged=ranged, digests=digests, bulk=True, before=before)
    reader = BlockReader(archive, MemoryBlocks(memory), CONFIG, BLOCK)
    entries = list(archive.children(archive.root()).children[""])
    folder = Folder(entries)
    order = entries * 2
    rng.shuffle(order)

    def walk(part: int) -> None:
        for entry in order[part::readers]:
            file = reader.open(entry, folder)
            data = files[entry.name]
            middle = len(data) // 2
            assert reader.pread(file, 0, middle) + reader.pread(file, middle, len(data)) == data
            reader.release(file)

    try:
        assert run_together([lambda part=part: walk(part) for part in range(readers)]) == [None] * readers
    finally:
        reader.close()


@settings(max_examples=rounds(12), deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(8, 60),
    size=st.sampled_from([1, 1000, BLOCK, BLOCK + 1, 2 * BLOCK + 5]),
    processes=st.sampled_from([2, 4]),
    ranged=st.booleans(),
    broken=st.sampled_from(["nothing", "next", "readinto", "open_bulk"]),
    leaves=st.booleans(),
)
def test_any_walks_of_several_processes_give_the_files_bytes(seed, count, size, processes, ranged, broken, leaves):
    """Each has locks, memory and connections of its own, and one cache directory; the first may leave in mid-walk."""
    rng = random.Random(seed)
    files = {f"{number:03d}": rng.randbytes(size) for number in range(count)}
    lock = threading.Lock()
    in_bulk = threading.local()

    def before(operation: str, key: str) -> None:
        in_bulk.now = operation in ("next", "open_bulk") or (operation == "readinto" and getattr(in_bulk, "now", False))
        if operation == broken and in_bulk.now:
            with lock:
                fails = rng.random() < 0.05
            if fails:
                raise rng.choice([Unavailable, CorruptContent])("broken on purpose")

    archive = MemoryArchive(files, ranged=ranged, digests=True, bulk=True, before=before)
    entries = list(archive.children(archive.root()).children[""])

    def walk(directory: Path, part: int) -> None:
        cache = TieredBlocks(MemoryBlocks(MIB), DiskBlocks(directory, GIB, 0.0), 8 * MIB)
        reader = BlockReader(archive, cache, CONFIG, BLOCK, claims=FileClaims(directory))
        try:
            order = list(entries)
            random.Random(seed + part // 2).shuffle(order)  # two in the same order, two in another
            for entry in order[: count // 2 if leaves and part == 0 else count]:
                file = reader.open(entry, Folder(entries))
                assert reader.pread(file, 0, size) == files[entry.name]
                reader.release(file)
        finally:
            reader.close()

    with tempfile.TemporaryDirectory() as room:
        tasks = [lambda part=part: walk(Path(room) / "cache", part) for part in range(processes)]
        assert run_together(tasks) == [None] * processes
