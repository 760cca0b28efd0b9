"""What an archive leaves with the cache is read like what was fetched, and nothing half-kept counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from xnatfs.archives.base import Keeper
from xnatfs.archives.memory import MemoryArchive
from xnatfs.blocks.disk import DiskBlocks
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.blocks.tiered import TieredBlocks
from xnatfs.config import KIB, MIB, ReadConfig
from xnatfs.model import Entry
from xnatfs.reading.keeping import TEXT_UNIT, CacheKeeper
from xnatfs.reading.reader import BlockReader

BLOCK = 128 * KIB
DATA = bytes(range(256)) * 1100  # two blocks and a part


def entry(key: str = "k", version: str = "1") -> Entry:
    return Entry("name", key, False, size=len(DATA), version=version)


def kept(keeper: Keeper, data: bytes, piece: int, key: str = "k", version: str = "1") -> None:
    writer = keeper.writer(key, version)
    for start in range(0, len(data), piece):
        writer.write(memoryview(data)[start : start + piece])
    writer.finish()


@pytest.fixture
def cache() -> MemoryBlocks:
    return MemoryBlocks(64 * MIB)


@pytest.fixture
def keeper(cache: MemoryBlocks) -> CacheKeeper:
    return CacheKeeper("memory:", cache, BLOCK)


@pytest.mark.parametrize("piece", [1000, BLOCK - 1, BLOCK, BLOCK + 1, 10 * BLOCK])
def test_a_kept_file_is_read_without_a_request(cache: MemoryBlocks, keeper: CacheKeeper, piece: int) -> None:
    kept(keeper, DATA, piece)
    archive = MemoryArchive({})
    reader = BlockReader(archive, cache, ReadConfig(), BLOCK)
    file = reader.open(entry())
    assert reader.pread(file, 0, len(DATA)) == DATA
    assert reader.pread(file, BLOCK - 5, 10) == DATA[BLOCK - 5 : BLOCK + 5]
    reader.release(file)
    assert archive.calls.total() == 0
    assert reader.cached_bytes(entry()) == len(DATA)


def test_what_was_kept_under_one_version_is_not_another(cache: MemoryBlocks, keeper: CacheKeeper) -> None:
    kept(keeper, DATA, 1000)
    reader = BlockReader(MemoryArchive({}), cache, ReadConfig(), BLOCK)
    assert reader.cached_bytes(entry(version="2")) == 0


@pytest.mark.parametrize("finished", [False, True])
def test_what_is_discarded_is_not_there(cache: MemoryBlocks, keeper: CacheKeeper, finished: bool) -> None:
    writer = keeper.writer("k", "1")
    writer.write(memoryview(DATA))
    if finished:
        writer.finish()
    writer.discard()
    assert BlockReader(MemoryArchive({}), cache, ReadConfig(), BLOCK).cached_bytes(entry()) == 0


def test_what_is_not_finished_does_not_count(cache: MemoryBlocks, keeper: CacheKeeper) -> None:
    keeper.writer("k", "1").write(memoryview(DATA))
    assert BlockReader(MemoryArchive({}), cache, ReadConfig(), BLOCK).cached_bytes(entry()) == 0


@pytest.mark.parametrize("text", ["", "short", "ü" * 10, "x" * TEXT_UNIT, "x" * (2 * TEXT_UNIT + 1)])
def test_a_text_is_recalled_as_it_was(keeper: CacheKeeper, text: str) -> None:
    assert keeper.recall("about") is None
    keeper.note("about", text)
    assert keeper.recall("about") == text
    assert keeper.recall("other") is None


def test_the_last_text_counts(keeper: CacheKeeper) -> None:
    keeper.note("about", "x" * (2 * TEXT_UNIT))
    keeper.note("about", "new")
    assert keeper.recall("about") == "new"


def test_files_and_texts_survive_a_remount(tmp_path: Path) -> None:
    for first in (True, False):
        disk = DiskBlocks(tmp_path, 64 * MIB, 0.0)
        cache = TieredBlocks(MemoryBlocks(MIB), disk, 8 * MIB)
        keeper = CacheKeeper("memory:", cache, BLOCK)
        if first:
            kept(keeper, DATA, 1000)
            keeper.note("about", "text")
        else:
            assert keeper.recall("about") == "text"
            assert BlockReader(MemoryArchive({}), cache, ReadConfig(), BLOCK).cached_bytes(entry()) == len(DATA)
        cache.close()
