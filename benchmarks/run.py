"""Measure xnatfs and its peers against the demo server, on this machine. Run by `scripts/bench`."""

from __future__ import annotations

import argparse
import datetime
import json
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

import large_files  # noqa: E402
import listings  # noqa: E402
import resources  # noqa: E402
import scaling  # noqa: E402
import small_files  # noqa: E402
from machine import machine, versions  # noqa: E402
from measure import EXPECTED_FAULTS, Row, reason  # noqa: E402
from report import as_json, headlines, markdown, table, write_block  # noqa: E402
from tasks import TASKS, Bench, Task  # noqa: E402

from tests.helpers.server import DemoServer  # noqa: E402

TASK_MODULES = (listings, large_files, small_files, resources)
SIZES = "those of the goals"
NUMBERS = 17
RESULTS = ROOT / "benchmarks" / "results"


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is mounted and started is taken away
    if options.write_docs is not None:
        _write_docs(json.loads(options.write_docs.read_text()) if options.write_docs else _newest_whole())
        return 0
    chosen = [(numbers, task) for numbers, task in TASKS if not options.only or set(options.only) & set(numbers)]
    if not chosen:
        print(f"nothing measures {options.only}; there are {sorted({n for numbers, _ in TASKS for n in numbers})}")
        return 2
    with tempfile.TemporaryDirectory(prefix="xnatfs-bench-") as room, DemoServer(sample="full") as server:
        rounds = options.rounds or (2 if options.quick else 5)
        bench = Bench(server, Path(room), rounds, options.quick, options.patience or (10 if options.quick else 60))
        if options.plots or options.publish:
            scaling.draw(bench, ROOT / "docs", RESULTS)
        if options.plots:
            return 0
        facts: dict[str, Any] = {
            **machine(Path(room)),
            **versions(),
            "rounds": f"{bench.rounds} ({bench.few} of what takes long, 1 of the slow peers)",
            "slow peers are stopped after": f"{bench.patience_s:.0f} s (pyxnat and xnatpy in number 10: twice that)",
            "load average before": f"{os.getloadavg()[0]:.1f}",
            "sizes": "quick: smaller than those of the goals" if options.quick else SIZES,
        }
        path = options.json or RESULTS / f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%SZ}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows: list[Row] = []
        for numbers, task in chosen:
            measured = _measure(bench, numbers, task)
            rows += [row for row in measured if not options.only or row.number in options.only]
            rows.sort(key=lambda row: row.number)
            path.write_text(as_json(rows, facts))  # each time: a run that is ended early leaves what it has
    print(table(rows))
    print("; ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"samples: {path}")
    if options.publish:
        _write_docs(json.loads(path.read_text()))
    missed = sorted({row.number for row in rows if row.met is False})
    print(f"missed: {', '.join(map(str, missed)) or 'none'}")
    return int(options.strict and bool(missed))


def _measure(bench: Bench, numbers: tuple[int, ...], task: Task) -> list[Row]:
    print(f"measuring {', '.join(map(str, numbers))}: {(task.__doc__ or '').splitlines()[0]}", file=sys.stderr)
    bench.reset()
    start = time.monotonic()
    try:
        return task(bench)
    except EXPECTED_FAULTS as exc:  # ours failed, not a peer: said, counted as missed, and the others go on
        traceback.print_exception(exc)
        return [
            Row(number, "could not be measured", "xnatfs", "", [], met=False, note=reason(exc)) for number in numbers
        ]
    finally:
        print(f"  {time.monotonic() - start:.0f} s", file=sys.stderr)


def _newest_whole() -> dict[str, Any]:
    """The newest results of all numbers, at the sizes of the goals."""
    for path in sorted(RESULTS.glob("2*.json"), reverse=True):
        document: dict[str, Any] = json.loads(path.read_text())
        if document["facts"].get("sizes") == SIZES and len({row["number"] for row in document["rows"]}) == NUMBERS:
            return document
    raise SystemExit("no results of a whole run: scripts/bench first")


def _write_docs(document: dict[str, Any]) -> None:
    write_block(ROOT / "docs" / "performance.md", markdown(document))
    write_block(ROOT / "README.md", headlines(document))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure xnatfs and its peers on this machine.")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, two rounds: does it work at all?")
    parser.add_argument("--only", type=int, action="append", metavar="N", help="only this number; repeatable")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often (default 5)")
    parser.add_argument("--patience", type=float, metavar="S", help="when a slow peer is stopped (default 60 s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the samples go (default benchmarks/results/)")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a goal is missed")
    parser.add_argument("--plots", action="store_true", help="measure scaling in place of the numbers, draw docs/*.svg")
    parser.add_argument("--publish", action="store_true", help="all numbers and the plots, put into docs/")
    parser.add_argument(
        "--write-docs",
        type=Path,
        nargs="?",
        const=False,
        metavar="FILE",
        help="measure nothing: put the newest results (or FILE) into docs/performance.md and README",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
