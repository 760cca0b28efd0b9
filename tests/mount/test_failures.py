"""What a user meets when things go wrong: a clear line, a hint and an exit code, or an errno. Nothing hangs or is left.

Every command runs in its own process against a real server with its faults switched on.
"""

from __future__ import annotations

import errno
import http.server
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.mounting import Mount, is_mounted, mounted, processes_naming, user_environment, xnatfs
from tests.helpers.relays import free_port
from tests.helpers.server import DemoServer

pytestmark = pytest.mark.fuse

TIMEOUT_S = 15.0  # a busy machine should not be what fails
HASTE_S = 3.0  # where nothing comes, and the test waits for that
RETRIES = 4  # times the timeout: a request, its retries and a loaded machine
HEALING_S = 1.5  # a failed listing is not asked for again within a second
SESSION = "DEMO/DEMO_001/DEMO_001_MR1"
BIG = "BIG/BIG_1/BIG_1_MR/scans/3-bold100m/NIFTI/bold_100m.nii"
MIB = 1024 * 1024


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


@pytest.fixture
def mount(server: DemoServer, tmp_path: Path) -> Iterator[Mount]:
    with mounted(server.url, tmp_path, "--timeout", f"{TIMEOUT_S}s", user="demo", password="demo") as mount:
        yield mount


@pytest.fixture
def hasty_mount(server: DemoServer, tmp_path: Path) -> Iterator[Mount]:
    with mounted(server.url, tmp_path, "--timeout", f"{HASTE_S}s", user="demo", password="demo") as mount:
        yield mount


class Attempt:
    """`xnatfs mount` of one source, in the background as users do, and what became of it."""

    def __init__(self, room: Path, password: str = "demo") -> None:
        self.room = room
        self.mountpoint = room / "mnt"
        self.password = password

    def run(self, source: str, *arguments: str, mountpoint: Path | None = None) -> subprocess.CompletedProcess[str]:
        target = self.mountpoint if mountpoint is None else mountpoint
        environment = user_environment(self.room / "home", "demo", self.password)
        options = ["--cache-dir", str(self.room / "cache"), "--timeout", f"{HASTE_S}s", *arguments]
        return xnatfs("mount", *options, source, target, environment=environment, timeout_s=30)

    def fails(self, source: str, *arguments: str, mountpoint: Path | None = None) -> tuple[int, str, str]:
        """(exit code, the line, the hint) of a mount that must fail soon and leave nothing behind."""
        started = time.monotonic()
        done = self.run(source, *arguments, mountpoint=mountpoint)
        took_s = time.monotonic() - started
        lines = done.stderr.splitlines()
        assert done.returncode != 0
        assert len(lines) == 2 and lines[0].startswith("xnatfs: ") and lines[1].startswith("hint: "), done.stderr
        assert done.stdout == ""
        assert took_s < RETRIES * HASTE_S
        assert not is_mounted(self.mountpoint)
        assert_none_left(self.room)
        return done.returncode, lines[0], lines[1]


def assert_none_left(room: Path) -> None:
    deadline = time.monotonic() + 5
    while processes_naming(room) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_naming(room) == []


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    (tmp_path / "mnt").mkdir()
    return Attempt(tmp_path)


# --- mounting ---------------------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_ends_mount_with_4(attempt: Attempt) -> None:
    port = free_port()
    code, line, _ = attempt.fails(f"http://127.0.0.1:{port}")
    assert code == 4
    assert f"127.0.0.1:{port}" in line


