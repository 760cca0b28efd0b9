"""Folders read in any order by any number of readers, with streams that break: the bytes are those of the files."""

from __future__ import annotations

import random
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.trees import run_together
from xnatfs.archives.memory import MemoryArchive
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.config import KIB, MIB, ReadConfig
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


@settings(max_examples=25, deadline=None)
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
