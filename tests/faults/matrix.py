"""What a case of the matrix is, and what holds in each: the right bytes or an errno, within a bound, and then it heals.

The tables stand in the test modules. Knows the demo server by its switches and the mount by its files only.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.mounting import Mount
from tests.helpers.outcomes import Outcome, cat
from tests.helpers.server import DemoServer
from tests.helpers.truth import tree_path

TIMEOUT_S = 2.0
"""``--timeout`` of the mounts: short, so that silence costs little; long enough for a loaded machine."""

BOUND_S = 5 * TIMEOUT_S
"""A request with its retries, its body, and the machine's own slowness."""

HEAL_S = 4.0
"""After a fault has ended: a failed listing is not asked for again within a second."""

BLOCK = 128 * 1024

RIGHT = frozenset({0})
FAILED = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT})
EITHER = RIGHT | FAILED


@dataclass(frozen=True)
class Case:
    """One row of a table.

    Attributes:
        fault: As ``DemoServer.fault`` takes it; places beyond the file's middle count from its end when negative.
        outcomes: The errnos that ``cat`` may end in; 0 stands for the file's bytes.
        times: How often the fault works; None is for ever. One that works once may be met by the kernel's read-ahead
            alone, which is asked for again.
        ranged_outcomes: The same on a server that honours ranges, where that makes a difference.
    """

    name: str
    fault: Mapping[str, Any]
    outcomes: frozenset[int]
    times: int | None = 1
    ranged_outcomes: frozenset[int] | None = None


@dataclass(frozen=True)
class TrueBytes:
    """A file of the sample that nobody has read yet."""

    path: Path
    name: str  # a regular expression that only this file's requests match
    uri: str
    size: int
    md5: str

    def assert_right(self, data: bytes) -> None:
        assert len(data) == self.size
        assert hashlib.md5(data, usedforsecurity=False).hexdigest() == self.md5


def sampled(rows: Mapping[str, Any], every: int) -> list[Any]:
    """The rows of a table as parameters, by name; the short mode takes one in ``every`` of them."""
    return [
        pytest.param(row, id=name, marks=[pytest.mark.slow] if number % every else [])
        for number, (name, row) in enumerate(rows.items())
    ]


class Bench:
    """A server, a mount of it, and files that each case takes for itself."""

    def __init__(self, server: DemoServer, mount: Mount) -> None:
        self.server = server
        self.mount = mount
        self.ranged = bool(server.switches()["range"])
        rows = server.truth("BENCH", experiment="XNAT_E10002")
        self._fresh = self._files(rows)

    def _files(self, rows: list[dict[str, Any]]) -> Iterator[TrueBytes]:
        for row in rows:
            path = self.mount.path / "BENCH" / tree_path(row)
            yield TrueBytes(path, f"/scans/{row['item']}/.*{row['name']}", row["uri"], row["size"], row["md5"])

    def fresh(self) -> TrueBytes:
        """A file that no case has touched, its size known to the mount."""
        file = next(self._fresh)
        assert file.path.stat().st_size == file.size
        return file

    def prove(self, case: Case) -> Outcome:
        """Read a fresh file with ``cat`` under the fault of a case, then without it; what the first reading gave."""
        file = self.fresh()
        fault = dict(case.fault)
        if fault.get("at", 0) is not None and fault.get("at", 0) < 0:
            fault["at"] += file.size
        self.server.fault(file.name, times=case.times, **fault)
        outcome = cat(file.path, BOUND_S)
        self.server.clear_faults()
        allowed = case.ranged_outcomes if self.ranged and case.ranged_outcomes is not None else case.outcomes
        assert outcome.errno in allowed, outcome.said or f"errno {outcome.errno}"
        if outcome.errno == 0:
            assert outcome.code == 0, outcome.said
            file.assert_right(outcome.output)
        self.assert_heals(file)
        assert file.path.read_bytes().startswith(outcome.output), "bytes before an error are right as well"
        return outcome

    def assert_heals(self, file: TrueBytes) -> None:
        """Without a remount, the file reads right soon after the fault has ended."""
        deadline = time.monotonic() + HEAL_S
        while (outcome := cat(file.path, BOUND_S)).code:
            assert time.monotonic() < deadline, f"not healed after {HEAL_S} s: {outcome.said}"
            time.sleep(0.1)
        file.assert_right(outcome.output)
