"""When a folder is asked for as one stream, what of it is believed, and what readers get when it goes wrong."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest

from tests.helpers.trees import Gate, run_together
from xnatfs.archives.memory import MemoryArchive
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.config import KIB, MIB, ReadConfig
from xnatfs.errors import CorruptContent, StaleContent, Unavailable
from xnatfs.model import Entry
from xnatfs.reading import bulk_transfer
from xnatfs.reading.bulk import LEAST_LEFT, WALK
from xnatfs.reading.reader import BlockReader
from xnatfs.stats import Stats

CONFIG = ReadConfig(max_window=MIB, idle_s=0.2, timeout_s=5.0)
BLOCK = 256 * KIB


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that stands still is given up soon, so that tests need not wait."""
    monkeypatch.setattr(bulk_transfer, "SILENCE_S", 0.5)
    monkeypatch.setattr(bulk_transfer, "LOOK_S", 0.05)


def content(size: int, seed: object = 0) -> bytes:
    return random.Random(f"{seed}").randbytes(size)


def small_files(count: int, size: int = 3000) -> dict[str, bytes]:
    return {f"{number:04d}.dcm": content(size, number) for number in range(count)}


@dataclass
class Directory:
    """A folder as the tree shows it to the reader."""

    key: str
    own: Sequence[Entry]
    below: Sequence[Entry] = ()

    def files(self) -> tuple[Sequence[Entry], Sequence[Entry]]:
        return self.own, self.below


@dataclass
class Setting:
    archive: MemoryArchive
    reader: BlockReader
    stats: Stats

    def folder(self, path: str = "") -> Directory:
        entry = self.archive.root()
        for name in path.split("/")[1:]:
            entry = next(one for one in self.archive.children(entry).children[entry.key] if one.name == name)
        return Directory(entry.key, *self._files(entry))

    def _files(self, directory: Entry) -> tuple[list[Entry], list[Entry]]:
        children = self.archive.children(directory).children[directory.key]
        below = [file for child in children if child.is_dir for some in self._files(child) for file in some]
        return [child for child in children if not child.is_dir], below

    def read(self, folder: Directory, entry: Entry, size: int | None = None) -> bytes:
        file = self.reader.open(entry, folder)
        try:
            return self.reader.pread(file, 0, (entry.size or 0) if size is None else size)
        finally:
            self.reader.release(file)

    def read_all(self, folder: Directory) -> dict[str, bytes]:
        return {entry.name: self.read(folder, entry) for entry in folder.own}

    @property
    def asked(self) -> tuple[int, int]:
        """(streams of many files, requests for single ones)"""
        return self.archive.calls["open_bulk"], self.archive.calls["open_range"]


Build = Callable[..., Setting]


@pytest.fixture
def build() -> Iterator[Build]:
    made: list[Setting] = []

    def build(tree, *, config: ReadConfig = CONFIG, memory: int = 256 * MIB, **options) -> Setting:
        stats = Stats()
        archive = MemoryArchive(tree, **{"bulk": True, "ranged": False, **options})
        made.append(Setting(archive, BlockReader(archive, MemoryBlocks(memory), config, BLOCK, stats), stats))
        return made[-1]

    yield build
    for setting in made:
        setting.reader.close()


# --- when ---------------------------------------------------------------------------------------------------------


def test_the_third_file_of_a_folder_starts_one_stream_that_brings_the_rest(build: Build) -> None:
    files = small_files(100)
    setting = build(files)
    assert setting.read_all(setting.folder()) == files
    assert setting.asked == (1, WALK - 1)
    assert (setting.stats.bulk_streams, setting.stats.bulk_members) == (1, 100)


def test_files_in_any_order_cost_no_more_requests(build: Build) -> None:
    files = small_files(200)
    setting = build(files)
    folder = setting.folder()
    order = list(folder.own)
    random.Random(5).shuffle(order)
    assert {entry.name: setting.read(folder, entry) for entry in order} == files
    assert setting.asked == (1, WALK - 1)


def test_one_or_two_files_of_each_folder_start_none(build: Build) -> None:
    setting = build({f"{scan}": small_files(50) for scan in range(20)})
    for scan in range(20):
        folder = setting.folder(f"/{scan}")
        for entry in folder.own[:1] + folder.own[-1:]:
            setting.read(folder, entry, 132)
    assert setting.asked == (0, 40)


def test_headers_of_files_larger_than_a_block_start_none(build: Build) -> None:
    setting = build(small_files(20, 4 * BLOCK))
    folder = setting.folder()
    for entry in folder.own:
        setting.read(folder, entry, 132)
    assert setting.asked == (0, 20)


def test_files_larger_than_a_block_that_are_read_whole_start_one(build: Build) -> None:
    files = small_files(20, 4 * BLOCK + 17)
    setting = build(files)
    assert setting.read_all(setting.folder()) == files
    assert setting.asked == (1, WALK)


def test_without_bulk_each_file_is_asked_for(build: Build) -> None:
    setting = build(small_files(30), config=replace(CONFIG, bulk=False))
    setting.read_all(setting.folder())
    assert setting.asked == (0, 30)


