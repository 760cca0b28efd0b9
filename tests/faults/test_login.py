"""Logins that end while files are read: by time, by the server's memory, by a token's death, by a lock."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.faults.matrix import BOUND_S, FAILED, TIMEOUT_S, Bench
from tests.helpers.mounting import Mount, mounted, user_environment, xnatfs
from tests.helpers.outcomes import cat, crowd, ls
from tests.helpers.server import DemoServer

pytestmark = pytest.mark.fuse

THREADS = 64
REFUSED = frozenset({errno.EACCES})


@pytest.fixture(params=["off", "on"], ids=["closed site", "open to guests"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    arguments = ("--timeout", "10s", "--block-size", "128K", "--no-bulk")
    with (
        DemoServer(sample="full", guests=request.param) as server,
        mounted(server.url, tmp_path, *arguments, user="demo", password="demo") as mount,
    ):
        yield Bench(server, mount)


def test_a_session_that_ends_under_64_readers_costs_one_login_and_no_byte(site: Bench) -> None:
    files = [site.fresh() for _ in range(3 * THREADS)]
    known = {str(file.path): file.md5 for file in files}
    site.server.clear_log()
    site.server.switch(latency_s=0.02)
    readers = crowd((file.path for file in files), THREADS, 60)
    for _ in range(3):
        time.sleep(0.3)
        site.server.switch(expire_sessions=True)
    results = readers.results()
    assert [read.errno for read in results] == [0] * len(files)
    assert {read.path: read.md5 for read in results} == known
    log = site.server.settled_log()
    assert log["failed_logins"] == 0
    # On a site open to guests the credentials go along: each request under way may log in (docs/semantics.md, 4).
    assert log["logins"] <= (3 if site.server.switches()["guests"] is False else 3 * 8)


def test_a_short_session_time_is_kept_up_with(site: Bench) -> None:
    site.server.switch(session_timeout_s=1.0, expire_sessions=True)
    site.server.clear_log()
    for _ in range(3):
        file = site.fresh()
        file.assert_right(cat(file.path, BOUND_S).output)
        time.sleep(1.2)
    assert site.server.log()["failed_logins"] == 0


def test_who_becomes_a_guest_never_sees_a_guests_shorter_listing(tmp_path: Path) -> None:
    arguments = ("--timeout", f"{TIMEOUT_S}s", "--metadata-ttl", "1s")
    with (
        DemoServer(guests="on") as server,
        mounted(server.url, tmp_path, *arguments, user="demo", password="demo") as mount,
    ):
        whole = sorted(path.name for path in mount.path.iterdir())
        assert "DEMO" in whole
        for _ in range(2):
            server.switch(expire_sessions=True)
            time.sleep(1.1)
            outcome = ls(mount.path, BOUND_S)
            assert outcome.errno in FAILED if outcome.code else sorted(outcome.output.decode().split()) == whole
        assert ls(mount.path / "DEMO", BOUND_S).code == 0


@pytest.fixture
def with_token(tmp_path: Path) -> Iterator[tuple[DemoServer, Mount]]:
    """A mount that knows no password, only the token of a login before it."""
    with DemoServer(sample="full") as server:
        environment = user_environment(tmp_path / "home", "demo", "demo")
        done = xnatfs("login", server.url, environment=environment)
        assert done.returncode == 0, done.stderr
        with mounted(server.url, tmp_path, "--timeout", f"{TIMEOUT_S}s", "--no-bulk") as mount:
            yield server, mount


def test_a_token_that_dies_is_refused_at_once_for_all_and_not_tried_in_a_loop(
    with_token: tuple[DemoServer, Mount],
) -> None:
    server, mount = with_token
    bench = Bench(server, mount)
    files = [bench.fresh() for _ in range(2 * THREADS)]
    data = cat(files[0].path, BOUND_S).output
    server.restart()  # which forgets its tokens and its sessions
    results = crowd((file.path for file in files[1:]), THREADS, 60).results()
    assert {read.errno for read in results} <= REFUSED | FAILED
    assert errno.EACCES in {read.errno for read in results}
    assert server.log()["failed_logins"] <= 2
    failed = server.log()["failed_logins"]
    assert cat(files[1].path, BOUND_S).errno == errno.EACCES
    assert server.log()["failed_logins"] == failed
    assert cat(files[0].path, BOUND_S).output == data  # what is cached stays readable
    assert mount.log.read_text().count("nothing more is asked of the archive until this is mounted again") == 1


def test_a_locked_account_is_refused_and_not_locked_further(tmp_path: Path) -> None:
    with (
        DemoServer(sample="full") as server,
        mounted(server.url, tmp_path, "--timeout", f"{TIMEOUT_S}s", "--no-bulk", user="demo", password="demo") as mount,
    ):
        bench = Bench(server, mount)
        files = [bench.fresh() for _ in range(THREADS)]
        for _ in range(20):  # somebody else's wrong guesses
            requests.get(f"{server.url}/data/projects", auth=("demo", "wrong"), timeout=10)
        server.switch(expire_sessions=True)
        before: Any = server.log()["failed_logins"]
        results = crowd((file.path for file in files), THREADS, 60).results()
        assert {read.errno for read in results} == {errno.EACCES}
        assert server.log()["failed_logins"] - before <= 2
