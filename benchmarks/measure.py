"""How things are measured: repeated in turn, medians with their spread, one table, one JSON file. Knows no peer."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

GB = 1e9
_SCRATCH = bytes(1024 * 1024)


@dataclass(frozen=True)
class Row:
    """One line of the table: samples of one quantity, one for each round.

    Attributes:
        number: The row of the table of goals that this belongs to.
        who: Which contender, or which two are compared.
        goal: What is to be reached, in words; "" where the row is for reference.
        met: Whether the median reaches it; None without a goal.
    """

    number: int
    what: str
    who: str
    unit: str
    samples: Sequence[float]
    goal: str = ""
    met: bool | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


def at_least(number: int, what: str, who: str, unit: str, samples: Sequence[float], goal: float) -> Row:
    return Row(number, what, who, unit, samples, f">= {_figure(goal)}", statistics.median(samples) >= goal)


def at_most(number: int, what: str, who: str, unit: str, samples: Sequence[float], goal: float) -> Row:
    return Row(number, what, who, unit, samples, f"<= {_figure(goal)}", statistics.median(samples) <= goal)


@dataclass
class Series:
    """Samples by contender."""

    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, who: str, value: float) -> None:
        self.samples.setdefault(who, []).append(value)

    def __getitem__(self, who: str) -> list[float]:
        return self.samples[who]

    def ratio(self, who: str, to: str) -> list[float]:
        """How many times the median of one contender is that of another."""
        return [statistics.median(self.samples[who]) / statistics.median(self.samples[to])]


def in_turn(rounds: int, contenders: Mapping[str, Callable[[], None]]) -> None:
    """Call each contender once a round, each round beginning with another one."""
    names = list(contenders)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            contenders[name]()


def warm_memory(room: Path, size: int) -> None:
    """Have the kernel use ``size`` bytes of memory for file pages, and free them, by writing and deleting a file.

    A virtual machine gives free memory back to its host, and the first to use it again pays for that: 2 s for 1 GB on
    the machine where this was noticed, which would measure the order of the contenders. Call it right before a reading:
    the memory is the host's again 2 s later.
    """
    scratch = room / "scratch"
    with scratch.open("wb", buffering=0) as file:
        for _ in range(size // len(_SCRATCH)):
            file.write(_SCRATCH)
    scratch.unlink()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_through(path: Path, size: int) -> None:
    """`dd` a file to nowhere; every byte must come."""
    command = ["dd", f"if={path}", "of=/dev/null", "bs=1M"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    if done.returncode or f"\n{size} bytes" not in done.stderr:
        raise RuntimeError(f"dd {path}: {done.stderr}")


def table(rows: Sequence[Row]) -> str:
    """All rows as aligned text."""
    head = ("#", "what", "who", "median", "min - max", "unit", "goal", "")
    lines = [head]
    for row in rows:
        spread = f"{_figure(min(row.samples))} - {_figure(max(row.samples))}" if len(row.samples) > 1 else ""
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        lines.append((str(row.number), row.what, row.who, _figure(row.median), spread, row.unit, row.goal, verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    right = {0, 3, 4}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def as_json(rows: Sequence[Row], facts: Mapping[str, object]) -> str:
    listed = [asdict(row) | {"samples": list(row.samples), "median": row.median} for row in rows]
    return json.dumps({"facts": dict(facts), "rows": listed}, indent=2) + "\n"


def _figure(value: float) -> str:
    """Three digits that matter, whole numbers in full."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
