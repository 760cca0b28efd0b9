"""Everything at once: restless readers, a server that fails, a cache that is too small, mounts that are killed.

Two mounts share one cache. What comes out is a record of figures; what they have to be is for the tests to say.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.mounting import Mount, detach, is_mounted, processes_naming
from tests.helpers.server import DemoServer
from tests.helpers.truth import tree_path
from tests.helpers.usage import disk_used

MIB = 1024 * 1024
CAP = 48 * MIB  # the files read are three times as large
READERS = 4
ARGUMENTS = (
    "--cache-size",
    str(CAP),
    "--memory",
    "8M",
    "--block-size",
    "256K",
    "--timeout",
    "3s",
    "--metadata-ttl",
    "5s",
)
LARGE = "bold_100m.nii"
PROJECTS = ("HCP_DEMO", "DEMO")
START_TRIES = 5  # a server that fails every tenth time may refuse a mount
IDLE_S = 9.0  # for transfers to be let go and connections to be closed

FAULTS = [
    {"match": "/data/", "kind": "status", "status": 503, "times": None, "probability": 0.04},
    {"match": "/data/", "kind": "status", "status": 500, "times": None, "probability": 0.01},
    {"match": "/files/", "kind": "reset", "at": 70_000, "times": None, "probability": 0.03},
    {"match": "/data/", "kind": "html", "times": None, "probability": 0.01},
    {"match": "/files/", "kind": "short", "times": None, "probability": 0.02},
]
"""One request in ten fails in one of these ways."""


@dataclass
class Figures:
    """What a soak has seen. ``outcomes`` counts operations by errno name, "right" for those that gave bytes."""

    seconds: float = 0.0
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    bytes_read: int = 0
    longest_s: float = 0.0
    kills: int = 0
    faults: int = 0
    requests: int = 0
    cache_peak: int = 0
    unread: list[str] = field(default_factory=list)  # files that could not be read after all faults had ended
    growth: dict[str, int] = field(default_factory=dict)  # descriptors and threads gained by a second burst
    left: list[int] = field(default_factory=list)  # processes after the end

    def report(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__dataclass_fields__}, default=str)


def soak(room: Path, seconds: float, seed: int) -> Figures:
    figures = Figures(seconds=seconds)
    with DemoServer() as server, _mounts(server, room) as mounts:
        truth = _copy_of_the_truth(server, room / "truth")
        server.switch(add_faults=FAULTS)
        readers = [_reader(room, truth, mounts, seconds, seed + number) for number in range(READERS)]
        _trouble(server, mounts, seconds, random.Random(seed), figures)
        for reader in readers:
            _take(reader, figures)
        server.clear_faults()
        figures.unread = _still_unread(mounts, truth)
        log = server.settled_log()
        figures.requests = len(log["requests"])
        figures.faults = sum(record["status"] >= 500 or bool(record.get("fault")) for record in log["requests"])
        _burst(mounts, truth, seed)
        baseline = _holdings(mounts)
        _burst(mounts, truth, seed + 1)
        figures.growth = {name: count - baseline[name] for name, count in _holdings(mounts).items()}
    figures.left = processes_naming(room)
    return figures


@contextlib.contextmanager
def _mounts(server: DemoServer, room: Path) -> Iterator[list[Mount]]:
    mounts = []
    for name in ("one", "two"):
        arguments = (*ARGUMENTS, "--cache-dir", str(room / "cache"))
        mounts.append(Mount(server.url, room / name, arguments, "demo", "demo"))
    try:
        for mount in mounts:
            _start(mount)
        yield mounts
    finally:
        for mount in mounts:
            mount.stop()
            if is_mounted(mount.path):
                detach(mount.path)


def _start(mount: Mount) -> None:
    for left in reversed(range(START_TRIES)):
        try:
            mount.start()
        except AssertionError:
            if not left:
                raise
        else:
            return


def _copy_of_the_truth(server: DemoServer, folder: Path) -> Path:
    """The files as they are, fetched past all of our code, at the paths that a mount shows them."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    rows = [row for project in PROJECTS for row in server.truth(project)]
    rows += [row for row in server.truth("BIG") if row["name"] == LARGE]
    for row in rows:
        path = folder / row["project"] / tree_path(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(server.url + urllib.parse.quote(row["uri"]))
        request.add_header("Authorization", "Basic ZGVtbzpkZW1v")
        with opener.open(request, timeout=60) as answer:
            path.write_bytes(answer.read())
        assert path.stat().st_size == row["size"], row["uri"]
    server.clear_log()
    return folder


def _reader(room: Path, truth: Path, mounts: list[Mount], seconds: float, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.soak.reader", str(seed), str(seconds), str(truth)]
    paths = [str(mount.path) for mount in mounts]
    return subprocess.Popen([*command, *paths], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)


def _trouble(server: DemoServer, mounts: list[Mount], seconds: float, chance: random.Random, figures: Figures) -> None:
    """Until the time is over: kill a mount now and then, end the server's sessions, and look at the disk."""
    end = time.monotonic() + seconds
    next_kill = time.monotonic() + chance.uniform(2, 6)
    cache = mounts[0].room.parent / "cache"
    while time.monotonic() < end:
        figures.cache_peak = max(figures.cache_peak, disk_used(cache))
        if time.monotonic() >= next_kill:
            mount = chance.choice(mounts)
            mount.kill()
            figures.kills += 1
            time.sleep(chance.uniform(0, 0.5))
            _start(mount)
            if chance.random() < 0.3:
                server.switch(expire_sessions=True)
            next_kill = time.monotonic() + chance.uniform(3, 12)
        time.sleep(0.1)


def _take(reader: subprocess.Popen[str], figures: Figures) -> None:
    try:
        said = reader.communicate(timeout=90)[0]
    except subprocess.TimeoutExpired:
        reader.kill()
        said = reader.communicate()[0] + "WRONG: a reader hangs"
    last = said.splitlines()[-1] if said else "WRONG: a reader said nothing"
    if last.startswith("WRONG"):
        figures.wrong.append(last)
        return
    facts = json.loads(last)
    figures.outcomes.update(facts["counts"])
    figures.bytes_read += facts["bytes"]
    figures.longest_s = max(figures.longest_s, facts["longest_s"])


def _still_unread(mounts: list[Mount], truth: Path) -> list[str]:
    """The files that are not read right although nothing fails any more, without a remount."""
    time.sleep(2.0)  # a failure is remembered for a second
    unread = []
    for path in sorted(path for path in truth.rglob("*") if path.is_file()):
        for mount in mounts:
            name = mount.path / path.relative_to(truth)
            try:
                if name.read_bytes() != path.read_bytes():
                    unread.append(f"{name}: other bytes")
            except OSError as error:
                unread.append(f"{name}: {error}")
    return unread


def _burst(mounts: list[Mount], truth: Path, seed: int) -> None:
    """A fixed amount of reading without trouble, and then quiet."""
    chance = random.Random(seed)
    names = sorted(str(path.relative_to(truth)) for path in truth.rglob("*") if path.is_file())
    for mount in mounts:
        for _ in range(50):
            with (mount.path / chance.choice(names)).open("rb", buffering=0) as file:
                file.seek(chance.randrange(1 << 20))
                file.read(65_536)
    time.sleep(IDLE_S)


def _holdings(mounts: list[Mount]) -> dict[str, int]:
    """Open descriptors and threads of all mounts."""
    found = {"descriptors": 0, "threads": 0}
    for mount in mounts:
        assert mount.process is not None
        found["descriptors"] += len(os.listdir(f"/proc/{mount.process.pid}/fd"))
        found["threads"] += len(os.listdir(f"/proc/{mount.process.pid}/task"))
    return found
