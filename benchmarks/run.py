"""Measure xnatfs and its peers against the demo server, on this machine. Run by `scripts/bench`."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for tests.helpers: the server and the mounts that the tests use

from measure import Row, as_json, table  # noqa: E402
from peers import versions  # noqa: E402
from tasks import TASKS, Bench  # noqa: E402

from tests.helpers.server import DemoServer  # noqa: E402


def main() -> int:
    options = _options()
    chosen = [(numbers, task) for numbers, task in TASKS if not options.only or set(options.only) & set(numbers)]
    if not chosen:
        print(f"nothing measures {options.only}; there are {sorted(n for numbers, _ in TASKS for n in numbers)}")
        return 2
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="xnatfs-bench-") as room, DemoServer(sample="full") as server:
        bench = Bench(server, Path(room), options.rounds or (2 if options.quick else 5), options.quick)
        for numbers, task in chosen:
            print(f"measuring {', '.join(map(str, numbers))}: {(task.__doc__ or '').splitlines()[0]}", file=sys.stderr)
            server.reset()
            rows += task(bench)
    if options.only:
        rows = [row for row in rows if row.number in options.only]
    facts = versions() | {"cores": os.cpu_count(), "rounds": bench.rounds, "quick": options.quick}
    print(table(rows))
    print("; ".join(f"{name} {value}" for name, value in facts.items()))
    _write(options.json, as_json(rows, facts))
    return int(options.strict and any(row.met is False for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure xnatfs and its peers on this machine.")
    parser.add_argument(
        "--quick", action="store_true", help="100 MB in place of 1 GB, two rounds: does it work at all?"
    )
    parser.add_argument("--only", type=int, action="append", metavar="N", help="only this number; repeatable")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the samples go (default benchmarks/results/)")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a goal is missed")
    return parser.parse_args()


def _write(path: Path | None, text: str) -> None:
    if path is None:
        stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        path = ROOT / "benchmarks" / "results" / f"{stamp}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"samples: {path}")


if __name__ == "__main__":
    sys.exit(main())
