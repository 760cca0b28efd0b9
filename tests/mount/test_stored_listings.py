"""Listings that survive a remount: no request for what is stored, offline and with the server away, healing."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.mounting import Mount, mounted, user_environment, xnatfs
from tests.helpers.server import DemoServer

pytestmark = pytest.mark.fuse

HEAL_LIMIT_S = 15.0  # a server that was away is tried again every 5 s


@pytest.fixture(scope="module")
def shared_server() -> Iterator[DemoServer]:
    with DemoServer(sample="small") as server:
        yield server


@pytest.fixture
def server(shared_server: DemoServer) -> DemoServer:
    shared_server.reset()
    return shared_server


def tree(top: Path) -> list[str]:
    """Every name below a directory; a directory that cannot be listed fails the test."""
    done = subprocess.run(["find", str(top), "-printf", "%P %y %s\n"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


SESSION = "DEMO/DEMO_001/DEMO_001_MR1"


def test_a_remount_lists_and_reads_documents_without_a_request(server: DemoServer, tmp_path: Path) -> None:
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        session = mount.path / SESSION
        before = tree(session)
        project = session.parent.parent
        table = (project / "subjects.csv").read_bytes()
        item = (project / ".xnat" / "item.json").read_bytes()
    server.clear_log()
    shutil.rmtree(tmp_path / "cache" / "00", ignore_errors=True)
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        assert tree(session) == before
        assert (project / "subjects.csv").read_bytes() == table
        assert (project / ".xnat" / "item.json").read_bytes() == item
        with pytest.raises(FileNotFoundError):
            (session / "no such name").stat()
    log = server.settled_log()
    assert log["requests"] == []
    assert log["logins"] == 0


def test_what_was_never_read_of_a_listings_documents_reads_offline(server: DemoServer, tmp_path: Path) -> None:
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        project = mount.path / "DEMO"
        size = (project / "experiments.csv").stat().st_size
    with mounted(server.url, tmp_path, "--offline", user="demo", password="demo"):
        assert len((project / "experiments.csv").read_bytes()) == size > 0


def test_offline_asks_nothing_and_fails_at_once_for_what_is_not_held(server: DemoServer, tmp_path: Path) -> None:
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        session = mount.path / SESSION
        before = tree(session)
        files = [path for path in session.rglob("*") if path.is_file() and path.stat().st_size > 0]
        content = files[0].read_bytes()
    server.clear_log()
    with mounted(server.url, tmp_path, "--offline", "--metadata-ttl", "1s", user="demo", password="demo") as mount:
        time.sleep(1.1)  # whatever its age
        assert tree(session) == before
        assert files[0].read_bytes() == content
        began_s = time.monotonic()
        with pytest.raises(OSError) as unread:
            files[-1].read_bytes()
        other = next(path for path in mount.path.iterdir() if path != session.parent.parent)
        with pytest.raises(OSError) as unlisted:
            list(other.iterdir())
        assert time.monotonic() - began_s < 10  # a server that did not answer would be waited for for a minute
        assert (unread.value.errno, unlisted.value.errno) == (errno.EIO, errno.EIO)
        (state,) = json.loads(status(mount))
        assert state["offline"] is True
        assert state["requests"] == 0
    assert server.settled_log()["requests"] == []
    assert "offline" in mount.log.read_text(encoding="utf-8")


def status(mount: Mount) -> str:
    environment = user_environment(mount.room / "home", mount.user, mount.password)
    return xnatfs("status", mount.path, "--json", environment=environment).stdout


def eventually(what: Callable[[], bool]) -> None:
    until = time.monotonic() + HEAL_LIMIT_S
    while not what():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_mount_without_its_server_shows_what_is_stored_and_heals(tmp_path: Path) -> None:
    with DemoServer(sample="small") as server:
        with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
            session = mount.path / SESSION
            before = tree(session)
            file = next(path for path in session.rglob("*") if path.is_file() and path.stat().st_size > 0)
            content = file.read_bytes()
        server.kill()
        with mounted(server.url, tmp_path, "--metadata-ttl", "1s", user="demo", password="demo") as mount:
            assert tree(session) == before
            assert file.read_bytes() == content
            other = next(path for path in mount.path.iterdir() if path != session.parent.parent)
            with pytest.raises(OSError) as caught:
                list(other.iterdir())
            assert caught.value.errno == errno.EIO
            (state,) = json.loads(status(mount))
            assert state["away_s"] is not None
            # What was stored less than a second before is no older than it may be.
            eventually(lambda: lists(session) and json.loads(status(mount))[0]["listings_age_s"] is not None)
            server.start()
            eventually(lambda: lists(other))
            eventually(lambda: json.loads(status(mount))[0]["away_s"] is None)
        log = mount.log.read_text(encoding="utf-8")
        assert log.count("listings are served as they were") == 1
        assert "the archive answers again" in log


def lists(directory: Path) -> bool:
    try:
        return bool(list(directory.iterdir()))
    except OSError:
        return False


def test_what_is_new_shows_after_the_ttl_also_of_a_stored_listing(server: DemoServer, tmp_path: Path) -> None:
    row = next(
        row for row in server.truth("DEMO") if row["experiment"] == "DEMO_001_MR1" and row["area"] == "resources"
    )
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        folder = mount.path / SESSION / "resources" / row["resource"]
        before = {path.name for path in folder.iterdir()}
    resource = row["uri"].partition("/files/")[0]
    server.edit("add", f"{resource}/files/new.txt", b"new")
    with mounted(server.url, tmp_path, "--metadata-ttl", "1s", user="demo", password="demo"):
        eventually(lambda: {path.name for path in folder.iterdir()} == {*before, "new.txt"})
        assert (folder / "new.txt").read_bytes() == b"new"


def test_a_damaged_store_costs_requests_and_one_warning(server: DemoServer, tmp_path: Path) -> None:
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        session = mount.path / SESSION
        before = tree(session)
    stored = [path for path in (tmp_path / "cache" / "listings").rglob("*") if path.is_file()]
    assert len(stored) >= 3  # site, project, session
    for path in stored:
        data = bytearray(path.read_bytes())
        data[70] ^= 1
        path.write_bytes(data)
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        assert tree(session) == before
    assert mount.log.read_text(encoding="utf-8").count("listing is damaged") == 1


def test_commands_read_offline_what_a_mount_has_stored(server: DemoServer, tmp_path: Path) -> None:
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        names = sorted(path.name for path in mount.path.iterdir())
    server.clear_log()
    environment = user_environment(tmp_path / "home", None, None)
    cache = ("--cache-dir", str(mount.cache), "--offline")
    mine = xnatfs("ls", *cache, "--user", "demo", server.url, environment=environment)
    assert (mine.returncode, mine.stdout.split()) == (0, names)
    anonymous = xnatfs("ls", *cache, server.url, environment=environment)
    assert anonymous.returncode == 4
    assert "offline" in anonymous.stderr
    assert server.settled_log()["requests"] == []
