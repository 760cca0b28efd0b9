"""``xnatfs get``: what it copies, what it leaves out, what it says when something fails, and how it goes on."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.helpers.mounting import user_environment, xnatfs
from tests.helpers.server import DemoServer

MIB = 1024 * 1024
BIG = "BIG/BIG_1/BIG_1_MR/scans/3-bold100m/NIFTI"


@pytest.fixture
def server(own_server: DemoServer) -> DemoServer:
    return own_server


class User:
    """Runs ``xnatfs get`` with a home and a cache of its own."""

    def __init__(self, server: DemoServer, home: Path) -> None:
        self.server = server
        self.environment = user_environment(home, "demo", "demo")
        self.dest = home / "copy"

    def get(self, path: str, *words: str) -> subprocess.CompletedProcess[str]:
        return xnatfs("get", f"{self.server.url}#/{path}", self.dest, *words, environment=self.environment)

    def ls(self, path: str) -> list[dict[str, object]]:
        done = xnatfs("ls", "-R", "--json", f"{self.server.url}#/{path}", environment=self.environment)
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def user(server: DemoServer, tmp_path: Path) -> User:
    return User(server, tmp_path)


def copied(folder: Path) -> dict[str, str]:
    """Path below ``folder`` -> MD5 of every file there."""
    return {
        str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def project() -> str:
    """A project of the sample with some twenty small files."""
    return "HCP_DEMO"


def truth_of(server: DemoServer, project: str) -> set[str]:
    return {row["md5"] for row in server.truth(project, md5="all")}


def test_a_project_is_copied_with_every_byte_and_a_second_run_asks_for_no_data(user: User, project: str) -> None:
    first = user.get(project)
    assert first.returncode == 0, first.stderr
    files = copied(user.dest)
    assert truth_of(user.server, project) <= set(files.values())
    assert not [name for name in files if ".xnatfs-part-" in name]
    user.server.clear_log()
    again = user.get(project)
    assert again.returncode == 0, again.stderr
    assert "0 files done" in again.stderr
    assert f"{len(files)} there already" in again.stderr
    assert user.server.data_requests() == []


def test_times_and_versions_are_kept_with_the_file(user: User, project: str) -> None:
    user.get(project)
    listed = {str(row["path"]): row for row in user.ls(project) if row["type"] == "file" and row["mtime"]}
    assert listed
    for path, row in listed.items():
        found = (user.dest / path.removeprefix(f"/{project}/")).stat()
        assert found.st_size == row["size"]
        assert time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.st_mtime)) == row["mtime"]


def test_one_file_goes_into_a_directory_or_under_the_name_given(user: User) -> None:
    assert user.get(f"{BIG}/bold_100m.nii").returncode == 0
    whole = hashlib.md5(user.dest.read_bytes()).hexdigest()
    assert whole == next(row["md5"] for row in user.server.truth("BIG", md5="all") if row["name"] == "bold_100m.nii")
    user.dest.unlink()
    user.dest.mkdir()
    assert user.get(f"{BIG}/bold_100m.nii").returncode == 0
    assert (user.dest / "bold_100m.nii").stat().st_size > 95 * MIB


def test_a_slash_at_the_end_of_the_destination_means_a_directory(user: User) -> None:
    for _ in range(2):
        done = xnatfs("get", f"{user.server.url}#/DEMO/subjects.csv", f"{user.dest}/", environment=user.environment)
        assert done.returncode == 0, done.stderr
        assert list(copied(user.dest)) == ["subjects.csv"]


def test_a_path_without_its_mark_and_an_empty_destination_are_told_in_two_lines(user: User, project: str) -> None:
    for source, dest, code in [(f"{user.server.url}/{project}", "copy", 4), (f"{user.server.url}#/{project}", "", 2)]:
        done = xnatfs("get", source, dest, environment=user.environment)
        said = done.stderr.splitlines()
        assert (done.returncode, len(said), said[1][:5]) == (code, 2, "hint:"), done.stderr
    assert "follows a #" in xnatfs("ls", f"{user.server.url}/{project}", environment=user.environment).stderr


def test_a_directory_onto_a_file_is_refused_in_one_line(user: User, project: str) -> None:
    user.dest.write_text("mine")
    done = user.get(project)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 2)
    assert "is no directory" in done.stderr
    assert user.dest.read_text() == "mine"


def test_a_destination_that_cannot_be_made_is_told_in_one_line(user: User, project: str) -> None:
    user.dest.write_text("mine")
    done = xnatfs("get", f"{user.server.url}#/{project}", user.dest / "below", environment=user.environment)
    assert (done.returncode, done.stderr) == (1, f"xnatfs: {user.dest}/below: Not a directory\n")


def test_a_pipe_and_what_leads_to_standard_output_are_not_replaced_by_a_file(user: User) -> None:
    out = user.dest.with_name("stdout")
    out.symlink_to("/proc/self/fd/1")
    user.dest.mkdir()
    os.mkfifo(user.dest / "subjects.csv")
    done = user.get("DEMO/subjects.csv", "--report", str(out))
    assert done.returncode == 1
    assert "is a device or a pipe" in done.stderr
    assert json.loads(done.stdout)["failures"][0]["error"] == "EEXIST"
    assert (user.dest / "subjects.csv").is_fifo()
    assert out.is_symlink()


def test_a_report_that_cannot_be_written_is_said_before_anything_is_copied(user: User, project: str) -> None:
    done = user.get(project, "--report", str(user.dest.with_name("none") / "report.json"))
    assert done.returncode == 2
    assert "none/report.json: No such file or directory" in done.stderr
    assert not user.dest.exists()


def test_a_dry_run_prints_what_would_be_copied_and_writes_nothing(user: User, project: str) -> None:
    dry = user.get(project, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert not user.dest.exists()
    assert f"{len(dry.stdout.splitlines())} files to do" in dry.stderr
    user.get(project)
    assert {f"/{project}/{name}" for name in copied(user.dest)} == set(dry.stdout.splitlines())
    assert user.get(project, "--dry-run").stdout == ""


def test_what_fails_is_reported_the_rest_is_copied_and_the_next_run_gets_only_that(user: User, project: str) -> None:
    names = sorted(row["name"] for row in user.server.truth(project) if row["size"] > 100)
    victim = names[0]
    user.server.fault(f"/files/.*{victim}$", "status", status=404, times=None)
    user.server.fault("format=zip", "status", status=404, times=None)
    report = user.dest.parent / "report.json"
    broken = user.get(project, "--report", str(report), "--jobs", "2")
    assert broken.returncode == 1
    assert victim in broken.stderr
    facts = json.loads(report.read_text())
    assert {Path(failure["path"]).name for failure in facts["failures"]} == {victim}
    assert {failure["error"] for failure in facts["failures"]} == {"ENOENT"}
    assert facts["done"] == len(copied(user.dest))
    assert report.stat().st_mode & 0o077 == 0
    user.server.clear_faults()
    user.server.clear_log()
    healed = user.get(project, "--report", str(report))
    assert healed.returncode == 0, healed.stderr
    assert json.loads(report.read_text())["done"] == len(facts["failures"])
    assert truth_of(user.server, project) <= set(copied(user.dest).values())


def test_a_file_replaced_on_the_server_by_one_of_the_same_size_is_copied_again(user: User, project: str) -> None:
    row = next(row for row in user.server.truth(project, md5="all") if row["size"] > 100)
    assert user.get(project).returncode == 0
    user.server.edit("replace", row["uri"], b"\x07" * row["size"])
    try:
        done = user.get(project)
        assert done.returncode == 0, done.stderr
        assert hashlib.md5(b"\x07" * row["size"]).hexdigest() in copied(user.dest).values()
    finally:
        user.server.edit("restore", row["uri"])


def test_a_file_whose_size_is_listed_wrong_is_copied_and_shown_all_the_same(user: User) -> None:
    folder = "ODDITIES/ODD_1/ODD_1_MR/resources/stale"
    done = user.get(folder)
    assert done.returncode == 0, done.stderr
    assert (user.dest / "grown.txt").read_bytes() == b"y" * 3000
    assert (user.dest / "shrunk.txt").stat().st_size == 1000
    shown = xnatfs("cat", f"{user.server.url}#/{folder}/grown.txt", environment=user.environment)
    assert (shown.returncode, shown.stdout) == (0, "y" * 3000)


def test_a_local_file_of_another_size_is_replaced_and_one_without_attributes_is_compared(
    user: User, project: str
) -> None:
    user.get(project)
    names = [name for name in copied(user.dest) if (user.dest / name).stat().st_size > 100]
    cut, bare = user.dest / names[0], user.dest / names[1]
    os.truncate(cut, 10)
    for attribute in os.listxattr(bare):
        os.removexattr(bare, attribute)
    done = user.get(project)
    assert done.returncode == 0
    assert "1 files done" in done.stderr
    assert truth_of(user.server, project) <= set(copied(user.dest).values())


def test_interrupted_it_leaves_no_half_file_and_the_next_run_finishes(user: User) -> None:
    user.server.switch(bandwidth=20 * MIB)
    command = [sys.executable, "-m", "xnatfs", "get", f"{user.server.url}#/{BIG}", str(user.dest)]
    process = subprocess.Popen(command, env=user.environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not list(user.dest.glob(".xnatfs-part-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not user.dest.exists() or copied(user.dest) == {}
    user.server.switch(bandwidth=None)
    assert user.get(BIG).returncode == 0
    assert set(copied(user.dest)) == {"bold_100m.nii"}


def test_a_server_that_goes_away_stops_it_with_exit_code_4_and_says_how_to_go_on(user: User, project: str) -> None:
    xnatfs("ls", "-R", f"{user.server.url}#/{project}", environment=user.environment)
    user.server.fault("/files/", "status", status=503, times=None)
    user.server.fault("format=zip", "status", status=503, times=None)
    done = user.get(project, "--timeout", "1s", "--jobs", "1")
    assert done.returncode == 4
    assert "run the same command again" in done.stderr
    user.server.clear_faults()
    assert user.get(project).returncode == 0


def test_a_full_disk_stops_it_at_once_and_leaves_no_part(user: User, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", small], check=True)
    try:
        done = xnatfs("get", f"{user.server.url}#/{BIG}", small / "copy", environment=user.environment)
        assert done.returncode == 1
        assert "No space left" in done.stderr
        assert [path for path in small.rglob("*") if path.is_file()] == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_terminal_shows_files_bytes_and_rate(user: User, project: str) -> None:
    seen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, 160, 0, 0))
    command = [sys.executable, "-m", "xnatfs", "get", f"{user.server.url}#/{project}", str(user.dest)]
    process = subprocess.Popen(command, env={**user.environment, "TERM": "xterm"}, stderr=terminal)
    os.close(terminal)
    said = b""
    with contextlib.suppress(OSError):  # EIO: the last writer has closed it
        while piece := os.read(seen, 65536):
            said += piece
    os.close(seen)
    assert process.wait(30) == 0
    count = len(copied(user.dest))
    assert f"{count}/{count} files".encode() in said
    assert b"100%" in said or b"KiB" in said
