"""Looking after a store: what it counts, what it finds, what it leaves alone."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from xnatfs.blocks import upkeep
from xnatfs.blocks.base import BlockKey
from xnatfs.blocks.disk import DiskBlocks
from xnatfs.blocks.format import HEADER_BYTES, place_of
from xnatfs.blocks.upkeep import Findings, StoreUpkeep
from xnatfs.errors import XnatfsError
from xnatfs.model import ContentId

UNIT = 64 * 1024
LIMIT = 64 * 1024 * 1024


def key(name: str, number: int = 0) -> BlockKey:
    return BlockKey(ContentId("https://xnat.example.org", name, "v1"), number, UNIT)


def bytes_of(block: BlockKey) -> bytes:
    return random.Random(repr(block)).randbytes(UNIT)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A store with two files of five blocks each, and a note."""
    store = DiskBlocks(tmp_path / "blocks", LIMIT, min_free=0.0)
    for name in ("a", "b"):
        for number in range(5):
            store.put(key(name, number), bytes_of(key(name, number)))
        store.put_note(key(name).content, "Mon, 01 Jan 2024 00:00:00 GMT")
    store.close()
    return tmp_path / "blocks"


@pytest.fixture
def store(directory: Path) -> Iterator[StoreUpkeep]:
    opened = StoreUpkeep(directory, LIMIT, min_free=0.0)
    yield opened
    opened.close()


def path_of(directory: Path, block: BlockKey) -> Path:
    return directory / place_of(block).filename


def is_clean(found: Findings) -> bool:
    return (found.damaged, found.missing, found.unbooked) == (0, 0, 0)


def strike(directory: Path, condition: str, *values: object) -> None:
    with sqlite3.connect(directory / "cache.db") as books:
        books.execute(f"DELETE FROM Cache WHERE {condition}", values)
    books.close()


def test_census_counts_files_and_blocks_as_the_cap_does(store: StoreUpkeep) -> None:
    census = store.census()
    assert (census.files, census.blocks) == (2, 10)
    assert census.used_bytes == store.used_bytes() >= 10 * UNIT
    assert census.oldest_s is not None


def test_a_sound_store_is_found_sound_and_all_of_it_is_looked_at(store: StoreUpkeep) -> None:
    looked_at: list[int] = []
    findings = store.verify(looked_at.append)
    assert is_clean(findings)
    assert (findings.sound, findings.sound_bytes) == (10, 10 * UNIT)
    assert sum(looked_at) >= 10 * UNIT


@pytest.mark.parametrize(
    "offset",
    [0, 20, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + UNIT - 1],
    ids=["magic", "number", "header sum", "first byte", "last byte"],
)
def test_one_flipped_bit_is_found_and_only_that_block_goes(store: StoreUpkeep, directory: Path, offset: int) -> None:
    place = place_of(key("a", 3))
    with path_of(directory, key("a", 3)).open("r+b") as file:
        file.seek(place.offset + offset)
        byte = file.read(1)[0]
        file.seek(place.offset + offset)
        file.write(bytes([byte ^ 0x10]))
    findings = store.verify(lambda _: None)
    assert (findings.damaged, findings.sound, findings.missing, findings.unbooked) == (1, 9, 0, 0)
    assert store.get(key("a", 3)) is None
    assert store.get(key("a", 2)) == bytes_of(key("a", 2))
    assert is_clean(store.verify(lambda _: None))
    assert store.census().blocks == 9


def test_another_blocks_bytes_in_its_place_are_found(store: StoreUpkeep, directory: Path) -> None:
    one, other = path_of(directory, key("a")), path_of(directory, key("b"))
    one.write_bytes(other.read_bytes())
    findings = store.verify(lambda _: None)
    assert (findings.damaged, findings.sound) == (5, 5)


