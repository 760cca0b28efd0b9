"""Reading ahead of a real reader, counted at the server: several streams of slow connections, and strided reads."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounting import Mount, mounted
from tests.helpers.server import DemoServer, Record
from tests.helpers.usage import resident_bytes

pytestmark = pytest.mark.fuse

MIB = 1024 * 1024
GRAIN = 128 * 1024
HUNDRED = "BIG/BIG_1/BIG_1_MR/scans/3-bold100m/NIFTI/bold_100m.nii"
STREAMS = 4
STRIPE = 4 * MIB


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer(range="on") as server:
        yield server


def mount_of(server: DemoServer, room: Path, *arguments: str) -> Mount:
    return Mount(server.url, room, arguments, user="demo", password="demo")


def truth(server: DemoServer) -> Record:
    (row,) = [row for row in server.truth("BIG", md5="all") if row["name"] == Path(HUNDRED).name]
    return row


def md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        while data := file.read(MIB):
            digest.update(data)
    return digest.hexdigest()


def data_requests(server: DemoServer) -> list[Record]:
    return [record for record in server.log()["requests"] if "/files/" in record["path"]]


def settled(server: DemoServer) -> list[Record]:
    """Requests for file content, once no more bytes come."""
    sent, since = -1, time.monotonic()
    while time.monotonic() - since < 1.0:
        now = sum(record["sent"] for record in data_requests(server))
        if now != sent:
            sent, since = now, time.monotonic()
        time.sleep(0.1)
    return data_requests(server)


def spans(requests: list[Record]) -> list[tuple[int, int]]:
    """What was sent of each range, in order of the file."""
    found = []
    for record in requests:
        range_asked = re.fullmatch(r"bytes=(\d+)-\d*", record["range"])
        assert range_asked
        found.append((int(range_asked[1]), int(range_asked[1]) + record["sent"]))
    return sorted(found)


def sent_by(requests: list[Record]) -> int:
    return sum(record["sent"] for record in requests)


def test_slow_connections_are_used_side_by_side_and_each_byte_comes_once(server: DemoServer, tmp_path: Path) -> None:
    server.switch(connection_bandwidth=15e6)
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        row = truth(server)
        assert md5_of(mount.path / HUNDRED) == row["md5"]
        assert mount.process is not None
        assert resident_bytes([mount.process.pid], "VmHWM") <= 150_000_000
        requests = settled(server)
    assert 2 <= server.log()["max_in_flight"] <= STREAMS + 1
    assert len(requests) <= 8 + row["size"] // STRIPE
    assert sent_by(requests) <= row["size"] + MIB
    ends = [stop for _, stop in spans(requests)]
    starts = [start for start, _ in spans(requests)]
    assert sum(max(0, stop - start) for stop, start in zip(ends, starts[1:], strict=False)) <= MIB  # of the one cut off


def test_a_small_memory_is_enough_for_several_streams(server: DemoServer, tmp_path: Path) -> None:
    server.switch(connection_bandwidth=15e6)
    with mounted(server.url, tmp_path, "--memory", "16M", user="demo", password="demo") as mount:
        row = truth(server)
        assert md5_of(mount.path / HUNDRED) == row["md5"]
        assert mount.process is not None
        assert resident_bytes([mount.process.pid], "VmHWM") <= 110_000_000
        assert sent_by(settled(server)) <= row["size"] + MIB


def test_a_reader_that_is_killed_ends_all_its_streams(server: DemoServer, tmp_path: Path) -> None:
    server.switch(connection_bandwidth=5e6)
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        reader = subprocess.Popen(["cat", mount.path / HUNDRED], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while server.log()["max_in_flight"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        reader.kill()
        reader.wait(10)
        killed_at = sent_by(data_requests(server))
        requests = settled(server)
        assert sent_by(requests) - killed_at <= (STREAMS + 4) * STRIPE
        assert sent_by(requests) < truth(server)["size"] * 0.75


def test_two_mounts_of_one_cache_read_a_file_over_several_streams(server: DemoServer, tmp_path: Path) -> None:
    server.switch(connection_bandwidth=15e6)
    row = truth(server)
    one, other = (
        mount_of(server, tmp_path / name, "--cache-dir", str(tmp_path / "cache")) for name in ("one", "other")
    )
    with contextlib.ExitStack() as stack:
        for mount in (one, other):
            stack.callback(mount.stop)
            mount.start()
        readers = [
            subprocess.Popen(["md5sum", mount.path / HUNDRED], stdout=subprocess.PIPE, text=True)
            for mount in (one, other)
        ]
        digests = [reader.communicate(timeout=60)[0].split()[0] for reader in readers]
        requests = settled(server)
    assert digests == [row["md5"]] * 2
    assert sent_by(requests) <= 2 * row["size"]


def test_strided_reads_are_fetched_ahead_and_little_else(server: DemoServer, tmp_path: Path) -> None:
    server.switch(latency_s=0.05)
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        row = truth(server)
        data = server.content(row["uri"])
        server.clear_log()
        places = range(0, row["size"] - 65536, 2_000_000)
        fd = os.open(mount.path / HUNDRED, os.O_RDONLY)
        for start in places:
            assert os.pread(fd, 65536, start) == data[start : start + 65536]
        requests = settled(server)
        os.close(fd)
    assert 2 <= server.log()["max_in_flight"] <= STREAMS + 2
    assert len(requests) <= len(places) + 10
    assert sent_by(requests) <= 2 * GRAIN * (len(places) + 8)
