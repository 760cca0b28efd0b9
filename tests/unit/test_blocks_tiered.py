"""Memory in front of disk: readable at once, on disk a moment later, and nothing dropped comes back."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from xnatfs.blocks.base import Block, BlockCache, BlockKey
from xnatfs.blocks.disk import DiskBlocks
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.blocks.tiered import TieredBlocks
from xnatfs.model import ContentId

KIB, MIB = 1024, 1024 * 1024
UNIT = 64 * KIB


class GatedDisk(DiskBlocks):
    """A real disk store whose writes wait for a gate, as on a slow disk, and whose reads are counted."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, 64 * MIB, 0.0)
        self.gate = threading.Event()
        self.gate.set()
        self.writing = threading.Event()
        self.reads = 0

    def put_many(self, blocks: Sequence[tuple[BlockKey, Block]], notes: Sequence[tuple[ContentId, str]] = ()) -> None:
        self.writing.set()
        assert self.gate.wait(10)
        super().put_many(blocks, notes)

    def get_span(self, key: BlockKey, start: int, stop: int) -> bytes | None:
        self.reads += 1
        time.sleep(0.01)
        return super().get_span(key, start, stop)


@pytest.fixture
def disk(tmp_path: Path) -> GatedDisk:
    return GatedDisk(tmp_path / "blocks")


@pytest.fixture
def cache(disk: GatedDisk) -> Iterator[TieredBlocks]:
    opened = TieredBlocks(MemoryBlocks(4 * MIB), disk, MIB)
    yield opened
    disk.gate.set()
    opened.close()


def content(name: str) -> ContentId:
    return ContentId("https://xnat.example.org", f"/data/files/{name}", "v1")


def key(name: str = "a", number: int = 0) -> BlockKey:
    return BlockKey(content(name), number, UNIT)


def bytes_of(block: BlockKey) -> bytes:
    return random.Random(repr(block)).randbytes(UNIT)


def on_disk(tmp_path: Path, block: BlockKey) -> bytes | None:
    """What a fresh process would find."""
    store = DiskBlocks(tmp_path / "blocks", 64 * MIB, 0.0)
    data = store.get(block)
    store.close()
    return data


def in_background(work: threading.Thread) -> threading.Thread:
    work.start()
    return work


def test_it_is_a_block_cache(cache: TieredBlocks) -> None:
    protocol: BlockCache = cache
    protocol.put(key(), bytes_of(key()))
    assert protocol.get(key()) == bytes_of(key())


def test_a_block_is_readable_before_it_is_on_disk(cache: TieredBlocks, disk: GatedDisk) -> None:
    disk.gate.clear()
    cache.put(key(), bytes_of(key()))
    cache.put_note(content("a"), "Mon")
    assert (cache.get(key()), cache.get_note(content("a"))) == (bytes_of(key()), "Mon")


def test_a_queued_block_is_found_after_memory_has_forgotten_it(disk: GatedDisk) -> None:
    cache = TieredBlocks(MemoryBlocks(0), disk, MIB)
    disk.gate.clear()
    cache.put(key(), bytes_of(key()))
    assert cache.get(key()) == bytes_of(key())
    assert cache.get_span(key(), 10, 20) == bytes_of(key())[10:20]
    disk.gate.set()
    cache.close()


def test_closing_writes_everything_that_was_queued(cache: TieredBlocks, tmp_path: Path) -> None:
    for number in range(30):
        cache.put(key("a", number), bytes_of(key("a", number)))
    cache.put_note(content("a"), "Mon")
    cache.close()
    assert all(on_disk(tmp_path, key("a", number)) == bytes_of(key("a", number)) for number in range(30))
    again = TieredBlocks(MemoryBlocks(MIB), DiskBlocks(tmp_path / "blocks", 64 * MIB, 0.0), MIB)
    assert again.get_note(content("a")) == "Mon"
    again.close()


def test_flush_returns_once_everything_is_on_disk(cache: TieredBlocks, tmp_path: Path) -> None:
    for number in range(10):
        cache.put(key("a", number), bytes_of(key("a", number)))
    cache.flush()
    assert all(on_disk(tmp_path, key("a", number)) is not None for number in range(10))


def test_a_disk_hit_enters_memory(cache: TieredBlocks, disk: GatedDisk, tmp_path: Path) -> None:
    other = DiskBlocks(tmp_path / "blocks", 64 * MIB, 0.0)
    other.put(key(), bytes_of(key()))
    other.close()
    assert [cache.get(key()) for _ in range(5)] == [bytes_of(key())] * 5
    assert disk.reads == 1