def test_an_archive_that_cannot_is_asked_once_and_its_files_one_by_one(build: Build) -> None:
    files = small_files(30)
    setting = build(files, bulk=False)
    assert setting.read_all(setting.folder()) == files
    assert setting.asked[1] == 30


def test_a_reader_without_a_folder_starts_none(build: Build) -> None:
    setting = build(small_files(30))
    for entry in setting.folder().own:
        file = setting.reader.open(entry)
        setting.reader.pread(file, 0, 3000)
        setting.reader.release(file)
    assert setting.asked == (0, 30)


@pytest.mark.parametrize(
    "tree",
    [
        small_files(LEAST_LEFT - 1),
        {**small_files(40), "large.nii": bytes(9 * MIB)},
        {**small_files(5), "below": small_files(40)},
    ],
    ids=["few", "a large one beside them", "most in directories below"],
)
def test_a_folder_that_is_not_many_small_files_starts_none(build: Build, tree: dict[str, bytes]) -> None:
    setting = build(tree)
    folder = setting.folder()
    for entry in folder.own:
        if (entry.size or 0) < MIB:
            setting.read(folder, entry)
    assert setting.asked[0] == 0


def test_a_folder_larger_than_the_cache_should_take_starts_none(build: Build) -> None:
    setting = build(small_files(30), config=replace(CONFIG, max_bulk=50_000))
    setting.read_all(setting.folder())
    assert setting.asked == (0, 30)


def test_a_folder_that_is_mostly_cached_starts_none(build: Build) -> None:
    setting = build(small_files(40))
    folder = setting.folder()
    for entry in folder.own[:30]:  # opened as if elsewhere: no walk is noticed
        file = setting.reader.open(entry)
        setting.reader.pread(file, 0, 3000)
        setting.reader.release(file)
    setting.read_all(folder)
    assert setting.asked == (0, 40)


def test_a_walk_of_a_folder_that_is_cached_asks_for_nothing(build: Build) -> None:
    setting = build(small_files(40))
    folder = setting.folder()
    before = (setting.read_all(folder), setting.asked)
    assert (setting.read_all(folder), setting.asked) == before


def test_sixteen_readers_of_a_folder_share_one_stream(build: Build) -> None:
    files = small_files(160)
    setting = build(files)
    folder = setting.folder()
    parts = run_together(
        [
            lambda part=part: {entry.name: setting.read(folder, entry) for entry in folder.own[part::16]}
            for part in range(16)
        ]
    )
    assert {name: data for part in parts for name, data in part.items()} == files
    assert setting.asked[0] == 1
    assert setting.asked[1] <= WALK - 1


# --- running ahead --------------------------------------------------------------------------------------------------


