"""A folder of many small files, counted at the server: one zip where it is walked, none where it is not."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import md5
from pathlib import Path

import pytest

from tests.helpers.mounting import Mount, mounted
from tests.helpers.server import DemoServer, Record

pytestmark = pytest.mark.fuse

SCAN_OF_1000 = "BENCH/BENCH_1/BENCH_1000_DICOM/scans/1-T1w_1/DICOM"
SESSION_OF_20_SCANS = "BENCH/BENCH_1/BENCH_2000_FILES/scans"


@pytest.fixture(scope="module")
def the_server() -> Iterator[DemoServer]:
    with DemoServer(sample="full") as server:
        yield server


@pytest.fixture
def server(the_server: DemoServer) -> DemoServer:
    the_server.reset()
    the_server.clear_log()
    return the_server


def file_requests(server: DemoServer) -> list[Record]:
    """Requests for content: of single files, and of zips of folders or resources."""
    return [
        row
        for row in server.settled_log()["requests"]
        if "/resources/" in row["path"] and ("/files/" in row["path"] or "format=zip" in row["query"])
    ]


def zips(server: DemoServer) -> list[Record]:
    return [row for row in file_requests(server) if "format=zip" in row["query"]]


def true_md5s(server: DemoServer, session: str) -> dict[str, str]:
    return {row["name"]: row["md5"] for row in server.truth("BENCH", md5="all") if f"/{session}/" in row["uri"]}


def test_a_scan_of_1000_files_is_copied_by_one_zip_and_nothing_comes_twice(server: DemoServer, tmp_path: Path) -> None:
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        subprocess.run(["cp", "-r", mount.path / SCAN_OF_1000, tmp_path / "copy"], check=True)
        requests = file_requests(server)
        sent = sum(row["sent"] for row in requests)
    copied = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    assert {name: md5(data).hexdigest() for name, data in copied.items()} == true_md5s(server, "XNAT_E10001")
    assert len(zips(server)) == 1
    assert len(requests) <= 10
    assert sent <= 1.05 * sum(map(len, copied.values()))


def test_inodes_order_a_scan_as_its_zip_does(server: DemoServer, tmp_path: Path) -> None:
    """`cp` reads a directory by inode: so it follows the stream, and what is ahead of it stays in memory."""
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        by_inode = sorted(os.scandir(mount.path / SCAN_OF_1000), key=lambda entry: entry.inode())
        assert [entry.name for entry in by_inode] == sorted(true_md5s(server, "XNAT_E10001"))


def test_sampling_one_header_of_each_scan_asks_for_no_zip(server: DemoServer, tmp_path: Path) -> None:
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        for scan in sorted((mount.path / SESSION_OF_20_SCANS).iterdir()):
            first = min((scan / "DICOM").iterdir())
            with first.open("rb") as file:
                assert file.read(132)[128:] == b"DICM"
        assert zips(server) == []
        assert len(file_requests(server)) == 20


def test_with_no_bulk_every_file_is_fetched_by_itself(server: DemoServer, tmp_path: Path) -> None:
    with mounted(server.url, tmp_path, "--no-bulk", user="demo", password="demo") as mount:
        scan = min((mount.path / SESSION_OF_20_SCANS).iterdir())
        for path in (scan / "DICOM").iterdir():
            assert len(path.read_bytes()) == path.stat().st_size
        assert zips(server) == []
        assert len(file_requests(server)) == 100


def test_sixteen_processes_that_walk_one_scan_share_one_zip(server: DemoServer, tmp_path: Path) -> None:
    program = "import sys, hashlib\nfor p in sys.argv[1:]: print(hashlib.md5(open(p, 'rb').read()).hexdigest())"
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        paths = sorted((mount.path / SCAN_OF_1000).iterdir())
        parts = [paths[number::16] for number in range(16)]
        readers = [subprocess.Popen([sys.executable, "-c", program, *part], stdout=subprocess.PIPE) for part in parts]
        sums = [reader.communicate(timeout=100)[0].decode().split() for reader in readers]
        assert [reader.returncode for reader in readers] == [0] * 16
        requests = file_requests(server)
        sent = sum(row["sent"] for row in requests)
    truth = true_md5s(server, "XNAT_E10001")
    assert sums == [[truth[path.name] for path in part] for part in parts]
    assert len(zips(server)) == 1
    assert len(requests) <= 40
    assert sent <= 1.05 * 1000 * 205_000


@pytest.mark.parametrize("kind", ["reset", "chunked_cut", "garbage", "html"])
def test_a_copy_survives_a_zip_that_breaks_in_its_middle(server: DemoServer, tmp_path: Path, kind: str) -> None:
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        scan = min((mount.path / SESSION_OF_20_SCANS).iterdir())
        server.fault("format=zip", kind, at=300_000, times=None)
        subprocess.run(["cp", "-r", scan / "DICOM", tmp_path / "copy"], check=True)
        assert len(zips(server)) >= 1
    uri = f"/XNAT_E10000/scans/{scan.name.partition('-')[0]}/"
    truth = {row["name"]: row["md5"] for row in server.truth("BENCH", md5="all") if uri in row["uri"]}
    copied = {path.name: md5(path.read_bytes()).hexdigest() for path in (tmp_path / "copy").iterdir()}
    assert copied == truth
    assert len(copied) == 100


# --- several mounts that share one cache directory ----------------------------------------------------------------


@contextlib.contextmanager
def mounts_of_one_cache(server: DemoServer, tmp_path: Path, count: int) -> Iterator[list[Mount]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                mounted(server.url, tmp_path / f"{n}", "--cache-dir", f"{tmp_path}/cache", user="demo", password="demo")
            )
            for n in range(count)
        ]


def copy_from(mount: Mount) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["cp", "-r", mount.path / SCAN_OF_1000, mount.room / "copy"], stderr=subprocess.DEVNULL)


def sums_of_copy(mount: Mount) -> dict[str, str]:
    return {path.name: md5(path.read_bytes()).hexdigest() for path in (mount.room / "copy").iterdir()}


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_mounts_that_copy_one_scan_at_the_same_moment_fetch_it_once(
    server: DemoServer, tmp_path: Path, count: int
) -> None:
    with mounts_of_one_cache(server, tmp_path, count) as mounts:
        for mount in mounts:
            os.listdir(mount.path / SCAN_OF_1000)
        assert [copy.wait(100) for copy in [copy_from(mount) for mount in mounts]] == [0] * count
        sent = sum(row["sent"] for row in file_requests(server))
        streams = len(zips(server))
        truth = true_md5s(server, "XNAT_E10001")
        for mount in mounts:
            assert sums_of_copy(mount) == truth
    assert streams == 1
    assert sent <= 1.1 * 1000 * 205_000


def test_the_end_of_the_mount_that_fetches_a_scan_leaves_the_others_right(server: DemoServer, tmp_path: Path) -> None:
    server.switch(bandwidth=60_000_000)
    with mounts_of_one_cache(server, tmp_path, 3) as mounts:
        for mount in mounts:
            os.listdir(mount.path / SCAN_OF_1000)
        owner, *others = mounts
        first = copy_from(owner)
        wait_until(lambda: zip_bytes(server) > 10_000_000)
        copies = [copy_from(mount) for mount in others]
        wait_until(lambda: zip_bytes(server) > 80_000_000)
        owner.kill()
        assert first.wait(100) != 0
        assert [copy.wait(100) for copy in copies] == [0] * 2
        truth = true_md5s(server, "XNAT_E10001")
        for mount in others:
            assert sums_of_copy(mount) == truth
        assert sum(row["sent"] for row in file_requests(server)) <= 2.1 * 1000 * 205_000


def test_a_mount_that_is_stopped_while_it_fetches_a_scan_does_not_stop_the_others(
    server: DemoServer, tmp_path: Path
) -> None:
    server.switch(bandwidth=60_000_000)
    with mounts_of_one_cache(server, tmp_path, 3) as mounts:
        for mount in mounts:
            os.listdir(mount.path / SCAN_OF_1000)
        owner, *others = mounts
        first = copy_from(owner)
        wait_until(lambda: zip_bytes(server) > 10_000_000)
        assert owner.process is not None
        owner.process.send_signal(signal.SIGSTOP)
        try:
            assert [copy.wait(80) for copy in [copy_from(mount) for mount in others]] == [0] * 2
        finally:
            owner.process.send_signal(signal.SIGCONT)
        assert first.wait(80) == 0
        truth = true_md5s(server, "XNAT_E10001")
        for mount in mounts:
            assert sums_of_copy(mount) == truth
        # As a rule one takes the place of the stopped one. On a busy machine that one may seem to stand still as well.
        assert len(zips(server)) <= len(mounts)


def test_a_process_that_is_stopped_within_a_transaction_of_the_cache_costs_seconds_once(
    server: DemoServer, tmp_path: Path
) -> None:
    with mounts_of_one_cache(server, tmp_path, 2) as mounts:
        for mount in mounts:
            os.listdir(mount.path / SCAN_OF_1000)
        first, *_ = (mounts[0].path / SCAN_OF_1000).iterdir()
        first.read_bytes()  # one mount has opened the cache, the other is still to open it
        (database,) = (tmp_path / "cache").rglob("cache.db")
        with contextlib.closing(sqlite3.connect(database, isolation_level=None, timeout=30)) as stopped:
            stopped.execute("BEGIN IMMEDIATE")
            copies = [copy_from(mount) for mount in mounts]
            assert [copy.wait(45) for copy in copies] == [0, 0]  # it was over a minute
            stopped.execute("ROLLBACK")
        truth = true_md5s(server, "XNAT_E10001")
        for mount in mounts:
            assert sums_of_copy(mount) == truth


def zip_bytes(server: DemoServer) -> int:
    """Sent of zips so far, those under way included."""
    return sum(row["sent"] for row in server.log()["requests"] if "format=zip" in row["query"])


def wait_until(happened: Callable[[], bool], limit_s: float = 60.0) -> None:
    limit = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.01)
