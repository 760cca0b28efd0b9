"""Readers that share a cache directory walk one folder, as processes do: one has the stream, the others follow it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.trees import run_together
from xnatfs.archives.memory import MemoryArchive
from xnatfs.blocks.claims import FileClaims
from xnatfs.blocks.disk import DiskBlocks
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.blocks.tiered import TieredBlocks
from xnatfs.config import GIB, KIB, MIB, ReadConfig
from xnatfs.errors import ArchiveError
from xnatfs.model import Entry
from xnatfs.reading import bulk_transfer
from xnatfs.reading.bulk import WALK
from xnatfs.reading.reader import BlockReader

COUNT, SIZE = 120, 30_000
FILES = {f"{number:03d}.dcm": random.Random(number).randbytes(SIZE) for number in range(COUNT)}
CONFIG = ReadConfig(max_window=MIB, idle_s=0.5, timeout_s=5.0)


@dataclass
class Directory:
    own: list[Entry]
    key: str = "scan"

    def files(self) -> tuple[list[Entry], list[Entry]]:
        return self.own, []


class Process:
    """A reader with locks, memory and connections of its own."""

    def __init__(self, archive: MemoryArchive, directory: Path, claims: bool = True) -> None:
        cache = TieredBlocks(MemoryBlocks(MIB), DiskBlocks(directory, GIB, 0.0), 8 * MIB)
        self.reader = BlockReader(archive, cache, CONFIG, 128 * KIB, claims=FileClaims(directory) if claims else None)
        self.folder = Directory(list(archive.children(archive.root()).children[""]))

    def read(self, *numbers: int) -> dict[str, bytes]:
        found = {}
        for number in numbers or range(COUNT):
            entry = self.folder.own[number]
            file = self.reader.open(entry, self.folder)
            try:
                found[entry.name] = self.reader.pread(file, 0, SIZE)
            finally:
                self.reader.release(file)
        return found


class Pace:
    """For ``MemoryArchive(before=...)``: a stream that takes its time, stands still at a member, or is cut there."""

    def __init__(self) -> None:
        self.stop_at = COUNT + 1
        self.stopped = threading.Event()
        self.going = threading.Event()
        self.members = 0

    def __call__(self, operation: str, key: str) -> None:
        if operation == "next":
            self.members += 1
            time.sleep(0.003)
            if self.members == self.stop_at:
                self.stopped.set()
                assert self.going.wait(20), "nobody let it go on"


@pytest.fixture(autouse=True)
def patient_but_for_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, too, a reader turns away from a stream only where that stands still."""
    monkeypatch.setattr(bulk_transfer, "SILENCE_S", 1.0)
    for name in ("PATIENCE_S", "THINKING_S"):
        monkeypatch.setattr(bulk_transfer, name, 10.0)


@pytest.fixture
def pace() -> Iterator[Pace]:
    pace = Pace()
    yield pace
    pace.going.set()


@pytest.fixture
def archive(pace: Pace) -> MemoryArchive:
    return MemoryArchive(FILES, ranged=False, bulk=True, before=pace)


@pytest.fixture
def process(archive: MemoryArchive, tmp_path: Path, pace: Pace) -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def make(of: MemoryArchive = archive) -> Process:
        made.append(Process(of, tmp_path / "cache"))
        return made[-1]

    yield make
    pace.going.set()
    for each in made:
        each.reader.close()


def test_four_processes_that_walk_one_folder_make_one_stream_between_them(
    archive: MemoryArchive, process: Callable[..., Process]
) -> None:
    processes = [process() for _ in range(4)]
    assert run_together([each.read for each in processes]) == [FILES] * 4
    assert archive.calls["open_bulk"] == 1
    assert archive.calls["open_range"] <= 4 * WALK


def test_walks_in_opposite_orders_share_a_stream(archive: MemoryArchive, process: Callable[..., Process]) -> None:
    first, second = process(), process()
    backwards = list(range(COUNT))[::-1]
    assert run_together([first.read, lambda: second.read(*backwards)]) == [FILES] * 2
    assert archive.calls["open_bulk"] == 1
    assert archive.calls["open_range"] <= 2 * WALK


def test_a_stream_goes_on_for_another_process_when_its_own_reader_has_left(
    archive: MemoryArchive, process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_transfer, "FIRST_AHEAD", 5 * SIZE)
    monkeypatch.setattr(bulk_transfer, "LITTLE", SIZE)
    first, second = process(), process()
    first.read(*range(WALK))
    assert second.read() == FILES
    assert archive.calls["open_bulk"] == 1
    assert archive.calls["open_range"] <= 2 * WALK


def test_the_others_go_on_when_the_process_with_the_stream_ends(
    archive: MemoryArchive, process: Callable[..., Process], pace: Pace
) -> None:
    pace.stop_at = 40
    owner, other = process(), process()
    threading.Thread(target=owner.read, args=range(WALK), daemon=True).start()
    assert pace.stopped.wait(10)
    found: list[object] = []
    following = threading.Thread(target=lambda: found.append(other.read()))
    following.start()
    pace.going.set()
    owner.reader.close()
    following.join(30)
    assert found == [FILES]


def test_one_stream_more_takes_the_place_of_one_that_stands_still(
    archive: MemoryArchive, process: Callable[..., Process], pace: Pace
) -> None:
    pace.stop_at = 40
    free = MemoryArchive(FILES, ranged=False, bulk=True)  # the same archive by connections that move
    stuck, others = process(), [process(free) for _ in range(3)]
    threading.Thread(target=stuck.read, args=range(WALK), daemon=True).start()
    assert pace.stopped.wait(10)
    assert run_together([each.read for each in others]) == [FILES] * 3
    assert free.calls["open_bulk"] == 1
    # Few: each by itself would be 240. On a busy machine, what one has kept reaches the disk after another has looked.
    assert free.calls["open_range"] < COUNT


def test_a_walk_that_begins_when_all_has_just_come_asks_for_nothing(
    archive: MemoryArchive, process: Callable[..., Process]
) -> None:
    first, second = process(), process()
    assert first.read() == FILES
    assert second.read() == FILES
    assert (archive.calls["open_bulk"], archive.calls["open_range"]) == (1, WALK - 1)


def test_closing_ends_a_wait_for_another_processs_stream(process: Callable[..., Process], pace: Pace) -> None:
    pace.stop_at = 10
    owner, waiting = process(), process()
    threading.Thread(target=owner.read, args=range(WALK), daemon=True).start()
    assert pace.stopped.wait(10)
    outcome: list[object] = []

    def read() -> None:
        try:
            outcome.append(waiting.read(100, 101, 102, 103))
        except ArchiveError as exc:
            outcome.append(type(exc).__name__)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.2)
    waiting.reader.close()
    thread.join(3)
    assert not thread.is_alive()
    assert outcome
