"""Reads of large files: numbers 5 to 9, 12, 13 and 17."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import memory
from clients import Direct, curl, curl_first_byte, session_cookie
from measure import GB, Row, Series, at_least, at_most, in_turn, read_through, run, seconds
from peers import ROOT, Peer, Rclone, RcloneFullCache, RemoteFile, Xnatfs, big_file
from tasks import LATENCY_S, Bench, measures, must_run

GIGABIT = 125e6  # bytes a second
FIRST = 352  # bytes: a NIfTI header and its four bytes of extension flag


def peer_reads(peer: Peer, file: RemoteFile, bench: Bench, timeout_s: float | None = None) -> float:
    """GB/s of one cold read through a peer's mount."""
    must_run(peer)
    with peer.mounted() as point:
        path = point / file.page_path
        path.stat()
        memory.warm()
        return file.size / seconds(lambda: read_through(path, file.size, timeout_s or bench.patience_s)) / GB


@measures(5, 6, 7)
def sequential_reads(bench: Bench) -> list[Row]:
    """A file of 1 GB: cold, cold without a cache, after a remount, and again; the peers and curl beside it."""
    file = big_file(bench.server, "bold_100m.nii" if bench.quick else "bold_1g.nii")
    cold, warm, requests = Series(), Series(), Series()
    # a cap of 1 byte: no block fits in
    xnatfs, uncached = bench.xnatfs("cached"), bench.xnatfs("uncached", "--cache-size", "1")
    peers = bench.peers()

    def rate(point: Path) -> float:
        memory.warm()  # the kernel keeps the file's pages and those of our blocks
        return file.size / seconds(lambda: read_through(point / file.path, file.size)) / GB

    def ours() -> None:
        with xnatfs.mounted() as point:
            (point / file.path).stat()
            cold.add("xnatfs", rate(point))
        bench.server.clear_log()
        with xnatfs.mounted() as point:
            (point / file.path).stat()
            warm.add("remounted", rate(point))
            requests.add("remounted", len(bench.server.data_requests()))
            warm.add("again", file.size / seconds(lambda: read_through(point / file.path, file.size)) / GB)
        xnatfs.forget()  # its pages are memory for the next

    def ours_uncached() -> None:
        with uncached.mounted() as point:
            (point / file.path).stat()
            cold.add("xnatfs, no cache on disk", rate(point))

    def theirs(peer: Peer) -> Callable[[], None]:
        return lambda: cold.attempt(peer.name, lambda: peer_reads(peer, file, bench))

    def wire() -> None:
        cold.add("curl", file.size / seconds(lambda: curl(bench.server, file)) / GB)

    contenders = {"xnatfs": ours, "uncached": ours_uncached, "curl": wire}
    in_turn(bench.rounds, contenders | {peer.name: theirs(peer) for peer in peers}, holding=True)

    names = [peer.name for peer in peers]
    fastest = cold.best(names, most=True)
    what = f"cold read of {file.size / GB:.2g} GB"
    return [
        at_least(5, what, "xnatfs", "GB/s", cold["xnatfs"], 0.45),
        *cold.rows(5, what, "GB/s", names),
        at_least(5, what, f"xnatfs / {fastest or 'the fastest peer'}", "x", cold.ratio("xnatfs", fastest), 1.2),
        Row(5, what, "curl, the wire", "GB/s", cold["curl"]),
        at_least(6, "read after a remount", "xnatfs", "GB/s", warm["remounted"], 1.0),
        at_most(6, "read after a remount", "xnatfs", "requests", requests["remounted"], 0),
        at_least(6, "read again", "xnatfs", "GB/s", warm["again"], 2.0),
        Row(7, what, "xnatfs, no cache on disk", "GB/s", cold["xnatfs, no cache on disk"]),
        at_most(
            7, "time of a cold read", "cached / not cached", "x", cold.ratio("xnatfs, no cache on disk", "xnatfs"), 1.2
        ),
    ]