def test_sixteen_readers_of_one_block_read_it_from_disk_once(
    cache: TieredBlocks, disk: GatedDisk, tmp_path: Path
) -> None:
    other = DiskBlocks(tmp_path / "blocks", 64 * MIB, 0.0)
    other.put(key(), bytes_of(key()))
    other.close()
    found: list[bytes | None] = []
    readers = [in_background(threading.Thread(target=lambda: found.append(cache.get(key())))) for _ in range(16)]
    for reader in readers:
        reader.join()
    assert found == [bytes_of(key())] * 16
    assert disk.reads == 1


def test_a_span_on_disk_is_read_without_filling_memory(cache: TieredBlocks, tmp_path: Path) -> None:
    other = DiskBlocks(tmp_path / "blocks", 64 * MIB, 0.0)
    other.put(key(), bytes_of(key()))
    other.close()
    assert cache.get_span(key(), 5000, 9000) == bytes_of(key())[5000:9000]
    assert cache.get_span(key(), UNIT - 5, UNIT + 5) == bytes_of(key())[-5:]
    assert cache.get_span(key("b"), 0, 10) is None
    assert cache._memory.get(key()) is None


def test_put_waits_while_too_much_is_queued(cache: TieredBlocks, disk: GatedDisk) -> None:
    disk.gate.clear()
    blocks = MIB // UNIT + 4
    done = threading.Event()

    def fill() -> None:
        for number in range(blocks):
            cache.put(key("a", number), bytes_of(key("a", number)))
        done.set()

    writer = in_background(threading.Thread(target=fill))
    assert not done.wait(0.2)
    disk.gate.set()
    assert done.wait(5)
    writer.join()


def test_a_block_larger_than_the_queue_passes_alone(disk: GatedDisk, tmp_path: Path) -> None:
    cache = TieredBlocks(MemoryBlocks(MIB), disk, pending_bytes=100)
    for number in range(3):
        cache.put(key("a", number), bytes_of(key("a", number)))
    cache.close()
    assert all(on_disk(tmp_path, key("a", number)) is not None for number in range(3))


def test_a_discarded_content_is_gone_everywhere_even_while_it_is_written(
    cache: TieredBlocks, disk: GatedDisk, tmp_path: Path
) -> None:
    disk.gate.clear()
    for number in range(4):
        cache.put(key("a", number), bytes_of(key("a", number)))
    cache.put(key("b"), bytes_of(key("b")))
    cache.put_note(content("a"), "Mon")
    assert disk.writing.wait(5)
    discarding = in_background(threading.Thread(target=cache.discard, args=(content("a"),)))
    time.sleep(0.05)
    disk.gate.set()
    discarding.join(5)
    assert [cache.get(key("a", number)) for number in range(4)] == [None] * 4
    assert cache.get_note(content("a")) is None
    cache.close()
    assert [on_disk(tmp_path, key("a", number)) for number in range(4)] == [None] * 4
    assert on_disk(tmp_path, key("b")) == bytes_of(key("b"))


def test_what_is_put_after_a_discard_is_kept(cache: TieredBlocks, tmp_path: Path) -> None:
    for _ in range(20):
        cache.put(key(), bytes_of(key()))
        cache.discard(content("a"))
    cache.put(key(), bytes_of(key()))
    cache.close()
    assert on_disk(tmp_path, key()) == bytes_of(key())