def test_a_file_cut_short_costs_the_blocks_behind_the_cut(store: StoreUpkeep, directory: Path) -> None:
    os.truncate(path_of(directory, key("a")), place_of(key("a", 3)).offset + 1000)
    with sqlite3.connect(directory / "cache.db") as books:
        books.execute("UPDATE Cache SET store_time = store_time - 3600")
    books.close()
    findings = store.verify(lambda _: None)
    assert (findings.damaged, findings.missing, findings.sound) == (1, 1, 8)


def test_a_booking_without_its_block_is_struck_out_but_not_while_it_may_be_on_its_way(
    store: StoreUpkeep, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path_of(directory, key("a")).unlink()
    assert is_clean(store.verify(lambda _: None))
    assert store.census().blocks == 10
    monkeypatch.setattr(upkeep, "GRACE_S", 0.0)
    assert store.verify(lambda _: None).missing == 5
    assert store.census().blocks == 5


def test_blocks_that_no_book_knows_are_removed_since_nothing_would_bound_them(
    store: StoreUpkeep, directory: Path
) -> None:
    strike(directory, "key = ?", place_of(key("a", 1)).name)
    findings = store.verify(lambda _: None)
    assert (findings.unbooked, findings.sound) == (1, 9)
    assert store.get(key("a", 1)) is None
    assert store.get(key("a", 0)) == bytes_of(key("a", 0))


def test_what_was_put_aside_goes_and_what_a_user_put_there_stays(store: StoreUpkeep, directory: Path) -> None:
    for name in ("damaged-4711-1234567890", "damaged-scans"):
        directory.joinpath(name).mkdir()
        directory.joinpath(name, "file").write_text("x")
    store.verify(lambda _: None)
    assert [path.name for path in directory.glob("damaged-*")] == ["damaged-scans"]


def test_a_damaged_note_goes(store: StoreUpkeep, directory: Path) -> None:
    with sqlite3.connect(directory / "cache.db") as books:
        books.execute("UPDATE Cache SET value = ? WHERE key LIKE '%-note'", (b"12345678nonsense",))
    books.close()
    assert store.verify(lambda _: None).damaged == 2
    assert store.get_note(key("a").content) is None


def test_clear_leaves_no_block_file_and_nothing_in_the_books(store: StoreUpkeep, directory: Path) -> None:
    strike(directory, "key = ?", place_of(key("b", 4)).name)
    assert store.clear() >= 9 * UNIT
    assert store.census().blocks == 0
    assert not [path for path in directory.glob("??/*") if path.is_file()]
    assert store.get(key("a")) is None


def test_verify_and_clear_beside_a_writer_cost_misses_never_wrong_bytes(store: StoreUpkeep, directory: Path) -> None:
    """A mount keeps writing and reading while its store is verified and cleared over and over."""
    wrong: list[BlockKey] = []
    stop = threading.Event()

    def work(seed: int) -> None:
        mount = DiskBlocks(directory, LIMIT, min_free=0.0)
        chance = random.Random(seed)
        while not stop.is_set():
            block = key(f"w{chance.randrange(20)}", chance.randrange(5))
            if chance.random() < 0.5:
                mount.put(block, bytes_of(block))
            elif (found := mount.get(block)) is not None and found != bytes_of(block):
                wrong.append(block)
        mount.close()

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for worker in workers:
        worker.start()
    try:
        damaged = 0
        for number in range(12):
            damaged += store.verify(lambda _: None).damaged
            if number % 3 == 2:
                store.clear()
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert wrong == []
    assert damaged == 0
    assert is_clean(store.verify(lambda _: None))


def test_a_directory_that_others_may_write_to_is_refused(directory: Path, expected_warnings: list[str]) -> None:
    expected_warnings.append("others may write to it")
    directory.chmod(0o777)
    store = StoreUpkeep(directory, LIMIT, min_free=0.0)
    with pytest.raises(XnatfsError, match="cannot be opened"):
        store.verify(lambda _: None)
    store.close()
