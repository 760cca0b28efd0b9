"""ls, stat and cat in a process of their own against the demo server: right bytes, exit codes, no password in sight.

These need no FUSE; they stand here because they start servers and processes, as mounts do.
"""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.mounting import user_environment, xnatfs
from tests.helpers.server import DemoServer

SCAN = "/DEMO/DEMO_001/DEMO_001_MR1/scans/1-T1w"
SECRET = "s3cret-not-to-be-seen"


@pytest.fixture
def server(own_server: DemoServer) -> DemoServer:
    return own_server


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return user_environment(tmp_path / "home", "demo", "demo")


def run_bytes(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "xnatfs", *arguments]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )


def scan_files(server: DemoServer) -> dict[str, tuple[int, str]]:
    """Path below SCAN -> size and MD5 as the server has them."""
    rows = [row for row in server.truth("DEMO") if row["experiment"] == "DEMO_001_MR1" and row["area"] == "scans"]
    return {f"{row['resource']}/{row['path']}": (row["size"], row["md5"]) for row in rows if row["item"] == "1"}


def test_ls_lists_the_projects_of_the_user(server: DemoServer, environment: dict[str, str]) -> None:
    done = xnatfs("ls", server.url, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "DEMO" in done.stdout.splitlines()
    assert "PRIVATE" not in done.stdout.splitlines()


def test_ls_recursively_in_json_gives_every_file_with_size_and_digest(
    server: DemoServer, environment: dict[str, str]
) -> None:
    done = xnatfs("ls", "-R", "--json", f"{server.url}#{SCAN}", environment=environment)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = {
        row["path"].removeprefix(SCAN + "/"): (row["size"], row["digest"]) for row in rows if row["type"] == "file"
    }
    assert found == scan_files(server)
    assert done.returncode == 0


def test_ls_long_and_recursive_shows_headings_sizes_and_names(server: DemoServer, environment: dict[str, str]) -> None:
    done = xnatfs("ls", "-lR", f"{server.url}#{SCAN}", environment=environment)
    sizes: dict[str, int] = {}
    folder = ""
    for line in done.stdout.splitlines():
        if line.endswith(":"):
            folder = line[:-1]
        elif line.startswith("- "):
            _, size, _, _, name = line.split(maxsplit=4)
            sizes[f"{folder}/{name}".removeprefix(SCAN + "/")] = int(size)
    assert sizes == {path: size for path, (size, _) in scan_files(server).items()}


def test_ls_on_a_terminal_marks_directories(server: DemoServer, environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "xnatfs", "ls", f"{server.url}#/DEMO/DEMO_001"]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=theirs, timeout=60, check=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode().split()
    os.close(ours)
    assert done.returncode == 0
    assert "DEMO_001_MR1/" in shown


def test_cat_gives_the_bytes_of_the_server(server: DemoServer, environment: dict[str, str]) -> None:
    for path, (size, md5) in scan_files(server).items():
        done = run_bytes("cat", f"{server.url}#{SCAN}/{path}", environment=environment)
        assert (done.returncode, done.stderr) == (0, b"")
        assert (len(done.stdout), hashlib.md5(done.stdout).hexdigest()) == (size, md5)
        break


def test_cat_joins_several_files_with_one_login(server: DemoServer, environment: dict[str, str]) -> None:
    files = scan_files(server)
    done = run_bytes("cat", *(f"{server.url}#{SCAN}/{path}" for path in files), environment=environment)
    assert done.returncode == 0
    assert len(done.stdout) == sum(size for size, _ in files.values())
    log = server.settled_log()
    assert (log["logins"], log["sessions"], log["failed_logins"]) == (1, 1, 0)


def test_cat_goes_on_after_a_missing_file_and_says_so(server: DemoServer, environment: dict[str, str]) -> None:
    path, (_, md5) = next(iter(scan_files(server).items()))
    sources = [f"{server.url}#{SCAN}/gone", f"{server.url}#{SCAN}/{path}", f"{server.url}#{SCAN}"]
    done = run_bytes("cat", *sources, environment=environment)
    assert done.returncode == 1
    assert hashlib.md5(done.stdout).hexdigest() == md5
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("xnatfs: ") and f"{SCAN}/gone" in lines[0]
    assert lines[1] == f"xnatfs: {SCAN}: Is a directory"


def test_a_body_cut_short_is_a_failure_not_a_short_file(server: DemoServer, environment: dict[str, str]) -> None:
    path = next(path for path, (size, _) in scan_files(server).items() if size > 10_000)
    server.fault(r"/files/", "short", at=5_000, times=None)
    done = run_bytes("cat", "--timeout", "3s", f"{server.url}#{SCAN}/{path}", environment=environment)
    assert done.returncode in (1, 4)
    assert len(done.stdout) <= 5_000
    assert done.stderr.startswith(b"xnatfs: ")


def test_a_reader_that_goes_away_ends_cat_quietly(server: DemoServer, environment: dict[str, str]) -> None:
    source = f"{server.url}#/BIG/BIG_1/BIG_1_MR/scans/3-bold100m/NIFTI/bold_100m.nii"
    command = f"'{sys.executable}' -m xnatfs cat '{source}' | head -c 4 | od -An -tx1"
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["5c", "01", "00", "00"]  # 348, the length of a NIfTI-1 header


def test_stat_tells_what_is_known(server: DemoServer, environment: dict[str, str]) -> None:
    path, (size, md5) = next(iter(scan_files(server).items()))
    done = xnatfs("stat", "--json", f"{server.url}#{SCAN}/{path}", environment=environment)
    facts = json.loads(done.stdout)
    assert (facts["type"], facts["size"], facts["digest"]) == ("file", size, md5)
    assert facts["path"] == f"{SCAN}/{path}"
    assert facts["uri"]
    session = xnatfs("stat", f"{server.url}#/DEMO/DEMO_001/DEMO_001_MR1", environment=environment).stdout
    lines = dict(line.split(": ", 1) for line in session.splitlines())
    assert (lines["type"], lines["xsitype"]) == ("directory", "xnat:mrSessionData")
    assert lines["id"].startswith("XNAT_E")


def test_a_path_that_is_not_there_gives_1(server: DemoServer, environment: dict[str, str]) -> None:
    done = xnatfs("ls", f"{server.url}#/DEMO/NOBODY", environment=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert "/DEMO/NOBODY" in done.stderr.splitlines()[0]


def test_a_server_that_is_not_there_gives_4_and_a_hint(environment: dict[str, str]) -> None:
    done = xnatfs("ls", "--timeout", "2s", "http://127.0.0.1:9", environment=environment)
    assert (done.returncode, done.stdout) == (4, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("xnatfs: ") and "127.0.0.1:9" in lines[0]
    assert lines[1].startswith("hint: ")


def test_a_wrong_password_gives_3_and_costs_one_failed_login(server: DemoServer, tmp_path: Path) -> None:
    environment = user_environment(tmp_path / "home", "demo", SECRET)
    done = xnatfs("cat", "-vv", f"{server.url}#{SCAN}/a", f"{server.url}#{SCAN}/b", environment=environment)
    assert (done.returncode, done.stdout) == (3, "")
    assert "accounts lock after repeated failures" in done.stderr.splitlines()[-1]
    assert "XNAT_USER and XNAT_PASS" in done.stderr.splitlines()[-1]
    assert server.log()["failed_logins"] == 1


def test_no_login_where_one_is_needed_gives_3_and_says_how(server: DemoServer, tmp_path: Path) -> None:
    done = xnatfs("ls", server.url, environment=user_environment(tmp_path / "home", None, None))
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("hint: ")
    assert "XNAT_USER" in done.stderr.splitlines()[-1]


def test_the_password_is_in_no_output_log_or_file(server: DemoServer, tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = user_environment(home, None, None)
    host = server.url.removeprefix("http://")
    netrc = home / ".netrc"
    netrc.write_text(f"machine {host} login demo password {SECRET}\n")
    netrc.chmod(0o600)
    log = tmp_path / "log"
    done = xnatfs("ls", "-vv", "--log-file", log, server.url, environment=environment)
    assert done.returncode == 3
    assert log.stat().st_mode & 0o777 == 0o600
    for text in (done.stdout, done.stderr, log.read_text()):
        assert SECRET not in text
    for path in tmp_path.rglob("*"):
        assert path == netrc or not path.is_file() or SECRET.encode() not in path.read_bytes()


def test_credentials_of_a_file_that_others_can_read_are_not_sent(server: DemoServer, tmp_path: Path) -> None:
    environment = user_environment(tmp_path / "home", None, None)
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text("machine 127.0.0.1 login demo password demo\n")
    netrc.chmod(0o644)
    done = xnatfs("ls", server.url, environment=environment)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        f"xnatfs: {netrc} holds a password and other users can read it",
        f"hint: run: chmod 600 {netrc}",
    ]
    assert server.log()["requests"] == []


def test_what_was_read_once_is_not_fetched_again(server: DemoServer, environment: dict[str, str]) -> None:
    path, (_, md5) = next(iter(scan_files(server).items()))
    for _ in range(2):
        done = run_bytes("cat", f"{server.url}#{SCAN}/{path}", environment=environment)
        assert hashlib.md5(done.stdout).hexdigest() == md5
    assert len(server.data_requests()) == 1
