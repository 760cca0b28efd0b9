"""`xnatfs doctor` as a command: a line a check, a hint where something is wrong, the right exit code, no secret."""

from __future__ import annotations

import http.server
import json
import os
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.mounting import user_environment, xnatfs
from tests.helpers.object_server import ObjectServer
from tests.helpers.server import DemoServer
from xnatfs.cli.doctor import OK, WARN, _clock
from xnatfs.cli.main import main
from xnatfs.frontends import mountpoint

Doctor = Callable[..., subprocess.CompletedProcess[str]]

needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="FUSE is missing here, rightly said"
)


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    def run(*arguments: str, user: str | None = None, password: str | None = None) -> subprocess.CompletedProcess[str]:
        return xnatfs("doctor", *arguments, environment=user_environment(tmp_path / "home", user, password))

    return run


def levels(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Check -> level, from the text."""
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    return {line[6:18].strip(): line[:4].strip() for line in lines}


def line_of(done: subprocess.CompletedProcess[str], name: str) -> str:
    """A check's line, and its hint where it has one."""
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line[6:18].strip() == name)
    return "\n".join(lines[at : at + 2 if lines[at + 1 : at + 2] and lines[at + 1].startswith(" ") else at + 1])


@needs_fuse
def test_where_all_is_well_every_line_is_ok_and_the_code_0(doctor: Doctor, server: DemoServer) -> None:
    done = doctor(server.url, user="demo", password="demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert set(levels(done).values()) == {"ok"}
    checks = "xnatfs config FUSE libfuse fusermount cache sessions credentials way server clock login projects files"
    assert list(levels(done)) == [*checks.split(), "Range", "digests"]
    assert "demo, from XNAT_USER and XNAT_PASS" in line_of(done, "credentials")
    assert "XNAT 1.8.10" in line_of(done, "server")
    assert "logged in as demo" in line_of(done, "login")
    assert "6 visible" in line_of(done, "projects")
    assert "not honoured" in line_of(done, "Range")


def test_it_costs_one_login_leaves_no_session_and_shows_no_secret(doctor: Doctor, server: DemoServer) -> None:
    environment = {"user": "demo", "password": "demo"}
    done = doctor("-vv", server.url, **environment)
    log = server.settled_log()
    assert log["logins"] == 1
    ended = sum(1 for r in log["requests"] if r["method"] == "DELETE")
    assert ended == log["sessions"]
    sessions = {r["session"] for r in log["requests"] if r["session"]}
    assert not any(session in done.stdout + done.stderr for session in sessions)


def test_a_server_that_honours_range_is_told_apart(doctor: Doctor, server: DemoServer) -> None:
    server.switch(range=True)
    done = doctor(server.url, user="demo", password="demo")
    assert line_of(done, "Range").endswith("honoured")


@needs_fuse
def test_json_holds_the_same_findings(doctor: Doctor, server: DemoServer) -> None:
    done = doctor(server.url, "--json", user="demo", password="wr0ng")
    findings = json.loads(done.stdout)
    [login] = [each for each in findings if each["name"] == "login"]
    assert (login["level"], login["exit_code"], done.returncode) == ("fail", 3, 3)
    assert set(login) == {"name", "level", "says", "hint", "exit_code"}
    assert "wr0ng" not in done.stdout + done.stderr
    server.switch(unlock=True)


@needs_fuse
def test_a_wrong_password_is_tried_once_and_gives_3(doctor: Doctor, server: DemoServer) -> None:
    done = doctor(server.url, user="demo", password="wr0ng")
    assert done.returncode == 3
    assert levels(done)["server"] == "ok"
    assert levels(done)["login"] == "fail"
    assert "accounts lock" in line_of(done, "login")
    assert server.settled_log()["failed_logins"] == 1
    server.switch(unlock=True)


@needs_fuse
def test_a_guest_is_warned_and_at_a_closed_site_refused(doctor: Doctor, server: DemoServer) -> None:
    done = doctor(server.url)
    assert (done.returncode, levels(done)["credentials"], levels(done)["login"]) == (3, "warn", "fail")
    assert "xnatfs login" in line_of(done, "credentials")
    server.switch(guests=True)
    done = doctor(server.url)
    assert done.returncode == 0
    assert line_of(done, "login").endswith("as a guest")


@needs_fuse
def test_a_server_that_is_away_gives_4_and_what_is_known_besides(doctor: Doctor) -> None:
    done = doctor("http://127.0.0.1:9", user="demo", password="demo")
    assert done.returncode == 4
    assert levels(done)["server"] == "fail"
    assert "nobody answers there" in line_of(done, "server")
    assert levels(done)["cache"] == "ok"


@needs_fuse
def test_something_else_than_xnat_gives_4_and_says_so(doctor: Doctor) -> None:
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    done = doctor(f"http://127.0.0.1:{other.server_port}", user="demo", password="demo")
    other.shutdown()
    other.server_close()
    assert done.returncode == 4
    assert levels(done)["login"] == "fail"


@needs_fuse
def test_terms_that_are_not_accepted_are_named_with_the_address(doctor: Doctor, server: DemoServer) -> None:
    server.fault("/data/projects", "html", times=None)
    done = doctor(server.url, user="demo", password="demo")
    assert done.returncode == 4
    assert "web page" in line_of(done, "projects")
    assert f"open {server.url} in a browser" in line_of(done, "projects")


@needs_fuse
def test_a_secrets_file_that_others_can_read_gives_3_with_the_chmod(
    doctor: Doctor, server: DemoServer, tmp_path: Path
) -> None:
    netrc = tmp_path / "home" / ".netrc"
    netrc.parent.mkdir()
    netrc.write_text("machine 127.0.0.1 login demo password demo\n")
    netrc.chmod(0o644)
    done = doctor(server.url)
    assert done.returncode == 3
    assert f"chmod 600 {netrc}" in line_of(done, "credentials")
    assert "server" not in levels(done)


def test_without_a_source_no_server_is_asked(doctor: Doctor, server: DemoServer) -> None:
    done = doctor()
    assert "credentials" in levels(done)
    assert "server" not in levels(done)
    assert server.settled_log()["requests"] == []


def test_a_cache_that_others_can_enter_is_warned_of_and_one_that_cannot_be_written_fails(
    doctor: Doctor, tmp_path: Path
) -> None:
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o755)
    assert f"run: chmod 700 {loose}" in line_of(doctor("--cache-dir", str(loose)), "cache")
    assert stat.S_IMODE(loose.stat().st_mode) == 0o755  # looked at, not touched
    (tmp_path / "file").write_text("")
    done = doctor("--cache-dir", str(tmp_path / "file"))
    assert levels(done)["cache"] == "fail"
    assert done.returncode != 0


