"""Measure xnatfs and its peers against the demo server, on this machine. Run by `scripts/bench`."""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for tests.helpers: the server and the mounts that the tests use

import buckets  # noqa: E402
import large_files  # noqa: E402
import listings  # noqa: E402
import resources  # noqa: E402
import scaling  # noqa: E402
import small_files  # noqa: E402
from machine import machine, versions  # noqa: E402
from measure import EXPECTED_FAULTS, Row, reason  # noqa: E402
from report import headlines, markdown, table, write_block  # noqa: E402
from results import Results, load, names_of, newest, saved, wanted_row  # noqa: E402
from tasks import TASKS, Bench, Task  # noqa: E402

from tests.helpers.server import DemoServer  # noqa: E402

TASK_MODULES = (listings, large_files, small_files, resources, buckets)
SIZES, QUICK_SIZES = "those of the goals", "quick: smaller than those of the goals"
NUMBERS = 17
RESULTS = ROOT / "benchmarks" / "results"


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is mounted and started is taken away
    if options.write_docs is not None:
        _write_docs(load(options.write_docs) if options.write_docs else _newest_whole())
        return 0
    in_order = sorted(TASKS, key=lambda task: (task.source, task.numbers))
    chosen = [task for task in in_order if task.wanted(options.only, options.skip)]
    if not chosen:
        print(f"nothing measures that; there are {', '.join(task.name for task in TASKS)}")
        return 2
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="xnatfs-bench-") as room, DemoServer(sample="full") as server:
        rounds = options.rounds or (2 if options.quick else 5)
        bench = Bench(server, Path(room), rounds, options.quick, options.patience or (5 if options.quick else 10))
        if options.plots:
            scaling.draw(bench, ROOT / "docs", RESULTS, [])
            return 0
        results = _results(options, bench)
        left = [task for task in chosen if task.name not in results.took_s]
        for count, task in enumerate(left, 1):
            _say(started, f"{count} of {len(left)}: measuring {task}")
            rows, took_s = _measure(bench, task)
            results.add(task.name, [row for row in rows if wanted_row(row, options.only, options.skip)], took_s)
            _say(started, f"  took {took_s:.0f} s")
        if options.publish:
            _say(started, "the plots")
            scaling.draw(bench, ROOT / "docs", RESULTS, results.rows)
    print(table(results.rows))
    print("; ".join(f"{name} {value}" for name, value in results.facts.items()))
    print(f"samples: {results.path}")
    _say(started, "done")
    if options.publish:
        _write_docs(load(results.path))
    missed = sorted({row.label for row in results.rows if row.met is False})
    print(f"missed: {', '.join(missed) or 'none'}")
    return int(options.strict and bool(missed))


def _results(options: argparse.Namespace, bench: Bench) -> Results:
    """Those of a run that was interrupted, where they are asked for, otherwise new ones."""
    facts: dict[str, Any] = {
        **machine(bench.room),
        **versions(),
        "rounds": f"{bench.rounds} ({bench.few} of what takes long, 1 of the slow peers)",
        "slow peers are stopped after": f"{bench.patience_s:.0f} s (some later, their rows say so)",
        "load average before": f"{os.getloadavg()[0]:.1f}",
        "sizes": QUICK_SIZES if options.quick else SIZES,
    }
    if options.resume:
        before = saved(options.json) if options.json else newest(RESULTS, facts["sizes"])
        if before is None:
            raise SystemExit("nothing to resume: no results of these sizes")
        print(f"going on with {before.path.name}, which has {', '.join(before.took_s) or 'nothing'}", file=sys.stderr)
        return before.going_on_with(facts)
    name = f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%SZ}.json"
    return Results(options.json or RESULTS / name, facts)


def _say(started: float, text: str) -> None:
    """A line of progress, with the minutes and seconds since the start."""
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    print(f"[{minutes:2d}:{seconds:02d}] {text}", file=sys.stderr, flush=True)


def _measure(bench: Bench, task: Task) -> tuple[list[Row], float]:
    bench.reset()
    start = time.monotonic()
    try:
        rows = task.work(bench)
    except EXPECTED_FAULTS as exc:  # ours failed, not a peer: said, counted as missed, and the others go on
        traceback.print_exception(exc)
        rows = [
            Row(number, "could not be measured", "xnatfs", "", [], met=False, note=reason(exc), source=task.source)
            for number in task.numbers
        ]
    return rows, time.monotonic() - start


def _newest_whole() -> dict[str, Any]:
    """The newest results of all numbers, at the sizes of the goals."""
    for path in sorted(RESULTS.glob("2*.json"), reverse=True):
        document = load(path)
        if document["facts"].get("sizes") == SIZES and len({row["number"] for row in document["rows"]}) == NUMBERS:
            return document
    raise SystemExit("no results of a whole run: scripts/bench first")


def _write_docs(document: dict[str, Any]) -> None:
    write_block(ROOT / "docs" / "performance.md", markdown(document))
    write_block(ROOT / "README.md", headlines(document))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure xnatfs and its peers on this machine.")
    names = "numbers and sources, such as 5 or 5,6,bucket; repeatable"
    parser.add_argument("--quick", action="store_true", help="smaller sizes, two rounds: does it work at all?")
    parser.add_argument("--only", type=names_of, action="extend", default=[], metavar="N,N", help=f"only these {names}")
    parser.add_argument("--skip", type=names_of, action="extend", default=[], metavar="N,N", help=f"not these {names}")
    parser.add_argument("--resume", action="store_true", help="go on with the newest results (or those of --json)")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often (default 5; 3 of what takes long)")
    parser.add_argument("--patience", type=float, metavar="S", help="when a slow peer is stopped (default 10 s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the samples go (default benchmarks/results/)")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a goal is missed")
    parser.add_argument("--plots", action="store_true", help="measure scaling in place of the numbers, draw docs/*.svg")
    parser.add_argument("--publish", action="store_true", help="all numbers and the plots, put into docs/ and README")
    parser.add_argument(
        "--write-docs",
        type=Path,
        nargs="?",
        const=False,
        metavar="FILE",
        help="measure nothing: put the newest results (or FILE) into docs/performance.md and README",
    )
    options = parser.parse_args()
    if options.publish and (options.quick or options.only or options.skip):
        parser.error("--publish is for everything: without --quick, --only and --skip")
    return options


if __name__ == "__main__":
    sys.exit(main())
