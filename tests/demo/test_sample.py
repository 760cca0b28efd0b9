"""The sample archive is real and the same on every run; the server's process starts fast, counts well and ends."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.helpers.server import DemoServer


def fetch(server: DemoServer, http: requests.Session, rows: list[dict[str, Any]], directory: Path) -> list[Path]:
    paths = []
    for row in rows:
        path = directory / row["name"]
        path.write_bytes(http.get(server.url + row["uri"]).content)
        paths.append(path)
    return paths


def rows_of(server: DemoServer, project: str, experiment: str, item: str, resource: str) -> list[dict[str, Any]]:
    wanted = (experiment, item, resource)
    return [r for r in server.truth(project) if (r["experiment"], r["item"], r["resource"]) == wanted]


def test_nifti_opens_in_nibabel(server: DemoServer, http: requests.Session, tmp_path: Path) -> None:
    import nibabel

    paths = fetch(server, http, rows_of(server, "DEMO", "DEMO_001_MR1", "3", "NIFTI"), tmp_path)
    assert [nibabel.load(path).shape for path in paths] == [(17, 21, 3, 20), (128, 96, 24, 2)]


def test_the_large_files_are_valid_nifti(server: DemoServer, http: requests.Session) -> None:
    import nibabel

    shapes = {"1": (128, 128, 64, 512), "2": (128, 128, 61, 250), "3": (128, 128, 61, 50)}
    for row in server.truth("BIG"):
        with http.get(server.url + row["uri"], stream=True) as answer:
            header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(answer.raw.read(348)))
        assert header.get_data_shape() == shapes[row["item"]]
        voxels = 1
        for length in shapes[row["item"]]:
            voxels *= length
        assert row["size"] == 352 + 2 * voxels


@pytest.mark.tools
@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")
def test_dcm2niix_converts_a_series_of_the_sample(server: DemoServer, http: requests.Session, tmp_path: Path) -> None:
    fetch(server, http, rows_of(server, "DEMO", "DEMO_001_MR1", "1", "DICOM"), tmp_path)
    done = subprocess.run(["dcm2niix", "-f", "out", "-o", str(tmp_path), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    import nibabel

    assert nibabel.load(tmp_path / "out.nii").shape == (64, 64, 24)


def test_every_dicom_of_a_series_is_its_own(server: DemoServer, http: requests.Session, tmp_path: Path) -> None:
    import pydicom

    paths = fetch(server, http, rows_of(server, "DEMO", "DEMO_001_CT1", "2", "DICOM"), tmp_path)
    datasets = [pydicom.dcmread(path) for path in paths]
    assert [d.InstanceNumber for d in datasets] == list(range(1, 11))
    assert len({d.SOPInstanceUID for d in datasets}) == 10
    assert len({d.SeriesInstanceUID for d in datasets}) == 1


def test_two_servers_hold_the_same_bytes(server: DemoServer) -> None:
    with DemoServer() as second:
        assert second.truth("HCP_DEMO") == server.truth("HCP_DEMO")
        ours = {(r["uri"], r["md5"]) for r in server.truth() if r["experiment"] == "DEMO_001_MR1"}
        theirs = {(r["uri"], r["md5"]) for r in second.truth() if r["experiment"] == "DEMO_001_MR1"}
    assert ours - theirs == set()


def test_listed_digests_are_right_or_blank_but_for_the_marked_ones(server: DemoServer) -> None:
    wrong = {r["name"] for r in server.truth() if r["md5"] and r["listed_digest"] and r["md5"] != r["listed_digest"]}
    assert wrong == {"wrong-digest.bin"}


def test_the_full_sample_costs_no_start_time_and_lists_thousands(http: requests.Session) -> None:
    started = time.monotonic()
    with DemoServer(sample="full") as server:
        assert time.monotonic() - started < 5.0  # 0.3 s on an idle machine
        listing = http.get(f"{server.url}/data/experiments/XNAT_E10000/files?all=true").json()["ResultSet"]["Result"]
        assert len(listing) == 2000
        assert len({row["cat_ID"] for row in listing}) == 20
        rows = [r for r in server.truth("BENCH") if r["experiment"] == "BENCH_1000_DICOM"]
        assert len(rows) == 1000
        assert {r["size"] for r in rows} == {206_310}
        assert len({r["md5"] for r in rows}) == 1000
        import pydicom

        dataset = pydicom.dcmread(io.BytesIO(http.get(server.url + rows[7]["uri"]).content))
        assert (dataset.InstanceNumber, dataset.Rows, len(dataset.PixelData)) == (8, 320, 204_800)
        projects = http.get(f"{server.url}/data/projects/CRAWL/experiments").json()["ResultSet"]["Result"]
        assert len(projects) == 100


def test_log_counts_what_was_in_flight_together(server: DemoServer) -> None:
    server.switch(latency_s=0.3)
    url = f"{server.url}/data/projects"

    def visit() -> None:
        with requests.Session() as session:
            session.get(url, auth=("demo", "demo"))

    threads = [threading.Thread(target=visit) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = server.settled_log()
    assert log["max_in_flight"] == 5
    assert [r["n"] for r in log["requests"]] == sorted(r["n"] for r in log["requests"])
    server.clear_log()
    assert server.log()["requests"] == []


def test_log_records_are_complete(server: DemoServer, http: requests.Session) -> None:
    http.get(f"{server.url}/data/projects", headers={"Range": "bytes=0-9"})
    record = server.requests()[0]
    assert record["method"] == "GET"
    assert record["path"] == "/data/projects"
    assert record["user"] == "demo"
    assert len(record["session"]) == 32
    assert record["user_agent"] == "tests/1"
    assert record["range"] == "bytes=0-9"
    assert record["sent"] > 500
    assert record["done"]


def test_a_restart_keeps_the_port_and_forgets_sessions(http: requests.Session) -> None:
    with DemoServer() as server:
        port = server.port
        session = http.get(f"{server.url}/data/JSESSION").text
        server.kill()
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{server.url}/data/auth", timeout=5)
        server.restart()
        assert server.port == port
        answer = requests.get(f"{server.url}/data/auth", headers={"Cookie": f"JSESSIONID={session}"}, timeout=5)
        assert answer.status_code == 401


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_mid_transfer(number: signal.Signals) -> None:
    server = DemoServer()
    server.start()
    row = next(r for r in server.truth("BIG") if r["name"] == "bold_1g.nii")
    reader = requests.get(server.url + row["uri"], auth=("demo", "demo"), stream=True, timeout=10)
    reader.raw.read(1000)
    process = server._process
    assert process is not None
    started = time.monotonic()
    process.send_signal(number)
    assert process.wait(10) == 0
    assert time.monotonic() - started < 5
    reader.close()
    server.stop()


def test_the_server_dies_with_its_parent() -> None:
    script = (
        "import json, os, subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-m', 'xnatfs.demo', '--port', '0', '--die-with-parent'],"
        " stdout=subprocess.PIPE, text=True)\n"
        "print(json.dumps([p.pid, p.stdout.readline()]), flush=True)\n"
        "os._exit(0)\n"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    pid, url = json.loads(output)
    assert url.startswith("http://127.0.0.1:")
    limit = time.monotonic() + 5
    while _alive(pid) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z" and os.path.exists(f"/proc/{pid}")