def test_no_fuse_gives_5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(mountpoint, "DEVICE", tmp_path / "fuse")
    assert main(["doctor"]) == 5
    out = capsys.readouterr().out
    assert "fail  FUSE" in out and "modprobe fuse" in out


def test_clocks_that_differ_are_a_warning() -> None:
    assert _clock(0.4).level == OK
    assert _clock(-300.0).level == WARN
    assert "300 s" in _clock(-300.0).says


@needs_fuse
def test_a_bucket_is_looked_at_as_one_and_gets_no_password_of_xnat(doctor: Doctor) -> None:
    with ObjectServer() as objects:
        objects.fill("bucket", {"a": b"", "b/c": b""})
        done = doctor(f"s3://bucket?endpoint={objects.url}", user="mary", password="s3cret")
        assert done.returncode == 0, done.stdout
        assert "2 names at its top" in line_of(done, "archive")
        assert "guest" in line_of(done, "credentials")
        assert all("Authorization" not in asked.headers for asked in objects.asked)
        missing = doctor(f"s3://missing?endpoint={objects.url}")
    assert missing.returncode != 0
    assert levels(missing)["archive"] == "fail"


def test_what_is_no_xnat_server_has_no_login(tmp_path: Path) -> None:
    done = xnatfs("login", "s3://bucket", environment=user_environment(tmp_path / "home", None, None))
    assert done.returncode == 2
    assert "no XNAT server" in done.stderr