def test_a_stream_that_nobody_follows_ends_soon_and_costs_little(build: Build) -> None:
    setting = build(small_files(120, MIB // 2))
    folder = setting.folder()
    for entry in folder.own[:WALK]:
        setting.read(folder, entry)
    until_idle(setting)
    assert setting.asked[0] == 1
    assert setting.archive.calls["bytes"] <= bulk_transfer.FIRST_AHEAD + 10 * MIB


def test_a_reader_that_goes_on_makes_it_go_on(build: Build) -> None:
    files = small_files(120, MIB // 2)
    setting = build(files)
    assert setting.read_all(setting.folder()) == files
    assert setting.asked == (1, WALK)


def test_a_folder_left_once_needs_twice_the_fetches(build: Build) -> None:
    setting = build(small_files(150, MIB // 2))
    folder = setting.folder()
    for entry in folder.own[:WALK]:
        setting.read(folder, entry)
    until_idle(setting)
    singles = setting.asked[1]
    for entry in folder.own[-2 * WALK :]:
        setting.read(folder, entry)
    assert setting.asked[0] == 2
    assert setting.asked[1] <= singles + 2 * WALK


def until_idle(setting: Setting) -> None:
    """Until no stream runs any more."""
    for thread in threading.enumerate():
        if thread.name == "xnatfs-bulk":
            thread.join(10)
    assert setting.reader.idle


# --- when it goes wrong ---------------------------------------------------------------------------------------------


def failing(operation: str, at: str, error: Exception) -> Callable[[str, str], None]:
    def before(called: str, key: str) -> None:
        if called == operation and key.endswith(at):
            raise error

    return before


def test_a_stream_that_cannot_be_had_costs_a_fallback(build: Build) -> None:
    files = small_files(60)
    setting = build(files, before=failing("open_bulk", "", Unavailable("no zip today")))
    assert setting.read_all(setting.folder()) == files


def test_a_stream_that_breaks_costs_a_fallback(build: Build) -> None:
    files = small_files(60)
    setting = build(files, before=failing("next", "0020.dcm", Unavailable("reset")))
    assert setting.read_all(setting.folder()) == files
    assert setting.asked[0] <= 2


def test_a_stream_that_stops_to_come_is_not_waited_for(build: Build) -> None:
    files = small_files(60)
    gate = Gate("next")
    setting = build(files, before=gate)
    try:
        assert setting.read_all(setting.folder()) == files
        assert setting.asked == (1, 60)
    finally:
        gate.open.set()


def test_an_error_that_nobody_thought_of_ends_in_a_fallback(build: Build, expected_warnings: list[str]) -> None:
    expected_warnings.append("bulk stream of .* failed")
    files = small_files(60)
    setting = build(files, before=failing("next", "0020.dcm", ZeroDivisionError("a bug")))
    assert setting.read_all(setting.folder()) == files


def test_a_folder_that_cannot_say_its_files_ends_in_a_fallback(build: Build, expected_warnings: list[str]) -> None:
    expected_warnings.append("bulk stream of .* failed")
    files = small_files(20)
    setting = build(files)

    class Broken(Directory):
        def files(self) -> tuple[Sequence[Entry], Sequence[Entry]]:
            raise ZeroDivisionError("a bug")

    assert setting.read_all(Broken("", setting.folder().own)) == files


def test_files_that_the_stream_lacks_are_fetched(build: Build) -> None:
    files = small_files(60)
    setting = build(files)
    whole = setting.archive.open_bulk
    setting.archive.open_bulk = lambda wanted: whole(wanted[::2])  # type: ignore[method-assign]
    assert setting.read_all(setting.folder()) == files
    assert setting.asked[0] == 1


def test_a_member_of_another_length_is_not_kept(build: Build) -> None:
    setting = build(small_files(60))
    folder = setting.folder()
    setting.archive.replace("/0040.dcm", content(3001, "longer"))
    setting.archive.replace("/0041.dcm", content(2999, "shorter"))
    for entry in folder.own:
        if entry.name in ("0040.dcm", "0041.dcm"):
            with pytest.raises(StaleContent):
                setting.read(folder, entry)
        else:
            assert setting.read(folder, entry) == content(3000, int(entry.name[:4]))


def test_a_member_that_is_not_what_the_catalog_says_is_not_kept(build: Build) -> None:
    wrong = {"0030.dcm": "0" * 32}
    setting = build(
        small_files(60),
        digests=True,
        describe=lambda entry: replace(entry, digest=wrong.get(entry.name, entry.digest)),
    )
    folder = setting.folder()
    for entry in folder.own:
        if entry.name in wrong:
            with pytest.raises(CorruptContent):
                setting.read(folder, entry)
        else:
            assert setting.read(folder, entry) == content(3000, int(entry.name[:4]))
    assert setting.stats.bulk_members >= 60 - WALK - 1


def test_a_member_of_another_version_is_not_mixed_with_what_an_open_handle_has_read(build: Build) -> None:
    files = small_files(30, 3 * BLOCK)
    setting = build(files, ranged=True)
    folder = setting.folder()
    entry = folder.own[20]
    file = setting.reader.open(entry, folder)
    assert setting.reader.pread(file, 0, 1000) == files[entry.name][:1000]
    setting.archive.replace(f"/{entry.name}", content(3 * BLOCK, "new"))
    for other in folder.own:
        if other is not entry:
            assert setting.read(folder, other) == files[other.name]
    assert setting.asked[0] == 1
    with pytest.raises(StaleContent):
        setting.reader.pread(file, 2 * BLOCK, 1000)
    setting.reader.release(file)
    assert setting.read(folder, entry) == content(3 * BLOCK, "new")


def test_a_reader_that_waits_when_the_mount_closes_gets_an_error_and_does_not_hang(build: Build) -> None:
    gate = Gate("next")
    setting = build(small_files(60), before=gate)
    folder = setting.folder()

    def close() -> None:
        assert gate.reached.wait(10)
        threading.Timer(0.2, gate.open.set).start()
        setting.reader.close()

    def read() -> None:
        with pytest.raises(Unavailable):
            setting.read_all(folder)

    assert run_together([read, close]) == [None, None]


def test_a_cache_that_forgets_at_once_still_gives_right_bytes(build: Build) -> None:
    files = small_files(60)
    setting = build(files, memory=20_000)
    folder = setting.folder()
    order = list(folder.own)
    random.Random(1).shuffle(order)
    assert {entry.name: setting.read(folder, entry) for entry in order} == files


def test_somebody_who_looks_at_one_image_now_and_then_is_not_kept_waiting(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_transfer, "THINKING_S", 0.02)
    monkeypatch.setattr(bulk_transfer, "HASTE_S", 0.0)
    monkeypatch.setattr(bulk_transfer, "PATIENCE_S", 60.0)
    monkeypatch.setattr(bulk_transfer, "LONGEST_WAIT_S", 60.0)
    monkeypatch.setattr(bulk_transfer, "SILENCE_S", 60.0)
    files = small_files(60)
    gate = Gate("next")
    setting = build(files, before=lambda operation, key: gate(operation, key) if "0010" in key else None)
    folder = setting.folder()
    try:
        for entry in folder.own[:WALK]:
            setting.read(folder, entry)
        assert gate.reached.wait(10)
        threading.Event().wait(0.05)  # they think
        assert setting.read(folder, folder.own[50]) == files["0050.dcm"]
        assert setting.asked == (1, WALK)
    finally:
        gate.open.set()
