"""The tree says the same through every door. A new front end joins with a ``Door`` and its name in ``DOORS``."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from random import Random

import pytest

from tests.helpers.mounting import why_no_fuse
from tests.helpers.sample_tree import LARGE, TREE, Door, FsspecDoor, MountDoor, VfsDoor, file_system, sample_vfs
from tests.helpers.trees import run_together
from xnatfs.archives.memory import FIRST_MTIME_S

DOORS = ["vfs", "fsspec", pytest.param("fuse2", marks=pytest.mark.fuse), pytest.param("fuse3", marks=pytest.mark.fuse)]

BYTES = {
    "/P/resources/docs/notes.txt": b"notes",
    "/P/resources/docs/empty": b"",
    "/P/reserved/one": b"1",
    "/P/S1/scans/3-T1w/DICOM/000.dcm": b"slice 0",
    "/P/S1/scans/3-T1w/DICOM/299.dcm": b"slice 299",
    "/P/large.nii": LARGE,
    "/names/\u00dcbung \u5b57 \U0001f600": b"unicode",
    "/names/Zoe\u0308": b"decomposed",
    "/names/two\nlines\t'quoted' \"twice\" \\": b"awkward",
    "/names/-rf": b"dash",
    "/names/*?[x]": b"glob",
    "/names/percent%2F": b"percent",
}


@pytest.fixture(scope="module", params=DOORS)
def door(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    if request.param == "vfs":
        with closing(sample_vfs()) as vfs:
            yield VfsDoor(vfs)
        return
    if request.param == "fsspec":
        with file_system(sample_vfs()) as fs:
            yield FsspecDoor(fs)
        return
    why_not = why_no_fuse()
    if why_not is not None:
        pytest.skip(why_not)
    with closing(MountDoor(tmp_path_factory.mktemp("mnt"), request.param[-1])) as mount:
        yield mount


@pytest.fixture(scope="module")
def bare() -> Iterator[VfsDoor]:
    """The tree itself, for what every door must repeat."""
    with closing(sample_vfs()) as vfs:
        yield VfsDoor(vfs)


def all_paths(door: Door, path: str = "") -> Iterator[str]:
    for name in door.names(path or "/"):
        below = f"{path}/{name}"
        yield below
        if door.facts(below).is_dir:
            yield from all_paths(door, below)


def code_of(door: Door, call: str, *arguments: object) -> int | None:
    with pytest.raises(OSError) as caught:
        getattr(door, call)(*arguments)
    return caught.value.errno


# --- names ------------------------------------------------------------------------------------------------------------


def test_directories_list_their_names_and_no_hidden_one(door: Door) -> None:
    assert sorted(door.names("/")) == ["P", "names"]
    assert sorted(door.names("/P")) == ["S1", "S2", "large.nii", "reserved", "resources"]
    assert door.names("/P/S2") == []


def test_a_directory_of_hundreds_lists_each_name_once(door: Door) -> None:
    assert sorted(door.names("/P/S1/scans/3-T1w/DICOM")) == [f"{n:03}.dcm" for n in range(300)]


def test_awkward_names_are_safe_distinct_and_lead_to_their_own_bytes(door: Door) -> None:
    found = {name: door.read(f"/names/{name}", 0, 100) for name in door.names("/names")}
    assert sorted(found.values()) == sorted(data for data in TREE["names"].values() if isinstance(data, bytes))
    assert all(len(name.encode()) <= 255 and "/" not in name for name in found)
    by_bytes = {data: name for name, data in found.items()}
    assert re.fullmatch(r"a_b~\d+", by_bytes[b"slash"])
    assert re.fullmatch(r"a_b~\d+", by_bytes[b"underscore"])
    assert re.fullmatch(r"_~\d+", by_bytes[b"dots"])
    assert re.fullmatch(r"n{246}~[0-9a-f]{8}", by_bytes[b"long"])


def test_hidden_names_and_aliases_are_found_by_name(door: Door) -> None:
    assert door.names("/P/.xnat") == ["item.json"]
    assert door.read("/P/.xnat/item.json", 0, 100) == b'{"label": "P"}'
    assert door.names("/P/XNAT_S00001") == ["scans"]
    assert door.read("/P/XNAT_S00001/scans/3-T1w/DICOM/007.dcm", 0, 100) == b"slice 7"
    assert door.facts("/P/XNAT_S00001") == door.facts("/P/S1")


def test_every_door_shows_the_same_paths_with_the_same_facts(door: Door, bare: VfsDoor) -> None:
    expected = {path: bare.facts(path) for path in all_paths(bare)}
    assert len(expected) > 300
    assert {path: door.facts(path) for path in all_paths(door)} == expected


def test_facts_are_right_before_a_file_is_opened(door: Door) -> None:
    facts = {path: door.facts(path) for path in BYTES}
    assert {path: fact.size for path, fact in facts.items()} == {path: len(data) for path, data in BYTES.items()}
    assert {fact.mtime_ns for fact in facts.values()} == {(FIRST_MTIME_S + 1) * 10**9}
    assert not any(fact.is_dir for fact in facts.values())
    assert len({fact.ino for fact in facts.values()}) == len(BYTES)


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BYTES, ids=lambda path: ascii(path.rpartition("/")[2]))
def test_a_file_reads_as_its_bytes_and_ends_there(door: Door, path: str) -> None:
    assert door.read(path, 0, len(LARGE) + 10) == BYTES[path]
    assert door.read(path, len(BYTES[path]), 10) == b""


def test_reads_anywhere_in_a_large_file_give_exactly_their_bytes(door: Door) -> None:
    random = Random(1)
    edges = [0, 1, 4095, 4096, 131_072, (1 << 20) - 1, 1 << 20, (2 << 20) + 1, len(LARGE) - 1, len(LARGE)]
    spans = [*pairwise(edges), *((offset, offset + 10_000) for offset in random.sample(range(len(LARGE)), 50))]
    for start, stop in spans:
        assert door.read("/P/large.nii", start, stop - start) == LARGE[start:stop]


def test_eight_threads_read_different_files_and_one_file_at_once(door: Door) -> None:
    def read_some(seed: int) -> None:
        random = Random(seed)
        for _ in range(20):
            n, offset = random.randrange(300), random.randrange(len(LARGE))
            assert door.read(f"/P/S1/scans/3-T1w/DICOM/{n:03}.dcm", 0, 100) == f"slice {n}".encode()
            assert door.read("/P/large.nii", offset, 5000) == LARGE[offset : offset + 5000]

    results = run_together([lambda seed=seed: read_some(seed) for seed in range(8)])
    assert results == [None] * 8


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/nothing", "/P/nothing", "/P/nothing/below", "/names/a_b", "/P/s1"])
def test_what_is_not_there_is_enoent(door: Door, path: str) -> None:
    assert code_of(door, "facts", path) == errno.ENOENT
    assert code_of(door, "names", path) == errno.ENOENT
    assert code_of(door, "read", path, 0, 1) == errno.ENOENT


def test_a_file_where_a_directory_is_needed_is_enotdir(door: Door) -> None:
    assert code_of(door, "facts", "/P/large.nii/below") == errno.ENOTDIR
    assert code_of(door, "names", "/P/large.nii") == errno.ENOTDIR


def test_reading_a_directory_is_eisdir(door: Door) -> None:
    assert code_of(door, "read", "/P/S1", 0, 1) == errno.EISDIR
