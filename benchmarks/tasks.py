"""What every measurement is given, and the table of measurements: a function for each number, or for a few.

Numbers are those of ``docs/performance.md``. To add one, write a function in a module of ``TASK_MODULES`` (run.py) that
takes a ``Bench``, returns rows and is decorated with ``measures(its numbers)``.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import Row
from peers import MOUNTS, Peer, Xnatfs
from results import wanted

from tests.helpers.server import DemoServer

QUIET_S = 1.0  # a server that has sent nothing for this long will send no more for what was asked
LATENCY_S = 0.02  # "20 ms" of the goals


@dataclass(frozen=True)
class Bench:
    """A server with the full sample, an empty directory, how often to repeat.

    Attributes:
        patience_s: How long a peer's job may take; then its row says that it was stopped.
    """

    server: DemoServer
    room: Path
    rounds: int
    quick: bool
    patience_s: float

    @property
    def few(self) -> int:
        """Rounds of what takes long, or hardly differs from one round to the next."""
        return 1 if self.quick else min(3, self.rounds)

    def reset(self) -> None:
        """A server as at the start, for a new measurement."""
        self.server.reset()
        self.server.switch(max_sessions=10**6)  # some peers open a session a request

    def xnatfs(self, name: str, *options: str, source: str = "") -> Xnatfs:
        room = self.fresh(name)
        room.mkdir(parents=True)
        return Xnatfs(self.server, room, *options, source=source)

    def peers(self, *kinds: type[Peer]) -> list[Peer]:
        """These (all three of them, when none is named), also those that cannot be run here."""
        made = []
        for kind in kinds or MOUNTS:
            room = self.fresh(re.sub(r"\W+", "-", kind.name))
            room.mkdir(parents=True)
            made.append(kind(self.server, room))
        return made

    def fresh(self, name: str) -> Path:
        """A path in the room with nothing there."""
        path = self.room / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def bytes_sent(self) -> int:
        return sum(record["sent"] for record in self.server.data_requests())

    def bytes_sent_at_rest(self) -> int:
        """Bytes of file content sent so far, once no more come: readahead goes on after a read has returned."""
        sent = -1
        while sent != (sent := sum(r["sent"] for r in self.server.log()["requests"] if "/files/" in r["path"])):
            time.sleep(QUIET_S)
        return sent


Work = Callable[[Bench], list[Row]]


@dataclass(frozen=True)
class Task:
    """A measurement, and the numbers that it measures on a source ("" is XNAT)."""

    numbers: tuple[int, ...]
    source: str
    work: Work

    @property
    def name(self) -> str:
        return self.work.__name__

    def wanted(self, only: Sequence[str], skip: Sequence[str]) -> bool:
        return wanted(self.numbers, self.source, only, skip)

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.numbers))
        return f"{numbers}{f' {self.source}' * bool(self.source)}: {(self.work.__doc__ or '').splitlines()[0]}"


TASKS: list[Task] = []


def measures(*numbers: int, source: str = "") -> Callable[[Work], Work]:
    def register(work: Work) -> Work:
        TASKS.append(Task(numbers, source, work))
        return work

    return register


def must_run(peer: Peer, cold: bool = True) -> None:
    """Raise the reason why this peer cannot be run here, so that its row shows it; empty its cache otherwise."""
    reason = peer.missing()
    if reason:
        raise RuntimeError(reason)
    if cold:
        peer.forget()
