"""Many small files: numbers 10 and 11."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from clients import api_client, curl_parallel, curl_zip, session_cookie
from measure import Row, Series, at_least, at_most, in_turn, run, seconds
from peers import Peer, remote_file
from tasks import LATENCY_S, Bench, measures, must_run

SERIES = ("BENCH", "BENCH_1", "BENCH_1000_DICOM")
SERIES_FILES = 1000
CLIENT_PATIENCE = 4  # times that of the other peers: one of the two is to get there
SCATTERED = "BENCH_400_RESOURCES"
READERS = 16


@measures(10)
def copy_of_a_series(bench: Bench) -> list[Row]:
    """`cp -r` of a scan of 1,000 DICOM files of 200 KB at 20 ms, nothing known or cached before."""
    times = Series()
    rows = [row for row in bench.server.truth("BENCH", md5="all") if row["experiment"] == SERIES[2]]
    folder = str(Path(remote_file(rows[0]).path).parent)
    page_folder = str(Path(remote_file(rows[0]).page_path).parent)
    zip_target = rows[0]["uri"].partition("/files/")[0] + "/files"
    size = sum(row["size"] for row in rows)
    bench.server.switch(latency_s=LATENCY_S)
    copies = bench.room / "copies"

    def fresh() -> Path:
        shutil.rmtree(copies, ignore_errors=True)
        return copies

    def ours() -> None:
        with bench.xnatfs("series").mounted() as point:
            into = fresh()
            times.add("xnatfs", seconds(lambda: run(["cp", "-r", point / folder, into])))
        _complete(into, size)

    def zipped() -> None:
        into = fresh()
        times.add("curl + unzip", seconds(lambda: curl_zip(bench.server, zip_target, into)))
        _complete(into, size)

    def copied_from(peer: Peer) -> float:
        must_run(peer)
        with peer.mounted() as point:
            into = fresh()
            took = seconds(lambda: run(["cp", "-r", point / page_folder, into], bench.patience_s))
        _complete(into, size)
        return took

    patience_s = bench.patience_s * (1 if bench.quick else CLIENT_PATIENCE)

    def file_by_file(client: str) -> float:
        took, files = api_client(client, "download", bench.server, SERIES, fresh(), patience_s)
        if files != SERIES_FILES:
            raise RuntimeError(f"{files} files came")
        return took

    in_turn(bench.rounds, {"xnatfs": ours, "curl": zipped})
    peers = bench.peers()
    for peer in peers:
        times.attempt(peer.name, lambda peer=peer: copied_from(peer))
    clients = ["pyxnat", "xnatpy"]
    for client in clients:
        times.attempt(client, lambda client=client: file_by_file(client))
    what = f"cp -r, {SERIES_FILES:,} files of 200 KB, at 20 ms"
    quickest = times.best(clients, most=False)
    return [
        Row(10, what, "xnatfs", "s", times["xnatfs"]),
        Row(10, what, "curl of the zip + unzip", "s", times["curl + unzip"]),
        at_most(10, what, "xnatfs / curl + unzip", "x", times.ratio("xnatfs", "curl + unzip"), 1.1),
        *times.rows(10, "the same, file by file", "s", clients),
        at_least(10, what, f"{quickest or 'a REST client'} / xnatfs", "x", _inverse(times, quickest), 10),
        *times.rows(10, what, "s", [peer.name for peer in peers]),
    ]


def _inverse(times: Series, client: str | None) -> list[float]:
    return [1 / ratio for ratio in times.ratio("xnatfs", client)]


def _complete(into: Path, size: int) -> None:
    files = [path for path in into.rglob("*") if path.is_file()]
    found = sum(path.stat().st_size for path in files)
    if (len(files), found) != (SERIES_FILES, size):
        raise RuntimeError(f"{len(files)} files of {found} bytes were copied, not {SERIES_FILES} of {size}")


@measures(11)
def scattered_files(bench: Bench) -> list[Row]:
    """400 files of 200 KB from as many resources, 16 readers, at 20 ms; the listing is known."""
    times = Series()
    files = [remote_file(row) for row in bench.server.truth("BENCH") if row["experiment"] == SCATTERED]
    size = sum(file.size for file in files)
    cookie = session_cookie(bench.server)
    bench.server.switch(latency_s=LATENCY_S)

    def ours() -> None:
        with bench.xnatfs("scattered").mounted() as point:
            times.add("xnatfs", read_all(point, [file.path for file in files], size))

    def theirs(peer: Peer) -> float:
        must_run(peer)
        with peer.mounted() as point:
            return read_all(point, [file.page_path for file in files], size, bench.patience_s)

    peers = bench.peers()
    in_turn(
        bench.rounds,
        {
            "xnatfs": ours,
            "curl": lambda: times.add("curl", seconds(lambda: curl_parallel(bench.server, files, cookie))),
        },
    )
    for peer in peers:
        times.attempt(peer.name, lambda peer=peer: theirs(peer))
    what = f"{len(files)} files of 200 KB, {READERS} readers, at 20 ms"
    speed = [1 / ratio for ratio in times.ratio("xnatfs", "curl")]
    return [
        Row(11, what, "xnatfs", "s", times["xnatfs"]),
        Row(11, what, "curl --parallel-max 8", "s", times["curl"]),
        at_least(11, what, "speed of xnatfs / curl", "x", speed, 0.9),
        *times.rows(11, what, "s", [peer.name for peer in peers]),
    ]


def read_all(point: Path, paths: list[str], size: int, timeout_s: float | None = None) -> float:
    """Seconds that READERS take to read these files, ``size`` bytes together; their names are looked up before."""
    start = time.monotonic()
    for path in paths:
        (point / path).stat()
        if timeout_s is not None and time.monotonic() - start > timeout_s:
            raise subprocess.TimeoutExpired("stat", timeout_s)
    names = b"\0".join(str(point / path).encode() for path in paths)
    counted: list[int] = []
    took = seconds(lambda: counted.append(_cat_all(names, timeout_s)))
    if counted != [size]:
        raise RuntimeError(f"{counted[0]} bytes were read, not {size}")
    return took


def _cat_all(names: bytes, timeout_s: float | None) -> int:
    """Bytes that READERS `cat`s have read of these files, all together."""
    command = ["sh", "-c", f"xargs -0 -n 5 -P {READERS} cat | wc -c"]
    return int(run(command, timeout_s, names))
