"""Listings: numbers 1, 2, 3, 4 and 16."""

from __future__ import annotations

import os
from pathlib import Path

from clients import Direct, api_client
from measure import Row, Series, at_most, in_turn, run, seconds
from peers import Peer, Rclone, RcloneNames, Xnatfs
from tasks import LATENCY_S, Bench, measures, must_run

from tests.helpers.usage import resident_bytes

SESSION = ("BENCH", "BENCH_1", "BENCH_2000_FILES")
SESSION_FILES = 2000
CRAWL_FILES_A_SESSION = 1000
MILLION_WHO = "xnatfs, find"


@measures(1, 2)
def listing_of_a_session(bench: Bench) -> list[Row]:
    """`ls -lR` of one session of 2,000 files, its parents listed before, at 20 ms."""
    requests, times = Series(), Series()
    direct = Direct(bench.server)
    bench.server.switch(latency_s=LATENCY_S)

    def ours() -> None:
        xnatfs = bench.xnatfs("listing")
        with xnatfs.mounted() as point:
            session = point.joinpath(*SESSION)
            run(["ls", "-l", session.parent])
            for state in ("cold", "repeated"):
                bench.server.clear_log()
                times.add(state, seconds(lambda session=session: _list_long(session)))
                asked = bench.server.requests()
                requests.add(state, len(asked))
                if state == "cold":
                    times.add("direct", seconds(lambda asked=asked: direct.replay(asked)))

    def api(client: str) -> float:
        took, _ = api_client(client, "list", bench.server, SESSION, bench.fresh(f"{client}-list"), bench.patience_s)
        return took

    in_turn(bench.rounds, {"xnatfs": ours})
    peers = bench.peers()
    for peer in peers:
        patience_s = (3 if isinstance(peer, Rclone) else 1) * bench.patience_s  # the one that gets there
        times.attempt(peer.name, lambda p=peer, s=patience_s: _peer_lists(p, f"{SESSION[0]}/{SESSION[2]}", s))
    for client in ("pyxnat", "xnatpy"):
        times.attempt(client, lambda client=client: api(client))
    what = "ls -lR, 20 scans, 2,000 files"
    more = [cold - sum(times["direct"]) / len(times["direct"]) for cold in times["cold"]]
    return [
        at_most(1, what, "xnatfs, cold", "requests", requests["cold"], 4),
        at_most(1, what, "xnatfs, repeated", "requests", requests["repeated"], 0),
        Row(2, f"{what}, at 20 ms", "xnatfs, cold", "s", times["cold"]),
        Row(2, f"{what}, at 20 ms", "direct REST, the same requests", "s", times["direct"]),
        at_most(2, f"{what}, at 20 ms", "xnatfs, cold, beyond direct REST", "s", more, 0.3),
        at_most(2, f"{what}, at 20 ms", "xnatfs, repeated", "s", times["repeated"], 0.2),
        *times.rows(2, f"{what}, at 20 ms", "s", [peer.name for peer in peers]),
        *times.rows(2, "names of the same files, at 20 ms", "s", ["pyxnat", "xnatpy"]),
    ]


def _list_long(session: Path) -> None:
    shown = sum(line.startswith("-") for line in run(["ls", "-lR", session]).splitlines())
    if shown != SESSION_FILES:
        raise RuntimeError(f"ls -lR showed {shown} files, not {SESSION_FILES}")


def _peer_lists(peer: Peer, below: str, patience_s: float) -> float:
    must_run(peer)
    with peer.mounted() as point:
        text = []
        took = seconds(lambda: text.append(run(["ls", "-lR", point / below], patience_s)))
    shown = sum(line.startswith("-") for line in text[0].splitlines())
    if shown != SESSION_FILES:
        raise RuntimeError(f"ls -lR showed {shown} files")
    return took


@measures(3)
def crawl_of_a_project(bench: Bench) -> list[Row]:
    """`find` over a project of 100 sessions and 100,000 files at 20 ms, and the same requests sent directly."""
    sessions = 10 if bench.quick else 100
    files = sessions * CRAWL_FILES_A_SESSION
    requests, times = Series(), Series()
    direct = Direct(bench.server)
    asked = bench.server.truth("CRAWL")  # makes the server's own lists: the first client does not pay for them
    if len(asked) != 100 * CRAWL_FILES_A_SESSION:
        raise RuntimeError(f"the sample has {len(asked)} files, not 100,000")
    bench.server.switch(latency_s=LATENCY_S)

    def ours() -> None:
        xnatfs = bench.xnatfs("crawl")
        with xnatfs.mounted() as point:
            bench.server.clear_log()
            roots = [point / "CRAWL" / f"CRAWL_{number:04d}" for number in range(sessions)]
            chosen = roots if bench.quick else [point / "CRAWL"]
            found = []
            times.add("xnatfs", seconds(lambda: found.append(count_files(chosen))))
            if found != [files]:
                raise RuntimeError(f"find found {found[0]} files, not {files}")
            asked = bench.server.requests()
            requests.add("xnatfs", len(asked))
            times.add("direct", seconds(lambda: direct.replay(asked)))

    in_turn(bench.few, {"xnatfs": ours})
    peers = bench.peers(RcloneNames, *[type(peer) for peer in bench.peers() if type(peer) is not Rclone])
    for peer in peers:
        times.attempt(peer.name, lambda peer=peer: _peer_finds(peer, sessions, bench.patience_s))
    what = f"find, {sessions} sessions, {files:,} files, at 20 ms"
    return [
        at_most(3, what, "xnatfs", "requests", requests["xnatfs"], 3 + 3 * sessions),
        Row(3, what, "xnatfs", "s", times["xnatfs"]),
        Row(3, what, "direct REST, the same requests", "s", times["direct"]),
        at_most(3, what, "xnatfs / direct REST", "x", times.ratio("xnatfs", "direct"), 1.2),
        *times.rows(3, what, "s", [peer.name for peer in peers]),
    ]


