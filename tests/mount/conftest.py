"""Mounts for the tests of this directory: a tree in memory over both bindings, and an ordinary user to mount as."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.fake_vfs import FakeMount
from tests.helpers.mounting import detach, is_mounted

TEMPORARY_USER = "xnatfs-test"


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

    def command(self, *arguments: str) -> list[str]:
        if os.getuid() != 0:
            return list(arguments)
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", *arguments]


@pytest.fixture
def ordinary_user() -> Iterator[OrdinaryUser]:
    with contextlib.ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="xnatfs-test-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        if os.getuid() == 0:
            subprocess.run(["useradd", "--no-create-home", "--shell", "/bin/sh", TEMPORARY_USER], check=True)
            stack.callback(subprocess.run, ["userdel", TEMPORARY_USER], check=True, capture_output=True)
            account = pwd.getpwnam(TEMPORARY_USER)
            os.chown(home, account.pw_uid, account.pw_gid)
            stack.callback(shutil.rmtree, f"/tmp/xnatfs-{account.pw_uid}", ignore_errors=True)
            mode = os.stat("/dev/fuse").st_mode & 0o777
            stack.callback(os.chmod, "/dev/fuse", mode)
            os.chmod("/dev/fuse", 0o666)
        else:
            account = pwd.getpwuid(os.getuid())
        yield OrdinaryUser(account.pw_name, account.pw_uid, account.pw_gid, home)
