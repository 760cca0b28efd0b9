"""One session for all threads, renewed once; a refused password is tried once; secrets go to one origin."""

from __future__ import annotations

import http.server
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.archives.conftest import DEMO
from tests.helpers.hostile import Answer, Liar
from tests.helpers.server import DemoServer
from xnatfs.archives.http.reply import parse_set_cookie, set_cookies
from xnatfs.archives.xnat.archive import XnatArchive
from xnatfs.config import Credentials, HttpConfig, TreeConfig
from xnatfs.errors import AccessDenied, ArchiveError, LoginFailed, TimedOut, Unavailable, UnexpectedReply
from xnatfs.model import Entry
from xnatfs.stats import Stats

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
    server.switch(session_timeout_s=60.0)  # of the new one: on a busy machine 64 threads may take more than a second
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
    assert server.settled_log()["logins"] == 2


def test_sixty_four_threads_log_in_once_when_the_server_forgot_the_session(
    connect: Connect, server: DemoServer
) -> None:
    archive = connect()
    names(archive)
    server.switch(expire_sessions=True, latency_s=0.02)
    server.clear_log()
    assert at_once(64, lambda: names(archive)) == [None] * 64
    log = server.settled_log()
    assert (log["logins"], log["sessions"], log["failed_logins"]) == (1, 1, 0)
    assert log["max_in_flight"] <= 8


def test_on_an_open_site_no_thread_of_sixty_four_becomes_a_guest(connect: Connect, server: DemoServer) -> None:
    server.switch(guests=True)
    archive = connect()
    before = names(archive)
    server.switch(expire_sessions=True, latency_s=0.02)
    server.clear_log()
    seen: list[set[str]] = []
    assert at_once(64, lambda: seen.append(names(archive))) == [None] * 64
    assert seen == [before] * 64
    log = server.settled_log()
    assert {r["user"] for r in log["requests"]} == {"demo"}
    assert log["logins"] <= 8  # those that were under way


