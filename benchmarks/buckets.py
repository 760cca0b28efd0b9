"""Sources that honour ranges: numbers 5, 6, 8, 9, 11 and 13 of a bucket as those of IDC, beside `rclone mount` of it.

The demo server shows every project as an open bucket (``xnat-PROJECT``), with the bytes that XNAT's side has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import memory
from clients import curl_first_byte, curl_guest, curl_parallel
from large_files import FIRST, GIGABIT, first_byte, random_reads
from measure import (
    GB,
    Row,
    Series,
    at_least,
    at_most,
    in_turn,
    read_through,
    seconds,
)
from peers import Peer, RcloneBucket, RemoteFile, Xnatfs, big_file, remote_file
from small_files import READERS, SCATTERED, read_all
from tasks import LATENCY_S, QUIET_S, Bench, measures, must_run

SOURCE = "bucket"
SLOW_CONNECTION = 20e6  # bytes a second: what a far bucket may give one connection
STRIDED, STRIDE = 65_536, 2_000_000  # bytes read at a time, and from one place to the next


class BigBucket(RcloneBucket):
    bucket = "xnat-big"


class BenchBucket(RcloneBucket):
    bucket = "xnat-bench"


@dataclass(frozen=True)
class Bucket:
    """One project as a bucket, and how the measurements of it say what they ask for."""

    bench: Bench
    name: str

    def xnatfs(self, room: str, *options: str) -> Xnatfs:
        return self.bench.xnatfs(room, *options, source=f"s3://{self.name}?endpoint={self.bench.server.url}")

    def requests(self) -> int:
        """How many objects, or parts of them, were asked for."""
        return sum(not record["path"].endswith(self.name) for record in self._asked())

    def sent_at_rest(self) -> int:
        """Bytes of the bucket sent so far, once no more come."""
        sent = -1
        while sent != (sent := sum(record["sent"] for record in self._asked())):
            time.sleep(QUIET_S)
        return sent

    def _asked(self) -> list[dict[str, object]]:
        records = self.bench.server.log()["requests"]
        return [record for record in records if record["path"].rstrip("/").startswith(f"/{self.name}")]


def opened(bench: Bench, name: str) -> Bucket:
    """Open the buckets, and have the server make its own lists."""
    bench.server.switch(buckets=True)
    bench.server.fetch(f"/{name}?list-type=2")
    return Bucket(bench, name)


def in_bucket(file: RemoteFile, name: str) -> RemoteFile:
    """The same file as an object: its key is its path below either mount."""
    key = file.page_path.partition("/")[2]
    return replace(file, path=key, page_path=key, uri=f"/{name}/{key}")


def _peer_rate(peer: Peer, file: RemoteFile, bench: Bench, patience_s: float) -> float:
    must_run(peer)
    with peer.mounted() as point:
        path = point / file.path
        path.stat()
        memory.warm()
        return file.size / seconds(lambda: read_through(path, file.size, patience_s)) / GB


@measures(5, 6, source=SOURCE)
def bucket_sequential_reads(bench: Bench) -> list[Row]:
    """An object of 1 GB: cold at full speed and at 20 ms, after a remount, and again."""
    bucket = opened(bench, "xnat-big")
    file = in_bucket(big_file(bench.server, "bold_100m.nii" if bench.quick else "bold_1g.nii"), bucket.name)
    (rclone,) = bench.peers(BigBucket)
    warm, requests, sent = Series(), Series(), Series()
    rows: list[Row] = []
    size = f"{file.size / GB:.2g} GB"
    for latency_s, what in ((0.0, f"cold read of {size}"), (LATENCY_S, f"cold read of {size}, at 20 ms")):
        bench.server.switch(latency_s=latency_s)
        cold = Series()

        def ours(cold: Series = cold, latency_s: float = latency_s) -> None:
            xnatfs = bucket.xnatfs("bucket")
            with xnatfs.mounted() as point:
                bench.server.clear_log()
                cold.add("xnatfs", _rate(point / file.path, file.size))
                sent.add("xnatfs", bucket.sent_at_rest() / file.size)
            if latency_s:
                return
            bench.server.clear_log()
            with xnatfs.mounted() as point:
                warm.add("remounted", _rate(point / file.path, file.size))
                requests.add("remounted", bucket.requests())
                warm.add("again", file.size / seconds(lambda: read_through(point / file.path, file.size)) / GB)
            xnatfs.forget()  # its pages are memory for the next

        def wire(cold: Series = cold) -> None:
            cold.add("curl", file.size / seconds(lambda: curl_guest(bench.server, file)) / GB)

        def theirs(cold: Series = cold) -> None:
            cold.attempt(rclone.name, lambda: _peer_rate(rclone, file, bench, 3 * bench.patience_s))

        in_turn(bench.few, {"xnatfs": ours, "curl": wire, "rclone": theirs}, holding=True)
        rows += [
            at_least(5, what, "xnatfs", "GB/s", cold["xnatfs"], 0.45),
            *cold.rows(5, what, "GB/s", [rclone.name]),
            at_least(5, what, f"xnatfs / {rclone.name}", "x", cold.ratio("xnatfs", rclone.name), 1.2),
            Row(5, what, "curl, the wire", "GB/s", cold["curl"]),
        ]
    rows += [
        at_most(5, f"cold read of {size}", "xnatfs", "x size sent", sent["xnatfs"], 1.05),
        at_least(6, "read after a remount", "xnatfs", "GB/s", warm["remounted"], 1.0),
        at_most(6, "read after a remount", "xnatfs", "requests", requests["remounted"], 0),
        at_least(6, "read again", "xnatfs", "GB/s", warm["again"], 2.0),
    ]
    return sourced(rows)


def _rate(path: Path, size: int) -> float:
    path.stat()
    memory.warm()
    return size / seconds(lambda: read_through(path, size)) / GB


@measures(5, source=SOURCE)
def bucket_of_a_slow_link(bench: Bench) -> list[Row]:
    """The same object over a link of 1 Gb/s."""
    bucket = opened(bench, "xnat-big")
    file = in_bucket(big_file(bench.server, "bold_100m.nii" if bench.quick else "bold_500m.nii"), bucket.name)
    (rclone,) = bench.peers(BigBucket)
    rates = Series()
    bench.server.switch(bandwidth=GIGABIT)

    def ours() -> None:
        with bucket.xnatfs("bucket").mounted() as point:
            rates.add("xnatfs", _rate(point / file.path, file.size))

    def wire() -> None:
        rates.add("curl", file.size / seconds(lambda: curl_guest(bench.server, file)) / GB)

    def theirs() -> None:
        rates.attempt(rclone.name, lambda: _peer_rate(rclone, file, bench, 3 * bench.patience_s))

    in_turn(bench.few, {"xnatfs": ours, "curl": wire, "rclone": theirs}, holding=True)
    what = f"cold read of {file.size / GB:.2g} GB, 1 Gb/s"
    return sourced(
        [
            *rates.rows(5, what, "GB/s", ["xnatfs", "curl", rclone.name]),
            at_least(5, what, "xnatfs / curl", "x", rates.ratio("xnatfs", "curl"), 0.95),
        ]
    )


@measures(5, source=SOURCE)
def bucket_of_slow_connections(bench: Bench) -> list[Row]:
    """The same object from a server that gives each connection 20 MB/s; for comparison, there is no goal."""
    bucket = opened(bench, "xnat-big")
    file = in_bucket(big_file(bench.server, "bold_100m.nii" if bench.quick else "bold_500m.nii"), bucket.name)
    (rclone,) = bench.peers(BigBucket)
    rates, requests, sent = Series(), Series(), Series()
    patience_s = 2 * file.size / SLOW_CONNECTION
    bench.server.switch(connection_bandwidth=SLOW_CONNECTION, latency_s=LATENCY_S)

    def ours() -> None:
        with bucket.xnatfs("bucket").mounted() as point:
            bench.server.clear_log()
            rates.add("xnatfs", _rate(point / file.path, file.size))
            sent.add("xnatfs", bucket.sent_at_rest() / file.size)
            requests.add("xnatfs", bucket.requests())

    def wire() -> None:
        rates.add("curl", file.size / seconds(lambda: curl_guest(bench.server, file)) / GB)

    def theirs() -> None:
        rates.attempt(rclone.name, lambda: _peer_rate(rclone, file, bench, patience_s))

    in_turn(bench.few, {"xnatfs": ours, "curl": wire, "rclone": theirs}, holding=True)
    what = f"cold read of {file.size / GB:.2g} GB, 20 MB/s a connection, at 20 ms"
    return sourced(
        [
            *rates.rows(5, what, "GB/s", ["xnatfs", "curl", rclone.name]),
            *requests.rows(5, what, "requests", ["xnatfs"]),
            *sent.rows(5, what, "x size sent", ["xnatfs"]),
        ]
    )


@measures(8, 9, source=SOURCE)
def bucket_first_bytes(bench: Bench) -> list[Row]:
    """The first 352 bytes of 100 MB: what the bucket sends for them; and the first byte at 20 ms."""
    bucket = opened(bench, "xnat-big")
    file = in_bucket(big_file(bench.server, "bold_100m.nii"), bucket.name)
    (rclone,) = bench.peers(BigBucket)
    sent, times = Series(), Series()

    def header(point: Path) -> float:
        (point / file.path).stat()
        bench.server.clear_log()
        with (point / file.path).open("rb", buffering=0) as one:
            if len(one.read(FIRST)) != FIRST:
                raise RuntimeError(f"the first {FIRST} bytes were not read")
        return bucket.sent_at_rest() / 1e3

    def theirs(job: Callable[[Path], float]) -> float:
        must_run(rclone)
        with rclone.mounted() as point:
            return job(point)

    for _ in range(bench.few):
        with bucket.xnatfs("bucket").mounted() as point:
            sent.add("xnatfs", header(point))
    sent.attempt(rclone.name, lambda: theirs(header))
    bench.server.switch(latency_s=LATENCY_S)

    def ours() -> None:
        with bucket.xnatfs("bucket").mounted() as point:
            times.add("xnatfs", first_byte(point / file.path))

    in_turn(
        max(3, bench.rounds),
        {
            "xnatfs": ours,
            "curl": lambda: times.add("curl", 1e3 * curl_first_byte(bench.server, file, "")),
            "rclone": lambda: times.attempt(rclone.name, lambda: theirs(lambda point: first_byte(point / file.path))),
        },
    )
    what, when = "first 352 bytes of 100 MB", "first byte of 100 MB at 20 ms"
    return sourced(
        [
            at_most(8, what, "xnatfs", "KB sent", sent["xnatfs"], 262),
            *sent.rows(8, what, "KB sent", [rclone.name]),
            at_most(9, when, "xnatfs", "ms", times["xnatfs"], 35),
            *times.rows(9, when, "ms", ["curl", rclone.name]),
        ]
    )


@measures(11, source=SOURCE)
def bucket_scattered_files(bench: Bench) -> list[Row]:
    """400 objects of 200 KB from as many folders, 16 readers, at 20 ms; the listing is known."""
    bucket = opened(bench, "xnat-bench")
    truth = [row for row in bench.server.truth("BENCH") if row["experiment"] == SCATTERED]
    files = [in_bucket(remote_file(row), bucket.name) for row in truth]
    size = sum(file.size for file in files)
    paths = [file.path for file in files]
    (rclone,) = bench.peers(BenchBucket)
    times = Series()
    bench.server.switch(latency_s=LATENCY_S)

    def ours() -> None:
        with bucket.xnatfs("bucket").mounted() as point:
            times.add("xnatfs", read_all(point, paths, size))

    def theirs() -> float:
        must_run(rclone)
        with rclone.mounted() as point:
            return read_all(point, paths, size, bench.patience_s)

    in_turn(
        bench.rounds,
        {
            "xnatfs": ours,
            "curl": lambda: times.add("curl", seconds(lambda: curl_parallel(bench.server, files, ""))),
            "rclone": lambda: times.attempt(rclone.name, theirs),
        },
    )
    what = f"{len(files)} objects of 200 KB, {READERS} readers, at 20 ms"
    speed = [1 / ratio for ratio in times.ratio("xnatfs", "curl")]
    return sourced(
        [
            Row(11, what, "xnatfs", "s", times["xnatfs"]),
            Row(11, what, "curl --parallel-max 8", "s", times["curl"]),
            at_least(11, what, "speed of xnatfs / curl", "x", speed, 0.9),
            *times.rows(11, what, "s", [rclone.name]),
        ]
    )


@measures(13, source=SOURCE)
def bucket_random_reads(bench: Bench) -> list[Row]:
    """1,000 random reads of 4 KB of a cold object of 1 GB: what the bucket sends for them."""
    bucket = opened(bench, "xnat-big")
    file = in_bucket(big_file(bench.server, "bold_100m.nii" if bench.quick else "bold_1g.nii"), bucket.name)
    count = 100 if bench.quick else 1000
    (rclone,) = bench.peers(BigBucket)
    sent, taken = Series(), Series()

    def reads(who: str, point: Path) -> float:
        (point / file.path).stat()
        bench.server.clear_log()
        done, took = random_reads(point / file.path, "plain", count, 3 * bench.patience_s)
        if done < count:
            raise RuntimeError(f"stopped after {took:.0f} s with {done:,} reads done")
        sent.add(who, bucket.sent_at_rest() / (count * 4096))
        return took

    def theirs() -> float:
        must_run(rclone)
        with rclone.mounted() as point:
            return reads(rclone.name, point)

    for _ in range(bench.few):
        with bucket.xnatfs("bucket").mounted() as point:
            taken.add("xnatfs", reads("xnatfs", point))
    taken.attempt(rclone.name, theirs)
    what = f"{count:,} random reads of 4 KB of {file.size / GB:.2g} GB"
    return sourced(
        [
            at_most(13, what, "xnatfs", "x bytes asked for", sent["xnatfs"], 64),
            *sent.rows(13, what, "x bytes asked for", [rclone.name]),
            *taken.rows(13, what, "s", ["xnatfs", rclone.name]),
        ]
    )


@measures(13, source=SOURCE)
def bucket_strided_reads(bench: Bench) -> list[Row]:
    """64 KB every 2 MB of a cold object of 0.5 GB at 20 ms, as one slice of each volume; there is no goal."""
    bucket = opened(bench, "xnat-big")
    file = in_bucket(big_file(bench.server, "bold_100m.nii" if bench.quick else "bold_500m.nii"), bucket.name)
    places = range(0, file.size - STRIDED, STRIDE)
    (rclone,) = bench.peers(BigBucket)
    sent, taken = Series(), Series()
    bench.server.switch(latency_s=LATENCY_S)

    def reads(who: str, point: Path) -> float:
        (point / file.path).stat()
        bench.server.clear_log()
        took = seconds(lambda: strided_reads(point / file.path, places, 6 * bench.patience_s))
        sent.add(who, bucket.sent_at_rest() / (len(places) * STRIDED))
        return took

    def ours() -> None:
        with bucket.xnatfs("bucket").mounted() as point:
            taken.add("xnatfs", reads("xnatfs", point))

    def theirs() -> float:
        must_run(rclone)
        with rclone.mounted() as point:
            return reads(rclone.name, point)

    in_turn(bench.few, {"xnatfs": ours, "rclone": lambda: taken.attempt(rclone.name, theirs)})
    what = f"64 KB every 2 MB of {file.size / GB:.2g} GB, at 20 ms"
    return sourced(
        [
            *taken.rows(13, what, "s", ["xnatfs", rclone.name]),
            *sent.rows(13, what, "x bytes asked for", ["xnatfs", rclone.name]),
        ]
    )


def strided_reads(path: Path, places: range, patience_s: float) -> None:
    """Read STRIDED bytes at each place."""
    end = time.perf_counter() + patience_s
    with path.open("rb", buffering=0) as one:
        for count, place in enumerate(places):
            if len(os.pread(one.fileno(), STRIDED, place)) != STRIDED:
                raise RuntimeError("a short read")
            if time.perf_counter() > end:
                raise RuntimeError(f"stopped after {patience_s:.0f} s with {count:,} reads done")


def sourced(rows: list[Row]) -> list[Row]:
    return [replace(row, source=SOURCE) for row in rows]
