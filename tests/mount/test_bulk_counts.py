"""A folder of many small files, counted at the server: one zip where it is walked, none where it is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path

import pytest

from tests.helpers.mounting import mounted
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
