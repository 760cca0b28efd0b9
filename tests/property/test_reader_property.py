"""The reader against plain slicing: any block size, file, reads, cache size and server manner give the same bytes."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.rounds import rounds
from xnatfs.archives.memory import MemoryArchive
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.config import KIB, MIB, ReadConfig
from xnatfs.errors import ArchiveError, CorruptContent, StaleContent, TimedOut, Unavailable
from xnatfs.reading import streams
from xnatfs.reading.reader import BlockReader

CONFIG = ReadConfig(max_window=MIB, idle_s=0.05, timeout_s=5.0)


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def the_file(archive: MemoryArchive):
    [entry] = archive.children(archive.root()).children[""]
    return entry


EDGES = [1, 4096, 128 * KIB - 1, 128 * KIB, 128 * KIB + 1, 256 * KIB, MIB - 1, MIB, MIB + 1, 2 * MIB + 12_345]
reads = st.lists(
    st.tuples(st.floats(0, 1.05), st.sampled_from([1, 352, 4096, 128 * KIB, 128 * KIB + 1, 700 * KIB])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=rounds(60), deadline=None)
@given(
    size=st.sampled_from(EDGES) | st.integers(1, 3 * MIB),
    reads=reads,
    block_size=st.sampled_from([128 * KIB, 256 * KIB, MIB]),
    memory=st.sampled_from([0, 200 * KIB, 3 * MIB, 64 * MIB]),
    ranged=st.booleans(),
    digests=st.booleans(),
    chunk_size=st.sampled_from([1000, 64 * KIB, MIB]),
)
def test_any_read_equals_the_slice(size, reads, block_size, memory, ranged, digests, chunk_size):
    data = content(size)
    archive = MemoryArchive({"f": data}, ranged=ranged, digests=digests, chunk_size=chunk_size)
    reader = BlockReader(archive, MemoryBlocks(memory), CONFIG, block_size)
    try:
        file = reader.open(the_file(archive))
        for where, length in reads:
            offset = int(where * size)
            assert reader.pread(file, offset, length) == data[offset : offset + length]
        reader.release(file)
    finally:
        reader.close()


@settings(max_examples=rounds(15), deadline=None)
@given(
    seed=st.integers(0, 10_000),
    ranged=st.booleans(),
    memory=st.sampled_from([500 * KIB, 64 * MIB]),
    faults=st.booleans(),
)
def test_threads_see_the_same_bytes_with_evictions_and_broken_bodies(seed, ranged, memory, faults):
    rng = random.Random(seed)
    data = content(2_300_001)
    lock = threading.Lock()

    def before(operation: str, key: str) -> None:
        with lock:
            broken = faults and operation == "readinto" and rng.random() < 0.01
        if broken:
            raise Unavailable("connection reset")

    archive = MemoryArchive({"f": data}, ranged=ranged, chunk_size=64 * KIB, before=before)
    reader = BlockReader(archive, MemoryBlocks(memory), CONFIG, 256 * KIB)
    wrong: list[tuple[int, int]] = []
    errors: list[BaseException] = []
    entry = the_file(archive)

    def work(worker: int) -> None:
        mine = random.Random(seed * 100 + worker)
        file = reader.open(entry)
        for _ in range(15):
            offset, length = mine.randrange(len(data)), mine.randrange(1, 300 * KIB)
            try:
                if reader.pread(file, offset, length) != data[offset : offset + length]:
                    wrong.append((offset, length))
            except ArchiveError as error:
                errors.append(error)
        reader.release(file)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    reader.close()
    assert wrong == []
    assert faults or errors == []
    assert not any(isinstance(error, TimedOut) for error in errors)


@pytest.mark.parametrize("chunk_size", [10_007, 200_000, MIB])
def test_a_single_reader_from_a_server_without_ranges_opens_one_stream(chunk_size):
    data = content(5 * MIB + 17)
    archive = MemoryArchive({"f": data}, ranged=False, chunk_size=chunk_size)
    reader = BlockReader(archive, MemoryBlocks(64 * MIB), CONFIG, MIB)
    file = reader.open(the_file(archive))
    got = b"".join(reader.pread(file, at, 128 * KIB) for at in range(0, len(data), 128 * KIB))
    assert got == data
    assert archive.calls["open_range"] == 1
    assert archive.calls["bytes"] == len(data)
    reader.release(file)
    reader.close()


def test_sixteen_cold_readers_share_one_stream():
    data = content(8 * MIB)
    archive = MemoryArchive({"f": data}, ranged=False)
    reader = BlockReader(archive, MemoryBlocks(64 * MIB), CONFIG, MIB)
    entry = the_file(archive)
    results: list[bool] = []

    def work(worker: int) -> None:
        file = reader.open(entry)
        at, pieces = 0, []
        while piece := reader.pread(file, at, 128 * KIB):
            pieces.append(piece)
            at += len(piece)
        results.append(b"".join(pieces) == data)
        reader.release(file)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [True] * 16
    assert archive.calls["open_range"] == 1
    reader.close()


def test_a_header_moves_little_and_its_transfer_is_let_go():
    data = content(20 * MIB)
    archive = MemoryArchive({"f": data}, ranged=False, chunk_size=64 * KIB)
    reader = BlockReader(archive, MemoryBlocks(64 * MIB), CONFIG, MIB)
    file = reader.open(the_file(archive))
    assert reader.pread(file, 0, 352) == data[:352]
    reader.release(file)
    for _ in range(100):
        if reader.idle:
            break
        threading.Event().wait(0.05)
    assert reader.idle
    assert archive.calls["bytes"] <= 512 * KIB
    file = reader.open(the_file(archive))
    assert reader.pread(file, 0, 352) == data[:352]
    assert archive.calls["open_range"] == 1
    reader.release(file)
    reader.close()


def test_random_reads_from_a_ranged_archive_move_at_most_a_grain_or_two_each():
    data = content(32 * MIB)
    archive = MemoryArchive({"f": data}, ranged=True)
    reader = BlockReader(archive, MemoryBlocks(64 * MIB), CONFIG, MIB)
    file = reader.open(the_file(archive))
    rng = random.Random(1)
    for _ in range(100):
        at = rng.randrange(len(data) - 4096)
        assert reader.pread(file, at, 4096) == data[at : at + 4096]
    assert archive.calls["bytes"] <= 100 * 256 * KIB
    reader.release(file)
    reader.close()


def test_a_changed_file_is_stale_for_the_old_handle_and_new_for_the_next():
    old, new = content(3 * MIB, 1), content(3 * MIB, 2)
    archive = MemoryArchive({"f": old}, ranged=True)
    cache = MemoryBlocks(64 * MIB)
    reader = BlockReader(archive, cache, CONFIG, MIB)
    entry = replace(the_file(archive), version="as the listing says")  # a listing that does not notice the change
    file = reader.open(entry)
    assert reader.pread(file, 0, 100) == old[:100]
    archive.replace("/f", new)
    with pytest.raises(StaleContent):
        reader.pread(file, 2 * MIB, 100)
    with pytest.raises(StaleContent):
        reader.pread(file, 0, 100)
    reader.release(file)
    file = reader.open(entry)
    assert reader.pread(file, 0, 100) == new[:100]
    reader.release(file)
    reader.close()


def test_a_wrong_digest_is_an_error_and_nothing_of_it_is_kept():
    data = content(300 * KIB)
    archive = MemoryArchive({"f": data}, ranged=False)
    reader = BlockReader(archive, MemoryBlocks(64 * MIB), CONFIG, MIB)
    entry = replace(the_file(archive), digest="0" * 32)
    file = reader.open(entry)
    with pytest.raises(CorruptContent):
        reader.pread(file, 0, 100)
    assert reader.cached_bytes(entry) == 0
    assert archive.calls["open_range"] == 2  # asked for once more: it could have been damaged on its way
    reader.release(file)
    reader.close()


class WrongAtFirst(MemoryArchive):
    """Its first body is of the right length and version, and of other bytes."""

    def __init__(self, data: bytes, chunk_size: int) -> None:
        super().__init__({"f": data}, ranged=False, digests=True, chunk_size=chunk_size)
        self._wrong = MemoryArchive({"f": bytes(byte ^ 1 for byte in data)}, ranged=False, chunk_size=chunk_size)
        self._opened = 0

    def open_range(self, entry, start, stop):
        self._opened += 1
        return (self._wrong if self._opened == 1 else super()).open_range(entry, start, stop)


@settings(max_examples=rounds(40), deadline=None)
@given(
    size=st.sampled_from([300 * KIB, 700 * KIB, 2 * MIB]),
    step=st.sampled_from([4 * KIB, 100 * KIB, 128 * KIB, 4 * MIB]),
    readers=st.integers(1, 4),
    chunk_size=st.sampled_from([1000, 64 * KIB, MIB]),
)
def test_a_body_that_proves_wrong_is_mixed_into_no_reading(size, step, readers, chunk_size):
    data = content(size)
    archive = WrongAtFirst(data, chunk_size)
    patient = replace(CONFIG, idle_s=5.0)  # the body passes to its end, which is where it proves wrong
    reader = BlockReader(archive, MemoryBlocks(64 * MIB), patient, 128 * KIB)
    wrong = []

    def read() -> None:
        file = reader.open(the_file(archive))
        try:
            got = b"".join(reader.pread(file, at, step) for at in range(0, size, step))
        except ArchiveError:
            return
        finally:
            reader.release(file)
        if got != data:
            wrong.append(got)

    threads = [threading.Thread(target=read) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file = reader.open(the_file(archive))
    assert reader.pread(file, 0, size) == data
    reader.release(file)
    reader.close()
    assert not wrong


@pytest.fixture
def side_by_side(monkeypatch):
    """Every stream of a file that is read in order gets three more beside it, at once."""
    for name, value in {"SAMPLE_S": 0.0, "SETTLE_S": 0.0, "WAITING": -1.0, "BUSY": 1e9, "ENOUGH": 1e18}.items():
        monkeypatch.setattr(streams, name, value)
    monkeypatch.setattr(streams, "GREW", -1e9)


class Unreliable(MemoryArchive):
    """Answers less of a range than was asked for, at times, and breaks off at times."""

    def __init__(self, data: bytes, seed: int, short: float, broken: float) -> None:
        super().__init__({"f": data}, chunk_size=64 * KIB, before=self._break)
        self._random = random.Random(seed)
        self._chance = threading.Lock()
        self._short, self._broken = short, broken

    def _drawn(self, probability: float) -> bool:
        with self._chance:
            return self._random.random() < probability

    def _break(self, operation: str, key: str) -> None:
        if operation == "readinto" and self._drawn(self._broken):
            raise Unavailable("connection reset")

    def open_range(self, entry, start, stop):
        if self._drawn(self._short):
            stop = start + max(1, (stop - start) // 2)
        return super().open_range(entry, start, stop)


@settings(max_examples=rounds(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    block_size=st.sampled_from([128 * KIB, 256 * KIB, MIB]),
    memory=st.sampled_from([500 * KIB, 4 * MIB, 64 * MIB]),
    short=st.sampled_from([0.0, 0.3]),
    broken=st.sampled_from([0.0, 0.01]),
    threads=st.integers(1, 4),
)
def test_several_streams_give_every_reader_its_bytes(side_by_side, seed, block_size, memory, short, broken, threads):
    data = content(9 * MIB + 4321)
    archive = Unreliable(data, seed, short, broken)
    reader = BlockReader(archive, MemoryBlocks(memory), CONFIG, block_size)
    entry = the_file(archive)
    wrong: list[tuple[int, int]] = []
    errors: list[BaseException] = []

    def work(worker: int) -> None:
        mine = random.Random(seed * 10 + worker)
        file = reader.open(entry)
        at, step = mine.randrange(len(data)) * (worker % 2), 0
        for _ in range(100):
            length = mine.choice([4096, 64 * KIB, 128 * KIB, 300 * KIB])
            try:
                if reader.pread(file, at, length) != data[at : at + length]:
                    wrong.append((at, length))
            except ArchiveError as error:
                errors.append(error)
            at += step or length
            if at >= len(data) or mine.random() < 0.02:  # somewhere else, in order or in strides
                at, step = mine.randrange(len(data)), mine.choice([0, 0, 1_100_000])
        reader.release(file)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    reader.close()
    assert reader.idle
    assert wrong == []
    assert broken or errors == []
    assert not any(isinstance(error, TimedOut) for error in errors)


@settings(max_examples=rounds(20), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(4 * MIB, 12 * MIB),
    block_size=st.sampled_from([128 * KIB, 256 * KIB, MIB]),
    start=st.integers(0, 2 * MIB),
    length=st.sampled_from([64 * KIB, 128 * KIB, MIB]),
)
def test_several_streams_ask_for_no_byte_twice(side_by_side, size, block_size, start, length):
    data = content(size)
    archive = MemoryArchive({"f": data}, chunk_size=64 * KIB)
    reader = BlockReader(archive, MemoryBlocks(64 * MIB), CONFIG, block_size)
    file = reader.open(the_file(archive))
    for at in range(start, size, length):
        assert reader.pread(file, at, length) == data[at : at + length]
    reader.release(file)
    reader.close()
    assert archive.calls["bytes"] <= size
    assert archive.calls["open_range"] <= 12 + size // (256 * KIB)


@settings(max_examples=rounds(40), deadline=None)
@given(
    size=st.integers(1, 256 * KIB),
    block_size=st.sampled_from([128 * KIB, MIB]),
    readers=st.integers(1, 4),
    chunk_size=st.sampled_from([1000, 64 * KIB, MIB]),
    ranged=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_small_file_that_always_comes_wrong_is_never_read_whole(size, block_size, readers, chunk_size, ranged, seed):
    """In whatever order its parts are read: a server of ranges is asked for all of it as well."""
    archive = MemoryArchive({"f": content(size)}, ranged=ranged, chunk_size=chunk_size)
    entry = replace(the_file(archive), digest="0" * 32)
    reader = BlockReader(archive, MemoryBlocks(64 * MIB), replace(CONFIG, idle_s=5.0), block_size)
    file = reader.open(entry)
    parts = list(range(0, size, 64 * KIB)) * readers
    random.Random(seed).shuffle(parts)
    together = threading.Barrier(readers)
    right = []

    def read(which: int) -> None:
        together.wait()
        try:
            for at in parts[which::readers]:
                reader.pread(file, at, 64 * KIB)
                right.append(at)
        except CorruptContent:
            pass

    threads = [threading.Thread(target=read, args=(which,)) for which in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(right) != set(parts)
    with pytest.raises(CorruptContent):
        reader.pread(file, 0, 1)
    reader.release(file)
    reader.close()


def test_a_small_file_whose_end_is_read_first_is_held_to_its_digest_too():
    archive = MemoryArchive({"f": content(200 * KIB)}, ranged=True)
    entry = replace(the_file(archive), digest="0" * 32)
    reader = BlockReader(archive, MemoryBlocks(64 * MIB), CONFIG, 128 * KIB)
    file = reader.open(entry)
    with pytest.raises(CorruptContent):
        [reader.pread(file, at, 4 * KIB) for at in (150 * KIB, 0)]
    assert archive.calls["open_range"] == 1
    reader.release(file)
    reader.close()
