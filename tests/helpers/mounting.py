"""Runs the command line as a user does: `python -m xnatfs ...` in its own process, home and cache; mounts, unmounts.

Knows nothing of pytest and nothing of the server's inside. One `Mount` is used from one thread; what is on it from any.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xnatfs.cli import control, daemon

READY_TIMEOUT_S = 30.0  # a guess: a loaded two-core machine needs about 3 s
STOP_TIMEOUT_S = 20.0
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "COVERAGE_PROCESS_START")


def why_no_fuse() -> str | None:
    """Why no mount is possible here, or None when one is."""
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is closed to this user"
    if not (ctypes.util.find_library("fuse") or ctypes.util.find_library("fuse3")):
        return "no libfuse is installed"
    if os.geteuid() != 0 and not (shutil.which("fusermount3") or shutil.which("fusermount")):
        return "no fusermount is installed"
    return None


def user_environment(
    home: Path, user: str | None, password: str | None, extra: Mapping[str, str] = {}
) -> dict[str, str]:
    """A clean environment: nothing of the developer's own settings, credentials or caches gets in."""
    home.mkdir(parents=True, exist_ok=True)
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment["HOME"] = str(home)
    runtime = home / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    environment["XDG_RUNTIME_DIR"] = str(runtime)
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    if user is not None and password is not None:
        environment["XNAT_USER"], environment["XNAT_PASS"] = user, password
    return environment | dict(extra)


def xnatfs(
    *arguments: str | os.PathLike[str], environment: Mapping[str, str], timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end without a terminal; its exit code, output and errors are in the result."""
    command = [sys.executable, "-m", "xnatfs", *(os.fspath(argument) for argument in arguments)]
    return subprocess.run(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def is_mounted(path: Path) -> bool:
    """Whether a file system hangs at ``path``, dead or alive, read without touching it."""
    return str(path) in mount_points()


def answers(path: Path) -> bool:
    """Whether a living file system hangs at ``path``."""
    if not is_mounted(path):
        return False
    try:
        os.listdir(path)
    except OSError as exc:
        if exc.errno in (errno.ENOTCONN, errno.ECONNABORTED):  # a dead one that is about to be replaced
            return False
        raise
    return True


def mount_points() -> list[str]:
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    return [line.split(" ")[1].encode().decode("unicode_escape") for line in lines]


def processes_naming(path: Path) -> list[int]:
    """Process ids whose command line names something below ``path``: what a command has left running there."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.fsencode(path) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def detach(path: Path) -> None:
    """Take away whatever hangs at ``path``, at once and whatever its state."""
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    command = [program, "-uz", str(path)] if program else ["umount", "-l", str(path)]
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


@dataclass
class Mount:
    """`xnatfs mount --foreground` of one SOURCE, in its own process.

    Attributes:
        path: The mount point.
        room: Where home, cache, mount point and log of this user lie. A second mount with the same room is a remount.
    """

    source: str
    room: Path
    arguments: Sequence[str] = ()
    user: str | None = None
    password: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def path(self) -> Path:
        return self.room / "mnt"

    @property
    def cache(self) -> Path:
        return self.room / "cache"

    @property
    def log(self) -> Path:
        return self.room / "mount.log"

    def start(self) -> None:
        """Mount, and return when the mount answers and has published itself, as the command does in the background."""
        if not is_mounted(self.path):  # a dead one cannot even be looked at
            self.path.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "xnatfs", "mount", "--foreground", "-v", "--cache-dir", str(self.cache)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.arguments, self.source, str(self.path)],
                env=user_environment(self.room / "home", self.user, self.password, self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not (answers(self.path) and self._published()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"no mount of {self.source}: {self.log.read_text(encoding='utf-8')}")
            time.sleep(0.02)

    @property
    def control_socket(self) -> Path | None:
        """Where this mount says how it is doing; None until it does."""
        assert self.process is not None
        found = daemon.records_directory(os.geteuid()).glob(f"mount-*-{self.process.pid}.sock")
        return next(found, None)

    def _published(self) -> bool:
        path = self.control_socket
        if path is None:
            return False
        with contextlib.suppress(OSError):  # it is bound, and does not listen yet
            return control.ask(path)["state"] == "mounted"
        return False

    def stop(self) -> int:
        """Unmount by SIGTERM and return the exit code; kill what does not end, and leave nothing behind."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"SIGTERM did not end the mount: {self.log.read_text(encoding='utf-8')}") from None
        finally:
            if is_mounted(self.path):
                detach(self.path)

    def kill(self) -> None:
        """End it as `kill -9` does; the dead mount stays."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None


@contextlib.contextmanager
def mounted(
    source: str,
    room: Path,
    *arguments: str,
    user: str | None = None,
    password: str | None = None,
    environment: Mapping[str, str] = {},
) -> Iterator[Mount]:
    """A mount for the length of a `with` block, gone after it whatever happened."""
    mount = Mount(source, room, arguments, user, password, environment)
    mount.start()
    try:
        yield mount
    finally:
        mount.stop()
        if is_mounted(mount.path):
            detach(mount.path)
