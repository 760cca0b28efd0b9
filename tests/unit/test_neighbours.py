"""Two readers that share a cache directory, as two processes do: each with locks, memory and connections of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.trees import run_together
from xnatfs.archives.memory import MemoryArchive
from xnatfs.blocks.claims import FileClaims
from xnatfs.blocks.disk import DiskBlocks
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.blocks.tiered import TieredBlocks
from xnatfs.config import GIB, KIB, MIB, ReadConfig
from xnatfs.errors import Unavailable
from xnatfs.model import ContentId
from xnatfs.reading import neighbours
from xnatfs.reading.reader import BlockReader

BLOCK = 128 * KIB
DATA = b"".join(number.to_bytes(4, "big") for number in range(1_000_000))  # 4 MB, no two blocks alike
CONTENT = ContentId("archive", "key", "version")


class Process:
    """One reader with a handle on the file."""

    def __init__(self, archive: MemoryArchive, directory: Path) -> None:
        disk = DiskBlocks(directory, GIB, 0.0)
        cache = TieredBlocks(MemoryBlocks(MIB), disk, 8 * MIB)
        config = ReadConfig(max_window=MIB, idle_s=0.2, timeout_s=5.0)
        self.claims = FileClaims(directory)
        self.reader = BlockReader(archive, cache, config, BLOCK, claims=self.claims)
        [entry] = archive.children(archive.root()).children[""]
        self.file = self.reader.open(entry)

    def read(self, offset: int = 0, size: int = len(DATA)) -> bytes:
        found = b""
        while size > 0 and (piece := self.reader.pread(self.file, offset, min(size, 200_000))):
            found, offset, size = found + piece, offset + len(piece), size - len(piece)
        return found

    def close(self) -> None:
        self.reader.release(self.file)
        self.reader.close()


class Pace:
    """For ``MemoryArchive(before=...)``: a body that takes its time, or stands still, or never answers."""

    def __init__(self) -> None:
        self.seconds = 0.002
        self.going = threading.Event()
        self.going.set()

    def __call__(self, operation: str, key: str) -> None:
        if operation == "readinto":
            time.sleep(self.seconds)
            assert self.going.wait(20), "nobody let it go on"


@pytest.fixture
def pace() -> Iterator[Pace]:
    pace = Pace()
    yield pace
    pace.going.set()


@pytest.fixture
def archive(pace: Pace) -> MemoryArchive:
    return MemoryArchive({"f": DATA}, ranged=False, chunk_size=64 * KIB, before=pace)


@pytest.fixture
def processes(archive: MemoryArchive, tmp_path: Path, pace: Pace) -> Iterator[Callable[[], Process]]:
    made: list[Process] = []

    def make() -> Process:
        made.append(Process(archive, tmp_path / "cache"))
        return made[-1]

    yield make
    pace.going.set()
    for process in made:
        process.close()


# --- claims -----------------------------------------------------------------------------------------------------------


def test_a_claim_is_one_processs_until_it_is_released(tmp_path: Path) -> None:
    mine, other = FileClaims(tmp_path), FileClaims(tmp_path)
    claim = mine.take(CONTENT)
    assert claim is not None
    assert other.take(CONTENT) is None
    assert other.take(ContentId("archive", "key", "another")) is not None
    claim.release()
    assert other.take(CONTENT) is not None
    assert mine.take(CONTENT) is None
    mine.close()
    other.close()


def test_threads_of_a_process_share_its_claim_and_the_last_gives_it_up(tmp_path: Path) -> None:
    mine, other = FileClaims(tmp_path), FileClaims(tmp_path)
    first, second = mine.take(CONTENT), mine.take(CONTENT)
    assert first is not None and second is not None
    first.release()
    assert other.take(CONTENT) is None
    second.release()
    assert other.take(CONTENT) is not None
    mine.close()
    other.close()


def test_progress_and_wishes_reach_the_other_side(tmp_path: Path) -> None:
    mine, other = FileClaims(tmp_path), FileClaims(tmp_path)
    assert other.look(CONTENT) is None
    claim = mine.take(CONTENT)
    assert claim is not None and claim.before is None
    claim.moved(0, 70, 100)
    found = other.look(CONTENT)
    assert found is not None and found[:3] == (0, 70, 100)
    other.want(CONTENT, 90)
    other.want(CONTENT, 80)
    claim.moved(0, 75, 100)
    assert claim.wanted() == 90
    claim.release()
    again = other.take(CONTENT)
    assert again is not None and again.before is not None and again.before.position == 75
    assert again.wanted() == 0
    mine.close()
    other.close()


def test_a_claim_ends_with_its_process_however_it_ends(tmp_path: Path) -> None:
    program = f"""
