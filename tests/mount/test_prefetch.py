"""``xnatfs prefetch``: what it brings into a mount's cache is read without a request, offline too."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounting import Mount, mounted, user_environment, xnatfs
from tests.helpers.server import DemoServer

pytestmark = pytest.mark.fuse

SESSION = "HCP_DEMO"


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


@pytest.fixture
def mount(server: DemoServer, tmp_path: Path) -> Iterator[Mount]:
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        yield mount


def prefetch(mount: Mount, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return xnatfs("prefetch", *words, environment=user_environment(mount.room / "home", None, None))


def files_below(path: Path) -> list[Path]:
    return [Path(folder, name) for folder, _, names in os.walk(path) for name in names]


def test_what_was_prefetched_is_read_with_the_server_gone(server: DemoServer, mount: Mount) -> None:
    folder = mount.path / SESSION
    done = prefetch(mount, folder)
    assert done.returncode == 0, done.stderr
    files = files_below(folder)
    assert f"prefetch: {len(files)} files done" in done.stderr
    assert {os.getxattr(path, "user.xnat.cached") for path in files if path.stat().st_size} == {b"100"}
    server.kill()
    assert all(len(path.read_bytes()) == path.stat().st_size for path in files)


def add_small_files(server: DemoServer, *folders: tuple[str, int]) -> None:
    """Files in the folders of one resource: enough of them come as one stream."""
    docs = next(file["uri"] for file in server.truth(SESSION) if file["area"] == "resources").rsplit("/", 1)[0]
    for folder, count in folders:
        for number in range(count):
            server.edit("add", f"{docs}/{folder}{number:03d}.txt", b"%05d" % number * 200)


def test_what_came_ahead_with_its_neighbours_counts_as_done(server: DemoServer, mount: Mount) -> None:
    add_small_files(server, ("", 60), ("below/", 40))
    folder = mount.path / SESSION / "resources/docs"
    done = prefetch(mount, "--jobs", "1", folder)
    assert any("format=zip" in record["query"] for record in server.data_requests())
    assert "prefetch: 101 files done" in done.stderr
    assert "there already" not in done.stderr


def test_only_what_an_earlier_run_brought_is_there_already(server: DemoServer, mount: Mount) -> None:
    add_small_files(server, ("", 30))
    folder = mount.path / SESSION / "resources/docs"
    (folder / "007.txt").read_bytes()
    done = prefetch(mount, "--jobs", "1", *sorted(folder.iterdir()))
    assert "prefetch: 30 files done" in done.stderr
    assert "1 there already" in done.stderr


def test_running_again_asks_for_nothing_and_a_dry_run_says_so(server: DemoServer, mount: Mount) -> None:
    folder = mount.path / SESSION
    due = prefetch(mount, "--dry-run", folder)
    assert set(due.stdout.splitlines()) == {str(path) for path in files_below(folder)}
    assert prefetch(mount, folder).returncode == 0
    server.clear_log()
    again = prefetch(mount, folder)
    assert again.returncode == 0
    assert "0 files done" in again.stderr
    assert prefetch(mount, "--dry-run", folder).stdout == ""
    assert server.data_requests() == []


def test_a_file_whose_size_is_listed_wrong_is_fetched_all_the_same(mount: Mount) -> None:
    folder = mount.path / "ODDITIES/ODD_1/ODD_1_MR/resources/stale"
    done = prefetch(mount, folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "grown.txt").read_bytes() == b"y" * 3000


def test_a_link_leads_to_what_is_fetched(mount: Mount, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(mount.path / SESSION)
    done = prefetch(mount, link)
    assert done.returncode == 0, done.stderr
    assert f"prefetch: {len(files_below(mount.path / SESSION))} files done" in done.stderr


def test_what_fails_stands_in_the_report_and_the_next_run_fetches_it(server: DemoServer, mount: Mount) -> None:
    folder = mount.path / SESSION
    victim = max(files_below(folder), key=lambda path: path.stat().st_size)
    server.fault(f"/files/.*{victim.name}", "status", status=404, times=None)
    server.fault("format=zip", "status", status=404, times=None)
    report = mount.room / "report.json"
    broken = prefetch(mount, folder, "--report", report)
    assert broken.returncode == 1
    failures = json.loads(report.read_text())["failures"]
    assert victim.name in {Path(failure["path"]).name for failure in failures}
    server.clear_faults()
    healed = prefetch(mount, folder)
    assert healed.returncode == 0, healed.stderr
    assert os.getxattr(victim, "user.xnat.cached") == b"100"


def test_a_mount_that_is_killed_stops_it_with_a_line_and_not_one_a_file(mount: Mount) -> None:
    files = [str(mount.path / SESSION / f"{number}.txt") for number in range(100)]
    mount.kill()
    done = prefetch(mount, "--jobs", "1", *files)
    assert done.returncode == 1
    assert "prefetch: stopped: Transport endpoint is not connected" in done.stderr
    assert len(done.stderr.splitlines()) < 10


def test_a_path_outside_of_a_mount_is_a_usage_error_with_a_hint(mount: Mount, tmp_path: Path) -> None:
    done = prefetch(mount, tmp_path)
    assert done.returncode == 2
    assert "not below a mount of xnatfs" in done.stderr
    assert "hint: " in done.stderr
