"""The records that mounts leave of themselves: the kernel gives the number of a mount that has gone to the next one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xnatfs.cli import daemon

DEVICE = "0:39"

SERVE = """
import sys
from pathlib import Path
from xnatfs.cli import daemon
room, device, mountpoint = sys.argv[1:]
daemon.records_directory = lambda uid: Path(room)
record = daemon.Record()
record.write(device, Path(mountpoint), "https://xnat.example.org")
print("written", flush=True)
sys.stdin.readline()
record.remove()
print("removed", flush=True)
sys.stdin.readline()
"""

Process = subprocess.Popen[str]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(daemon, "records_directory", lambda uid: tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def serve(room: Path) -> Iterator[Callable[[str], Process]]:
    """A process that has left a record for the mount point of this name."""
    started: list[Process] = []

    def serve(mountpoint: str) -> Process:
        command = [sys.executable, "-c", SERVE, str(room), DEVICE, mountpoint]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert says(started[-1]) == "written"
        return started[-1]

    yield serve
    for process in started:
        process.kill()
        process.communicate()


def says(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell_to_go_on(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def living() -> list[tuple[str, int]]:
    return [(str(each.mountpoint), each.pid) for each in daemon.recorded(os.getuid()) if each.alive]


def test_the_end_of_one_mount_leaves_the_record_of_the_next_of_its_number(serve: Callable[[str], Process]) -> None:
    ending = serve("/old")
    new = serve("/new")
    tell_to_go_on(ending)
    assert says(ending) == "removed"
    assert living() == [("/new", new.pid)]


def test_whoever_unmounts_waits_for_the_process_of_that_mount(serve: Callable[[str], Process]) -> None:
    ending = serve("/old")
    new = serve("/new")
    with daemon.end_of(DEVICE, os.getuid(), limit_s=10):
        tell_to_go_on(new)
        tell_to_go_on(new)
    assert new.wait(10) == 0
    assert ending.poll() is None


def test_what_a_killed_process_has_left_goes_when_its_number_is_given_again(
    serve: Callable[[str], Process], room: Path
) -> None:
    killed = serve("/old")
    killed.kill()
    killed.wait()
    new = serve("/old")
    assert [(each.pid, each.alive) for each in daemon.recorded(os.getuid())] == [(new.pid, True)]
    assert [path.suffix for path in room.iterdir()] == [".json"]


def test_a_record_is_private_and_gone_when_removed(serve: Callable[[str], Process], room: Path) -> None:
    process = serve("/mnt")
    assert {path.stat().st_mode & 0o777 for path in (room, *room.iterdir())} == {0o700, 0o600}
    tell_to_go_on(process)
    assert says(process) == "removed"
    assert daemon.recorded(os.getuid()) == []
