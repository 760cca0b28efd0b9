"""Several streams of one file, and strided reads: right bytes, none twice, few at once, and an end to all of them.

The archive is slow by stream, in place of a network. How the number of streams is found is in test_streams.py.
"""

from __future__ import annotations

import gc
import random
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers.trees import run_together
from xnatfs.archives.base import RangeStream
from xnatfs.archives.memory import MemoryArchive
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.config import KIB, MIB, ReadConfig
from xnatfs.errors import StaleContent, Unavailable
from xnatfs.model import Entry
from xnatfs.reading import streams
from xnatfs.reading.reader import BlockReader, OpenFile
from xnatfs.reading.streams import MOST_STREAMS

CONFIG = ReadConfig(max_window=4 * MIB, idle_s=0.2, timeout_s=20.0)
STRIPE = MIB  # a quarter of the window
PIECE = 128 * KIB
DATA = random.Random(7).randbytes(48 * MIB)


class Streams(MemoryArchive):
    """A file "f" of 48 MiB and a small one; a pause before each answer and each piece, and counts of what is open.

    Args:
        pause_s: Before each piece of each stream.
        limit: Streams from which a further one is refused.
    """

    def __init__(self, pause_s: float = 0.004, *, limit: int = 1000, **how: bool) -> None:
        super().__init__({"f": DATA, "g": DATA[:PIECE]}, chunk_size=PIECE, **how)
        self.before = self._pause
        self._pause_s = pause_s
        self._limit = limit
        self._counting = threading.Lock()
        self.open = 0
        self.most = 0
        self.refused = 0

    def _pause(self, operation: str, key: str) -> None:
        if operation in ("open_range", "readinto"):
            time.sleep(self._pause_s)

    def open_range(self, entry: Entry, start: int, stop: int) -> RangeStream:
        stream = super().open_range(entry, start, stop)
        with self._counting:
            if self.open >= self._limit:
                self.refused += 1
                raise Unavailable("too many connections")
            self.open += 1
            self.most = max(self.most, self.open)
        return Counted(self, stream)

    def left(self) -> None:
        with self._counting:
            self.open -= 1


class Counted:
    """A stream that says when it has ended."""

    def __init__(self, archive: Streams, stream: RangeStream) -> None:
        self._archive = archive
        self._stream = stream
        self._at = self.start = stream.start
        self.stop, self.total = stream.stop, stream.total
        self.validator, self.ranged = stream.validator, stream.ranged
        self._left = False

    def readinto(self, buffer: memoryview) -> int:
        count = self._stream.readinto(buffer)
        self._at += count
        if self._at == self.stop:
            self._leave()
        return count

    def close(self) -> None:
        self._stream.close()
        self._leave()

    def _leave(self) -> None:
        left, self._left = self._left, True
        if not left:
            self._archive.left()


