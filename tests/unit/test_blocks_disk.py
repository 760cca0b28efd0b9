"""The disk store: real directories, databases and kills. Right bytes or a miss, whatever happens to the files."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import random
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xnatfs.blocks import books as books_module
from xnatfs.blocks import disk as disk_module
from xnatfs.blocks.base import BlockKey
from xnatfs.blocks.disk import DiskBlocks
from xnatfs.blocks.format import BLOCKS_IN_FILE, HEADER_BYTES, on_disk, place_of, tag_of
from xnatfs.buffers import BufferPool
from xnatfs.model import ContentId

KIB, MIB = 1024, 1024 * 1024
UNIT = 64 * KIB
LIMIT = 64 * MIB


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery is tried every few milliseconds in place of seconds."""
    monkeypatch.setattr(disk_module, "PAUSE_S", 0.02)
    monkeypatch.setattr(disk_module, "LOOK_S", 0.01)
    monkeypatch.setattr(books_module, "BUSY_S", 0.1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "blocks"


@pytest.fixture
def one_warning(expected_warnings: list[str], caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The fault under test is warned about, once."""
    expected_warnings.append("block cache")
    yield
    assert len([each for each in caplog.get_records("call") if each.levelno >= logging.WARNING]) == 1


@pytest.fixture
def store(directory: Path) -> Iterator[DiskBlocks]:
    opened = DiskBlocks(directory, LIMIT, min_free=0.0)
    yield opened
    opened.close()


def content(name: str, version: str = "v1") -> ContentId:
    return ContentId("https://xnat.example.org", f"/data/experiments/E1/files/{name}", version)


def key(name: str = "a", number: int = 0, unit: int = UNIT) -> BlockKey:
    return BlockKey(content(name), number, unit)


def bytes_of(block: BlockKey, size: int = UNIT) -> bytes:
    return random.Random(repr(block)).randbytes(size)


def fill(store: DiskBlocks, name: str, blocks: int) -> None:
    for number in range(blocks):
        store.put(key(name, number), bytes_of(key(name, number)))


def kept(store: DiskBlocks, name: str, blocks: int) -> int:
    """How many blocks of a content are kept; each of them must be right."""
    found = [(store.get(key(name, number)), bytes_of(key(name, number))) for number in range(blocks)]
    assert all(data in (None, truth) for data, truth in found)
    return sum(data is not None for data, _ in found)


def file_of(directory: Path, block: BlockKey) -> Path:
    return directory / place_of(block).filename


def change(directory: Path, block: BlockKey, how: Callable[[bytes], bytes], size: int = UNIT) -> None:
    """Replace what stands on disk for a block, header and bytes."""
    offset = place_of(block).offset
    with file_of(directory, block).open("r+b") as file:
        file.seek(offset)
        stored = file.read(HEADER_BYTES + size)
        file.seek(offset)
        file.write(how(stored))


def blocks_on_disk(directory: Path) -> set[str]:
    """The name of every block that stands in a file, whole or not, as the database should have it."""
    names = set()
    for path in directory.glob("[0-9a-f][0-9a-f]/*"):
        tag, unit, number = f"{path.parent.name}{path.name}".split("-")
        data = path.read_bytes()
        for slot, offset in enumerate(range(0, len(data), on_disk(int(unit, 16)))):
            if any(data[offset : offset + HEADER_BYTES]):
                names.add(f"{tag}-{unit}-{int(number, 16) * BLOCKS_IN_FILE + slot:x}")
    return names


def booked(directory: Path) -> set[str]:
    with sqlite3.connect(directory / "cache.db") as books:
        rows = books.execute("SELECT key FROM Cache WHERE filename IS NOT NULL").fetchall()
    books.close()
    return {name for (name,) in rows}


def disk_use(directory: Path) -> int:
    """What ``du`` says, without the directories themselves."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_blocks * 512
            except FileNotFoundError:
                continue  # evicted since it was listed
    return total


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.01)


# -- keeping and finding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, UNIT - 1, UNIT])
def test_a_block_comes_back_exactly(store: DiskBlocks, size: int) -> None:
    data = bytes_of(key(), size)
    store.put(key(), data)
    assert store.get(key()) == data


@pytest.mark.parametrize("unit", [1, 100, 4096, 128 * KIB, MIB, 16 * MIB, 1 << 40])
def test_any_unit_will_do(store: DiskBlocks, unit: int) -> None:
    data = bytes_of(key(unit=unit), min(unit, 300_001))
    store.put(key(unit=unit), data)
    assert store.get(key(unit=unit)) == data


def test_blocks_and_notes_survive_a_remount(store: DiskBlocks, directory: Path) -> None:
    fill(store, "a", 5)
    store.put_note(content("a"), "Mon, 1 Jan 2024 00:00:00 GMT")
    store.close()
    again = DiskBlocks(directory, LIMIT, 0.0)
    assert kept(again, "a", 5) == 5
    assert again.get_note(content("a")) == "Mon, 1 Jan 2024 00:00:00 GMT"
    again.close()


def test_blocks_of_another_version_number_or_unit_are_misses(store: DiskBlocks) -> None:
    store.put(key(), bytes(UNIT))
    assert store.get(BlockKey(content("a", "v2"), 0, UNIT)) is None
    assert store.get(key("a", 1)) is None
    assert store.get(key("a", 0, 2 * UNIT)) is None


def test_content_ids_that_only_look_alike_when_joined_are_told_apart() -> None:
    assert tag_of(ContentId("a", "bc", "d")) != tag_of(ContentId("ab", "c", "d"))


def test_blocks_and_notes_put_together_come_back_each(store: DiskBlocks, directory: Path) -> None:
    blocks = [(key(name, number), bytes_of(key(name, number))) for name in "abc" for number in range(5)]
    store.put(*blocks[3])
    store.put_many(blocks, [(content(name), f"note of {name}") for name in "abc"])
    assert [store.get(block) for block, _ in blocks] == [data for _, data in blocks]
    assert [store.get_note(content(name)) for name in "abc"] == ["note of a", "note of b", "note of c"]
    assert booked(directory) == blocks_on_disk(directory)


def test_blocks_put_together_keep_within_the_cap_too(directory: Path) -> None:
    store = DiskBlocks(directory, 2 * MIB, 0.0)
    for name in "abcdef":
        store.put_many([(key(name, number), bytes_of(key(name, number))) for number in range(20)], [])
        assert disk_use(directory) <= 2 * MIB + on_disk(UNIT)
    assert kept(store, "f", 20) > 5
    assert booked(directory) == blocks_on_disk(directory)
    store.close()


def test_any_span_of_a_block_comes_back_exactly(store: DiskBlocks) -> None:
    rng = random.Random(1)
    for unit, size in ((UNIT, UNIT), (MIB, MIB), (MIB, 300_001), (5000, 4999)):
        data = bytes_of(key("a", size, unit), size)
        store.put(key("a", size, unit), data)
        for _ in range(200):
            start = rng.randrange(size + 10)
            stop = start + rng.randrange(size)
            assert store.get_span(key("a", size, unit), start, stop) == data[start:stop]


def test_a_block_longer_than_its_unit_is_not_kept(store: DiskBlocks) -> None:
    store.put(key(), bytes(UNIT + 1))
    assert store.get(key()) is None


def test_constructing_a_store_touches_nothing(directory: Path) -> None:
    DiskBlocks(directory, LIMIT, 0.0)
    assert not directory.exists()


def test_discard_drops_blocks_and_note_of_one_content_only(store: DiskBlocks, directory: Path) -> None:
    fill(store, "a", 3)
    fill(store, "b", 3)
    store.put_note(content("a"), "Mon")
    store.discard(content("a"))
    assert (kept(store, "a", 3), kept(store, "b", 3), store.get_note(content("a"))) == (0, 3, None)
    assert len(blocks_on_disk(directory)) == 3
    assert len(list(directory.glob("??/*"))) == 1


def test_a_closed_store_finds_nothing_and_keeps_nothing(store: DiskBlocks) -> None:
    store.put(key(), bytes(UNIT))
    store.close()
    store.put(key("b"), bytes(UNIT))
    store.put_note(content("a"), "Mon")
    store.discard(content("a"))
    store.close()
    assert (store.get(key()), store.get(key("b")), store.get_note(content("a"))) == (None, None, None)


def test_a_hundred_short_lived_threads_use_one_database_connection(store: DiskBlocks, directory: Path) -> None:
    def work(number: int) -> None:
        store.put(key("a", number), bytes_of(key("a", number)))
        store.put_note(content("a"), str(number))
        assert store.get(key("a", number)) is not None

    for number in range(100):
        thread = threading.Thread(target=work, args=(number,))
        thread.start()
        thread.join()
    opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
    assert opened.count(str(directory / "cache.db")) == 1


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_threads_that_put_get_and_discard_see_right_bytes_only(store: DiskBlocks, directory: Path) -> None:
    wrong: list[BlockKey] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(150):
            block = key(rng.choice("abc"), rng.randrange(8))
            act = rng.randrange(8)
            if act < 4:
                store.put(block, bytes_of(block, 5000))
            elif act < 7:
                if store.get(block) not in (None, bytes_of(block, 5000)):
                    wrong.append(block)
            else:
                store.discard(block.content)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert blocks_on_disk(directory) <= booked(directory)


# -- privacy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_every_file_is_private_whatever_the_umask(directory: Path, umask: int) -> None:
    directory.parent.chmod(0o755)
    before = os.umask(umask)
    try:
        store = DiskBlocks(directory, LIMIT, 0.0)
        fill(store, "a", 3)
        store.put_note(content("a"), "Mon")
        found = [directory, *directory.rglob("*")]
        assert kept(store, "a", 3) == 3
        assert {path.name for path in found} >= {"cache.db", "cache.db-wal", "cache.db-shm", "lock"}
        modes = {(path.is_dir(), stat.S_IMODE(path.lstat().st_mode)) for path in found}
        store.close()
    finally:
        os.umask(before)
    assert modes == {(True, 0o700), (False, 0o600)}


def test_a_directory_that_others_could_read_is_closed_to_them(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    store = DiskBlocks(directory, LIMIT, 0.0)
    store.put(key(), bytes(UNIT))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    store.close()


def test_no_name_of_a_person_reaches_the_disk(store: DiskBlocks, directory: Path) -> None:
    secret = ContentId("https://xnat.example.org", "/data/subjects/DOE_JOHN/files/1.dcm", "doe-john-v1")
    store.put(BlockKey(secret, 0, UNIT), bytes(UNIT))
    store.put_note(secret, "Mon")
    store.hold(secret)
    store.release(secret)
    store.close()
    everything = [
        (path.name + " ").encode() + (path.read_bytes() if path.is_file() else b"") for path in directory.rglob("*")
    ]
    assert not [found[:40] for found in everything if b"DOE" in found or b"doe" in found or b"example.org" in found]


def _group_writable(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o770)


def _of_another_user(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, 12345)


def _a_symlink(directory: Path) -> None:
    (directory.parent / "elsewhere").mkdir(mode=0o700)
    directory.symlink_to(directory.parent / "elsewhere")


def _a_file(directory: Path) -> None:
    directory.write_text("not a directory")


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away and mount")


@pytest.mark.parametrize(
    "spoil",
    [_group_writable, pytest.param(_of_another_user, marks=as_root), _a_symlink, _a_file],
    ids=lambda f: f.__name__,
)
def test_a_directory_that_cannot_be_trusted_is_not_used_and_warned_about_once(
    directory: Path, spoil: Callable[[Path], None], one_warning: None
) -> None:
    spoil(directory)
    store = DiskBlocks(directory, LIMIT, 0.0)
    for _ in range(5):
        store.put(key(), bytes(UNIT))
        assert store.get(key()) is None
        time.sleep(0.03)
    assert directory.is_file() or not list(directory.iterdir())
    store.close()


def test_a_directory_put_right_is_used_again(directory: Path, one_warning: None) -> None:
    directory.write_text("in the way")
    store = DiskBlocks(directory, LIMIT, 0.0)
    store.put(key(), bytes(UNIT))
    directory.unlink()
    until(lambda: store.put(key(), bytes(UNIT)) or store.get(key()) is not None)
    store.close()


# -- damage --------------------------------------------------------------------------------------------------------


def _flip(at: int) -> Callable[[bytes], bytes]:
    def damage(stored: bytes) -> bytes:
        data = bytearray(stored)
        data[at] ^= 0x10
        return bytes(data)

    return damage


DAMAGES = {
    **{f"bit {at}": _flip(at) for at in (0, 9, 30, 40, 60, HEADER_BYTES - 1, HEADER_BYTES, 30_000, -1)},
    "a page of zeroes": lambda stored: stored[:8192] + bytes(4096) + stored[12288:],
    "zeroes behind the header": lambda stored: stored[:HEADER_BYTES] + bytes(len(stored) - HEADER_BYTES),
    "zeroes before the header's end": lambda stored: bytes(50) + stored[50:],
    "noise": lambda stored: random.Random(1).randbytes(len(stored)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_block_is_a_miss_and_one_warning_and_can_be_put_again(
    store: DiskBlocks, directory: Path, damage: Callable[[bytes], bytes], one_warning: None
) -> None:
    fill(store, "a", 3)
    change(directory, key("a", 1), damage)
    assert store.get(key("a", 1)) is None
    assert store.get(key("a", 1)) is None
    assert kept(store, "a", 3) == 2
    assert len(blocks_on_disk(directory)) == 2
    fill(store, "a", 3)
    assert kept(store, "a", 3) == 3


@pytest.mark.parametrize(
    "other", [key("b", 1), key("a", 0), key("a", 2)], ids=["content", "number before", "number after"]
)
def test_the_place_of_a_block_that_holds_another_is_a_miss(
    store: DiskBlocks, directory: Path, other: BlockKey, one_warning: None
) -> None:
    fill(store, "a", 3)
    fill(store, "b", 3)
    offset = place_of(other).offset
    stored = file_of(directory, other).read_bytes()[offset : offset + HEADER_BYTES + UNIT]
    change(directory, key("a", 1), lambda _: stored)
    assert kept(store, "a", 3) == 2


@pytest.mark.parametrize("size", [10, HEADER_BYTES, 5000, HEADER_BYTES + UNIT - 1])
def test_a_file_cut_short_within_a_block_is_a_miss_and_one_warning(
    store: DiskBlocks, directory: Path, size: int, one_warning: None
) -> None:
    fill(store, "a", 2)
    os.truncate(file_of(directory, key("a", 1)), place_of(key("a", 1)).offset + size)
    assert kept(store, "a", 2) == 1
    fill(store, "a", 2)
    assert kept(store, "a", 2) == 2


def test_a_file_that_lost_whole_blocks_has_holes(store: DiskBlocks, directory: Path) -> None:
    """A place of zeroes is what a killed writer, a power cut or an eviction leaves: a miss, nothing to warn about."""
    fill(store, "a", 4)
    change(directory, key("a", 1), lambda stored: bytes(len(stored)))
    os.truncate(file_of(directory, key("a", 3)), place_of(key("a", 3)).offset)
    assert kept(store, "a", 4) == 2
    fill(store, "a", 4)
    assert kept(store, "a", 4) == 4


def test_another_file_in_place_of_a_file_is_a_miss(store: DiskBlocks, directory: Path, one_warning: None) -> None:
    fill(store, "a", 3)
    fill(store, "b", 3)
    shutil.copyfile(file_of(directory, key("b")), file_of(directory, key("a")))
    assert (kept(store, "a", 3), kept(store, "b", 3)) == (0, 3)


def test_damage_outside_a_span_does_not_matter_to_it(store: DiskBlocks, directory: Path, one_warning: None) -> None:
    block = key(unit=MIB)
    data = bytes_of(block, MIB)
    store.put(block, data)
    change(directory, block, _flip(HEADER_BYTES + 900_000), MIB)
    assert store.get_span(block, 0, 4096) == data[:4096]
    assert store.get_span(block, 900_000, 904_096) is None


def test_a_thousand_damaged_blocks_do_not_fill_the_log(store: DiskBlocks, directory: Path, one_warning: None) -> None:
    fill(store, "a", 50)
    for number in range(50):
        change(directory, key("a", number), _flip(5000))
    assert kept(store, "a", 50) == 0


def test_blocks_that_pass_beside_a_damaged_one_are_mended_unread(
    store: DiskBlocks, directory: Path, one_warning: None
) -> None:
    fill(store, "a", 3)
    for number in (0, 2):
        change(directory, key("a", number), _flip(30_000))
    assert store.get(key("a", 0)) is None
    fill(store, "a", 3)  # the transfer that this costs passes them all
    assert kept(store, "a", 3) == 3


def test_a_block_that_is_put_again_while_its_damage_is_found_stays(
    store: DiskBlocks, directory: Path, one_warning: None
) -> None:
    for _ in range(200):
        fill(store, "a", 1)
        change(directory, key("a"), _flip(9))
        finder = threading.Thread(target=store.get, args=(key("a"),))
        finder.start()
        fill(store, "a", 1)
        finder.join()
        assert kept(store, "a", 1) == 1


def test_a_damaged_note_is_no_note(store: DiskBlocks, directory: Path) -> None:
    store.put_note(content("a"), "Monday")
    store.close()
    with sqlite3.connect(directory / "cache.db") as books:
        books.execute("UPDATE Cache SET value = CAST(replace(CAST(value AS TEXT), 'Mon', 'Tue') AS BLOB)")
    books.close()
    again = DiskBlocks(directory, LIMIT, 0.0)
    assert again.get_note(content("a")) is None
    again.close()


class _Bomb:
    """Unpickled, it makes a directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._path),)


def test_planted_pickles_are_never_loaded(
    store: DiskBlocks, directory: Path, tmp_path: Path, one_warning: None
) -> None:
    fill(store, "a", 2)
    store.put_note(content("a"), "Mon")
    store.close()
    proof = tmp_path / "unpickled"
    bomb = pickle.dumps(_Bomb(proof))
    change(directory, key("a", 1), lambda _: bomb)
    with sqlite3.connect(directory / "cache.db") as books:
        books.execute("UPDATE Cache SET mode = 4, value = ?, filename = NULL", (bomb,))
        books.execute("INSERT INTO Cache (key, raw, mode, value, access_time) VALUES (?, 0, 4, ?, 0)", (bomb, bomb))
    books.close()
    again = DiskBlocks(directory, LIMIT, 0.0)
    assert (again.get_note(content("a")), kept(again, "a", 2)) == (None, 1)
    again.put_note(content("a"), "Tue")
    fill(again, "a", 2)
    again.discard(content("a"))
    fill(again, "b", 2000)  # evicts everything else
    again.close()
    assert not proof.exists()


def test_a_planted_path_is_not_removed(store: DiskBlocks, directory: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    fill(store, "a", 2)
    store.close()
    with sqlite3.connect(directory / "cache.db") as books:
        books.execute("UPDATE Cache SET filename = '../precious'")
        books.execute(
            "INSERT INTO Cache (key, raw, tag, size, filename, access_time) VALUES (?1, 1, ?2, 9, ?1, 0)",
            ("../precious", tag_of(content("a"))),
        )
    books.close()
    again = DiskBlocks(directory, LIMIT, 0.0)
    file_of(directory, key("a")).unlink()
    again.put(key("a"), bytes(UNIT))
    again.discard(content("a"))
    again.close()
    assert precious.read_text() == "keep me"
    assert blocks_on_disk(directory) == set()


def _random_bytes(path: Path) -> None:
    path.write_bytes(random.Random(3).randbytes(40_000))


def _garbled_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = random.Random(3).randbytes(len(data) - 4096)
    path.write_bytes(data)


def _another_make(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as books:
        books.execute("CREATE TABLE Cache (unrelated TEXT)")
    books.close()


def _settings_of_wrong_type(path: Path) -> None:
    with sqlite3.connect(path) as books:
        books.execute("UPDATE Settings SET value = 'many' WHERE key = 'size'")
    books.close()


GARBLINGS = [
    _random_bytes,
    _garbled_middle,
    _another_make,
    _settings_of_wrong_type,
    lambda path: os.truncate(path, 5000),
    lambda path: os.truncate(path, 10),
]


@pytest.mark.parametrize("garble", GARBLINGS)
def test_a_garbled_database_is_replaced_when_opened(
    store: DiskBlocks, directory: Path, garble: Callable[[Path], None], one_warning: None
) -> None:
    fill(store, "a", 40)
    store.close()
    garble(directory / "cache.db")
    again = DiskBlocks(directory, LIMIT, 0.0)
    until(lambda: again.put(key("b"), bytes_of(key("b"))) or again.get(key("b")) is not None)
    assert kept(again, "b", 1) == 1
    again.close()
    assert blocks_on_disk(directory) <= booked(directory)  # what nobody could bound is gone
    assert not list(directory.glob("damaged*"))


def test_an_empty_database_file_is_simply_filled(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / "cache.db").touch()
    store = DiskBlocks(directory, LIMIT, 0.0)
    fill(store, "a", 1)
    assert kept(store, "a", 1) == 1
    store.close()


def test_a_database_garbled_while_open_is_replaced(
    store: DiskBlocks, directory: Path, expected_warnings: list[str]
) -> None:
    expected_warnings.append("block cache")
    fill(store, "a", 40)
    store.close()
    store = DiskBlocks(directory, LIMIT, 0.0)
    store.get_note(content("a"))
    for name in ("cache.db", "cache.db-wal"):
        with (directory / name).open("r+b") as file:
            file.seek(0)
            file.write(random.Random(3).randbytes(max(8192, (directory / name).stat().st_size)))
    until(lambda: store.put(key("b"), bytes_of(key("b"))) or store.get(key("b")) is not None)
    until(lambda: store.put_note(content("b"), "Mon") or store.get_note(content("b")) == "Mon")
    store.close()


def test_a_directory_removed_while_open_is_made_again(
    store: DiskBlocks, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "LOOK_S", 0.0)
    fill(store, "a", 3)
    shutil.rmtree(directory)
    assert kept(store, "a", 3) == 0
    fill(store, "b", 3)
    assert kept(store, "b", 3) == 3
    assert blocks_on_disk(directory) <= booked(directory)


def test_a_directory_removed_between_two_looks_costs_a_block_and_a_warning(
    store: DiskBlocks, directory: Path, monkeypatch: pytest.MonkeyPatch, one_warning: None
) -> None:
    monkeypatch.setattr(disk_module, "LOOK_S", 100.0)
    fill(store, "a", 3)
    shutil.rmtree(directory)
    store.put(key("b"), bytes(UNIT))
    assert store.get(key("b")) is None
    until(lambda: store.put(key("b"), bytes_of(key("b"))) or store.get(key("b")) is not None)
    assert blocks_on_disk(directory) <= booked(directory)


def test_a_database_that_another_process_holds_costs_a_block_not_a_read(
    store: DiskBlocks, directory: Path, one_warning: None
) -> None:
    fill(store, "a", 2)
    other = sqlite3.connect(directory / "cache.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.put(key("b"), bytes(UNIT))
    store.put(key("b", 1), bytes(UNIT))
    assert (store.get(key("b")), kept(store, "a", 2)) == (None, 2)
    other.execute("ROLLBACK")
    other.close()
    until(lambda: store.put(key("b"), bytes(UNIT)) or store.get(key("b")) is not None)


# -- room ----------------------------------------------------------------------------------------------------------


def small(directory: Path, limit: int = 4 * MIB, min_free: float = 0.0) -> DiskBlocks:
    return DiskBlocks(directory, limit, min_free)


def test_the_cap_holds_after_every_block(directory: Path) -> None:
    store = small(directory)
    for number in range(300):
        store.put(key(f"content {number // 7}", number), bytes(UNIT))
        assert disk_use(directory) <= 4 * MIB
        assert store.used_bytes() <= 4 * MIB
    assert store.get(key("content 42", 299)) is not None
    store.close()


def test_the_cap_holds_for_thousands_of_tiny_blocks(directory: Path) -> None:
    store = small(directory)
    for number in range(1500):
        store.put(key(f"{number}"), b"x" * 100)
        store.put_note(content(f"{number}"), "Mon, 1 Jan 2024 00:00:00 GMT")
        if number % 100 == 0:
            assert disk_use(directory) <= 4 * MIB
    assert store.get(key("1499")) == b"x" * 100
    assert disk_use(directory) <= 4 * MIB
    store.close()


def test_contents_go_whole_and_by_least_recent_use(directory: Path) -> None:
    store = small(directory, limit=8 * MIB)
    for name in ("old", "used", "new"):
        fill(store, name, 30)
    store.get(key("used"))
    store.get(key("new"))
    fill(store, "next", 30)
    assert [kept(store, name, 30) for name in ("old", "used", "new")] == [0, 30, 30]
    store.close()


def test_uses_survive_a_remount(directory: Path) -> None:
    store = small(directory)
    for name in ("used", "unused"):
        fill(store, name, 20)
    store.close()
    store = small(directory)
    store.get(key("used"))
    store.close()
    store = small(directory)
    fill(store, "next", 25)
    assert (kept(store, "used", 20), kept(store, "unused", 20)) == (20, 0)
    store.close()


def test_held_contents_go_last(directory: Path) -> None:
    store = small(directory)
    fill(store, "held", 20)
    store.hold(content("held"))
    for name in ("x", "y", "z"):
        fill(store, name, 20)
    assert kept(store, "held", 20) == 20
    store.release(content("held"))
    for name in ("r", "s", "t", "u"):
        fill(store, name, 20)
    assert kept(store, "held", 20) == 0
    store.close()


def test_the_cap_holds_even_when_everything_is_held(directory: Path) -> None:
    store = small(directory)
    store.hold(content("held"))
    for number in range(200):
        store.put(key("held", number), bytes_of(key("held", number)))
        assert disk_use(directory) <= 4 * MIB
    assert store.get(key("held", 199)) is not None
    assert kept(store, "held", 200) >= 40
    store.close()


def test_a_block_over_the_cap_is_not_kept_and_evicts_nothing(directory: Path) -> None:
    store = small(directory)
    fill(store, "a", 10)
    store.put(key("huge", unit=8 * MIB), bytes(5 * MIB))
    assert (store.get(key("huge", unit=8 * MIB)), kept(store, "a", 10)) == (None, 10)
    store.close()


def test_a_cap_too_small_for_the_database_keeps_nothing_and_harms_nothing(directory: Path) -> None:
    store = small(directory, limit=8 * KIB)
    store.put(key(), bytes(1000))
    store.put_note(content("a"), "Mon")
    assert (store.get(key()), store.get_note(content("a"))) == (None, None)
    store.close()


def test_free_space_that_must_stay_free_stays_free(directory: Path, one_warning: None) -> None:
    store = small(directory, min_free=1.0)
    for _ in range(5):
        fill(store, "a", 3)
    assert kept(store, "a", 3) == 0
    store.close()


def _write_a_lot(directory: Path, megabytes: int) -> str:
    """A program that writes blocks, checks what it finds, and prints how many it found and how often it warned."""
    return f"""
import logging, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import test_blocks_disk as t
from pathlib import Path
records = []
class Count(logging.Handler):
    def emit(self, record): records.append(record)
logging.getLogger().addHandler(Count(level=logging.WARNING))
t.disk_module.PAUSE_S = 0.02
store = t.DiskBlocks(Path({str(directory)!r}), t.LIMIT, 0.0)
blocks = [t.key("a", number, t.MIB) for number in range({megabytes})]
for block in blocks:
    store.put(block, t.bytes_of(block, t.MIB))
found = [store.get(block) for block in blocks]
assert all(data in (None, t.bytes_of(block, t.MIB)) for block, data in zip(blocks, found))
print(sum(data is not None for data in found), len(records))
"""


def _run(program: str, **options: object) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    found, warned = done.stdout.split()
    return int(found), int(warned)


def test_files_that_may_not_grow_cost_blocks_but_no_error(directory: Path) -> None:
    """EFBIG in place of ENOSPC: what any user can provoke."""
    limit = 700 * KIB  # the database fits, a block does not
    program = _write_a_lot(directory, 5)
    assert _run(program, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) == (0, 1)
    assert blocks_on_disk(directory) == set()
    assert _run(program) == (5, 0)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "none", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@as_root
def test_on_a_disk_smaller_than_the_cap_older_blocks_make_way(tiny_disk: Path) -> None:
    store = DiskBlocks(tiny_disk / "blocks", LIMIT, 0.0)
    fill(store, "a", 200)
    assert kept(store, "a", 200) >= 20
    assert store.get(key("a", 199)) is not None
    store.close()


@as_root
def test_a_disk_filled_by_others_costs_blocks_and_a_warning_until_there_is_room(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch, one_warning: None
) -> None:
    store = DiskBlocks(tiny_disk / "blocks", LIMIT, 0.0)
    fill(store, "a", 1)
    monkeypatch.setattr(disk_module, "LOOK_S", 100.0)  # nobody looks: the disk itself has to say that it is full
    store.put(key("a", 1), bytes_of(key("a", 1)))
    with (tiny_disk / "other").open("wb") as other, contextlib.suppress(OSError):
        while True:
            other.write(bytes(MIB))
    for number in range(2, 10):
        store.put(key("a", number), bytes_of(key("a", number)))
    assert kept(store, "a", 10) < 10
    assert len(blocks_on_disk(tiny_disk / "blocks")) == kept(store, "a", 10)
    (tiny_disk / "other").unlink()
    until(lambda: store.put(key("b"), bytes_of(key("b"))) or store.get(key("b")) is not None)
    fill(store, "a", 10)
    assert kept(store, "a", 10) == 10
    store.close()


@as_root
def test_a_read_only_disk_still_serves_what_it_holds(tmp_path: Path, one_warning: None) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "none", str(tmp_path)], check=True)
    try:
        store = DiskBlocks(tmp_path / "blocks", LIMIT, 0.0)
        fill(store, "a", 3)
        store.close()
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        store = DiskBlocks(tmp_path / "blocks", LIMIT, 0.0)
        assert kept(store, "a", 3) == 3
        fill(store, "b", 3)
        assert kept(store, "b", 3) == 0
        subprocess.run(["mount", "-o", "remount,rw", str(tmp_path)], check=True)
        until(lambda: store.put(key("b"), bytes_of(key("b"))) or store.get(key("b")) is not None)
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


# -- several processes ---------------------------------------------------------------------------------------------

WRITER = """
import sys
sys.path.insert(0, {tests!r})
import test_blocks_disk as t
from pathlib import Path
store = t.DiskBlocks(Path({directory!r}), {limit}, 0.0)
number = 0
while True:
    block = t.key({name!r} + str(number // 10), number % 10, t.MIB)
    store.put(block, t.bytes_of(block, 100_000))
    number += 1
    if number == 3:
        print("writing", flush=True)
"""


def _start_writer(directory: Path, name: str, limit: int = LIMIT) -> subprocess.Popen[str]:
    program = WRITER.format(tests=os.path.dirname(__file__), directory=str(directory), name=name, limit=limit)
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    return writer


def _end(writer: subprocess.Popen[str]) -> None:
    writer.send_signal(signal.SIGKILL)
    writer.communicate()


def test_kill_9_leaves_right_blocks_and_no_file_that_counts_for_nothing(
    directory: Path,
) -> None:
    limit = 8 * MIB
    for attempt in range(6):
        writer = _start_writer(directory, f"run {attempt} ", limit)
        time.sleep(0.05 + 0.03 * attempt)  # some of these evict when they die
        _end(writer)
        store = DiskBlocks(directory, limit, 0.0)
        found = 0
        for number in range(20_000):  # more than any machine writes in that time: what it wrote last is held
            block = key(f"run {attempt} {number // 10}", number % 10, MIB)
            data = store.get(block)
            if data is not None:
                assert data == bytes_of(block, 100_000)
                found += 1
        assert found >= 3
        store.close()
        assert blocks_on_disk(directory) <= booked(directory)
        assert disk_use(directory) <= limit + MIB


def test_a_block_whose_header_was_not_written_is_not_there_and_can_be_put_again(
    store: DiskBlocks, directory: Path
) -> None:
    fill(store, "a", 2)
    change(directory, key("a", 1), lambda stored: bytes(HEADER_BYTES) + stored[HEADER_BYTES:])
    assert kept(store, "a", 2) == 1
    fill(store, "a", 2)
    assert kept(store, "a", 2) == 2


def test_two_processes_share_one_directory_within_its_cap(directory: Path) -> None:
    limit = 12 * MIB
    writers = [_start_writer(directory, name, limit) for name in ("x", "y")]
    store = DiskBlocks(directory, limit, 0.0)
    samples = []
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        samples.append(disk_use(directory))
        time.sleep(0.02)
    for writer in writers:
        assert writer.poll() is None
        _end(writer)
    assert max(samples) <= limit + 2 * MIB
    assert max(samples) >= limit // 2  # it was put to use
    fill(store, "mine", 3)
    assert kept(store, "mine", 3) == 3
    store.close()
    assert blocks_on_disk(directory) <= booked(directory)


def test_one_process_reads_what_another_puts_and_misses_what_it_discards(store: DiskBlocks, directory: Path) -> None:
    assert store.get(key()) is None
    other = DiskBlocks(directory, LIMIT, 0.0)
    other.put(key(), bytes_of(key()))
    other.put_note(content("a"), "Mon")
    assert (store.get(key()), store.get_note(content("a"))) == (bytes_of(key()), "Mon")
    other.discard(content("a"))
    assert (store.get(key()), store.get_note(content("a"))) == (None, None)
    other.close()


# -- files kept open -----------------------------------------------------------------------------------------------


def open_files(directory: Path) -> int:
    """How many block files this process has open."""
    links = [os.readlink(link.path) for link in os.scandir("/proc/self/fd") if os.path.islink(link.path)]
    return sum(link.startswith(str(directory)) and "-" in link for link in links)


def test_files_stay_open_while_a_reader_holds_their_content_and_no_longer(store: DiskBlocks, directory: Path) -> None:
    fill(store, "a", BLOCKS_IN_FILE + 1)
    before = open_files(directory)
    assert kept(store, "a", BLOCKS_IN_FILE + 1) == BLOCKS_IN_FILE + 1
    assert open_files(directory) == before
    store.hold(content("a"))
    assert kept(store, "a", BLOCKS_IN_FILE + 1) == BLOCKS_IN_FILE + 1
    assert open_files(directory) == before + 2
    store.release(content("a"))
    assert open_files(directory) == before


def test_rot_in_a_file_that_is_kept_open_is_found_at_the_next_read(
    store: DiskBlocks, directory: Path, one_warning: None
) -> None:
    fill(store, "a", 2)
    store.hold(content("a"))
    assert kept(store, "a", 2) == 2
    change(directory, key("a", 1), _flip(30_000))
    assert store.get(key("a", 1)) is None
    fill(store, "a", 2)
    assert kept(store, "a", 2) == 2


def test_what_another_process_removes_takes_no_space_though_it_is_kept_open(store: DiskBlocks, directory: Path) -> None:
    fill(store, "a", 3)
    store.hold(content("a"))
    assert kept(store, "a", 3) == 3
    with file_of(directory, key("a")).open("rb") as watched:
        other = DiskBlocks(directory, LIMIT, 0.0)
        other.discard(content("a"))
        assert os.fstat(watched.fileno()).st_blocks == 0
        assert kept(store, "a", 3) == 0
        fill(other, "a", 3)
        other.close()
    assert kept(store, "a", 3) == 3


def test_a_block_removed_alone_from_a_file_kept_open_is_a_miss_and_can_come_back(
    store: DiskBlocks, directory: Path
) -> None:
    fill(store, "a", 3)
    store.hold(content("a"))
    assert kept(store, "a", 3) == 3
    change(directory, key("a", 1), lambda stored: bytes(len(stored)))  # what a hole reads as
    assert store.get(key("a", 1)) is None
    assert kept(store, "a", 3) == 2
    fill(store, "a", 3)
    assert kept(store, "a", 3) == 3


class _Interrupted(BufferPool):
    """Memory to read a block into, asked for between its header and its bytes: that is when something happens."""

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__(UNIT, 1)
        self.happens = happens

    def take(self, size: int) -> bytearray:
        self.happens()
        return super().take(size)


def test_a_block_evicted_between_its_header_and_its_bytes_is_a_miss_and_no_damage(directory: Path) -> None:
    def evict() -> None:
        for number in range(1, 100):
            store.put(key("a", number), bytes_of(key("a", number)))

    memory = _Interrupted(evict)
    store = DiskBlocks(directory, 4 * MIB, 0.0, memory)
    store.hold(content("a"))  # single blocks of it are evicted, its file stays
    store.put(key("a"), bytes_of(key("a")))
    assert store.get(key("a")) is None
    memory.happens = lambda: None
    assert kept(store, "a", 100) >= 40
    store.close()
