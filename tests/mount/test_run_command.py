"""`xnatfs run`: the archive is there while the command runs, and nothing is left of it afterwards, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounting import mount_points, processes_naming, user_environment
from tests.helpers.server import DemoServer

pytestmark = pytest.mark.fuse

END_S = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with DemoServer() as running:
        yield running


class Room:
    """A user's home and temporary directory, and `xnatfs run` in it."""

    def __init__(self, path: Path, server: DemoServer) -> None:
        self.temporary = path / "tmp"
        self.temporary.mkdir()
        self.server = server
        self.environment = user_environment(path / "home", "demo", "demo", {"TMPDIR": str(self.temporary)})

    def start(self, *words: str, source: str = "") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "xnatfs", "run", source or f"{self.server.url}#/DEMO", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, source: str = "") -> tuple[int, str, str]:
        with self.start(*words, source=source) as process:
            out, error = process.communicate(timeout=60)
        return process.returncode, out, error

    def is_empty(self) -> bool:
        """No mount, no directory, no process of ours."""
        mounts = [path for path in mount_points() if path.startswith(str(self.temporary))]
        return not mounts and not list(self.temporary.iterdir()) and not processes_naming(self.temporary)


@pytest.fixture
def room(tmp_path: Path, server: DemoServer) -> Room:
    return Room(tmp_path, server)


def test_the_command_finds_the_mount_by_its_variable_and_by_braces(room: Room) -> None:
    shell = 'ls "$XNATFS_MOUNT"; test {} = "$XNATFS_MOUNT" && stat -c %a {}/..; pwd'
    code, out, error = room.run("--", "sh", "-c", shell)
    assert (code, error) == (0, "")
    assert out.split()[:2] == ["DEMO_001", "DEMO_002"]
    assert out.splitlines()[-1] == str(Path.cwd())
    assert room.is_empty()


def test_its_exit_code_is_that_of_the_command(room: Room) -> None:
    assert room.run("--", "sh", "-c", "exit 7") == (7, "", "")
    assert room.run("--", "sh", "-c", "kill -KILL $$")[0] == 128 + signal.SIGKILL
    assert room.is_empty()


def test_a_command_that_is_not_there_is_127_and_one_that_cannot_run_126(room: Room) -> None:
    code, _, error = room.run("--", "no-such-command")
    assert (code, error) == (127, "xnatfs: run: no-such-command: No such file or directory\n")
    code, _, error = room.run("--", "/etc")
    assert (code, error) == (126, "xnatfs: run: /etc: Permission denied\n")
    assert room.is_empty()


def test_what_cannot_be_mounted_is_said_and_the_command_does_not_run(room: Room, tmp_path: Path) -> None:
    code, out, error = room.run("--", "touch", str(tmp_path / "ran"), source="http://127.0.0.1:9")
    assert (code, out) == (4, "")
    assert error.startswith("xnatfs: ")
    assert not (tmp_path / "ran").exists()
    assert room.run("--project", "DEMO")[0] == 2
    assert room.is_empty()


def test_the_command_sees_no_password(room: Room) -> None:
    code, out, _ = room.run("--", "env")
    assert code == 0
    assert "XNATFS_MOUNT=" in out
    assert "XNAT_PASS" not in out
    assert "demo" not in {line.partition("=")[2] for line in out.splitlines() if "PASS" in line}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_reaches_the_command_which_may_end_in_its_own_way(room: Room, number: signal.Signals) -> None:
    shell = f"trap 'echo stopped; exit 3' {number - 0}; echo ready; while :; do sleep 0.05; done"
    with room.start("--", "sh", "-c", shell) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=END_S)[0] == "stopped\n"
        assert process.returncode == 3
    assert room.is_empty()


def test_a_command_that_a_signal_ends_gives_128_and_its_number(room: Room) -> None:
    with room.start("--", "sh", "-c", "echo ready; exec sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        process.communicate(timeout=END_S)
        assert process.returncode == 128 + signal.SIGTERM
    assert room.is_empty()


def test_a_signal_while_it_mounts_leaves_nothing(room: Room, server: DemoServer) -> None:
    server.switch(latency_s=60.0)  # it cannot be mounted before the signal comes
    try:
        with room.start("--", "true") as process:
            until = time.monotonic() + END_S
            while not list(room.temporary.iterdir()):
                assert time.monotonic() < until
                time.sleep(0.02)
            process.terminate()
            process.communicate(timeout=END_S)
            assert process.returncode == 128 + signal.SIGTERM
    finally:
        server.switch(latency_s=0.0)
    assert room.is_empty()


STOPPED_IN_A_FORK = """
import os, signal, time
from xnatfs.cli import daemon
from xnatfs.cli.owned import Stopped, signals_raise

os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGTERM))
with signals_raise():
    try:
        daemon.start(lambda ready: time.sleep(600), None, 600)
    except Stopped as stopped:
        print("stopped by", stopped.number)
"""


def test_a_signal_that_comes_while_it_forks_is_not_lost() -> None:
    """Python ignores what is raised by what runs around a fork: logging, our block cache, other libraries."""
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_IN_A_FORK], capture_output=True, text=True, timeout=END_S, check=False
    )
    assert (done.stdout, done.stderr) == (f"stopped by {signal.SIGTERM.value}\n", "")


STOPPED_IN_MKDTEMP = """
import os, signal, tempfile
from xnatfs.cli.owned import Stopped, mount_directory, signals_raise

make = tempfile.mkdtemp

def make_and_be_stopped(*args, **kwargs):
    made = make(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGTERM)
    return made

tempfile.mkdtemp = make_and_be_stopped
with signals_raise():
    try:
        with mount_directory(None):
            print("went on")
    except Stopped:
        print("stopped")
"""


def test_a_signal_that_comes_while_it_makes_its_directory_leaves_none(room: Room) -> None:
    command = [sys.executable, "-c", STOPPED_IN_MKDTEMP]
    done = subprocess.run(command, env=room.environment, capture_output=True, text=True, timeout=END_S, check=False)
    assert (done.stdout, done.stderr) == ("stopped\n", "")
    assert room.is_empty()


def test_what_the_command_left_running_does_not_keep_the_mount(room: Room) -> None:
    code, out, _ = room.run("--", "sh", "-c", "cd {} && sleep 60 >&- 2>&- <&- & echo $!")
    left = int(out)
    try:
        assert code == 0
        assert [path for path in mount_points() if path.startswith(str(room.temporary))] == []
    finally:
        os.kill(left, signal.SIGKILL)


def test_when_it_is_killed_the_mount_goes_as_well(room: Room) -> None:
    with room.start("--", "sh", "-c", "echo $$; exec sleep 60") as process:
        assert process.stdout is not None
        command = int(process.stdout.readline())
        try:
            process.kill()
            process.wait()
            until = time.monotonic() + END_S
            while [path for path in mount_points() if path.startswith(str(room.temporary))]:
                assert time.monotonic() < until, "the mount outlives its command"
                time.sleep(0.05)
        finally:
            os.kill(command, signal.SIGKILL)