@pytest.fixture(autouse=True)
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every further stream is found to pay, however busy this machine is."""
    monkeypatch.setattr(streams, "SAMPLE_S", 0.02)
    monkeypatch.setattr(streams, "SETTLE_S", 0.01)
    monkeypatch.setattr(streams, "WAITING", -1.0)
    monkeypatch.setattr(streams, "BUSY", 1000.0)
    monkeypatch.setattr(streams, "ENOUGH", 1e12)
    monkeypatch.setattr(streams, "GREW", -1000.0)


@pytest.fixture
def readers() -> Iterator[list[BlockReader]]:
    made: list[BlockReader] = []
    yield made
    for reader in made:
        reader.close()


def opened(
    readers: list[BlockReader], archive: Streams, config: ReadConfig = CONFIG
) -> tuple[Streams, BlockReader, OpenFile]:
    reader = BlockReader(archive, MemoryBlocks(256 * MIB), config, 512 * KIB)
    readers.append(reader)
    return archive, reader, reader.open(entry_of(archive, "f"))


def entry_of(archive: MemoryArchive, name: str) -> Entry:
    [entry] = [entry for entry in archive.children(archive.root()).children[""] if entry.name == name]
    return entry


def read_on(reader: BlockReader, file: OpenFile, start: int, stop: int) -> None:
    for at in range(start, stop, PIECE):
        assert reader.pread(file, at, PIECE) == DATA[at : at + PIECE]


def idle_soon(reader: BlockReader) -> bool:
    deadline = time.monotonic() + 10
    while not reader.idle and time.monotonic() < deadline:
        time.sleep(0.01)
    return reader.idle


def test_a_slow_connection_gets_others_beside_it_and_no_byte_comes_twice(readers: list[BlockReader]) -> None:
    archive, reader, file = opened(readers, Streams())
    read_on(reader, file, 0, len(DATA))
    assert archive.calls["bytes"] == len(DATA)
    assert 2 <= archive.most <= MOST_STREAMS
    assert archive.calls["open_range"] <= 5 + len(DATA) // STRIPE
    reader.release(file)


def test_the_next_file_is_read_that_way_from_its_beginning(readers: list[BlockReader]) -> None:
    archive, reader, file = opened(readers, Streams())
    read_on(reader, file, 0, len(DATA))
    reader.release(file)
    archive.replace("/f", DATA)
    archive.calls.clear()
    file = reader.open(entry_of(archive, "f"))
    read_on(reader, file, 0, 16 * MIB)
    assert archive.calls["open_range"] >= 14  # stripes; one stream would be five requests
    reader.release(file)


def test_where_a_second_stream_does_not_pay_one_goes_on(
    readers: list[BlockReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "GREW", 1000.0)
    archive, reader, file = opened(readers, Streams())
    read_on(reader, file, 0, len(DATA))
    assert archive.calls["bytes"] == len(DATA)
    assert archive.calls["open_range"] <= 20
    assert file.flight.streams is not None
    assert file.flight.streams.count == 1
    reader.release(file)


def test_a_server_without_ranges_sends_one_stream(readers: list[BlockReader]) -> None:
    archive, reader, file = opened(readers, Streams(ranged=False))
    read_on(reader, file, 0, len(DATA))
    assert (archive.calls["bytes"], archive.calls["open_range"], archive.most) == (len(DATA), 1, 1)
    reader.release(file)


def test_an_archive_that_sends_one_thing_at_a_time_gets_one_stream(readers: list[BlockReader]) -> None:
    class OneByOne(Streams):
        alone = True

    _, reader, file = opened(readers, OneByOne(0.001))
    read_on(reader, file, 0, 24 * MIB)
    for start in range(30 * MIB, 46 * MIB, 2 * MIB):
        assert reader.pread(file, start, PIECE) == DATA[start : start + PIECE]
    assert (file.flight.streams, file.flight.workers) == (None, 0)
    reader.release(file)


def test_a_file_whose_digest_is_being_checked_stays_one_stream(readers: list[BlockReader]) -> None:
    archive, reader, file = opened(readers, Streams(0.001, digests=True))
    assert reader.pread(file, 0, 8 * MIB) == DATA[: 8 * MIB]
    read_on(reader, file, 8 * MIB, len(DATA))
    assert archive.calls["bytes"] == len(DATA)
    reader.release(file)


def test_streams_that_have_ended_hold_no_memory(readers: list[BlockReader]) -> None:
    """However long it is until garbage is collected."""
    archive = Streams(0.001)
    reader = BlockReader(archive, MemoryBlocks(4 * MIB), CONFIG, 512 * KIB)
    readers.append(reader)
    file = reader.open(entry_of(archive, "f"))
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        read_on(reader, file, 0, len(DATA))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert archive.calls["open_range"] >= 30
    assert held <= 4 * MIB + (CONFIG.max_window // (512 * KIB) + MOST_STREAMS) * 512 * KIB + MIB
    reader.release(file)


def test_letting_go_ends_all_streams_and_fetches_little_more(readers: list[BlockReader]) -> None:
    archive, reader, file = opened(readers, Streams())
    read_on(reader, file, 0, 24 * MIB)
    assert file.flight.streams is not None
    assert file.flight.streams.count > 1
    reader.release(file)
    assert idle_soon(reader)
    assert archive.calls["bytes"] <= 24 * MIB + CONFIG.max_window + MOST_STREAMS * STRIPE


def test_a_pause_ends_all_streams_and_reading_goes_on_behind_it(readers: list[BlockReader]) -> None:
    archive, reader, file = opened(readers, Streams())
    read_on(reader, file, 0, 24 * MIB)
    before = archive.calls["bytes"]
    assert idle_soon(reader)
    assert archive.calls["bytes"] - before <= CONFIG.max_window + STRIPE
    read_on(reader, file, 24 * MIB, len(DATA))
    assert archive.calls["bytes"] == len(DATA)
    reader.release(file)


def test_closing_ends_all_streams_under_their_readers(readers: list[BlockReader]) -> None:
    _, reader, file = opened(readers, Streams())
    read_on(reader, file, 0, 20 * MIB)
    reader.close()
    assert reader.idle
    with pytest.raises(Unavailable):
        read_on(reader, file, 20 * MIB, len(DATA))


def test_a_server_that_refuses_further_connections_is_read_over_one(readers: list[BlockReader]) -> None:
    archive, reader, file = opened(readers, Streams(limit=1))
    read_on(reader, file, 0, len(DATA))
    assert archive.calls["bytes"] == len(DATA)
    assert 1 <= archive.refused <= 2
    reader.release(file)


def test_further_streams_leave_a_connection_to_others(readers: list[BlockReader]) -> None:
    """Two slots: one stream reads on, and a second file is read without waiting for it."""
    config = ReadConfig(max_window=4 * MIB, idle_s=0.2, timeout_s=10.0, max_transfers=3, brief_transfers=0)
    archive, reader, file = opened(readers, Streams(), config)
    small = reader.open(entry_of(archive, "g"))
    began = threading.Event()

    def large() -> None:
        read_on(reader, file, 0, 12 * MIB)
        began.set()
        read_on(reader, file, 12 * MIB, len(DATA))

    def others() -> None:
        assert began.wait(30)
        assert reader._slots.count <= 2
        assert reader.pread(small, 0, PIECE) == DATA[:PIECE]

    assert run_together([large, others]) == [None, None]
    assert archive.most <= 3
    reader.release(small)
    reader.release(file)


def test_who_waits_for_a_connection_gets_that_of_a_further_stream(readers: list[BlockReader]) -> None:
    archive, reader, file = opened(readers, Streams())
    read_on(reader, file, 0, 24 * MIB)
    held = [Unfinished() for _ in range(CONFIG.max_transfers)]
    with ThreadPoolExecutor(len(held) + 1) as pool:
        going_on = pool.submit(read_on, reader, file, 24 * MIB, len(DATA))
        for done in [pool.submit(reader._slots.acquire, one) for one in held[:-1]]:  # type: ignore[arg-type]
            done.result(10)
        for one in held[:-1]:
            reader._slots.release(one)  # type: ignore[arg-type]
        going_on.result(30)
    assert archive.calls["bytes"] <= len(DATA) + MOST_STREAMS * STRIPE
    reader.release(file)


class Unfinished:
    """What holds a slot for as long as it likes."""

    brief = leaving = False

    def idle_since(self) -> None:
        return None

    def overdue_s(self, now: float) -> float:
        return -1.0

    def stop(self) -> None:
        """It does not."""

    give_way = stop


def test_a_file_that_changes_under_several_streams_is_stale(readers: list[BlockReader]) -> None:
    archive, reader, file = opened(readers, Streams())
    read_on(reader, file, 0, 20 * MIB)
    archive.replace("/f", DATA[::-1])
    with pytest.raises(StaleContent):
        read_on(reader, file, 20 * MIB, len(DATA))
    reader.release(file)


@pytest.mark.parametrize("length", [64 * KIB, 256 * KIB])
def test_reads_at_equal_distances_come_ahead_and_once(readers: list[BlockReader], length: int) -> None:
    archive, reader, file = opened(readers, Streams())
    places = range(0, len(DATA) - length, 2 * MIB)
    for start in places:
        for at in range(start, start + length, PIECE):  # as the kernel asks
            stop = min(at + PIECE, start + length)
            assert reader.pread(file, at, stop - at) == DATA[at:stop]
    assert idle_soon(reader)
    grains = -(-length // PIECE)
    ahead = 4 * 3 * PIECE  # behind each of the first four runs: it could have been a read in order
    assert archive.calls["bytes"] <= (len(places) + 1) * grains * PIECE + ahead
    assert archive.calls["open_range"] <= len(places) + 5
    assert 2 <= archive.most <= MOST_STREAMS + 1
    reader.release(file)


def test_strided_reads_behind_a_paused_stream_come_ahead_too(readers: list[BlockReader]) -> None:
    archive, reader, file = opened(readers, Streams(0.01))
    read_on(reader, file, 0, 4 * MIB)  # a stream that was to bring all of the file, and waits now
    before = archive.calls["open_range"]
    for start in range(20 * MIB, 44 * MIB, 2 * MIB):
        assert reader.pread(file, start, PIECE) == DATA[start : start + PIECE]
    assert archive.most >= 2
    assert 12 <= archive.calls["open_range"] - before <= 12 + 8 + 1
    reader.release(file)


def test_strided_reads_that_stop_fetch_little_more(readers: list[BlockReader]) -> None:
    archive, reader, file = opened(readers, Streams())
    for start in range(0, 12 * MIB, 2 * MIB):
        assert reader.pread(file, start, PIECE) == DATA[start : start + PIECE]
    reader.release(file)
    assert idle_soon(reader)
    assert archive.calls["bytes"] <= (6 + 8) * PIECE


def test_random_reads_fetch_nothing_ahead(readers: list[BlockReader]) -> None:
    archive, reader, file = opened(readers, Streams(0.0))
    places = random.Random(3)
    grains = set()
    for _ in range(300):
        at = places.randrange(len(DATA) - 4096) // 4096 * 4096
        assert reader.pread(file, at, 4096) == DATA[at : at + 4096]
        grains.add(at // PIECE)
    assert archive.calls["bytes"] <= 1.1 * len(grains) * PIECE  # some lie near the one before: not quite at random
    assert file.flight.workers == 0
    reader.release(file)


def test_a_server_that_stops_honouring_ranges_is_read_over_one_stream(readers: list[BlockReader]) -> None:
    archive, reader, file = opened(readers, Streams())
    read_on(reader, file, 0, 20 * MIB)
    archive._ranged = False
    read_on(reader, file, 20 * MIB, len(DATA))
    assert file.flight.streams is not None
    assert file.flight.streams.count == 1
    assert archive.calls["bytes"] <= 2 * len(DATA) + MOST_STREAMS * STRIPE
    reader.release(file)


def test_who_took_a_request_for_all_of_the_file_asks_again_once_it_is_answered_as_a_part(
    readers: list[BlockReader],
) -> None:
    """Nobody knows yet whether the server honours ranges: a request under way could bring the file from its start."""
    config = ReadConfig(max_window=4 * MIB, idle_s=0.2, timeout_s=20.0, max_transfers=2)
    archive, reader, file = opened(readers, Streams(0.0), config)
    read_on(reader, file, 8 * MIB, 11 * MIB)
    assert idle_soon(reader)
    at = 8 * MIB + reader.cached_bytes(file.entry)
    read_on(reader, file, 11 * MIB, at)
    reader._slots.answered(False)
    asked, speaks = threading.Event(), threading.Event()

    def silent(operation: str, key: str) -> None:
        if operation == "open_range" and not asked.is_set():
            asked.set()
            assert speaks.wait(10)

    archive.before = silent
    with ThreadPoolExecutor(2) as pool:
        leads = pool.submit(read_on, reader, file, at, at + PIECE)
        assert asked.wait(10)
        before = reader.open(file.entry)
        follows = pool.submit(read_on, reader, before, MIB, MIB + PIECE)
        time.sleep(0.05)  # until it waits; asking again without having waited is right as well
        speaks.set()
        leads.result(5)
        follows.result(5)  # not after twice the timeout
    reader.release(before)
    reader.release(file)
