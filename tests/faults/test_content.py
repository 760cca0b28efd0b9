"""Files that change on the server while they are open: every reading is of the old version or of the new one.

A file's listing may tell of the change, or lie about its size or digest. Listings are believed for a second here.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.matrix import BLOCK, BOUND_S, FAILED, TIMEOUT_S, Bench, TrueBytes, sampled
from tests.helpers.mounting import mounted
from tests.helpers.outcomes import Handle, cat, crowd
from tests.helpers.server import DemoServer

pytestmark = pytest.mark.fuse

TTL_S = 1.0
NEW_S = TTL_S + 4.0  # for a change to show: the listing's age, a reader that is told ESTALE, and the next try
GONE = FAILED | {errno.ENOENT}


@pytest.fixture(scope="module")
def changing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    room = tmp_path_factory.mktemp("changing")
    arguments = ("--timeout", f"{TIMEOUT_S}s", "--block-size", "128K", "--metadata-ttl", f"{TTL_S}s", "--no-bulk")
    with (
        DemoServer(sample="full", range=request.param) as server,
        mounted(server.url, room, *arguments, user="demo", password="demo") as mount,
    ):
        yield Bench(server, mount)


both = pytest.mark.parametrize("changing", ["off", "on"], indirect=True, scope="module")


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def another(old: bytes, length: int) -> bytes:
    """Bytes that differ from the old ones everywhere, so that a mix is neither."""
    turned = bytes(byte ^ 0x5A for byte in old[:length])
    return turned + b"\xa5" * (length - len(turned))


CHANGES: list[tuple[str, dict[str, Any], int]] = [
    ("same size", {}, 0),
    ("longer", {}, 50_000),
    ("shorter", {}, -50_000),
    ("listed with its old digest", {"keep_digest": True}, 0),
    ("longer, listed with its old size", {"keep_size": True}, 50_000),
    ("shorter, listed with its old size", {"keep_size": True}, -50_000),
    ("longer, listed as it was", {"keep_size": True, "keep_digest": True}, 50_000),
]
"""Name, what the listing hides, by how many bytes the length changes."""

UNSEEN = {"listed with its old digest", "longer, listed as it was"}
"""The listing says what it has always said: what is cached stays the old version, what is not is an error."""


@both
@pytest.mark.parametrize("change", sampled({change[0]: change for change in CHANGES}, 2))
def test_an_open_reader_gets_the_old_bytes_or_an_errno_and_the_next_ones_the_new(
    changing: Bench, change: tuple[str, dict[str, Any], int]
) -> None:
    name, hidden, more = change
    file = changing.fresh()
    old = changing.server.content(file.uri)
    new = another(old, len(old) + more)
    with Handle(file.path, BOUND_S) as handle:
        assert handle.pread(4096, 0).data == old[:4096]
        changing.server.edit("replace", file.uri, new, **hidden)
        for offset in (0, BLOCK - 100, BLOCK + 5, len(old) - 5000, 4096):
            part = handle.pread(5000, offset)
            assert part.data == old[offset : offset + 5000] if not part.errno else part.errno in FAILED
    deadline = time.monotonic() + NEW_S
    while (outcome := cat(file.path, BOUND_S)).output != new:
        assert outcome.errno in FAILED if outcome.code else outcome.output == old, "neither version, no errno"
        if name in UNSEEN:
            break
        assert time.monotonic() < deadline, outcome.said or "still the old version"
        time.sleep(0.1)
    changing.server.edit("replace", file.uri, new)  # the listing tells the truth again
    assert_becomes(file, new)


def assert_becomes(file: TrueBytes, new: bytes) -> None:
    deadline = time.monotonic() + NEW_S
    while (outcome := cat(file.path, BOUND_S)).output != new or outcome.code:
        assert time.monotonic() < deadline, outcome.said or "still another version"
        time.sleep(0.1)
    assert file.path.stat().st_size == len(new)


@both
def test_a_file_removed_while_open_reads_or_ends_in_an_errno_then_is_gone_then_back(changing: Bench) -> None:
    file = changing.fresh()
    old = changing.server.content(file.uri)
    with Handle(file.path, BOUND_S) as handle:
        assert handle.pread(4096, 0).data == old[:4096]
        changing.server.edit("remove", file.uri)
        for offset in (0, BLOCK + 5, len(old) - 5000):
            part = handle.pread(5000, offset)
            assert part.data == old[offset : offset + 5000] if not part.errno else part.errno in GONE
    outcome = cat(file.path, BOUND_S)
    assert outcome.output == old if not outcome.code else outcome.errno in GONE
    changing.server.edit("restore", file.uri)
    assert_becomes(file, old)


@both
def test_sixteen_readers_of_a_file_that_keeps_changing_never_see_a_mix(changing: Bench, rounds: int) -> None:
    file = changing.fresh()
    versions = {md5(changing.server.content(file.uri))}
    right = 0
    for turn in range(3 * rounds):
        new = another(bytes([turn % 256]) * file.size, file.size + (turn % 3 - 1) * 40_000)
        versions.add(md5(new))
        readers = crowd([file.path] * 64, 16, 6 * BOUND_S)
        changing.server.edit("replace", file.uri, new)
        for read in readers.results():
            assert read.md5 in versions if not read.errno else read.errno in FAILED
            right += not read.errno
    assert right
    assert_becomes(file, new)


@both
def test_a_grown_file_reads_in_full_after_it_has_grown(changing: Bench) -> None:
    file = changing.fresh()
    old = changing.server.content(file.uri)
    file.assert_right(cat(file.path, BOUND_S).output)
    for size in (1, BLOCK, 300_000):
        old += b"\x5a" * size
        changing.server.edit("grow", file.uri, b"\x5a" * size)
        assert_becomes(file, old)


def test_twins_of_one_path_are_one_file_with_the_bytes_that_the_server_serves(tmp_path: Path) -> None:
    with DemoServer() as server, mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        folder = mount.path / "ODDITIES/ODD_1/ODD_1_MR/resources/twins"
        outcome = cat(folder / "same.txt", BOUND_S)
        assert outcome.output == b"first\n" if not outcome.code else outcome.errno in FAILED
        assert cat(folder / "SAME.txt", BOUND_S).output == b"upper\n"
