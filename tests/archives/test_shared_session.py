"""One server session for all processes of a user: real processes, counted at the server; damage is met with doubt."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.archives.conftest import DEMO
from tests.helpers.server import DemoServer
from xnatfs.archives.http.session import ServerSession, SharedSession
from xnatfs.archives.xnat.archive import XnatArchive
from xnatfs.config import Credentials

Connect = Callable[..., XnatArchive]

# Lists the top directory, says so, lists it again at each further line of input, and closes at its end.
WORKER = """
import sys
from pathlib import Path
from xnatfs.archives.xnat.archive import XnatArchive
from xnatfs.config import Credentials, HttpConfig, TreeConfig
url, directory = sys.argv[1:]
config = HttpConfig(timeout_s=10.0, session_dir=Path(directory))
archive = XnatArchive(url, Credentials("demo", "demo", "test"), config, TreeConfig(), "xnatfs/test")
for line in sys.stdin:
    print(len(archive.children(archive.root()).children["/data/projects"]), flush=True)
archive.close()
"""


class Worker:
    """One process with an archive of its own."""

    def __init__(self, url: str, directory: Path) -> None:
        command = [sys.executable, "-c", WORKER, url, str(directory)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("list\n")
        self.process.stdin.flush()

    def answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def list(self) -> int:
        self.ask()
        return self.answer()

    def end(self) -> None:
        self.process.communicate(timeout=20)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)


Start = Callable[[], Worker]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run" / "xnatfs"


@pytest.fixture
def start(server: DemoServer, directory: Path) -> Iterator[Start]:
    workers: list[Worker] = []

    def build() -> Worker:
        workers.append(Worker(server.url, directory))
        return workers[-1]

    yield build
    for worker in workers:
        if worker.process.poll() is None:
            worker.kill()


def logouts(server: DemoServer) -> int:
    return sum(1 for r in server.settled_log()["requests"] if r["method"] == "DELETE")


def test_eight_processes_that_start_together_share_one_login_and_one_session(start: Start, server: DemoServer) -> None:
    workers = [start() for _ in range(8)]
    for worker in workers:
        worker.ask()
    assert {worker.answer() for worker in workers} == {6}
    log = server.settled_log()
    assert (log["logins"], log["sessions"]) == (1, 1)


def test_the_last_process_ends_the_session_and_removes_its_file(
    start: Start, server: DemoServer, directory: Path
) -> None:
    workers = [start() for _ in range(3)]
    for worker in workers:
        worker.list()
    for worker in workers[:-1]:
        worker.end()
    assert logouts(server) == 0
    assert workers[-1].list() == 6
    workers[-1].end()
    assert logouts(server) == 1
    assert list(directory.iterdir()) == []


def test_a_session_that_the_server_forgot_is_renewed_once_by_all_processes(start: Start, server: DemoServer) -> None:
    workers = [start() for _ in range(8)]
    for worker in workers:
        worker.list()
    server.switch(expire_sessions=True)
    server.clear_log()
    for worker in workers:
        worker.ask()
    assert {worker.answer() for worker in workers} == {6}
    log = server.settled_log()
    assert (log["logins"], log["sessions"]) == (1, 1)


def test_a_session_in_use_elsewhere_is_known_to_be_alive(start: Start, server: DemoServer) -> None:
    server.switch(session_timeout_s=4.0)
    first, second = start(), start()
    first.list()
    for _ in range(10):
        time.sleep(0.5)
        first.list()
    second.list()  # five seconds after the login
    log = server.settled_log()
    assert (log["logins"], log["sessions"]) == (1, 1)


def test_a_killed_process_leaves_a_session_that_the_next_one_takes(start: Start, server: DemoServer) -> None:
    first = start()
    first.list()
    first.kill()
    second = start()
    second.list()
    second.end()
    log = server.settled_log()
    assert log["logins"] == 1
    assert logouts(server) == 1


def test_a_process_stopped_in_its_login_does_not_stop_the_others(
    connect: Connect, server: DemoServer, directory: Path, expected_warnings: list[str]
) -> None:
    expected_warnings.append("another process has been logging in for too long")
    holder = SharedSession(directory, server.url, DEMO)
    with holder.alone(1.0) as alone:
        assert alone
        archive = connect(session_dir=directory, timeout_s=1.0)
        assert archive.children(archive.root()).children


def test_file_and_directory_are_private_whatever_the_umask(start: Start, directory: Path) -> None:
    before = os.umask(0)
    try:
        worker = start()
        worker.list()
    finally:
        os.umask(before)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(directory.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


def test_a_wrong_password_finds_no_session_of_the_right_one(
    connect: Connect, server: DemoServer, directory: Path
) -> None:
    right = connect(session_dir=directory)
    right.children(right.root())
    wrong = connect(Credentials("demo", "wrong", "the test"), session_dir=directory)
    with pytest.raises(PermissionError):
        wrong.children(wrong.root())
    server.switch(unlock=True)


def damage_garble(path: Path) -> None:
    path.write_bytes(b"\x00garbled")


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def damage_cookie(path: Path) -> None:
    path.write_text(path.read_text().replace("JSESSIONID", "Evil: yes\\r\\nX"))


def damage_open(path: Path) -> None:
    path.chmod(0o644)


def damage_link(path: Path) -> None:
    other = path.parent.parent / "elsewhere"
    path.rename(other)
    path.symlink_to(other)


def damage_foreign(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, 12345)


DAMAGES = (damage_garble, damage_empty, damage_cut, damage_cookie, damage_open, damage_link, damage_foreign)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_session_file_that_is_not_sound_is_replaced(
    start: Start, server: DemoServer, directory: Path, damage: Callable[[Path], None]
) -> None:
    first = start()
    first.list()
    first.kill()
    [path] = directory.glob("*.session")
    damage(path)
    second = start()
    assert second.list() == 6
    assert server.settled_log()["logins"] == 2
    [path] = directory.glob("*.session")
    assert path.is_file() and not path.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_uid == os.geteuid()
    assert json.loads(path.read_text())["cookies"]


def test_cookies_of_load_balancers_are_shared_as_well(server: DemoServer, directory: Path) -> None:
    cookies = {"JSESSIONID": "A1.node2", "BIGipServer~Common~xnat": "!x=/+", "route": '{"to": [1, 2]}'}
    ours, theirs = (SharedSession(directory, server.url, DEMO) for _ in range(2))
    with ours.alone(1.0):
        ours.write(ServerSession(cookies))
        found = theirs.read()
    assert found is not None
    assert found.cookies == cookies
    for each in (ours, theirs):
        with each.alone(1.0):
            each.leave()


def test_a_directory_that_cannot_be_had_costs_the_sharing_only(
    connect: Connect, server: DemoServer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    archive = connect(session_dir=tmp_path / "file")
    assert archive.children(archive.root()).children
    archive.close()
    assert logouts(server) == 1


def test_no_cookie_reaches_a_log_or_a_repr(connect: Connect, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    archive = connect(session_dir=directory)
    archive.children(archive.root())
    [path] = directory.glob("*.session")
    cookies = json.loads(path.read_text())["cookies"]
    archive.close()
    assert cookies["JSESSIONID"] not in caplog.text
    assert cookies["JSESSIONID"] not in repr(ServerSession(cookies))


def test_a_killed_holder_of_the_lock_lets_it_go(server: DemoServer, directory: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from xnatfs.archives.http.session import SharedSession; "
        "from xnatfs.config import Credentials\n"
        "with SharedSession(Path(sys.argv[1]), sys.argv[2], Credentials('demo', 'demo', 'test')).alone(5.0):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(directory), server.url]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with SharedSession(directory, server.url, DEMO).alone(1.0) as alone:
        assert alone
