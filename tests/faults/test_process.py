"""Mounts that are killed, stopped or crowded: readers get right bytes or an errno, and the next mount works."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.matrix import BOUND_S, FAILED, Bench, TrueBytes
from tests.helpers.mounting import Mount, is_mounted, mounted
from tests.helpers.outcomes import Crowd, cat, crowd
from tests.helpers.server import DemoServer

pytestmark = pytest.mark.fuse

ARGUMENTS = ("--timeout", "10s", "--block-size", "128K")
DEAD = FAILED | {errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT, errno.ENODEV, errno.EINTR}
KILLS = 8


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with DemoServer(sample="full") as server:
        yield server


@pytest.fixture
def mount(server: DemoServer, tmp_path: Path) -> Iterator[Mount]:
    with mounted(server.url, tmp_path, *ARGUMENTS, user="demo", password="demo") as mount:
        yield mount


def assert_right_or(errnos: frozenset[int], files: list[TrueBytes], readers: Crowd) -> None:
    """A file that was read whole is right; one that is not there yet, or no more, is an errno: none is short."""
    known = {str(file.path): file for file in files}
    for read in readers.results():
        file = known[read.path]
        assert read.errno in errnos if read.errno else (read.size, read.md5) == (file.size, file.md5)


@pytest.mark.timeout(1200)
def test_kill_9_at_any_moment_under_readers_costs_no_byte(server: DemoServer, mount: Mount, rounds: int) -> None:
    bench = Bench(server, mount)
    files = [bench.fresh() for _ in range(60)]
    chance = random.Random(rounds)
    server.switch(bandwidth=60e6)
    try:
        for _ in range(KILLS * rounds):
            some = chance.sample(files, 20)
            readers = crowd((file.path for file in some), 8, 3 * BOUND_S)
            time.sleep(chance.uniform(0.0, 0.4))
            mount.kill()
            assert_right_or(DEAD, some, readers)
            mount.start()
    finally:
        server.switch(bandwidth=None)
    assert_right_or(frozenset(), files, crowd((file.path for file in files), 8, 3 * BOUND_S))


@pytest.mark.timeout(600)
def test_sigterm_under_readers_ends_them_with_an_errno_and_leaves_nothing(
    server: DemoServer, mount: Mount, rounds: int
) -> None:
    bench = Bench(server, mount)
    files = [bench.fresh() for _ in range(60)]
    chance = random.Random(rounds)
    server.switch(bandwidth=30e6)
    try:
        for delay_s in [0.05, 0.3, *(chance.uniform(0.0, 0.5) for _ in range(rounds - 1))]:
            readers = crowd((file.path for file in files), 16, 3 * BOUND_S)
            time.sleep(delay_s)
            assert mount.stop() == 0
            assert not is_mounted(mount.path)
            assert_right_or(DEAD, files, readers)
            mount.start()
    finally:
        server.switch(bandwidth=None)
    assert_right_or(frozenset(), files, crowd((file.path for file in files), 8, 3 * BOUND_S))


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_mounts_share_one_cache_though_one_of_them_is_killed(server: DemoServer, tmp_path: Path, count: int) -> None:
    cache = tmp_path / "shared cache"
    with contextlib.ExitStack() as stack:
        mounts = [
            stack.enter_context(
                mounted(
                    server.url, tmp_path / f"room{n}", *ARGUMENTS, "--cache-dir", str(cache),
                    user="demo", password="demo",
                )
            )
            for n in range(count)
        ]  # fmt: skip
        benches = [Bench(server, mount) for mount in mounts]
        files = [[bench.fresh() for _ in range(60)] for bench in benches]  # the same ones for each
        crowds = [crowd((file.path for file in some), 8, 6 * BOUND_S) for some in files]
        time.sleep(0.3)
        mounts[0].kill()
        assert_right_or(DEAD, files[0], crowds[0])
        for some, readers in zip(files[1:], crowds[1:], strict=True):
            assert_right_or(frozenset(), some, readers)
        mounts[0].start()
        server.clear_log()
        assert_right_or(frozenset(), files[0], crowd((file.path for file in files[0]), 8, 3 * BOUND_S))
        assert len(server.data_requests()) == 0, "the others have filled the cache"


def test_eight_mounts_come_and_go_on_one_cache(server: DemoServer, tmp_path: Path) -> None:
    series = [row for row in server.truth("DEMO") if (row["experiment"], row["item"]) == ("DEMO_001_MR1", "2")]
    true = {row["name"]: server.content(row["uri"]) for row in series}
    cache = tmp_path / "shared cache"
    rooms = [tmp_path / f"room{n}" for n in range(8)]
    failures: list[BaseException] = []

    def live(room: Path) -> None:
        try:
            options = (*ARGUMENTS, "--cache-dir", str(cache))
            with mounted(server.url, room, *options, user="demo", password="demo") as mount:
                for number in (1, 5, 9):
                    path = mount.path / f"DEMO/DEMO_001/DEMO_001_MR1/scans/2-T2w/DICOM/{number:04d}.dcm"
                    outcome = cat(path, 6 * BOUND_S)
                    assert (outcome.code, outcome.output) == (0, true[path.name])
        except BaseException as error:  # noqa: BLE001  # shown by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=live, args=(room,)) for room in rooms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert os.listdir(cache)