def count_files(roots: list[Path], timeout_s: float | None = None) -> int:
    """Images; a project's folder holds tables of ours, too."""
    return run(["find", *roots, "-type", "f", "-name", "*.dcm"], timeout_s).count("\n")


def _peer_finds(peer: Peer, sessions: int, patience_s: float) -> float:
    must_run(peer)
    with peer.mounted() as point:
        roots = [point / "CRAWL" / f"CRAWL_{number:04d}_MR" for number in range(sessions)]
        found = []
        took = seconds(lambda: found.append(count_files(roots, patience_s)))
    if found != [sessions * CRAWL_FILES_A_SESSION]:
        raise RuntimeError(f"find found {found[0]} files")
    return took


@measures(4)
def a_million_files(bench: Bench) -> list[Row]:
    """A project of 1,000,000 files, found at 20 ms: memory once all is listed, and the first `ls` after a remount."""
    sessions = 100 if bench.quick else 1000
    project = "CRAWL" if bench.quick else "MILLION"
    xnatfs = bench.xnatfs("million")
    with xnatfs.mounted() as point:
        bench.server.switch(latency_s=LATENCY_S)
        count = []
        took = seconds(lambda: count.append(count_files([point / project])))
        if count != [sessions * 1000]:
            raise RuntimeError(f"find found {count[0]} files, not {sessions * 1000}")
        resident = resident_mb(xnatfs)
        asked = float(len(bench.server.requests()))
    bench.server.switch(latency_s=0.0)
    first, listed, requests = [], [], []
    for _ in range(bench.rounds):
        bench.server.clear_log()
        with _TimedMount(xnatfs, first) as point:
            listed.append(seconds(lambda point=point: _list_again(point / project, sessions)))
        first[-1] += listed[-1]
        requests.append(float(len(bench.server.requests())))
    what = f"{sessions * 1000:,} files listed"
    again = f"{what}; remount, ls of its {sessions:,} sessions, ls -R of one"
    return [
        at_most(4, what, "xnatfs, resident memory", "MB", [resident], 500),
        Row(4, f"{what}, at 20 ms", MILLION_WHO, "s", [took]),
        Row(4, f"{what}, at 20 ms", MILLION_WHO, "requests", [asked]),
        at_most(4, again, "xnatfs, from `mount` on", "s", first, 1.0),
        Row(4, again, "xnatfs, once mounted", "s", listed),
        Row(4, again, "xnatfs", "requests", requests),
    ]


def _list_again(project: Path, sessions: int) -> None:
    """`ls` of a project with all its sessions, and of all files of one session."""
    subjects = [project / f"{project.name}_{number:04d}" for number in range(sessions)]
    all_sessions = run(["ls", project, *subjects])
    files = run(["ls", "-R", subjects[7] / f"{subjects[7].name}_MR"])
    if all_sessions.count("_MR\n") != sessions or files.count(".dcm\n") != 1000:
        raise RuntimeError("ls after a remount did not show everything")


class _TimedMount:
    """A mount for a `with` block; adds the seconds until it was there."""

    def __init__(self, xnatfs: Xnatfs, times: list[float]) -> None:
        self._xnatfs, self._times = xnatfs, times

    def __enter__(self) -> Path:
        point: list[Path] = []
        self._times.append(seconds(lambda: point.append(self._xnatfs.mount())))
        return point[0]

    def __exit__(self, *exc: object) -> None:
        self._xnatfs.unmount()


def resident_mb(mount: Xnatfs | Peer, field: str = "VmRSS") -> float:
    """Resident memory of a mount's processes together; VmHWM for its highest so far."""
    return resident_bytes(mount.pids(), field) / 1e6


@measures(16)
def cold_start(bench: Bench) -> list[Row]:
    """`mount` to the end of the first `ls`, at 20 ms."""
    times = Series()
    bench.server.switch(latency_s=LATENCY_S)

    def ours() -> None:
        xnatfs = bench.xnatfs("start")

        def start() -> None:
            if "BIG" not in os.listdir(xnatfs.mount()):
                raise RuntimeError("the first ls lacks a project")

        try:
            times.add("xnatfs", seconds(start))
        finally:
            xnatfs.unmount()

    peers = bench.peers()

    def theirs(peer: Peer) -> float:
        must_run(peer)
        mounted = peer.mounted()
        took = seconds(mounted.__enter__)  # waits for the first listing
        mounted.__exit__(None, None, None)
        return took

    contenders = {"xnatfs": ours} | {
        peer.name: (lambda peer=peer: times.attempt(peer.name, lambda: theirs(peer))) for peer in peers
    }
    in_turn(bench.rounds, contenders)
    what = "mount and first ls, at 20 ms"
    return [
        at_most(16, what, "xnatfs", "s", times["xnatfs"], 1.0),
        *times.rows(16, what, "s", [peer.name for peer in peers]),
    ]
