"""Mounts for the tests of this directory: a tree in memory over both bindings, and an ordinary user to mount as."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.fake_vfs import FakeMount
from tests.helpers.mounting import detach, is_mounted

TEMPORARY_USER = f"xnatfs-test-{os.getpid()}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("fuse") and not Path("/dev/fuse").exists():
        pytest.skip("there is no /dev/fuse")


MountFake = Callable[..., FakeMount]


@contextlib.contextmanager
def fake_mounts() -> Iterator[MountFake]:
    mounts: list[FakeMount] = []

    def mount(*arguments: str, at: Path | None = None) -> FakeMount:
        path = at or Path(tempfile.mkdtemp(prefix="xnatfs-test-")) / "mnt"
        path.mkdir(exist_ok=True)
        mounts.append(FakeMount(path, *arguments))
        return mounts[-1]

    try:
        yield mount
    finally:
        for made in mounts:
            made.stop()
            if is_mounted(made.path):
                detach(made.path)
            shutil.rmtree(made.path.parent, ignore_errors=True)


@pytest.fixture
def mount_fake() -> Iterator[MountFake]:
    with fake_mounts() as mount:
        yield mount


@pytest.fixture(scope="module", params=["2", "3"])
def shared(request: pytest.FixtureRequest) -> Iterator[FakeMount]:
    """One mount for all tests of a module that change nothing, over each binding."""
    if not Path("/dev/fuse").exists():
        pytest.skip("there is no /dev/fuse")
    with fake_mounts() as mount:
        yield mount("--fuse", request.param)


@pytest.fixture(params=["2", "3"])
def own(request: pytest.FixtureRequest, mount_fake: MountFake) -> FakeMount:
    """A mount for one test to change and break, over each binding."""
    return mount_fake("--fuse", request.param)


@dataclass(frozen=True)
class OrdinaryUser:
    """Someone who is not root: ourselves, or a user made for the test."""

    name: str
    uid: int
    gid: int
    home: Path
    become: tuple[str, ...]  # the command in front of a command of this user

    def command(self, *arguments: str) -> list[str]:
        return [*self.become, *arguments]


@pytest.fixture
def ordinary_user() -> Iterator[OrdinaryUser]:
    with contextlib.ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="xnatfs-test-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        if os.getuid() == 0:
            stack.enter_context(_accounts_locked())
            subprocess.run(["useradd", "--no-create-home", "--shell", "/bin/sh", TEMPORARY_USER], check=True)
            stack.callback(subprocess.run, ["userdel", TEMPORARY_USER], check=True, capture_output=True)
            account = pwd.getpwnam(TEMPORARY_USER)
            os.chown(home, account.pw_uid, account.pw_gid)
            stack.callback(shutil.rmtree, f"/tmp/xnatfs-{account.pw_uid}", ignore_errors=True)
            mode = os.stat("/dev/fuse").st_mode & 0o777
            stack.callback(os.chmod, "/dev/fuse", mode)
            os.chmod("/dev/fuse", 0o666)
            stack.callback(_end_processes_of, account.pw_uid)
            stack.callback(detach, home / "mnt")
            become = _become(account)
        else:
            account, become = pwd.getpwuid(os.getuid()), ()
        yield OrdinaryUser(account.pw_name, account.pw_uid, account.pw_gid, home, become)


@contextlib.contextmanager
def _accounts_locked() -> Iterator[None]:
    """One at a time: tests beside this one would find the list of users locked, and the mode of /dev/fuse changed."""
    with Path(tempfile.gettempdir(), "xnatfs-test-accounts.lock").open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _end_processes_of(uid: int) -> None:
    """Kill what a test that failed has left running: userdel refuses otherwise."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and process.stat().st_uid == uid:
                os.kill(int(process.name), signal.SIGKILL)


def _become(account: pwd.struct_passwd) -> tuple[str, ...]:
    """How root turns into ``account``. A Python below /root may be read and run, and nothing else, by capability."""
    user = ("setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups")
    command = ["/bin/sh", "-c", '"$0" -c ""', sys.executable]  # setpriv itself still has root's capabilities
    plain = subprocess.run([*user, *command], capture_output=True, check=False)
    return user if plain.returncode == 0 else (*user, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