@measures(5)
def sequential_reads_of_a_slow_link(bench: Bench) -> list[Row]:
    """The same file over a link of 1 Gb/s."""
    file = big_file(bench.server, "bold_100m.nii" if bench.quick else "bold_1g.nii")
    rates = Series()
    bench.server.switch(bandwidth=GIGABIT)

    def ours() -> None:
        xnatfs = bench.xnatfs("slow")
        with xnatfs.mounted() as point:
            (point / file.path).stat()
            memory.warm()
            rates.add("xnatfs", file.size / seconds(lambda: read_through(point / file.path, file.size)) / GB)

    def wire() -> None:
        rates.add("curl", file.size / seconds(lambda: curl(bench.server, file)) / GB)

    (rclone,) = bench.peers(Rclone)
    in_turn(
        bench.few,
        {
            "xnatfs": ours,
            "curl": wire,
            "rclone": lambda: rates.attempt(rclone.name, lambda: peer_reads(rclone, file, bench, 3 * bench.patience_s)),
        },
        holding=True,
    )
    what = f"cold read of {file.size / GB:.2g} GB, 1 Gb/s"
    return [
        Row(5, what, "xnatfs", "GB/s", rates["xnatfs"]),
        Row(5, what, "curl", "GB/s", rates["curl"]),
        *rates.rows(5, what, "GB/s", [rclone.name]),
        at_least(5, what, "xnatfs / curl", "x", rates.ratio("xnatfs", "curl"), 0.95),
    ]


@measures(8)
def first_bytes(bench: Bench) -> list[Row]:
    """The first 352 bytes of 100 MB, a NIfTI header: what the server sends for them."""
    file = big_file(bench.server, "bold_100m.nii")
    sent = Series()
    (rclone,) = bench.peers(Rclone)
    for _ in range(bench.few):
        for ranges in (False, True):
            state = "with" if ranges else "without"
            bench.server.switch(range=ranges)
            xnatfs = bench.xnatfs("first")
            with xnatfs.mounted() as point:
                sent.add(state, _sent_for_the_first(point / file.path, bench) / 1e3)
    bench.server.switch(range=False)
    sent.attempt(rclone.name, lambda: _peer_sent_for_the_first(rclone, file, bench) / 1e3)
    what = "first 352 bytes of 100 MB"
    return [
        at_most(8, what, "xnatfs, server without Range", "KB sent", sent["without"], 1500),
        at_most(8, what, "xnatfs, server with Range", "KB sent", sent["with"], 262),
        *sent.rows(8, what, "KB sent", [rclone.name]),
    ]


def _sent_for_the_first(path: Path, bench: Bench) -> int:
    path.stat()
    bench.server.clear_log()
    with path.open("rb", buffering=0) as opened:
        if len(opened.read(FIRST)) != FIRST:
            raise RuntimeError(f"the first {FIRST} bytes were not read")
    return bench.bytes_sent_at_rest()


def _peer_sent_for_the_first(peer: Peer, file: RemoteFile, bench: Bench) -> int:
    must_run(peer)
    with peer.mounted() as point:
        path = point / file.page_path
        path.stat()
        bench.server.clear_log()
        with path.open("rb", buffering=0) as opened:
            opened.read(FIRST)
        sent = -1
        while sent != (sent := sum(r["sent"] for r in bench.server.log()["requests"] if "/index/" in r["path"])):
            threading.Event().wait(1.0)
        return sent


