"""What travels, counted at the server: a header does not cost a file, and nothing is fetched twice (contract 4)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounting import Mount, mounted, user_environment
from tests.helpers.server import DemoServer, Record

pytestmark = pytest.mark.fuse

MIB = 1024 * 1024
SCANS = "BIG/BIG_1/BIG_1_MR/scans"
HUNDRED = f"{SCANS}/3-bold100m/NIFTI/bold_100m.nii"
HALF_GIGABYTE = f"{SCANS}/2-bold500m/NIFTI/bold_500m.nii"
SESSION_OF_2000 = "BENCH/BENCH_1/BENCH_2000_FILES"  # 20 scans of 100 files
READERS = 16


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


def data_requests(server: DemoServer) -> list[Record]:
    """Requests for file content so far, those under way included: a paused stream stays open for a while."""
    return [record for record in server.log()["requests"] if "/files/" in record["path"]]


def settled_bytes(server: DemoServer) -> int:
    """Bytes of file content sent, once that number has stood still: a stream runs on a little after its reader."""
    sent, since = -1, time.monotonic()
    while time.monotonic() - since < 1.0:
        now = sum(record["sent"] for record in data_requests(server))
        if now != sent:
            sent, since = now, time.monotonic()
        time.sleep(0.1)
    return sent


def true_md5(server: DemoServer, name: str) -> str:
    (row,) = [row for row in server.truth("BIG", md5="all") if row["name"] == name]
    return str(row["md5"])


def head(path: Path, size: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return file.read(size)


def test_a_lookup_asks_for_a_listing_once_also_where_nothing_is_to_be_kept(tmp_path: Path) -> None:
    with (
        DemoServer(sample="small") as server,
        mounted(server.url, tmp_path, "--metadata-ttl", "0", user="demo", password="demo") as mount,
    ):
        image = next((mount.path / "DEMO").rglob("anatomical.nii"))
        time.sleep(1.2)
        server.clear_log()
        image.stat()
        asked = [record["path"] for record in server.settled_log()["requests"]]
        assert len(asked) > 0  # nothing is fresh any more
        time.sleep(1.2)
        server.clear_log()
        image.read_bytes()
        asked = [record["path"] for record in server.settled_log()["requests"]]
        assert len(asked) < 3 * len(set(asked)), asked  # once each, unless a second passes on a busy machine


def test_nothing_is_sent_that_changes_data(tmp_path: Path) -> None:
    """A whole project is copied, its tables and documents included: questions, and the end of our own session."""
    with DemoServer(sample="small") as server:
        with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
            subprocess.run(["cp", "-r", mount.path / "DEMO", tmp_path / "copy"], check=True)
            assert (mount.path / "DEMO/DEMO_001/.xnat/item.xml").read_bytes()
        asked = {(record["method"], record["path"]) for record in server.settled_log()["requests"]}
    assert any(path.startswith("/data/search") for _, path in asked)
    assert {(method, path) for method, path in asked if method not in ("GET", "HEAD")} == {
        ("POST", "/data/search"),
        ("DELETE", "/data/JSESSION"),
    }


def test_a_header_costs_little_of_a_large_file_without_range(server: DemoServer, tmp_path: Path) -> None:
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        assert (mount.path / HUNDRED).stat().st_size > 95 * MIB
        assert len(head(mount.path / HUNDRED, 352)) == 352
        assert len(data_requests(server)) == 1
        assert 352 <= settled_bytes(server) <= 1_500_000


def test_a_header_costs_a_quarter_of_a_megabyte_with_range(server: DemoServer, tmp_path: Path) -> None:
    server.switch(range=True)
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        assert len(head(mount.path / HUNDRED, 352)) == 352
        assert 352 <= settled_bytes(server) <= 256 * 1024


def test_a_file_read_in_order_with_range_comes_little_more_than_once(server: DemoServer, tmp_path: Path) -> None:
    """The kernel reads ahead with several requests at once, in any order: none may fetch the rest a second time."""
    server.switch(range=True)
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        path = mount.path / HUNDRED
        size = path.stat().st_size
        subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)
        assert settled_bytes(server) <= 1.05 * size


def test_sixteen_readers_of_one_cold_file_fetch_it_once(server: DemoServer, tmp_path: Path) -> None:
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        path = mount.path / HALF_GIGABYTE
        size = path.stat().st_size
        commands = [["md5sum", path], *([["sh", "-c", 'cat "$0" | wc -c', path]] * (READERS - 1))]
        readers = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
        outputs = [reader.communicate(timeout=100)[0].split()[0] for reader in readers]
        assert [reader.returncode for reader in readers] == [0] * READERS
        assert outputs[0].decode() == true_md5(server, "bold_500m.nii")
        assert outputs[1:] == [str(size).encode()] * (READERS - 1)
        assert len(data_requests(server)) == 1
        assert settled_bytes(server) <= 1.05 * size


def test_reading_again_after_a_remount_asks_for_no_data(server: DemoServer, tmp_path: Path) -> None:
    mount = Mount(server.url, tmp_path, user="demo", password="demo")
    mount.start()
    try:
        first = hashlib.md5((mount.path / HUNDRED).read_bytes()).hexdigest()
        mount.stop()
        server.clear_log()
        mount.start()
        again = hashlib.md5((mount.path / HUNDRED).read_bytes()).hexdigest()
    finally:
        mount.stop()
    assert first == again == true_md5(server, "bold_100m.nii")
    assert data_requests(server) == []


def test_a_session_of_2000_files_lists_in_four_requests_and_then_in_none(tmp_path: Path) -> None:
    with DemoServer(sample="full") as server, mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        session = mount.path / SESSION_OF_2000
        os.listdir(session.parent)
        server.clear_log()
        done = subprocess.run(["ls", "-lR", session], capture_output=True, text=True, check=True)
        assert sum(line.startswith("-") for line in done.stdout.splitlines()) == 2000
        assert len(server.requests()) <= 4
        server.clear_log()
        again = subprocess.run(["ls", "-lR", session], capture_output=True, text=True, check=True)
        assert again.stdout == done.stdout
        assert server.requests() == []


def test_a_reader_that_goes_away_does_not_keep_the_server_busy(server: DemoServer, tmp_path: Path) -> None:
    source = f"{server.url}#/{HUNDRED}"
    for number in range(8):  # it happened in one of three: a full window hears nothing of a close for a minute
        environment = user_environment(tmp_path / str(number), "demo", "demo")
        command = f"'{sys.executable}' -m xnatfs cat '{source}' | head -c 4"
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, timeout=60, check=True)
        assert (done.stdout, done.stderr) == (b"\x5c\x01\0\0", b"")  # 348, the length of a NIfTI-1 header
        deadline = time.monotonic() + 3.0
        while server.log()["in_flight"] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.log()["in_flight"] == 0


@pytest.fixture
def full_server() -> Iterator[DemoServer]:
    with DemoServer(sample="full", latency="20ms") as server:
        yield server


def test_a_crawl_of_a_project_asks_for_nothing_twice(full_server: DemoServer, tmp_path: Path) -> None:
    """`find` over 100 sessions with 100,000 files: at most 3 requests, and 3 for each session."""
    server = full_server
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        done = subprocess.run(["find", str(mount.path / "CRAWL"), "-name", "*.dcm"], capture_output=True, check=True)
        assert done.stdout.count(b"\n") == 100_000
        asked = [(record["path"], record["query"]) for record in server.requests()]
        assert len(asked) == len(set(asked))
        assert len(asked) <= 3 + 3 * 100
        server.clear_log()
        subprocess.run(["find", str(mount.path / "CRAWL")], capture_output=True, check=True)
        assert server.requests() == []


def test_listing_one_session_fetches_no_other(full_server: DemoServer, tmp_path: Path) -> None:
    server = full_server
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        subprocess.run(
            ["ls", "-lR", str(mount.path / "CRAWL/CRAWL_0007/CRAWL_0007_MR")], check=True, capture_output=True
        )
        experiments = {r["path"].split("/")[3] for r in server.requests() if r["path"].startswith("/data/experiments/")}
    assert experiments == {"XNAT_E20007"}
