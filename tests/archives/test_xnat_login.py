"""One session for all threads, renewed once; a refused password is tried once; secrets go to one origin."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.archives.conftest import DEMO
from tests.helpers.server import DemoServer
from xnatfs.archives.xnat import XnatArchive
from xnatfs.config import Credentials, HttpConfig, TreeConfig
from xnatfs.errors import AccessDenied, ArchiveError, LoginFailed, TimedOut, Unavailable, UnexpectedReply

Connect = Callable[..., XnatArchive]


def names(archive: XnatArchive) -> set[str]:
    return {entry.name for entry in archive.children(archive.root()).children["/data/projects"]}


def at_once(count: int, call: Callable[[], object]) -> list[BaseException | None]:
    """Run ``call`` in many threads that start together; what each raised."""
    gate = threading.Barrier(count)
    outcomes: list[BaseException | None] = []

    def work() -> None:
        gate.wait()
        try:
            call()
        except ArchiveError as error:
            outcomes.append(error)
        else:
            outcomes.append(None)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return outcomes


def test_sixty_four_threads_share_one_login_and_one_session(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    assert at_once(64, lambda: names(archive)) == [None] * 64
    log = server.settled_log()
    assert log["logins"] == 1
    assert log["sessions"] == 1
    assert log["max_in_flight"] <= 8


def test_sixty_four_threads_renew_an_expired_session_once(connect: Connect, server: DemoServer) -> None:
    server.switch(session_timeout_s=1.0)
    archive = connect()
    names(archive)
    time.sleep(1.2)
    server.clear_log()
    assert at_once(64, lambda: names(archive)) == [None] * 64
    log = server.settled_log()
    assert log["logins"] == 1
    assert log["sessions"] == 1


def test_a_session_that_the_server_forgot_is_renewed(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    before = names(archive)
    server.switch(expire_sessions=True)
    assert names(archive) == before
    assert names(archive) == before
    assert server.settled_log()["logins"] <= 2


def test_an_open_site_does_not_make_a_guest_of_us_when_the_session_ends(connect: Connect, server: DemoServer) -> None:
    server.switch(guests=True)
    archive = connect()
    before = names(archive)
    server.switch(expire_sessions=True)
    assert "PROTECTED" in before
    assert names(archive) == before


def test_a_wrong_password_is_tried_once_by_any_number_of_threads(connect: Connect, server: DemoServer) -> None:
    archive = connect(Credentials("demo", "wrong", "the test"))
    outcomes = at_once(16, lambda: names(archive))
    assert [type(outcome) for outcome in outcomes] == [LoginFailed] * 16
    with pytest.raises(LoginFailed):
        names(archive)
    log = server.settled_log()
    assert log["failed_logins"] == 1
    server.switch(unlock=True)


def test_a_guest_sees_an_open_site_and_is_refused_by_a_closed_one(connect: Connect, server: DemoServer) -> None:
    server.switch(guests=True)
    assert names(connect(Credentials()))
    server.switch(guests=False)
    with pytest.raises(AccessDenied):
        names(connect(Credentials()))


def test_closing_ends_the_session_on_the_server(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    names(archive)
    archive.close()
    paths = [(r["method"], r["path"], r["status"]) for r in server.settled_log()["requests"]]
    assert paths[-1] == ("DELETE", "/data/JSESSION", 200)


def test_every_request_says_who_asks(connect: Connect, server: DemoServer) -> None:
    names(connect())
    agents = {r["user_agent"] for r in server.settled_log()["requests"]}
    assert agents == {"xnatfs/test"}


class _Elsewhere(http.server.BaseHTTPRequestHandler):
    """Another origin: notes what it is sent."""

    seen: list[dict[str, str]]
    target: str | None = None

    def do_GET(self) -> None:
        self.seen.append({"path": self.path, **self.headers})
        if self.target is not None:
            self.send_response(302)
            self.send_header("Location", self.target)
        else:
            self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def origins() -> Iterator[tuple[str, str, list[dict[str, str]]]]:
    """Two servers of one handler family: the first redirects everything to the second."""
    second = type("Second", (_Elsewhere,), {"seen": []})
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), second)
    first = type("First", (_Elsewhere,), {"seen": [], "target": f"http://127.0.0.1:{other.server_port}/data/JSESSION"})
    here = http.server.ThreadingHTTPServer(("127.0.0.1", 0), first)
    threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in (here, other)]
    for thread in threads:
        thread.start()
    yield f"http://127.0.0.1:{here.server_port}", f"http://127.0.0.1:{other.server_port}", second.seen
    for server in (here, other):
        server.shutdown()
        server.server_close()


def test_credentials_never_follow_a_redirect_to_another_origin(origins: tuple[str, str, list[dict[str, str]]]) -> None:
    here, there, seen_there = origins
    archive = XnatArchive(here, DEMO, HttpConfig(timeout_s=5.0), TreeConfig(), "xnatfs/test")
    with pytest.raises(UnexpectedReply, match="sends us to") as caught:
        names(archive)
    assert there in str(caught.value)
    assert seen_there == []
    archive.close()


def test_a_port_where_nobody_listens_is_unavailable_at_once() -> None:
    archive = XnatArchive("http://127.0.0.1:9", DEMO, HttpConfig(timeout_s=5.0), TreeConfig(), "xnatfs/test")
    started = time.monotonic()
    with pytest.raises(Unavailable, match="nobody answers"):
        names(archive)
    assert time.monotonic() - started < 2.0
    archive.close()


def test_a_server_that_never_answers_times_out(connect: Connect, server: DemoServer) -> None:
    archive = connect(timeout_s=1.0)
    names(archive)
    server.fault("/data/projects", "stall", at=0)
    with pytest.raises(TimedOut):
        names(archive)


def test_the_secret_shows_in_no_repr() -> None:
    assert "s3cret" not in repr(Credentials("u", "s3cret"))