@measures(9)
def time_to_first_byte(bench: Bench) -> list[Row]:
    """open() and one byte of a cold file at 20 ms, its listing known."""
    file = big_file(bench.server, "bold_100m.nii")
    times = Series()
    cookie = session_cookie(bench.server)
    direct = Direct(bench.server)
    bench.server.switch(latency_s=LATENCY_S)
    peers = bench.peers()
    rounds = max(3, bench.rounds)

    def ours() -> None:
        with bench.xnatfs("ttfb").mounted() as point:
            times.add("xnatfs", first_byte(point / file.path))

    def theirs(peer: Peer) -> float:
        must_run(peer)
        with peer.mounted() as point:
            return first_byte(point / file.page_path)

    contenders: dict[str, Callable[[], None]] = {
        "xnatfs": ours,
        "direct": lambda: times.add("direct REST", 1e3 * seconds(lambda: direct.first_byte(file.uri))),
        "curl": lambda: times.add("curl", 1e3 * curl_first_byte(bench.server, file, cookie)),
    }
    for peer in peers:
        contenders[peer.name] = lambda peer=peer: times.attempt(peer.name, lambda: theirs(peer))  # type: ignore[misc]
    in_turn(rounds, contenders)
    what = "first byte of 100 MB at 20 ms"
    return [
        at_most(9, what, "xnatfs", "ms", times["xnatfs"], 35),
        *times.rows(9, what, "ms", ["direct REST", "curl", *(peer.name for peer in peers)]),
    ]


def first_byte(path: Path) -> float:
    """Milliseconds."""
    path.stat()
    memory.warm(memory.SMALL)

    def read() -> None:
        with path.open("rb", buffering=0) as opened:
            if len(opened.read(1)) != 1:
                raise RuntimeError("no first byte")

    return 1e3 * seconds(read)


@measures(12)
def many_readers(bench: Bench) -> list[Row]:
    """16 readers of one cold file of 500 MB from a server without Range: bytes sent for all of them."""
    file = big_file(bench.server, "bold_100m.nii" if bench.quick else "bold_500m.nii")
    sent, taken = Series(), Series()
    for _ in range(bench.few):
        xnatfs = bench.xnatfs("many")
        with xnatfs.mounted() as point:
            (point / file.path).stat()
            bench.server.clear_log()
            memory.warm()
            work = [lambda path=point / file.path: read_through(path, file.size)] * 16
            taken.add("xnatfs", seconds(lambda work=work: side_by_side(work)))
            sent.add("xnatfs", bench.bytes_sent() / file.size)
    what = f"16 readers of {file.size / GB:.2g} GB, cold"
    return [
        at_most(12, what, "xnatfs", "x size sent", sent["xnatfs"], 1.05),
        Row(12, what, "xnatfs", "s", taken["xnatfs"]),
    ]


