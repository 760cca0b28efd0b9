"""No secret where it does not belong: after every kind of run, everything that was said or written is searched.

Searched for are the password, its encodings as they travel, every session id and token secret the server has issued.
They may stand in three files of the user's own, mode 0600: what the user wrote (netrc), the stored token, and the
session that processes share.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import stat
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.mounting import mounted, user_environment, xnatfs
from tests.helpers.server import DemoServer

PASSWORD = "pa55:w0rd/ÜnÏque?&"  # with characters that every encoding changes
PROJECT = "HCP_DEMO"


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        server.switch(passwords={"demo": PASSWORD})
        yield server


def files_below(room: Path) -> Iterator[Path]:
    """Every file of a room but what is mounted there."""
    for where, folders, names in os.walk(room):
        if Path(where) == room and "mnt" in folders:
            folders.remove("mnt")
        yield from (Path(where, name) for name in names)


class Search:
    """Looks for every secret of a server in what a run has left."""

    def __init__(self, server: DemoServer, room: Path) -> None:
        self._server = server
        self._room = room

    def needles(self) -> set[bytes]:
        found = set()
        for password in (PASSWORD, PASSWORD + "-wrong"):
            raw = password.encode()
            found |= {raw, urllib.parse.quote(password, safe="").encode(), base64.b64encode(raw)}
            found |= {base64.b64encode(b"demo:" + raw), json.dumps(password).encode()[1:-1]}
        issued = self._server.issued()
        assert issued, "nobody has logged in: the search would prove nothing"
        return found | {each.encode() for each in issued}

    def text(self, *texts: str | bytes) -> None:
        for text in texts:
            data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
            found = [needle for needle in self.needles() if needle in data]
            assert found == [], f"a secret in: {data[:2000]!r}"

    def files(self, *spared: Path) -> list[Path]:
        """Every file below the room, but for ``spared``; returns those searched."""
        needles = self.needles()
        searched = []
        for path in files_below(self._room):
            if path in spared or not stat.S_ISREG(path.lstat().st_mode):
                continue
            data = path.read_bytes()
            assert [needle for needle in needles if needle in data] == [], f"a secret in {path}"
            searched.append(path)
        return searched

    def process(self, pid: int, environment: bool) -> None:
        self.text(Path(f"/proc/{pid}/cmdline").read_bytes())
        if environment:
            self.text(Path(f"/proc/{pid}/environ").read_bytes())


@pytest.fixture
def search(server: DemoServer, tmp_path: Path) -> Search:
    return Search(server, tmp_path)


def session_files(room: Path) -> list[Path]:
    """The one place where a session id may lie: private to the user."""
    found = [path for path in (room / "home" / "run").rglob("*") if path.is_file()]
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    return found


def with_netrc(server: DemoServer, room: Path) -> Path:
    netrc = room / "home" / ".netrc"
    netrc.parent.mkdir(parents=True, exist_ok=True)
    quoted = PASSWORD.replace("\\", "\\\\").replace('"', '\\"')
    netrc.write_text(f'machine 127.0.0.1 login demo password "{quoted}"\n', encoding="utf-8")
    netrc.chmod(0o600)
    return netrc


def read_all(folder: Path) -> int:
    return sum(len(Path(where, name).read_bytes()) for where, _, names in os.walk(folder) for name in names)


Trouble = Callable[[DemoServer], None]

TROUBLES: dict[str, Trouble] = {
    "none": lambda server: None,
    "every request fails once": lambda server: server.fault("/data/", "status", status=503, times=20),
    "sessions expire": lambda server: server.switch(expire_sessions=True),
    "pages in place of data": lambda server: server.fault("/data/", "html", times=None),
    "an outage": lambda server: server.switch(outage=True),
    "the password is changed": lambda server: server.switch(passwords={"demo": "another"}, expire_sessions=True),
}


@pytest.mark.fuse
@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda name: name.replace(" ", "-"))
def test_a_mount_leaves_no_secret_in_argv_environment_log_cache_status_or_control_socket(
    server: DemoServer, search: Search, tmp_path: Path, trouble: str
) -> None:
    netrc = with_netrc(server, tmp_path)
    # What is read first has to come on a busy machine, too; no trouble here is one that waits for a timeout.
    with mounted(server.url, tmp_path, "-vv", "--timeout", "5s", "--metadata-ttl", "1s") as mount:
        assert mount.process is not None
        assert read_all(mount.path / PROJECT) > 0
        TROUBLES[trouble](server)
        for _ in range(3):
            try:
                read_all(mount.path / "DEMO")
                os.listdir(mount.path / PROJECT)
            except OSError:
                pass
            time.sleep(0.4)
        search.process(mount.process.pid, environment=True)
        environment = user_environment(tmp_path / "home", None, None)
        for words in (["status"], ["status", "--json"]):
            said = xnatfs(*words, environment=environment)
            search.text(said.stdout, said.stderr)
        search.files(netrc, *session_files(tmp_path))
    assert mount.log in search.files(netrc, *session_files(tmp_path))
    assert any(path.is_relative_to(mount.cache) for path in search.files(netrc, *session_files(tmp_path)))


@pytest.mark.fuse
def test_a_killed_mount_leaves_none_either(server: DemoServer, search: Search, tmp_path: Path) -> None:
    netrc = with_netrc(server, tmp_path)
    with mounted(server.url, tmp_path, "-vv") as mount:
        read_all(mount.path / PROJECT)
        mount.kill()
    search.files(netrc, *session_files(tmp_path))


COMMANDS: dict[str, list[str]] = {
    "ls": ["ls", "-R", "-vv", "URL#/HCP_DEMO"],
    "cat of what is not there": ["cat", "-vv", "URL#/HCP_DEMO/none"],
    "stat": ["stat", "-vv", "--json", "URL#/HCP_DEMO"],
    "get": ["get", "-vv", "--report", "ROOM/report.json", "URL#/HCP_DEMO", "ROOM/copy"],
    "doctor": ["doctor", "-vv", "URL"],
    "config": ["config", "show"],
    "cache": ["cache", "info"],
}


@pytest.mark.parametrize("name", COMMANDS, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.parametrize("password", [PASSWORD, PASSWORD + "-wrong"], ids=["right", "wrong"])
def test_no_command_says_or_writes_a_secret_however_it_ends(
    server: DemoServer, search: Search, tmp_path: Path, name: str, password: str
) -> None:
    with_session = xnatfs("ls", server.url, environment=user_environment(tmp_path / "first", "demo", PASSWORD))
    assert with_session.returncode == 0
    words = [word.replace("URL", server.url).replace("ROOM", str(tmp_path)) for word in COMMANDS[name]]
    log = tmp_path / "log"
    if "-vv" in words:
        words.insert(1, f"--log-file={log}")
    done = xnatfs(*words, environment=user_environment(tmp_path / "home", "demo", password))
    assert done.returncode in (0, 1, 3)
    search.text(done.stdout, done.stderr)
    search.files(*session_files(tmp_path))
    assert "-vv" not in words or stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_token_lies_in_its_own_private_file_and_the_password_nowhere(
    server: DemoServer, search: Search, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    assert xnatfs("login", "-vv", server.url, environment=user_environment(home, "demo", PASSWORD)).returncode == 0
    tokens = home / ".config" / "xnatfs" / "tokens.json"
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o600
    assert stat.S_IMODE(tokens.parent.stat().st_mode) == 0o700
    assert PASSWORD.encode() not in tokens.read_bytes()
    nobody = user_environment(home, None, None)
    for words in (["ls", "-vv", server.url], ["doctor", server.url], ["logout", server.url]):
        done = xnatfs(*words, environment=nobody)
        assert done.returncode == 0, done.stderr
        search.text(done.stdout, done.stderr)
        search.files(tokens, *session_files(tmp_path))
    search.files(*session_files(tmp_path))  # after the logout, the token file holds nothing either


@pytest.mark.fuse
def test_an_unexpected_failure_with_a_traceback_shows_no_secret(
    server: DemoServer, search: Search, tmp_path: Path
) -> None:
    """-vv prints tracebacks: none of their lines, nor any repr in them, holds a secret."""
    environment = user_environment(tmp_path / "home", "demo", PASSWORD)
    assert xnatfs("ls", server.url, environment=environment).returncode == 0
    fresh = ("--cache-dir", str(tmp_path / "fresh"))  # no stored listing answers
    server.fault("/data/projects", "html", times=None)
    done = xnatfs("ls", "-vv", *fresh, server.url, environment=environment)
    assert done.returncode == 4
    search.text(done.stderr)
    server.clear_faults()
    server.fault("/data/projects", "reset", times=None)
    done = xnatfs("ls", "-vv", "--timeout", "1s", *fresh, server.url, environment=environment)
    assert "Traceback" in done.stderr
    search.text(done.stderr)


# --- who may do what --------------------------------------------------------------------------------------------------


@pytest.mark.fuse
def test_every_file_a_mount_makes_is_its_users_alone(server: DemoServer, tmp_path: Path) -> None:
    with_netrc(server, tmp_path)
    old = os.umask(0)
    try:
        with mounted(server.url, tmp_path, "--log-file", str(tmp_path / "log"), "-v") as mount:
            read_all(mount.path / PROJECT)
            xnatfs("status", environment=user_environment(tmp_path / "home", None, None))
            time.sleep(0.5)
            made = [mount.cache, *mount.cache.rglob("*"), tmp_path / "log", *session_files(tmp_path)]
            for path in made:
                try:
                    mode = path.lstat().st_mode
                except FileNotFoundError:  # it was on its way to the name that it has now
                    continue
                assert not stat.S_ISLNK(mode)
                assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), path
            assert len(made) > 5
    finally:
        os.umask(old)


@pytest.mark.fuse
def test_other_users_are_kept_out_unless_allow_other_is_given(server: DemoServer, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    tmp_path.chmod(0o755)
    for above in tmp_path.parents[:3]:
        above.chmod(above.stat().st_mode | 0o055)
    with_netrc(server, tmp_path)
    stranger = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls"]
    with mounted(server.url, tmp_path) as mount:
        refused = subprocess.run([*stranger, mount.path], capture_output=True, text=True, check=False)
        assert refused.returncode != 0
        assert "Permission denied" in refused.stderr
    with mounted(server.url, tmp_path, "--allow-other") as mount:
        seen = subprocess.run([*stranger, mount.path], capture_output=True, text=True, check=False)
        assert "DEMO" in seen.stdout.split(), seen.stderr


@pytest.mark.fuse
def test_the_control_socket_answers_its_user_and_nobody_else(server: DemoServer, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    with_netrc(server, tmp_path)
    with mounted(server.url, tmp_path) as mount:
        path = mount.control_socket
        assert path is not None
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        child = os.fork()
        if child == 0:  # a stranger who has come by the directory somehow
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
                os.fchdir(directory)
                os.setgid(65534)
                os.setuid(65534)
                try:
                    client.connect(path.name)
                    os._exit(1 if client.recv(100) else 0)
                except OSError:
                    os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
