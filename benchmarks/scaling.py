"""How time, memory and throughput grow: with the number of files listed, and with latency. Draws docs/*.svg.

Single runs, apart from the throughputs (medians of a few): the plots show slopes, the table of numbers holds figures.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import memory
from clients import Direct, curl
from large_files import peer_reads
from listings import count_files, resident_mb
from measure import EXPECTED_FAULTS, GB, Row, Series, in_turn, read_through, reason, seconds
from peers import Rclone, RcloneNames, big_file
from svg import Panel, drawing
from tasks import LATENCY_S, Bench

MILLION = "1,000,000 files listed"  # as number 4 calls it
LATENCIES_MS = (0, 5, 20, 50, 100)
Points = list[tuple[float, float]]


def draw(bench: Bench, docs: Path, results: Path, rows: Sequence[Row]) -> None:
    """Measure all, write scaling-files.svg and scaling-latency.svg, and the points as JSON.

    ``rows`` of number 4 save its long `find`, where they are there.
    """
    times, resident = with_files(bench, rows)
    rates, size = with_latency(bench)
    files = [
        Panel("find, 20 ms a request", "files", "seconds", times, log_x=True, log_y=True),
        Panel("resident memory after it", "files", "MB", resident, log_x=True),
    ]
    (docs / "scaling-files.svg").write_text(drawing(files))
    title = f"cold read of {size / GB:.2g} GB"
    (docs / "scaling-latency.svg").write_text(drawing([Panel(title, "latency, ms a request", "GB/s", rates)]))
    results.mkdir(parents=True, exist_ok=True)
    points = {"find_s": times, "resident_mb": resident, "read_gb_per_s": rates}
    (results / "scaling.json").write_text(json.dumps(points, indent=2) + "\n")


def with_files(bench: Bench, rows: Sequence[Row]) -> tuple[dict[str, Points], dict[str, Points]]:
    """Seconds of a cold `find` and resident memory after it, for 1,000 files and more."""
    found = (MILLION, f"{MILLION}, at 20 ms")
    million = {row.unit: row.samples[0] for row in rows if row.number == 4 and row.what in found and row.samples}
    times: dict[str, Points] = {}
    resident: dict[str, Points] = {}
    direct = Direct(bench.server)
    (rclone,) = bench.peers(RcloneNames)
    bench.reset()
    bench.server.truth("CRAWL")  # makes the server's own lists
    bench.server.switch(latency_s=LATENCY_S)
    for sessions in (1, 10) if bench.quick else (1, 10, 100, 1000):
        files = 1000 * sessions
        project = "MILLION" if sessions == 1000 else "CRAWL"
        if sessions == 1000 and {"s", "MB"} <= million.keys():
            _add(times, "xnatfs", files, lambda: million["s"])
            _add(resident, "xnatfs", files, lambda: million["MB"])
            continue
        print(f"find over {files:,} files", file=sys.stderr)
        with (xnatfs := bench.xnatfs("scaling")).mounted() as point:
            roots = [point / project]
            if sessions < 100:
                roots = [point / project / f"{project}_{number:04d}" for number in range(sessions)]
            bench.server.clear_log()
            _add(times, "xnatfs", files, lambda roots=roots, files=files: _find(roots, files))
            _add(resident, "xnatfs", files, lambda xnatfs=xnatfs: resident_mb(xnatfs))
            asked = bench.server.requests()
        if sessions < 1000:
            _add(times, "direct REST", files, lambda asked=asked: seconds(lambda: direct.replay(asked)))
            if rclone.missing():
                continue
            with rclone.mounted() as point:
                roots = [point / project / f"{project}_{number:04d}_MR" for number in range(sessions)]
                _add(times, rclone.name, files, lambda roots=roots, files=files: _find(roots, files, bench.patience_s))
                _add(resident, rclone.name, files, lambda: resident_mb(rclone))
    return times, resident


def _find(roots: list[Path], files: int, timeout_s: float | None = None) -> float:
    found: list[int] = []
    took = seconds(lambda: found.append(count_files(roots, timeout_s)))
    if found != [files]:
        raise RuntimeError(f"find found {found[0]} files, not {files}")
    return took


def _add(lines: dict[str, Points], name: str, x: float, work: Callable[[], float]) -> None:
    """A point, unless this contender cannot do it."""
    try:
        lines.setdefault(name, []).append((x, work()))
    except EXPECTED_FAULTS as exc:
        print(f"  {name} at {x:,.0f}: {reason(exc)}", file=sys.stderr)
        if not lines[name]:
            del lines[name]


def with_latency(bench: Bench) -> tuple[dict[str, Points], int]:
    """GB/s of a cold read against the latency of each request."""
    file = big_file(bench.server, "bold_100m.nii" if bench.quick else "bold_500m.nii")
    lines: dict[str, Points] = {}
    (rclone,) = bench.peers(Rclone)

    def ours() -> float:
        with bench.xnatfs("latency").mounted() as point:
            (point / file.path).stat()
            memory.warm()
            return file.size / seconds(lambda: read_through(point / file.path, file.size)) / GB

    def theirs() -> float:
        return peer_reads(rclone, file, bench)

    def wire() -> float:
        return file.size / seconds(lambda: curl(bench.server, file)) / GB

    contenders = {"xnatfs": ours, "curl": wire} | ({} if rclone.missing() else {rclone.name: theirs})
    for latency_ms in LATENCIES_MS:
        print(f"reading at {latency_ms} ms", file=sys.stderr)
        bench.reset()
        bench.server.switch(latency_s=latency_ms / 1e3)
        samples = Series()
        turns = {n: lambda n=n, w=w, s=samples: s.add(n, w()) for n, w in contenders.items()}
        in_turn(min(2, bench.few), turns, holding=True)
        for name in contenders:
            lines.setdefault(name, []).append((float(latency_ms), statistics.median(samples[name])))
    return lines, file.size
