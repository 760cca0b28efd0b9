"""`xnatfs status` over real mounts: what it counts, what it says of dead and hung ones, and who gets an answer."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.mounting import Mount, detach, is_mounted, mounted, user_environment, xnatfs
from tests.helpers.server import DemoServer
from tests.mount.conftest import OrdinaryUser
from xnatfs.cli import control, daemon

pytestmark = pytest.mark.fuse

FOLDER = "DEMO/DEMO_001/DEMO_001_MR1/scans/1-T1w/DICOM"


def record_of(mount: Mount) -> daemon.Recorded:
    [record] = [each for each in daemon.recorded(os.getuid()) if each.mountpoint == mount.path]
    return record


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with DemoServer() as running:
        yield running


@pytest.fixture
def mount(server: DemoServer, tmp_path: Path) -> Iterator[Mount]:
    server.reset()
    with mounted(server.url, tmp_path, user="demo", password="demo") as made:
        yield made


def status(mount: Mount, *arguments: str) -> subprocess.CompletedProcess[str]:
    return xnatfs("status", mount.path, *arguments, environment=user_environment(mount.room / "home", None, None))


def numbers(mount: Mount) -> dict[str, Any]:
    done = status(mount, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    [state] = json.loads(done.stdout)
    return dict(state)


def test_what_was_read_is_counted_and_a_second_read_is_a_hit(mount: Mount, server: DemoServer) -> None:
    files = sorted((mount.path / FOLDER).iterdir())
    size = sum(len(path.read_bytes()) for path in files)
    first = numbers(mount)
    asked = server.settled_log()["requests"]
    assert first["state"] == "mounted"
    assert (first["user"], first["credentials"]) == ("demo", "XNAT_USER and XNAT_PASS")
    assert first["server"] == server.url
    assert first["pid"] == mount.process.pid if mount.process else 0
    assert (first["logins"], first["retries"], first["in_flight"], first["transfers"]) == (1, 0, 0, 0)
    assert first["requests"] == sum(1 for r in asked if r["path"] not in ("/data/auth", "/data/JSESSION"))
    assert first["received_bytes"] == sum(r["sent"] for r in asked if r["path"] not in ("/data/auth", "/data/JSESSION"))
    assert first["read_bytes"] >= size
    assert 0 < first["session_left_s"] <= 900
    assert 0 <= first["session_age_s"] < 60
    assert first["cache_directory"] == str(mount.cache)
    assert 0 <= first["cache_bytes"] <= first["cache_limit_bytes"]
    assert first["errors"] == []


def test_text_names_mount_server_user_and_numbers(mount: Mount, server: DemoServer) -> None:
    next((mount.path / FOLDER).iterdir()).read_bytes()
    done = status(mount)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{mount.path}  {server.url}\n  as demo (XNAT_USER and XNAT_PASS); mounted for ")
    for words in ("session ", "ends in ", " requests, 0 of them again, 1 logins", " received", " read", "cache: "):
        assert words in done.stdout


def test_failures_are_remembered_and_no_secret_shows(mount: Mount, server: DemoServer) -> None:
    server.fault("/data/projects/ODDITIES", "html", times=None)
    with pytest.raises(OSError, match="Input/output error"):
        os.listdir(mount.path / "ODDITIES")
    said = status(mount, "--json").stdout
    [state] = json.loads(said)
    assert "web page" in state["errors"][-1]["message"]
    assert " ago: " in status(mount).stdout
    cookies = {r["session"] for r in server.settled_log()["requests"] if r["session"]}
    assert cookies and not any(cookie in said for cookie in cookies)


def test_status_answers_while_the_server_hangs(mount: Mount, server: DemoServer) -> None:
    server.fault("/data/projects/ODDITIES", "stall", at=0, times=None)
    reader = subprocess.Popen(
        ["ls", str(mount.path / "ODDITIES")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 10
        while numbers(mount)["in_flight"] == 0:
            assert time.monotonic() < deadline
    finally:
        reader.kill()
        server.kill()  # the stalled request breaks, or the mount would wait for it
        reader.wait()
        server.start()


def test_a_mount_whose_process_was_killed_is_shown_as_dead_until_it_is_unmounted(
    server: DemoServer, tmp_path: Path
) -> None:
    made = Mount(server.url, tmp_path, (), "demo", "demo")
    made.start()
    try:
        made.kill()
        assert numbers(made)["state"] == "dead"
        done = status(made)
        assert "DEAD" in done.stdout and f"run: xnatfs umount {made.path}" in done.stdout
    finally:
        if is_mounted(made.path):
            detach(made.path)
    done = status(made)
    assert done.returncode == 1
    assert "nothing of ours is mounted there" in done.stderr
    assert not [record for record in daemon.recorded(os.getuid()) if record.mountpoint == made.path]


def test_a_mount_that_is_stopped_is_shown_as_silent(mount: Mount) -> None:
    assert mount.process is not None
    mount.process.send_signal(signal.SIGSTOP)
    try:
        assert numbers(mount)["state"] == "silent"
    finally:
        mount.process.send_signal(signal.SIGCONT)


def test_the_socket_is_private_and_gone_with_the_mount(server: DemoServer, tmp_path: Path) -> None:
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        record = record_of(mount)
        found = record.socket.stat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert stat.S_IMODE(record.socket.parent.stat().st_mode) == 0o700
    assert not record.socket.exists()


def test_a_client_that_takes_no_answer_does_not_block_the_next(mount: Mount) -> None:
    record = record_of(mount)
    silent = []
    for _ in range(3):
        silent.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        silent[-1].connect(str(record.socket))
    assert control.ask(record.socket)["state"] == "mounted"
    for each in silent:
        each.close()


def test_another_user_gets_no_answer(ordinary_user: OrdinaryUser, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root to be someone else")
    # In a place that anybody may reach, so that the socket itself has to refuse.
    path = ordinary_user.home / "control.sock"
    answering = control.ControlSocket(path, lambda: {"state": "mounted"})
    answering.start()
    path.chmod(0o666)
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(sys.argv[1]); "
        "print(repr(s.recv(100)))"
    )
    command = ordinary_user.command(sys.executable, "-c", script, str(path))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "b''", done.stderr
    assert control.ask(path) == {"state": "mounted"}
    answering.close()


def test_without_mounts_there_is_nothing_to_show(tmp_path: Path) -> None:
    done = xnatfs("status", tmp_path, environment=user_environment(tmp_path / "home", None, None))
    assert done.returncode == 1
    assert done.stderr == f"xnatfs: status {tmp_path}: nothing of ours is mounted there\n"