import pathlib, sys, time
from xnatfs.blocks.claims import FileClaims
from xnatfs.model import ContentId
claim = FileClaims(pathlib.Path({str(tmp_path)!r})).take(ContentId("archive", "key", "version"))
print(claim is not None, flush=True)
time.sleep(60)
"""
    claims = FileClaims(tmp_path)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert claims.take(CONTENT) is None
        process.kill()
        process.wait()
        assert claims.take(CONTENT) is not None
    claims.close()


def test_where_no_file_can_be_made_every_claim_is_granted(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    claims = FileClaims(tmp_path / "file")
    claim = claims.take(CONTENT)
    assert claim is not None and claim.before is None
    claim.moved(0, 1, 2)
    assert (claim.wanted(), claims.look(CONTENT)) == (0, None)
    claim.release()
    claims.close()


def test_the_file_of_claims_is_private_and_small(tmp_path: Path) -> None:
    claims = FileClaims(tmp_path / "cache")
    for number in range(50):
        assert claims.take(ContentId("archive", str(number), "")) is not None
    found = (tmp_path / "cache" / "claims").stat()
    assert (found.st_mode & 0o777, found.st_size < 256 * KIB) == (0o600, True)
    claims.close()


# --- readers ----------------------------------------------------------------------------------------------------------


def test_processes_that_read_one_cold_file_together_fetch_it_once(
    archive: MemoryArchive, processes: Callable[[], Process]
) -> None:
    readers = [processes() for _ in range(4)]
    assert run_together([reader.read for reader in readers]) == [DATA] * 4
    assert (archive.calls["open_range"], archive.calls["bytes"]) == (1, len(DATA))


def test_one_that_comes_when_all_is_done_fetches_nothing(
    archive: MemoryArchive, processes: Callable[[], Process]
) -> None:
    early, late = processes(), processes()  # both have opened the file while it was cold
    assert early.read() == DATA
    assert late.read() == DATA
    assert archive.calls["open_range"] == 1


def test_an_owner_that_wants_no_more_goes_on_for_the_others(
    archive: MemoryArchive, processes: Callable[[], Process]
) -> None:
    header, whole = processes(), processes()
    assert header.read(0, 352) == DATA[:352]
    assert whole.read() == DATA
    assert (archive.calls["open_range"], archive.calls["bytes"]) == (1, len(DATA))


def test_an_owner_that_ends_hands_on_what_it_has(archive: MemoryArchive, processes: Callable[[], Process]) -> None:
    first, second = processes(), processes()
    assert first.read(0, 1_000_000) == DATA[:1_000_000]
    first.reader.close()
    assert second.read() == DATA
    assert archive.calls["open_range"] == 2  # a server without ranges: from the start once more, for what was missing


def test_an_owner_that_stands_still_is_not_waited_for(
    archive: MemoryArchive, processes: Callable[[], Process], pace: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "STALL_S", 0.2)
    stuck, other = processes(), processes()
    assert stuck.read(0, 352) == DATA[:352]
    pace.going.clear()
    waiting = threading.Thread(target=stuck.read)
    waiting.start()
    free = MemoryArchive({"f": DATA}, ranged=False)
    other.reader._archive = free  # its own connection moves
    assert other.read() == DATA
    assert free.calls["open_range"] == 1
    pace.going.set()
    waiting.join(20)


def test_what_the_cache_does_not_take_is_fetched_by_each(
    archive: MemoryArchive, processes: Callable[[], Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "MISSING_S", 0.05)
    monkeypatch.setattr(DiskBlocks, "put_many", lambda *_: None)
    readers = [processes() for _ in range(2)]
    assert run_together([reader.read for reader in readers]) == [DATA] * 2
    assert archive.calls["open_range"] == 2


def test_closing_ends_a_wait_for_another_process(
    archive: MemoryArchive, processes: Callable[[], Process], pace: Pace
) -> None:
    owner, waiting = processes(), processes()
    assert owner.read(0, 352) == DATA[:352]
    pace.going.clear()
    outcome: list[BaseException] = []

    def read() -> None:
        try:
            waiting.read(3_000_000, 10)
        except Unavailable as exc:
            outcome.append(exc)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.1)
    waiting.reader.close()
    thread.join(2.0)
    assert not thread.is_alive()
    assert [str(exc) for exc in outcome] == ["the file system is being unmounted"]
