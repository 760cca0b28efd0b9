"""While a server is silent: stuck readers can be killed, everything else answers, and the mount can go."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.matrix import Bench, TrueBytes, sampled
from tests.helpers.mounting import is_mounted, mounted, user_environment, xnatfs
from tests.helpers.outcomes import cat, ls
from tests.helpers.server import DemoServer

pytestmark = pytest.mark.fuse

LONG_S = 60.0  # --timeout: nothing here may wait for it
SOON_S = 3.0
STUCK = 24  # readers: three times the connections


@pytest.fixture(params=["3", pytest.param("2", marks=pytest.mark.slow)])
def stuck(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Bench, list[subprocess.Popen[bytes]]]]:
    """A mount and readers that a silent server keeps waiting, each on a file of its own."""
    arguments = ("--timeout", f"{LONG_S}s", "--fuse", request.param, "--no-bulk")
    with (
        DemoServer(sample="full") as server,
        mounted(server.url, tmp_path, *arguments, user="demo", password="demo") as mount,
    ):
        bench = Bench(server, mount)
        files = [bench.fresh() for _ in range(STUCK)]
        server.fault("/files/", "stall", at=1000, times=None)
        readers = [start(file) for file in files]
        time.sleep(1.0)
        assert all(reader.poll() is None for reader in readers)
        try:
            yield bench, readers
        finally:
            for reader in readers:
                reader.kill()
                reader.wait(SOON_S)


def start(file: TrueBytes) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["cat", str(file.path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("number", sampled({n.name: n for n in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)}, 3))
def test_a_stuck_reader_ends_at_a_signal(
    stuck: tuple[Bench, list[subprocess.Popen[bytes]]], number: signal.Signals
) -> None:
    _, readers = stuck
    for reader in readers:
        reader.send_signal(number)
    deadline = time.monotonic() + SOON_S
    for reader in readers:
        assert reader.wait(max(0.1, deadline - time.monotonic())) == -number


def test_known_folders_and_cached_files_answer_beside_stuck_readers(tmp_path: Path) -> None:
    with (
        DemoServer(sample="full") as server,
        mounted(server.url, tmp_path, "--timeout", f"{LONG_S}s", "--no-bulk", user="demo", password="demo") as mount,
    ):
        bench = Bench(server, mount)
        known, fresh = bench.fresh(), [bench.fresh() for _ in range(STUCK)]
        known.assert_right(cat(known.path, SOON_S).output)
        server.fault("/files/", "stall", at=1000, times=None)
        readers = [start(file) for file in fresh]
        try:
            time.sleep(1.0)
            assert ls(mount.path / "BENCH/BENCH_1", SOON_S).code == 0
            known.assert_right(cat(known.path, SOON_S).output)
            assert b"CRAWL_0000" in ls(mount.path / "CRAWL", SOON_S).output  # it gets a connection
            subject = mount.path / "CRAWL/CRAWL_0001"
            session = subject / ls(subject, SOON_S).output.decode().split()[0]
            assert b"scans" in ls(session, SOON_S).output
        finally:
            for reader in readers:
                reader.kill()
                reader.wait(SOON_S)


def test_umount_works_once_stuck_readers_are_killed(stuck: tuple[Bench, list[subprocess.Popen[bytes]]]) -> None:
    bench, readers = stuck
    for reader in readers:
        reader.kill()
        reader.wait(SOON_S)
    environment = user_environment(bench.mount.room / "home", "demo", "demo")
    started = time.monotonic()
    done = xnatfs("umount", bench.mount.path, environment=environment)
    assert (done.returncode, time.monotonic() - started < 8 * SOON_S) == (0, True), done.stderr
    assert not is_mounted(bench.mount.path)
    process = bench.mount.process
    assert process is not None
    assert process.wait(5 * SOON_S) == 0


def test_umount_beside_stuck_readers_names_who_holds_the_mount_and_leaves_it(
    stuck: tuple[Bench, list[subprocess.Popen[bytes]]],
) -> None:
    bench, readers = stuck
    environment = user_environment(bench.mount.room / "home", "demo", "demo")
    started = time.monotonic()
    done = xnatfs("umount", bench.mount.path, environment=environment)
    assert (done.returncode, time.monotonic() - started < 8 * SOON_S) == (1, True), done.stderr
    assert "cat" in done.stderr
    assert is_mounted(bench.mount.path)
    assert all(reader.poll() is None for reader in readers)
    assert b"BENCH_1" in ls(bench.mount.path / "BENCH", SOON_S).output


def test_killed_readers_leave_room_for_others(stuck: tuple[Bench, list[subprocess.Popen[bytes]]]) -> None:
    bench, readers = stuck
    for reader in readers:
        reader.kill()
        reader.wait(SOON_S)
    bench.server.clear_faults()
    file = bench.fresh()
    file.assert_right(cat(file.path, 5 * SOON_S).output)


@pytest.mark.parametrize("command", ["ls", "stat", "dd"])
def test_a_call_that_waits_for_the_server_ends_at_a_signal(tmp_path: Path, command: str) -> None:
    """The kernel lets go of these calls only once they are answered, unlike reads through its page cache."""
    with (
        DemoServer(sample="full") as server,
        mounted(server.url, tmp_path, "--timeout", f"{LONG_S}s", "--no-bulk", user="demo", password="demo") as mount,
    ):
        bench = Bench(server, mount)
        file = bench.fresh()
        words = {
            "ls": ["ls", mount.path / "CRAWL"],
            "stat": ["stat", mount.path / "CRAWL/CRAWL_0001/resources"],
            "dd": ["dd", f"if={file.path}", "iflag=direct", "bs=128k", "of=/dev/null"],
        }[command]
        server.fault("data/", "stall", at=100 if command != "dd" else 1000, times=None)
        stuck = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(3)]
        time.sleep(1.0)
        assert all(process.poll() is None for process in stuck)
        for process in stuck:
            process.kill()
        deadline = time.monotonic() + SOON_S
        for process in stuck:
            assert process.wait(max(0.1, deadline - time.monotonic())) == -signal.SIGKILL
        server.clear_faults()
        file.assert_right(cat(file.path, 5 * SOON_S).output)
