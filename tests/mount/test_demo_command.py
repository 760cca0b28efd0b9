"""`xnatfs demo`: what it shows works, and however it ends, no mount, process or directory is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.mounting import detach, is_mounted, user_environment, why_no_fuse, xnatfs
from xnatfs.cli.owned import mount_directory

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(why_no_fuse() is not None, reason=why_no_fuse() or ""),
]

PATIENCE_S = 30.0
PROJECTS = {"BIG", "DEMO", "EMPTY", "HCP_DEMO", "ODDITIES", "PROTECTED"}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user whose settings would spoil the demo if it read them, and whose temporary directory is watched."""
    (tmp_path / "tmp").mkdir()
    own = {"XNATFS_PROJECT": "NOTHING", "XNATFS_ANONYMOUS": "yes", "TMPDIR": str(tmp_path / "tmp")}
    return user_environment(tmp_path / "home", "stranger", "wrong", own)


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline_s, f"still not: {what}"
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    """Process ids below ``pid``, nearest first."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [number for child in children for number in (int(child), *descendants(int(child)))]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


class Demo:
    """A running `xnatfs demo MOUNTPOINT`, its output in a file, its two processes known."""

    def __init__(self, room: Path, environment: dict[str, str]) -> None:
        self.path = room / "mnt"
        self.output = room / "output"
        self.temporary = Path(environment["TMPDIR"])
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "xnatfs", "demo", str(self.path)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        wait_until(lambda: "Ctrl-C" in self.said() or self.process.poll() is not None, "ready")
        assert self.process.poll() is None, self.said()
        self.server, self.mount = sorted(descendants(self.process.pid), key=self._is_mount)

    @staticmethod
    def _is_mount(pid: int) -> bool:
        return b"xnatfs.demo" not in Path(f"/proc/{pid}/cmdline").read_bytes()

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def ends(self) -> int:
        """Its exit code, once it is seen that nothing of it is left."""
        code = self.process.wait(PATIENCE_S)
        self.leaves_nothing()
        return code

    def leaves_nothing(self) -> None:
        for pid in (self.server, self.mount):
            wait_until(lambda pid=pid: not is_alive(pid), f"process {pid} ended")  # type: ignore[misc]
        assert not is_mounted(self.path)

    def leaves_no_directory(self) -> None:
        assert list(self.temporary.iterdir()) == []
        assert not self.path.exists()


@pytest.fixture
def demo(tmp_path: Path, environment: dict[str, str]) -> Iterator[Demo]:
    demo = Demo(tmp_path, environment)
    try:
        demo.wait_until_ready()
        yield demo
    finally:
        if demo.process.poll() is None:
            demo.process.terminate()
            demo.process.wait(PATIENCE_S)
        if is_mounted(demo.path):
            detach(demo.path)


def test_check_mounts_reads_compares_and_leaves_nothing(environment: dict[str, str]) -> None:
    done = xnatfs("demo", "--check", environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"read    DEMO/\S+: \d+ bytes, MD5 [0-9a-f]{32} as on the server", done.stdout)
    assert list(Path(environment["TMPDIR"]).iterdir()) == []
    assert environment["TMPDIR"] not in Path("/proc/self/mounts").read_text(encoding="utf-8")


def test_it_takes_away_every_directory_that_it_made(tmp_path: Path) -> None:
    for place in (tmp_path / "new", tmp_path / "new" / "newer" / "newest"):
        with mount_directory(place) as made:
            assert made == place and place.is_dir()
        assert list(tmp_path.iterdir()) == []
    tmp_path.joinpath("old").mkdir()
    with mount_directory(tmp_path / "old" / "new"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "old"]


def test_check_works_at_a_directory_of_the_users_and_leaves_it(environment: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    assert xnatfs("demo", "--check", place, environment=environment).returncode == 0
    assert place.is_dir()
    assert not is_mounted(place)


def test_every_command_it_shows_works(demo: Demo, tmp_path: Path, environment: dict[str, str]) -> None:
    assert {entry.name for entry in demo.path.iterdir()} == PROJECTS
    commands = [line.strip() for line in demo.said().splitlines() if line.startswith("  ")]
    programs = [Path(command.split()[0]).name.rstrip("0123456789.") for command in commands[:5]]
    assert programs == ["ls", "find", "cp", "python", "dcm2niix"]
    assert commands[5].endswith(f"umount {demo.path}")
    bin_directory = str(Path(sys.executable).parent)
    shell = environment | {"PATH": f"{bin_directory}:{environment['PATH']}"}
    for command in commands[:4]:  # dcm2niix need not be installed, and the last one is umount
        command = command.replace(" /tmp/series", f" {tmp_path}/series")
        done = subprocess.run(
            ["bash", "-c", command], env=shell, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        assert done.stdout or command.startswith("cp")
    assert any((tmp_path / "series").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(demo: Demo, number: signal.Signals) -> None:
    demo.process.send_signal(number)
    assert demo.ends() == 0
    demo.leaves_no_directory()


def test_repeated_ctrl_c_does_not_stop_the_taking_down(demo: Demo) -> None:
    for _ in range(5):
        demo.process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    assert demo.ends() == 0
    demo.leaves_no_directory()


def test_ctrl_c_while_a_program_is_inside_leaves_nothing(demo: Demo) -> None:
    descriptor = os.open(demo.path / "DEMO", os.O_RDONLY)
    try:
        demo.process.send_signal(signal.SIGINT)
        assert demo.ends() == 0
    finally:
        os.close(descriptor)


def test_unmounting_from_outside_ends_it(demo: Demo, environment: dict[str, str]) -> None:
    done = xnatfs("umount", demo.path, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert demo.ends() == 0
    demo.leaves_no_directory()


def test_the_servers_death_ends_it_with_a_line(demo: Demo) -> None:
    os.kill(demo.server, signal.SIGKILL)
    assert demo.ends() == 1
    assert "xnatfs: demo: the server ended" in demo.said()
    demo.leaves_no_directory()


def test_the_mounts_death_ends_it_with_a_line(demo: Demo) -> None:
    os.kill(demo.mount, signal.SIGKILL)
    assert demo.ends() == 1
    assert f"xnatfs: demo: the mount at {demo.path} ended by itself" in demo.said()
    demo.leaves_no_directory()


def test_its_own_death_leaves_no_process_and_no_mount(demo: Demo) -> None:
    demo.process.kill()
    demo.process.wait(PATIENCE_S)
    wait_until(lambda: not is_mounted(demo.path), "unmounted")
    demo.leaves_nothing()


def test_a_port_in_use_is_one_line_with_a_hint(demo: Demo, environment: dict[str, str]) -> None:
    match = re.search(r"http://127\.0\.0\.1:(\d+)", demo.said())
    assert match is not None
    done = xnatfs("demo", "--check", "--port", match[1], environment=environment)
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert len(lines) == 2 and lines[0].startswith("xnatfs: demo: the server does not start: "), done.stderr
    assert lines[1] == "hint: try another --port"


def test_a_mount_point_that_is_not_empty_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "full"
    place.mkdir()
    (place / "file").touch()
    done = xnatfs("demo", "--check", place, environment=environment)
    assert done.returncode == 5
    assert done.stderr.startswith("xnatfs: mount ") and "not empty" in done.stderr
    assert (place / "file").exists()


def test_without_the_extra_the_line_to_run_is_shown(environment: dict[str, str]) -> None:
    script = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'aiohttp' else find(name, *more)\n"
        "from xnatfs.cli.main import main; sys.exit(main(['demo', '--check']))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "xnatfs: demo: not installed: aiohttp",
        "hint: run: python -m pip install 'xnatfs[demo]'",
    ]
