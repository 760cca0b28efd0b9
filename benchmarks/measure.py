"""How things are measured: repeated in turn, medians with their spread, goals and verdicts. Knows no peer."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import memory

GB = 1e9
END_S = 5.0  # for a command that was stopped, to end

EXPECTED_FAULTS = (RuntimeError, OSError, subprocess.SubprocessError)
"""How a peer shows that it cannot do a job: its row then says so, and the others go on."""


@dataclass(frozen=True)
class Row:
    """One line of the table: samples of one quantity, one for each round.

    Attributes:
        number: The row of the table of goals that this belongs to.
        who: Which contender, or which two are compared.
        goal: What is to be reached, in words; "" where the row is for reference.
        met: Whether the median reaches it; None without a goal, or where there was nobody to compare with.
        note: Why there are no samples, or what is special about them.
        source: What the files come from, where that is not XNAT.
    """

    number: int
    what: str
    who: str
    unit: str
    samples: Sequence[float]
    goal: str = ""
    met: bool | None = None
    note: str = ""
    source: str = ""

    @property
    def label(self) -> str:
        """What the first column shows."""
        return f"{self.number} {self.source}".rstrip()

    @property
    def median(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None

    @property
    def verdict(self) -> str:
        if self.met is None:
            return "no peer" if self.goal else ""
        return "met" if self.met else "MISSED"


def at_least(number: int, what: str, who: str, unit: str, samples: Sequence[float], goal: float) -> Row:
    met = statistics.median(samples) >= goal if samples else None
    return Row(number, what, who, unit, samples, f">= {figure(goal)}", met)


def at_most(number: int, what: str, who: str, unit: str, samples: Sequence[float], goal: float) -> Row:
    met = statistics.median(samples) <= goal if samples else None
    return Row(number, what, who, unit, samples, f"<= {figure(goal)}", met)


def at_most_always(number: int, what: str, who: str, unit: str, samples: Sequence[float], goal: float) -> Row:
    """Every sample counts, not the median."""
    return Row(number, what, who, unit, samples, f"<= {figure(goal)} always", max(samples) <= goal)


@dataclass
class Series:
    """Samples by contender, and why some contenders have none."""

    samples: dict[str, list[float]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def add(self, who: str, value: float) -> None:
        self.samples.setdefault(who, []).append(value)

    def __getitem__(self, who: str) -> list[float]:
        return self.samples.get(who, [])

    def attempt(self, who: str, work: Callable[[], float]) -> None:
        """Add what ``work`` returns; a peer that fails once is not tried again in this series."""
        if who in self.faults:
            return
        try:
            self.add(who, work())
        except EXPECTED_FAULTS as exc:
            self.faults[who] = reason(exc)

    def best(self, whos: Sequence[str], most: bool) -> str | None:
        """Which of these has the largest (or smallest) median; None when none of them has samples."""
        medians = {who: statistics.median(self[who]) for who in whos if self[who]}
        if not medians:
            return None
        return (max if most else min)(medians, key=medians.__getitem__)

    def ratio(self, who: str, to: str | None) -> list[float]:
        """How many times the median of one contender is that of another; empty when one of them has no samples."""
        if to is None or not self[who] or not self[to]:
            return []
        return [statistics.median(self[who]) / statistics.median(self[to])]

    def rows(self, number: int, what: str, unit: str, whos: Sequence[str]) -> list[Row]:
        """A row for reference for each of these, with the reason where one has no samples."""
        return [Row(number, what, who, unit, self[who], note=self.faults.get(who, "")) for who in whos]


def reason(exc: BaseException) -> str:
    """One short line."""
    if isinstance(exc, subprocess.TimeoutExpired):
        return f"stopped after {exc.timeout:.0f} s"
    if isinstance(exc, subprocess.CalledProcessError):
        said = exc.stderr or b""
        text = said if isinstance(said, str) else said.decode(errors="replace")
        last = (text.strip().splitlines() or ["no message"])[-1]
        return f"{Path(exc.cmd[0]).name} failed: {last.rpartition(':')[2].strip()}"[:120]
    said = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
    return (said.strip().splitlines() or [type(exc).__name__])[-1][:120]


def in_turn(rounds: int, contenders: Mapping[str, Callable[[], None]], holding: bool = False) -> None:
    """Call each contender once a round, each round beginning with another one.

    Args:
        holding: They call ``memory.warm`` themselves before each reading, since they need much of it; otherwise they
            find some that is warm.
    """
    names = list(contenders)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            if holding:
                memory.hold()
            else:
                memory.warm(memory.SMALL)
            contenders[name]()
    memory.release()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run(command: Sequence[str | Path], timeout_s: float | None = None, data: bytes = b"") -> str:
    """A command's output, ``data`` its input; an error when it fails or takes too long, and its children end too."""
    return _output(command, timeout_s, data)[0]


def _output(command: Sequence[str | Path], timeout_s: float | None, data: bytes = b"") -> tuple[str, str]:
    """What a command writes to its output, and as errors.

    One that is stopped is not waited for longer than END_S: whoever reads from a file system that hangs ends when that
    file system does.
    """
    words = [str(part) for part in command]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        words, stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, "LC_ALL": "C"}, start_new_session=True
    )
    try:
        out, err = process.communicate(data, timeout_s)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        for end in (process.stdin, process.stdout, process.stderr):
            assert end is not None
            with contextlib.suppress(OSError):
                end.close()
        raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words, out, err)
    return out.decode(errors="surrogateescape"), err.decode(errors="surrogateescape")


def read_through(path: Path, size: int, timeout_s: float | None = None) -> None:
    """`dd` a file to nowhere; every byte must come."""
    _, said = _output(["dd", f"if={path}", "of=/dev/null", "bs=1M"], timeout_s)
    if f"\n{size} bytes" not in said:
        raise RuntimeError(f"dd: {said.strip().splitlines()[-1]}")


def figure(value: float) -> str:
    """Three digits that matter, whole numbers in full."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