def test_a_site_that_opens_to_guests_later_does_not_make_one_of_us(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    before = names(archive)
    server.switch(guests=True, expire_sessions=True)
    server.clear_log()
    assert names(archive) == before
    assert server.settled_log()["logins"] == 1


def test_a_redirect_to_the_login_page_is_a_session_that_ended(server: DemoServer) -> None:
    # A user agent like a browser's gets the redirect where others get a 401.
    archive = XnatArchive(server.url, DEMO, HttpConfig(timeout_s=5.0), TreeConfig(), "Mozilla/5.0 xnatfs/test")
    before = names(archive)
    server.switch(expire_sessions=True)
    server.clear_log()
    assert names(archive) == before
    log = server.settled_log()
    assert 302 in {r["status"] for r in log["requests"]}
    assert log["logins"] == 1
    archive.close()


def test_a_page_in_place_of_a_listing_is_asked_about_and_asked_again_once(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    before = names(archive)
    server.fault("/data/projects\\?", "html", times=1)
    server.clear_log()
    assert names(archive) == before
    log = server.settled_log()
    assert [r["path"] for r in log["requests"]] == ["/data/projects", "/data/auth", "/data/projects"]
    assert log["logins"] == 0  # the session was alive: there was no need


def test_a_page_from_a_session_that_ended_leads_to_one_login(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    before = names(archive)
    server.fault("/data/projects\\?", "html", times=1)
    server.fault("/data/auth", "html", times=1)
    server.clear_log()
    assert names(archive) == before
    assert server.settled_log()["logins"] == 1


@pytest.mark.parametrize(
    "start",
    [
        "<!DOCTYPE html>",
        "\n<!-- Login.vm --> <!-- -->\n<html>",
        '<?xml version="1.0"?>\n<!DOCTYPE html>',
        "\ufeff<head>",
    ],
)
def test_a_page_is_known_however_it_begins(server: DemoServer, start: str) -> None:
    pages = [f"{start}<body>Please log in</body>".encode()]
    with Liar(server.port) as front:
        front.lie("GET /data/projects", lambda answer: Answer(200, [], pages.pop()) if pages else answer)
        archive = XnatArchive(front.url, DEMO, HttpConfig(timeout_s=5.0), TreeConfig(), "xnatfs/test")
        assert "DEMO" in names(archive)
        assert pages == []
        archive.close()


def test_an_agreement_in_place_of_a_listing_says_where_to_accept_it(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    names(archive)
    server.fault("/data/projects\\?", "html", times=None)
    server.clear_log()
    with pytest.raises(UnexpectedReply, match="web page") as caught:
        names(archive)
    assert server.url in caught.value.hint and "accepted" in caught.value.hint and "in a browser" in caught.value.hint
    log = server.settled_log()
    assert [r["path"] for r in log["requests"]].count("/data/projects") == 2
    assert log["logins"] == 0


def test_an_agreement_in_place_of_a_file_says_where_to_accept_it(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    row = next(r for r in server.truth("DEMO") if r["name"] == "anatomical.nii")
    entry = Entry(row["name"], row["uri"], False, row["size"], digest=row["md5"])
    server.fault(re.escape(row["path"]), "html", times=None)
    with pytest.raises(UnexpectedReply, match="web page") as caught:
        archive.open_range(entry, 0, 1000)
    assert server.url in caught.value.hint
    with pytest.raises(UnexpectedReply, match="web page"):
        archive.stat(replace(entry, size=None))
    server.clear_faults()
    server.fault(re.escape(row["path"]), "html", times=1)
    stream = archive.open_range(entry, 0, 1000)
    assert stream.total == row["size"]
    stream.close()


def test_a_401_that_a_new_login_does_not_cure_is_final(
    connect: Connect, server: DemoServer, expected_warnings: list[str]
) -> None:
    expected_warnings.append("the archive refused this account")
    archive = connect()
    names(archive)
    server.fault("/data/(projects|auth)", "status", status=401, times=None)
    for _ in range(3):
        with pytest.raises(LoginFailed):
            names(archive)
    asked = len(server.settled_log()["requests"])
    server.clear_faults()
    assert at_once(16, lambda: names(archive)) != [None] * 16
    assert len(server.settled_log()["requests"]) == asked
    assert server.settled_log()["logins"] == 2


def test_a_401_for_one_path_alone_closes_that_path_alone(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    server.fault("/data/projects\\?", "status", status=401, times=2)
    with pytest.raises(AccessDenied, match="closed to this account") as caught:
        names(archive)
    assert not isinstance(caught.value, LoginFailed)
    assert names(archive)


def test_a_full_server_is_not_asked_in_a_loop(connect: Connect, server: DemoServer) -> None:
    server.switch(max_sessions=0)
    archive = connect()
    assert {type(outcome) for outcome in at_once(16, lambda: names(archive))} == {LoginFailed}
    assert server.settled_log()["failed_logins"] == 1


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


class _WithTerms(http.server.BaseHTTPRequestHandler):
    """A site that logs in and then sends everybody to its terms of use."""

    def do_GET(self) -> None:
        asked_for_data = self.path.startswith("/data/projects")
        self.send_response(302 if asked_for_data else 200)
        if asked_for_data:
            self.send_header("Location", "/terms/accept?next=%2Fdata%2Fprojects")
        body = b"" if asked_for_data else b"0123456789ABCDEF"
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_DELETE = do_GET

    def log_message(self, *args: object) -> None:
        pass


def test_a_redirect_to_terms_of_use_is_named_and_not_followed() -> None:
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _WithTerms)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{site.server_port}"
    archive = XnatArchive(url, DEMO, HttpConfig(timeout_s=5.0), TreeConfig(), "xnatfs/test")
    with pytest.raises(UnexpectedReply, match="web page") as caught:
        names(archive)
    assert f"{url}/terms/accept" in caught.value.hint
    assert "next=" not in str(caught.value) + caught.value.hint
    archive.close()
    site.shutdown()
    site.server_close()


def test_credentials_never_follow_a_redirect_to_another_origin(origins: tuple[str, str, list[dict[str, str]]]) -> None:
    here, there, seen_there = origins
    archive = XnatArchive(here, DEMO, HttpConfig(timeout_s=5.0), TreeConfig(), "xnatfs/test")
    with pytest.raises(UnexpectedReply, match="sends us to") as caught:
        names(archive)
    assert there in str(caught.value)
    assert seen_there == []
    archive.close()


def test_a_site_that_has_moved_is_named_before_the_credentials_go_out(server: DemoServer) -> None:
    with Liar(server.port) as front:
        moved = Answer(301, [("Location", "https://xnat.example.org/ir/data/auth")], b"")
        front.lie(".", lambda answer: moved)
        archive = XnatArchive(front.url, DEMO, HttpConfig(timeout_s=5.0), TreeConfig(), "xnatfs/test")
        with pytest.raises(UnexpectedReply, match=r"sends us to https://xnat\.example\.org/ir$"):
            names(archive)
        archive.close()
    assert front.seen
    assert not [what for what, headers in front.seen if "Authorization" in headers]


class _Closing(Liar):
    """Closes the connection in place of its first answer to a login."""

    closed = False

    def _handle(self, request: http.server.BaseHTTPRequestHandler) -> None:
        if request.path == "/data/JSESSION" and not self.closed:
            self.closed = request.close_connection = True
        else:
            super()._handle(request)


def test_a_login_goes_on_when_the_server_closes_a_kept_connection(server: DemoServer) -> None:
    with _Closing(server.port) as front:
        archive = XnatArchive(front.url, DEMO, HttpConfig(timeout_s=5.0, retries=0), TreeConfig(), "xnatfs/test")
        assert "DEMO" in names(archive)
        assert front.closed
        archive.close()


@pytest.mark.parametrize(
    ("line", "cookies"),
    [
        ("JSESSIONID=A1; Path=/; Secure; HttpOnly; SameSite=None; Partitioned", {"JSESSIONID": "A1"}),
        ("JSESSIONID=A1; Path=/xnat; Priority=High; Domain=.example.org", {"JSESSIONID": "A1"}),
        ("JSESSIONID=A1.node2==;Expires=Thursday, 01-Jan-70 00:00:00 GMT", {"JSESSIONID": "A1.node2=="}),
        ('SESSION_EXPIRATION_TIME="1,900000"; Path=/', {"SESSION_EXPIRATION_TIME": "1,900000"}),
        ('route={"to":[1]}; Path=/', {"route": '{"to":[1]}'}),
        ("JSESSIONID=; Path=/xnat; Max-Age=0", {}),
        ("Secure; JSESSIONID=A1", {}),
        ("a\0=1", {}),
    ],
)
def test_a_cookie_counts_whatever_its_attributes(line: str, cookies: dict[str, str]) -> None:
    assert parse_set_cookie(line) == cookies


@pytest.mark.parametrize(
    ("path", "ours"),
    [("/", True), ("/xnat", True), ("/xnat/", True), ('"/xnat"', True), ("/xnatty", False), ("/a", False)],
)
def test_a_cookie_for_another_path_is_not_ours(path: str, ours: bool) -> None:
    found = set_cookies([f"JSESSIONID=A1; Secure; Path={path}; HttpOnly"], "https://host/xnat/data/auth")
    assert found == ({"JSESSIONID": "A1"} if ours else {})


def test_the_session_of_another_program_on_the_same_server_costs_no_login(server: DemoServer) -> None:
    def with_another(answer: Answer) -> Answer:
        answer.headers.append(("Set-Cookie", "JSESSIONID=B2; Path=/viewer; HttpOnly"))
        return answer

    with Liar(server.port) as front:
        front.lie(".", with_another)
        archive = XnatArchive(front.url, DEMO, HttpConfig(timeout_s=5.0), TreeConfig(), "xnatfs/test")
        for _ in range(3):
            names(archive)
        archive.close()
    assert server.settled_log()["logins"] == 1


def test_a_session_whose_cookies_have_new_attributes_is_renewed_before_it_ends(server: DemoServer) -> None:
    def partitioned(answer: Answer) -> Answer:
        answer.headers = [(n, f"{v}; Partitioned" if n == "Set-Cookie" else v) for n, v in answer.headers]
        return answer

    with Liar(server.port) as front:
        front.lie(".", partitioned)
        stats = Stats()
        archive = XnatArchive(front.url, DEMO, HttpConfig(timeout_s=5.0), TreeConfig(), "xnatfs/test", stats)
        names(archive)
        assert stats.session_until_s > time.time()
        archive.close()


def test_a_port_where_nobody_listens_is_unavailable_at_once() -> None:
    archive = XnatArchive("http://127.0.0.1:9", DEMO, HttpConfig(timeout_s=60.0), TreeConfig(), "xnatfs/test")
    started = time.monotonic()
    with pytest.raises(Unavailable, match="nobody answers"):
        names(archive)
    assert time.monotonic() - started < 20.0
    archive.close()


def test_a_server_that_never_answers_times_out(connect: Connect, server: DemoServer) -> None:
    archive = connect(timeout_s=1.0)
    names(archive)
    server.fault("/data/projects", "stall", at=0)
    with pytest.raises(TimedOut):
        names(archive)


def test_the_secret_shows_in_no_repr() -> None:
    assert "s3cret" not in repr(Credentials("u", "s3cret"))
