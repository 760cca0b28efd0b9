"""Redirects to other hosts: followed for guests where an archive needs them, a few in a row, never https to http.

And what goes this way, or through a proxy, can be interrupted like any other request.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.helpers.object_server import ObjectServer, Thing
from tests.helpers.relays import ForwardProxy, Relay
from xnatfs.archives.http.account import Guest
from xnatfs.archives.http.client import HttpClient
from xnatfs.archives.http.connections import MAX_HOPS
from xnatfs.config import HttpConfig
from xnatfs.errors import ArchiveError, Unavailable, UnexpectedReply
from xnatfs.turns import Turn


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.web["/file"] = Thing(b"content")
        yield server


def client(url: str, bundle: Path | None = None, wander: bool = True) -> HttpClient:
    return HttpClient(url, HttpConfig(timeout_s=5.0, retries=1, ca_bundle=bundle), Guest(), "t", wander=wander)


def send_on(server: ObjectServer, start: str, *addresses: str) -> None:
    """A request for ``start`` is led from one address to the next."""
    server.routes.clear()
    for here, there in zip((start, *(f"/hop{n}" for n in range(len(addresses)))), addresses, strict=False):
        server.routes[here] = lambda handler, there=there: handler.say(302, Location=there)


def test_a_range_goes_along_to_another_host(server: ObjectServer) -> None:
    with ObjectServer() as store:
        store.web["/file"] = Thing(b"content")
        send_on(server, "/start", f"{store.url}/web/file?signature=x")
        with closing(client(server.url)) as http:
            reply = http.open("/start", {"Range": "bytes=1-3"})
            assert reply.read1(10) == b"ont"
            reply.close()
        assert store.asked[0].headers["Range"] == "bytes=1-3"
        assert "Cookie" not in store.asked[0].headers


def test_those_who_do_not_wander_stay(server: ObjectServer) -> None:
    send_on(server, "/start", "http://127.0.0.1:1/")
    with closing(client(server.url, wander=False)) as http, pytest.raises(UnexpectedReply, match="sends us to"):
        http.open("/start", {})


def test_a_ring_of_redirects_ends(server: ObjectServer) -> None:
    send_on(server, "/start", "/start")
    server.asked.clear()
    with closing(client(server.url)) as http, pytest.raises(ArchiveError):
        http.open("/start", {})
    assert len(server.asked) == MAX_HOPS + 1


def test_nobody_is_led_from_https_to_http(server: ObjectServer, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    send_on(server, "/start", f"{server.url}/web/file")
    server.asked.clear()
    with Relay(server.port, context) as tls:
        http = client(f"https://127.0.0.1:{tls.port}", tmp_path / "ca.pem")
        with closing(http), pytest.raises(UnexpectedReply, match="from https"):
            http.open("/start", {})
    assert server.targets() == ["/start"]


ODD_PLACES = [
    "http://[",
    "http://[::1",
    "http://a:999999999/",
    "http://a:b/",
    "//",
    "http://",
    "\u00e9",
    "http:///x",
    "x:y",
]


@pytest.mark.parametrize("wander", [True, False], ids=["wandering", "staying"])
@pytest.mark.parametrize("location", ODD_PLACES)
def test_a_redirect_to_what_is_no_address_is_an_error_of_ours(
    server: ObjectServer, location: str, wander: bool
) -> None:
    server.routes.clear()
    server.routes["/start"] = lambda handler: handler.say(302, Location=location)
    with closing(client(server.url, wander=wander)) as http, pytest.raises(ArchiveError):
        http.open("/start", {})


@pytest.mark.parametrize("value", ["9" * 5000, "\u00b2", "-1", "soon"])
def test_a_wish_to_be_asked_later_that_is_no_number_is_none(server: ObjectServer, value: str) -> None:
    server.routes.clear()
    server.routes["/start"] = lambda handler: handler.say(503, Retry_After=value)
    with closing(client(server.url)) as http, pytest.raises(Unavailable):
        http.open("/start", {})


# --- interrupted ----------------------------------------------------------------------------------------------------

LONG_S = 100.0  # timeout; nothing here may wait for it


@pytest.fixture
def silent(server: ObjectServer) -> Iterator[threading.Event]:
    """Makes ``/silent`` keep its askers waiting; set as soon as somebody waits."""
    asked, over = threading.Event(), threading.Event()

    def wait(handler: Any) -> bool:
        asked.set()
        over.wait(LONG_S)
        return bool(handler.say(200))

    server.routes.clear()
    server.routes["/silent"] = wait
    yield asked
    over.set()


def assert_interrupted(http: HttpClient, path: str, asked: threading.Event) -> None:
    """A request that waits for its head ends when its turn is over, and the next one is well."""
    turn = Turn(False, lambda: None)
    ended: list[ArchiveError] = []

    def ask() -> None:
        with turn:
            try:
                http.open(path, {})
            except ArchiveError as error:
                ended.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert asked.wait(LONG_S)
    assert thread.is_alive()
    turn.interrupt()
    thread.join(LONG_S / 4)
    assert not thread.is_alive()
    assert len(ended) == 1
    assert isinstance(ended[0], Unavailable)
    assert http.get_bytes("/web/file") == b"content"


def test_a_request_that_waits_behind_a_redirect_can_be_interrupted(
    server: ObjectServer, silent: threading.Event
) -> None:
    server.routes["/start"] = lambda handler: handler.say(302, Location=f"{server.url}/silent")
    with closing(HttpClient(server.url, HttpConfig(timeout_s=LONG_S), Guest(), "t", wander=True)) as http:
        assert_interrupted(http, "/start", silent)


def test_a_request_that_waits_behind_a_proxy_can_be_interrupted(server: ObjectServer, silent: threading.Event) -> None:
    with ForwardProxy(server.port) as proxy:
        config = HttpConfig(timeout_s=LONG_S, proxy=f"http://127.0.0.1:{proxy.port}")
        with closing(HttpClient("http://data.example.org", config, Guest(), "t")) as http:
            assert_interrupted(http, "/silent", silent)


def test_a_request_in_a_tunnel_can_be_interrupted(
    server: ObjectServer, silent: threading.Event, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("data.example.org").configure_cert(context)
    with Relay(server.port, context) as tls, ForwardProxy(tls.port) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        config = HttpConfig(timeout_s=LONG_S, proxy=url, ca_bundle=tmp_path / "ca.pem")
        with closing(HttpClient("https://data.example.org", config, Guest(), "t")) as http:
            assert_interrupted(http, "/silent", silent)


def test_closing_ends_a_listing_that_waits_behind_a_redirect(server: ObjectServer, silent: threading.Event) -> None:
    server.routes["/start"] = lambda handler: handler.say(302, Location=f"{server.url}/silent")
    http = HttpClient(server.url, HttpConfig(timeout_s=LONG_S), Guest(), "t", wander=True)
    ended: list[ArchiveError] = []

    def ask() -> None:
        try:
            http.get_bytes("/start")
        except ArchiveError as error:
            ended.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert silent.wait(LONG_S)
    http.close()
    thread.join(LONG_S / 4)
    assert [isinstance(error, Unavailable) for error in ended] == [True]


def test_what_is_interrupted_before_it_is_sent_is_not_sent(server: ObjectServer) -> None:
    with closing(client(server.url)) as http:
        assert http.get_bytes("/web/file") == b"content"  # a connection is kept
        server.asked.clear()
        turn = Turn(False, lambda: None)
        turn.interrupt()
        with turn, pytest.raises(Unavailable):
            http.open("/web/file", {})
        assert server.asked == []
        assert http.get_bytes("/web/file") == b"content"
