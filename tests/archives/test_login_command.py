"""`xnatfs login` and `logout` as commands against the demo server: tokens issued, used, renewed, ended."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.mounting import user_environment, xnatfs
from tests.helpers.server import DemoServer

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def run(home: Path) -> Run:
    """Run a command of someone who has typed no password anywhere."""
    environment = user_environment(home, None, None)
    return lambda *arguments: xnatfs(*arguments, environment=environment)


def token_file(home: Path) -> Path:
    return home / ".config" / "xnatfs" / "tokens.json"


def stored(home: Path, server: DemoServer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(token_file(home).read_text())["tokens"][server.url]
    return found


def log_in(home: Path, server: DemoServer) -> None:
    done = xnatfs("login", server.url, environment=user_environment(home, "demo", "demo"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Logged in to {server.url} as demo; the token serves until 2")


def test_a_token_serves_in_place_of_the_password_until_logout(server: DemoServer, home: Path, run: Run) -> None:
    log_in(home, server)
    alias, secret = stored(home, server)["alias"], stored(home, server)["secret"]
    done = run("ls", server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "DEMO" in done.stdout.split()
    done = run("logout", server.url)
    assert (done.returncode, done.stdout) == (0, f"Logged out of {server.url}.\n")
    assert secret not in token_file(home).read_text()
    environment = user_environment(home, alias, secret)
    assert xnatfs("ls", server.url, environment=environment).returncode == 3  # it has ended on the server as well


def test_login_leaves_no_session_and_no_password(server: DemoServer, home: Path) -> None:
    log_in(home, server)
    log = server.settled_log()
    assert log["sessions"] == sum(1 for r in log["requests"] if r["method"] == "DELETE") == 1
    assert log["logins"] == 1
    assert "password" not in token_file(home).read_text()


def test_a_wrong_password_is_tried_once_and_nothing_is_stored(server: DemoServer, home: Path) -> None:
    done = xnatfs("login", server.url, environment=user_environment(home, "demo", "wr0ng"))
    assert done.returncode == 3
    assert "refused" in done.stderr and "wr0ng" not in done.stderr
    assert not token_file(home).exists()
    assert server.settled_log()["failed_logins"] == 1
    server.switch(unlock=True)


def test_user_and_password_can_come_from_a_file(server: DemoServer, home: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("demo\ndemo\n")
    key.chmod(0o600)
    environment = user_environment(home, "demo", "wr0ng")
    done = xnatfs("login", "--credentials", key, server.url, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert token_file(home).exists()


def test_beside_a_damaged_file_of_tokens_none_is_asked_for(server: DemoServer, home: Path) -> None:
    log_in(home, server)
    token_file(home).write_text("{")
    server.clear_log()
    done = xnatfs("login", server.url, environment=user_environment(home, "demo", "demo"))
    assert done.returncode == 3
    assert "is not what `xnatfs login` writes" in done.stderr
    assert server.settled_log()["requests"] == []


def test_a_token_that_could_not_be_kept_is_not_asked_for(server: DemoServer, home: Path) -> None:
    environment = user_environment(home, "demo", "demo")
    home.joinpath(".config").write_text("a file where a directory should be")
    done = xnatfs("login", server.url, environment=environment)
    assert done.returncode == 3
    assert "cannot hold tokens" in done.stderr
    assert server.settled_log()["requests"] == []


def test_user_and_password_can_be_piped(server: DemoServer, home: Path) -> None:
    command = [sys.executable, "-m", "xnatfs", "login", server.url]
    environment = user_environment(home, None, None)
    done = subprocess.run(command, input="demo\ndemo\n", env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [*command, "--user", "demo"], input="demo\n", env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run(command, input="demo\n", env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 3
    assert "pipe two lines" in done.stderr


def test_on_a_terminal_it_asks_and_does_not_show_the_password(server: DemoServer, home: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(
            sys.executable,
            [sys.executable, "-m", "xnatfs", "login", server.url],
            user_environment(home, "other", "not-used"),  # a terminal comes first
        )
    seen = b""
    for asked, typed in ((b"User at", b"demo\n"), (b"Password of demo", b"demo\n"), (b"Logged in", b"")):
        while asked not in seen:
            seen += os.read(terminal, 1000)
        while asked.startswith(b"Password") and termios.tcgetattr(terminal)[3] & termios.ECHO:
            time.sleep(0.01)  # the echo is switched off just after the question
        os.write(terminal, typed)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    assert seen.count(b"demo\r\n") == 1  # the user's name, echoed; not the password
    assert stored(home, server)["user"] == "demo"


def test_a_token_in_the_second_half_of_its_life_is_renewed_by_itself_once(
    server: DemoServer, home: Path, run: Run
) -> None:
    server.switch(token_life_s=3600.0)
    log_in(home, server)
    first = stored(home, server)
    document = json.loads(token_file(home).read_text())
    document["tokens"][server.url]["since_s"] = time.time() - 7200
    token_file(home).write_text(json.dumps(document))
    server.switch(token_life_s=172800.0)
    assert run("ls", server.url).returncode == 0
    second = stored(home, server)
    assert second["alias"] != first["alias"]
    assert second["until_s"] > first["until_s"] + 86400
    server.clear_log()
    assert run("ls", server.url).returncode == 0
    assert not [r for r in server.settled_log()["requests"] if "tokens" in r["path"]]


def test_a_token_that_cannot_be_renewed_is_announced_and_still_used(server: DemoServer, home: Path, run: Run) -> None:
    log_in(home, server)
    document = json.loads(token_file(home).read_text())
    document["tokens"][server.url]["since_s"] = time.time() - 10 * 86400
    token_file(home).write_text(json.dumps(document))
    server.fault("tokens/issue", "status", status=404, times=None)
    done = run("ls", server.url)
    assert done.returncode == 0
    assert f"warning: the token for {server.url} ends in 4" in done.stderr


@pytest.mark.parametrize("status", [401, 403])
def test_a_dead_token_gives_one_line_a_hint_and_3(server: DemoServer, home: Path, run: Run, status: int) -> None:
    log_in(home, server)
    server.clear_log()
    if status == 403:
        server.fault("/data/JSESSION", "status", status=403, times=1, method="GET")
    else:
        alias, secret = stored(home, server)["alias"], stored(home, server)["secret"]
        document = token_file(home).read_text().replace(secret, "0" * len(secret))
        token_file(home).write_text(document)
        assert alias in document
    done = run("ls", server.url)
    assert done.returncode == 3
    line, hint = done.stderr.splitlines()
    assert "the stored token is no longer accepted" in line
    assert hint == f"hint: run: xnatfs login {server.url}"
    server.switch(unlock=True)


def test_logout_of_a_server_that_is_away_forgets_the_token_and_says_that_it_lives_on(home: Path, run: Run) -> None:
    with DemoServer() as server:
        log_in(home, server)
    secret = stored(home, server)["secret"]
    done = run("logout", "-vv", server.url)
    assert done.returncode == 4
    assert secret not in done.stderr
    assert "the token lives on at the server" in done.stderr
    assert server.url not in json.loads(token_file(home).read_text())["tokens"]


def test_logout_without_a_server_ends_all_and_with_an_unknown_one_names_the_known(
    server: DemoServer, home: Path, run: Run
) -> None:
    log_in(home, server)
    done = run("logout", "https://other.example.org")
    assert done.returncode == 3
    assert server.url in done.stderr
    assert run("logout").returncode == 0
    assert run("logout").stdout == "There is no token to end.\n"