def side_by_side(work: list[Callable[[], object]]) -> None:
    """Do all of it at once, a thread each; raises what one of them raised."""
    faults: list[Exception] = []

    def do(one: Callable[[], object]) -> None:
        try:
            one()
        except Exception as exc:  # noqa: BLE001 (raised below, in the caller's thread)
            faults.append(exc)

    threads = [threading.Thread(target=do, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


def random_reads(path: Path, mode: str, reads: int, limit_s: float, readers: int = 1) -> tuple[int, float]:
    """How many reads of 4 KB were done, and in how many seconds."""
    script = ROOT / "benchmarks" / "random_reads.py"
    command = [sys.executable, script, path, mode, str(reads), str(limit_s), str(readers)]
    said = json.loads(run([str(part) for part in command], limit_s + 60))
    return said["reads"], said["seconds"]


@measures(13)
def random_reads_of_a_cold_file(bench: Bench) -> list[Row]:
    """1,000 random reads of 4 KB of a cold file of 1 GB: what the server sends for them."""
    file = big_file(bench.server, "bold_100m.nii" if bench.quick else "bold_1g.nii")
    count = 100 if bench.quick else 1000
    sent, taken = Series(), Series()
    for _ in range(bench.few):
        for ranges in (False, True):
            state = "with" if ranges else "without"
            bench.server.switch(range=ranges)
            xnatfs = bench.xnatfs("random")
            with xnatfs.mounted() as point:
                (point / file.path).stat()
                bench.server.clear_log()
                done, took = random_reads(point / file.path, "plain", count, bench.patience_s)
                if done != count:
                    raise RuntimeError(f"{done} of {count} reads in {took:.0f} s")
                taken.add(state, took)
                at_rest = bench.bytes_sent_at_rest()
                sent.add(state, at_rest / (count * 4096) if ranges else at_rest / file.size)
    bench.server.switch(range=False)
    (rclone,) = bench.peers(Rclone)
    for ranges in (False, True):
        bench.server.switch(range=ranges)
        name = f"{rclone.name}, server {'with' if ranges else 'without'} Range"
        taken.attempt(name, lambda: _peer_reads_randomly(rclone, file, count, bench.patience_s))
    bench.server.switch(range=False)
    what = f"{count:,} random reads of 4 KB of {file.size / GB:.2g} GB"
    return [
        Row(
            13,
            what,
            "xnatfs, server without Range",
            "x size sent",
            sent["without"],
            "< 2, never a second download",
            max(sent["without"]) < 2,
        ),
        at_most(13, what, "xnatfs, server with Range", "x bytes asked for", sent["with"], 64),
        Row(13, what, "xnatfs, server without Range", "s", taken["without"]),
        Row(13, what, "xnatfs, server with Range", "s", taken["with"]),
        *taken.rows(13, what, "s", [f"{rclone.name}, server {state} Range" for state in ("without", "with")]),
    ]


def _peer_reads_randomly(peer: Peer, file: RemoteFile, count: int, limit_s: float) -> float:
    must_run(peer)
    with peer.mounted() as point:
        path = point / file.page_path
        path.stat()
        done, took = random_reads(path, "plain", count, limit_s)
    if done < count:
        raise RuntimeError(f"stopped after {took:.0f} s with {done:,} reads done")
    return took


@measures(17)
def random_reads_of_a_cached_file(bench: Bench) -> list[Row]:
    """Random reads of 4 KB of a file that the cache holds, past the kernel's page cache (O_DIRECT)."""
    file = big_file(bench.server, "bold_100m.nii" if bench.quick else "bold_1g.nii")
    rates = Series()
    limit_s = 1.0 if bench.quick else 3.0
    xnatfs = bench.xnatfs("held")
    (rclone,) = bench.peers(RcloneFullCache)
    for mount, path in ((xnatfs, file.path), (rclone, file.page_path)):
        if mount is rclone and rclone.missing():
            continue
        with mount.mounted() as point:
            read_through(point / path, file.size)

    def rate(mount: Xnatfs | Peer, path: str, readers: int) -> float:
        with mount.mounted() as point:
            (point / path).stat()
            os.sync()
            random_reads(point / path, "direct", 1000, limit_s)  # the first reads find neither code nor blocks at hand
            done, took = random_reads(point / path, "direct", 10**7, limit_s, readers)
            return done / took

    def ours(readers: int) -> None:
        bench.server.clear_log()
        rates.add(f"xnatfs, {readers}", rate(xnatfs, file.path, readers))
        if bench.server.data_requests():
            raise RuntimeError("a cached file was asked for again")

    def theirs() -> float:
        must_run(rclone, cold=False)
        return rate(rclone, file.page_path, 1)

    in_turn(
        bench.rounds,
        {"one": lambda: ours(1), "rclone": lambda: rates.attempt(rclone.name, theirs), "four": lambda: ours(4)},
    )
    what = f"random reads of 4 KB of {file.size / GB:.2g} GB held, O_DIRECT"
    return [
        at_least(17, what, "xnatfs", "a second", rates["xnatfs, 1"], 15_000),
        *rates.rows(17, what, "a second", [rclone.name]),
        at_least(17, what, f"xnatfs / {rclone.name}", "x", rates.ratio("xnatfs, 1", rclone.name), 1.0),
        Row(17, what, "xnatfs, 4 threads", "a second", rates["xnatfs, 4"]),
    ]