def test_a_load_that_a_discard_overtakes_does_not_come_back(
    cache: TieredBlocks, disk: GatedDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put(key(), bytes_of(key()))
    cache.flush()
    cache._memory.close()
    reading, go_on = threading.Event(), threading.Event()
    read = DiskBlocks.get

    def slow_get(self: DiskBlocks, block: BlockKey) -> bytes | None:
        data = read(self, block)
        reading.set()
        assert go_on.wait(5)
        return data

    monkeypatch.setattr(DiskBlocks, "get", slow_get)
    loading = in_background(threading.Thread(target=cache.get, args=(key(),)))
    assert reading.wait(5)
    cache.discard(content("a"))
    go_on.set()
    loading.join()
    assert cache.get(key()) is None


def test_without_a_disk_memory_alone_serves() -> None:
    cache = TieredBlocks(MemoryBlocks(MIB), None, MIB)
    cache.put(key(), bytes_of(key()))
    cache.put_note(content("a"), "Mon")
    cache.hold(content("a"))
    cache.release(content("a"))
    assert (cache.get(key()), cache.get_span(key(), 1, 3)) == (bytes_of(key()), bytes_of(key())[1:3])
    assert cache.get_note(content("a")) == "Mon"
    cache.discard(content("a"))
    assert (cache.get(key()), cache.get_note(content("a"))) == (None, None)
    cache.flush()
    cache.close()


def test_a_disk_that_cannot_be_used_leaves_memory_working(tmp_path: Path, expected_warnings: list[str]) -> None:
    expected_warnings.append("block cache .* opening failed")
    (tmp_path / "blocks").write_text("in the way")
    cache = TieredBlocks(MemoryBlocks(4 * MIB), DiskBlocks(tmp_path / "blocks", 64 * MIB, 0.0), 100 * KIB)
    for number in range(50):
        cache.put(key("a", number), bytes_of(key("a", number)))
    assert all(cache.get(key("a", number)) == bytes_of(key("a", number)) for number in range(50))
    cache.discard(content("a"))
    assert cache.get(key()) is None
    cache.close()


def test_holds_reach_both_stores(disk: GatedDisk) -> None:
    cache = TieredBlocks(MemoryBlocks(3 * MIB), disk, MIB)
    cache.hold(content("held"))
    cache.put(key("held"), bytes_of(key("held")))
    for number in range(100):
        cache.put(key("other", number), bytes_of(key("other", number)))
    assert cache._memory.get(key("held")) is not None
    cache.release(content("held"))
    for number in range(100):
        cache.put(key("more", number), bytes_of(key("more", number)))
    assert cache._memory.get(key("held")) is None
    cache.close()


def test_no_thread_and_no_file_before_the_first_put(tmp_path: Path) -> None:
    before = threading.active_count()
    cache = TieredBlocks(MemoryBlocks(MIB), DiskBlocks(tmp_path / "blocks", 64 * MIB, 0.0), MIB)
    assert not (tmp_path / "blocks").exists()
    assert cache.get(key()) is None
    assert threading.active_count() == before
    cache.close()


def test_a_closed_cache_finds_nothing_keeps_nothing_and_does_not_wait(cache: TieredBlocks) -> None:
    cache.put(key(), bytes_of(key()))
    cache.close()
    cache.put(key("b"), bytes_of(key("b")))
    cache.put_note(content("b"), "Mon")
    cache.discard(content("a"))
    cache.close()
    assert cache.get(key()) is None


def test_threads_that_put_get_and_discard_see_right_bytes_only(disk: GatedDisk) -> None:
    cache = TieredBlocks(MemoryBlocks(300 * KIB), disk, 200 * KIB)
    truth = {(name, number): bytes_of(key(name, number)) for name in "abc" for number in range(6)}
    wrong: list[BlockKey] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(150):
            block = key(rng.choice("abc"), rng.randrange(6))
            data = truth[block.content.key[-1], block.number]
            act = rng.randrange(10)
            if act < 4:
                cache.put(block, data)
            elif act < 9:
                if cache.get(block) not in (None, data):
                    wrong.append(block)
            else:
                cache.discard(block.content)

    threads = [in_background(threading.Thread(target=work, args=(seed,))) for seed in range(8)]
    for thread in threads:
        thread.join(60)
    assert wrong == []
    cache.close()


def test_kill_9_loses_queued_blocks_only(tmp_path: Path) -> None:
    program = f"""
import sys, time
sys.path.insert(0, {os.path.dirname(__file__)!r})
import test_blocks_tiered as t
from pathlib import Path
cache = t.TieredBlocks(t.MemoryBlocks(t.MIB), t.DiskBlocks(Path({str(tmp_path / "blocks")!r}), 64 * t.MIB, 0.0), t.MIB)
for number in range(10):
    cache.put(t.key("a", number), t.bytes_of(t.key("a", number)))
cache.flush()
print("flushed", flush=True)
while True:
    number += 1
    cache.put(t.key("a", number), t.bytes_of(t.key("a", number)))
"""
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "flushed\n"
    time.sleep(0.1)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    cache = TieredBlocks(MemoryBlocks(MIB), DiskBlocks(tmp_path / "blocks", 64 * MIB, 0.0), MIB)
    found = [cache.get(key("a", number)) for number in range(200)]
    assert found[:10] == [bytes_of(key("a", number)) for number in range(10)]
    assert all(data in (None, bytes_of(key("a", number))) for number, data in enumerate(found))
    cache.close()
