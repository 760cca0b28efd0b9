"""Redirects to other hosts: followed for guests where an archive needs them, a few in a row, never https to http."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trustme

from tests.helpers.object_server import ObjectServer, Thing
from tests.helpers.relays import Relay
from xnatfs.archives.http.account import Guest
from xnatfs.archives.http.client import MAX_HOPS, HttpClient
from xnatfs.config import HttpConfig
from xnatfs.errors import ArchiveError, UnexpectedReply


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
