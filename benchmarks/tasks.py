"""What is measured: a function for each number of the table of goals, or for a few that one mount answers together.

Numbers are those of ``docs/performance.md``. To add one, write a function that takes a ``Bench``, returns rows and is
decorated with its number.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from measure import GB, Row, Series, at_least, at_most, in_turn, read_through, seconds, warm_memory
from peers import Rclone, RemoteFile, Xnatfs, big_file, curl

from tests.helpers.server import DemoServer

QUIET_S = 1.0  # a server that has sent nothing for this long will send no more for what was asked


@dataclass(frozen=True)
class Bench:
    """What every measurement is given: a server with the full sample, an empty directory, how often to repeat."""

    server: DemoServer
    room: Path
    rounds: int
    quick: bool

    def xnatfs(self, name: str, *options: str) -> Xnatfs:
        room = self.room / name
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir(parents=True)
        return Xnatfs(self.server, room, *options)

    def rclone(self, *files: RemoteFile) -> Rclone | None:
        """None where rclone is not installed."""
        room = self.room / "rclone"
        room.mkdir(parents=True, exist_ok=True)
        return Rclone(self.server, room, files) if shutil.which("rclone") else None

    def bytes_sent(self) -> int:
        return sum(record["sent"] for record in self.server.data_requests())

    def bytes_sent_at_rest(self) -> int:
        """Bytes of file content sent so far, once no more come: readahead goes on after a read has returned."""
        sent = -1
        while sent != (sent := sum(r["sent"] for r in self.server.log()["requests"] if "/files/" in r["path"])):
            time.sleep(QUIET_S)
        return sent


Task = Callable[[Bench], list[Row]]
TASKS: list[tuple[tuple[int, ...], Task]] = []


def measures(*numbers: int) -> Callable[[Task], Task]:
    def register(task: Task) -> Task:
        TASKS.append((numbers, task))
        return task

    return register


@measures(1)
def listing_requests(bench: Bench) -> list[Row]:
    """`ls -lR` of one session, its parents listed before."""
    requests = Series()
    session = "BENCH/BENCH_1/BENCH_2000_FILES"
    for _ in range(1 if bench.quick else 3):
        xnatfs = bench.xnatfs("listing")
        with xnatfs.mounted() as point:
            subprocess.run(["ls", "-l", str((point / session).parent)], check=True, capture_output=True)
            for state in ("cold", "repeated"):
                bench.server.clear_log()
                listed = subprocess.run(["ls", "-lR", str(point / session)], check=True, capture_output=True, text=True)
                if sum(line.startswith("-") for line in listed.stdout.splitlines()) != 2000:
                    raise RuntimeError("ls -lR did not show 2,000 files")
                requests.add(state, len(bench.server.requests()))
    what = "ls -lR, 20 scans, 2,000 files"
    return [
        at_most(1, what, "xnatfs, cold", "requests", requests["cold"], 4),
        at_most(1, what, "xnatfs, repeated", "requests", requests["repeated"], 0),
    ]


@measures(5, 6, 7)
def sequential_reads(bench: Bench) -> list[Row]:
    """A file of 1 GB: cold, cold without a cache, after a remount, and again; rclone mount and curl beside it."""
    file = big_file(bench.server, "bold_100m.nii" if bench.quick else "bold_1g.nii")
    cold, warm, requests = Series(), Series(), Series()
    xnatfs, uncached = (
        bench.xnatfs("cached"),
        bench.xnatfs("uncached", "--cache-size", "1"),
    )  # a cap that no block fits in
    rclone = bench.rclone(file)

    def rate(point: Path, name: str) -> float:
        warm_memory(bench.room, 2 * file.size)  # the kernel keeps the file's pages and those of our blocks
        return file.size / seconds(lambda: read_through(point / name, file.size)) / GB

    def read_xnatfs() -> None:
        xnatfs.forget()
        with xnatfs.mounted() as point:
            (point / file.path).stat()
            cold.add("xnatfs", rate(point, file.path))
        bench.server.clear_log()
        with xnatfs.mounted() as point:
            (point / file.path).stat()
            warm.add("remounted", rate(point, file.path))
            requests.add("remounted", len(bench.server.data_requests()))
            warm.add("again", file.size / seconds(lambda: read_through(point / file.path, file.size)) / GB)

    def read_uncached() -> None:
        with uncached.mounted() as point:
            (point / file.path).stat()
            cold.add("xnatfs, no cache on disk", rate(point, file.path))

    def read_rclone() -> None:
        assert rclone is not None
        with rclone.mounted() as point:
            (point / file.name).stat()
            cold.add(rclone.name, rate(point, file.name))

    def read_curl() -> None:
        cold.add("curl", file.size / seconds(lambda: curl(bench.server, file)) / GB)

    contenders = {"xnatfs": read_xnatfs, "uncached": read_uncached, "curl": read_curl}
    if rclone is not None:
        contenders["rclone"] = read_rclone
    in_turn(bench.rounds, contenders)

    what = f"cold read of {file.size / GB:.2g} GB"
    rows = [at_least(5, what, "xnatfs", "GB/s", cold["xnatfs"], 0.45)]
    if rclone is not None:
        rows += [
            Row(5, what, rclone.name, "GB/s", cold[rclone.name]),
            at_least(5, what, f"xnatfs / {rclone.name}", "x", cold.ratio("xnatfs", rclone.name), 1.2),
        ]
    slower = [1 / ratio for ratio in cold.ratio("xnatfs", "xnatfs, no cache on disk")]
    return [
        *rows,
        Row(5, what, "curl, the wire", "GB/s", cold["curl"]),
        at_least(6, "read after a remount", "xnatfs", "GB/s", warm["remounted"], 1.0),
        at_most(6, "read after a remount", "xnatfs", "requests", requests["remounted"], 0),
        at_least(6, "read again", "xnatfs", "GB/s", warm["again"], 2.0),
        Row(7, what, "xnatfs, no cache on disk", "GB/s", cold["xnatfs, no cache on disk"]),
        at_most(7, "time of a cold read", "cached / not cached", "x", slower, 1.2),
    ]


@measures(8)
def first_bytes(bench: Bench) -> list[Row]:
    """The first 352 bytes of 100 MB, a NIfTI header: what the server sends for them."""
    file = big_file(bench.server, "bold_100m.nii")
    sent = Series()
    for _ in range(1 if bench.quick else bench.rounds):
        for ranges in (False, True):
            xnatfs = bench.xnatfs("first")
            bench.server.switch(range=ranges)
            with xnatfs.mounted() as point:
                (point / file.path).stat()
                bench.server.clear_log()
                with (point / file.path).open("rb", buffering=0) as opened:
                    if len(opened.read(352)) != 352:
                        raise RuntimeError("the first 352 bytes were not read")
                sent.add("with" if ranges else "without", bench.bytes_sent_at_rest() / 1e3)
    bench.server.switch(range=False)
    what = "first 352 bytes of 100 MB"
    return [
        at_most(8, what, "server without Range", "KB sent", sent["without"], 1500),
        at_most(8, what, "server with Range", "KB sent", sent["with"], 262),
    ]


@measures(12)
def many_readers(bench: Bench) -> list[Row]:
    """16 readers of one cold file of 500 MB from a server without Range: bytes sent for all of them."""
    file = big_file(bench.server, "bold_100m.nii" if bench.quick else "bold_500m.nii")
    sent, taken = Series(), Series()
    for _ in range(1 if bench.quick else min(3, bench.rounds)):
        xnatfs = bench.xnatfs("many")
        with xnatfs.mounted() as point:
            (point / file.path).stat()
            bench.server.clear_log()
            faults: list[Exception] = []

            def read(path: Path = point / file.path, faults: list[Exception] = faults) -> None:
                try:
                    read_through(path, file.size)
                except Exception as exc:  # noqa: BLE001 (raised below, in the main thread)
                    faults.append(exc)

            readers = [threading.Thread(target=read) for _ in range(16)]

            def read_all(readers: list[threading.Thread] = readers) -> None:
                for reader in readers:
                    reader.start()
                for reader in readers:
                    reader.join()

            warm_memory(bench.room, 2 * file.size)
            taken.add("all", seconds(read_all))
            if faults:
                raise faults[0]
            sent.add("all", bench.bytes_sent() / file.size)
    what = f"16 readers of {file.size / GB:.2g} GB, cold"
    return [
        at_most(12, what, "xnatfs", "x size sent", sent["all"], 1.05),
        Row(12, what, "xnatfs", "s", taken["all"]),
    ]