def test_a_server_that_never_answers_ends_mount_with_4(attempt: Attempt) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        code, _, _ = attempt.fails(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert code == 4


def test_a_web_server_that_is_no_xnat_ends_mount_with_4(attempt: Attempt) -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<html><body>Welcome</body></html>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            code, _, _ = attempt.fails(f"http://127.0.0.1:{other.server_address[1]}")
        finally:
            other.shutdown()
            thread.join()
    assert code == 4


def test_a_wrong_password_ends_mount_with_3(server: DemoServer, attempt: Attempt) -> None:
    attempt.password = "not the password"
    code, line, hint = attempt.fails(server.url)
    assert code == 3
    assert "not the password" not in line + hint


def test_a_wrong_password_is_tried_once(server: DemoServer, attempt: Attempt) -> None:
    attempt.password = "not the password"
    attempt.fails(server.url)
    assert server.log()["failed_logins"] == 1  # accounts lock after repeated failures


def test_a_missing_mount_point_ends_mount_with_5(server: DemoServer, attempt: Attempt) -> None:
    missing = attempt.room / "no such folder"
    code, line, hint = attempt.fails(server.url, mountpoint=missing)
    assert code == 5
    assert str(missing) in line + hint


def test_a_mount_point_that_is_a_file_ends_mount_with_5(server: DemoServer, attempt: Attempt) -> None:
    (attempt.room / "file").write_text("here already", encoding="utf-8")
    code, _, _ = attempt.fails(server.url, mountpoint=attempt.room / "file")
    assert code == 5


def test_a_busy_mount_point_ends_mount_with_5_and_stays_as_it_was(
    server: DemoServer, mount: Mount, tmp_path: Path
) -> None:
    environment = user_environment(tmp_path / "home", "demo", "demo")
    done = xnatfs("mount", "--cache-dir", tmp_path / "cache", server.url, mount.path, environment=environment)
    assert done.returncode == 5
    assert done.stderr.startswith("xnatfs: ") and "\nhint: " in done.stderr
    assert "DEMO" in os.listdir(mount.path)


def test_a_dead_mount_is_cleaned_up_by_the_next(server: DemoServer, mount: Mount) -> None:
    mount.kill()
    with pytest.raises(OSError) as raised:
        os.listdir(mount.path)
    assert raised.value.errno == errno.ENOTCONN
    mount.start()
    assert "DEMO" in os.listdir(mount.path)


# --- reading ----------------------------------------------------------------------------------------------------------


def errno_of(action: Callable[[], object], timeout_s: float = TIMEOUT_S) -> int:
    """The errno that ``action`` fails with, within the patience of a user who set ``--timeout``."""
    started = time.monotonic()
    with pytest.raises(OSError) as raised:
        action()
    assert time.monotonic() - started < RETRIES * timeout_s
    assert raised.value.errno is not None
    return raised.value.errno


def test_a_server_gone_in_mid_read_gives_an_errno_and_what_was_read_stays(server: DemoServer, mount: Mount) -> None:
    descriptor = os.open(mount.path / BIG, os.O_RDONLY)
    try:
        first = os.pread(descriptor, MIB, 0)
        server.stop()
        assert errno_of(lambda: [os.pread(descriptor, MIB, at * MIB) for at in range(40, 90)]) in (
            errno.EIO,
            errno.ETIMEDOUT,
        )
        assert os.pread(descriptor, MIB, 0) == first
    finally:
        os.close(descriptor)


def true_bytes(server: DemoServer, name: str) -> bytes:
    return server.content(next(row["uri"] for row in server.truth("DEMO") if row["name"] == name))


def test_a_reset_in_mid_read_gives_the_right_bytes_after_all(server: DemoServer, mount: Mount) -> None:
    path = mount.path / SESSION / "scans/1-T1w/DICOM/T1w-0001.dcm"
    path.stat()
    server.fault("T1w-0001", "reset", at=1000, times=1)
    assert path.read_bytes() == true_bytes(server, "T1w-0001.dcm")


def test_resets_that_do_not_end_give_an_errno(server: DemoServer, mount: Mount) -> None:
    path = mount.path / SESSION / "scans/1-T1w/DICOM/T1w-0001.dcm"
    path.stat()
    server.fault("T1w-0001", "reset", at=1000, times=None)
    assert errno_of(path.read_bytes) in (errno.EIO, errno.ETIMEDOUT)
    server.clear_faults()
    assert path.read_bytes() == true_bytes(server, "T1w-0001.dcm")


@pytest.mark.parametrize("kind", ["html", "empty", "short", "parent_item", "status", "garbage"])
def test_a_doubtful_200_for_a_file_gives_an_errno(server: DemoServer, mount: Mount, kind: str) -> None:
    path = mount.path / SESSION / "scans/1-T1w/DICOM/T1w-0001.dcm"
    path.stat()
    server.fault("T1w-0001", kind, times=None)
    assert errno_of(path.read_bytes) in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


@pytest.mark.parametrize("kind", ["html", "empty", "short", "parent_item", "status", "reset"])
def test_a_doubtful_200_for_a_listing_gives_an_errno_not_an_empty_folder(
    server: DemoServer, mount: Mount, kind: str
) -> None:
    os.listdir(mount.path / "DEMO/DEMO_001")
    server.fault("XNAT_E00001|DEMO_001_MR1", kind, times=None)
    assert errno_of(lambda: os.listdir(mount.path / SESSION)) in (errno.EIO, errno.ETIMEDOUT)
    server.clear_faults()
    time.sleep(HEALING_S)
    assert "scans" in os.listdir(mount.path / SESSION)


def test_a_file_list_without_uris_gives_an_errno_not_an_empty_folder(server: DemoServer, mount: Mount) -> None:
    os.listdir(mount.path / "DEMO/DEMO_001")
    server.fault(r"/files\?", "without_column", times=None, value="URI")
    assert errno_of(lambda: os.listdir(mount.path / SESSION / "scans/1-T1w/DICOM")) == errno.EIO
    server.clear_faults()
    time.sleep(HEALING_S)
    assert "T1w-0001.dcm" in os.listdir(mount.path / SESSION / "scans/1-T1w/DICOM")


def test_a_body_that_stalls_gives_an_errno_within_the_timeout(server: DemoServer, hasty_mount: Mount) -> None:
    path = hasty_mount.path / BIG
    path.stat()
    server.fault("bold_100m", "stall", at=2 * MIB, times=None)
    assert errno_of(path.read_bytes, HASTE_S) in (errno.EIO, errno.ETIMEDOUT)


def test_a_real_html_file_reads(server: DemoServer, mount: Mount) -> None:
    assert b"A real page" in (mount.path / SESSION / "resources/QC/report.html").read_bytes()


def test_sigterm_ends_a_mount_with_a_silent_server(server: DemoServer, hasty_mount: Mount) -> None:
    path = hasty_mount.path / BIG
    path.stat()
    server.fault("bold_100m", "stall", at=MIB, times=None)
    reader = subprocess.Popen(["cat", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        hasty_mount.stop()
        assert reader.wait(RETRIES * HASTE_S) != 0
        assert not is_mounted(hasty_mount.path)
    finally:
        reader.kill()
        reader.wait()


def test_sigterm_ends_a_mount_of_one_project_whose_first_listing_took_several_threads(
    server: DemoServer, tmp_path: Path
) -> None:
    with mounted(f"{server.url}#/DEMO", tmp_path, user="demo", password="demo") as mount:
        assert mount.stop() == 0
        assert not is_mounted(mount.path)
