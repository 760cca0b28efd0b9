"""Ways to a server: context paths, certificates of one's own, proxies; and what is said when they fail."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.archives.conftest import DEMO
from tests.helpers.relays import ForwardProxy, Relay
from tests.helpers.server import DemoServer
from xnatfs.archives.xnat.archive import XnatArchive
from xnatfs.config import HttpConfig, TreeConfig
from xnatfs.errors import Unavailable, UnexpectedReply
from xnatfs.model import Entry


def archive_of(url: str, **http: object) -> XnatArchive:
    settings = HttpConfig(**{"timeout_s": 5.0, **http})  # type: ignore[arg-type]
    return XnatArchive(url, DEMO, settings, TreeConfig(), "xnatfs/test")


def names(archive: XnatArchive) -> set[str]:
    try:
        return {entry.name for entry in archive.children(archive.root()).children["/data/projects"]}
    finally:
        archive.close()


# --- context path -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def below() -> Iterator[DemoServer]:
    with DemoServer(context="/xnat") as server:
        yield server


def test_a_site_under_a_context_path_lists_and_reads(below: DemoServer) -> None:
    archive = archive_of(below.url)
    assert below.url.endswith("/xnat")
    row = next(r for r in below.truth("DEMO") if r["name"] == "anatomical.nii")
    entry = Entry(row["name"], row["uri"], False, row["size"], digest=row["md5"])
    stream = archive.open_range(entry, 0, row["size"])
    buffer = bytearray(row["size"])
    at = 0
    while at < len(buffer):
        at += stream.readinto(memoryview(buffer)[at:])
    stream.close()
    assert names(archive) >= {"DEMO", "ODDITIES"}


def test_a_session_under_a_context_path_is_kept_renewed_and_ended(below: DemoServer) -> None:
    below.reset()
    archive = archive_of(below.url)
    archive.children(archive.root())
    below.switch(expire_sessions=True)
    assert "DEMO" in names(archive)
    log = below.settled_log()
    assert log["logins"] == 2
    assert (log["requests"][-1]["method"], log["requests"][-1]["path"]) == ("DELETE", "/xnat/data/JSESSION")


def test_the_wrong_context_path_is_named(below: DemoServer) -> None:
    with pytest.raises(UnexpectedReply, match="not an XNAT server") as caught:
        names(archive_of(below.url.removesuffix("/xnat")))
    assert "path" in caught.value.hint


# --- certificates -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def bundle(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def front(server: DemoServer, certificate: trustme.LeafCert) -> Relay:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return Relay(server.port, context)


def test_a_bundle_makes_a_site_of_ones_own_trusted(server: DemoServer, authority: trustme.CA, bundle: Path) -> None:
    with front(server, authority.issue_cert("127.0.0.1")) as tls:
        assert "DEMO" in names(archive_of(f"https://127.0.0.1:{tls.port}", ca_bundle=bundle))


@pytest.mark.parametrize(
    ("made", "trusted", "why"),
    [
        ({"identities": ["127.0.0.1"]}, False, "nobody known has signed the server's certificate"),
        ({"identities": ["xnat.example.org"]}, True, "the server's certificate is for another host"),
        ({"identities": ["127.0.0.1"], "old": True}, True, "the server's certificate has expired"),
    ],
)
def test_a_certificate_that_does_not_do_is_refused_in_words(
    server: DemoServer, authority: trustme.CA, bundle: Path, made: dict[str, object], trusted: bool, why: str
) -> None:
    identities = made["identities"]
    assert isinstance(identities, list)
    ended = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    certificate = authority.issue_cert(*identities, not_after=ended if made.get("old") else None)
    with front(server, certificate) as tls, pytest.raises(Unavailable, match=why) as caught:
        names(archive_of(f"https://127.0.0.1:{tls.port}", ca_bundle=bundle if trusted else None))
    assert caught.value.exit_code == 4
    assert caught.value.hint
    assert server.settled_log()["requests"] == []


def test_https_to_a_port_that_speaks_http_says_so(server: DemoServer) -> None:
    with pytest.raises(Unavailable, match="does not speak TLS") as caught:
        names(archive_of(server.url.replace("http:", "https:")))
    assert "http://" in caught.value.hint


@pytest.mark.parametrize("text", [None, "not a certificate"])
def test_a_bundle_that_is_none_is_named(server: DemoServer, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Unavailable, match=r"ca\.pem: not a file of certificates"):
        names(archive_of("https://127.0.0.1:1", ca_bundle=path))


# --- proxies ----------------------------------------------------------------------------------------------------------


def test_everything_goes_through_the_proxy(server: DemoServer) -> None:
    with ForwardProxy(server.port) as proxy:
        assert "DEMO" in names(archive_of("http://xnat.example.org", proxy=f"http://127.0.0.1:{proxy.port}"))
        paths = [head.split(" ")[1] for head in proxy.heads]
    assert {path.split("/data")[0] for path in paths} == {"http://xnat.example.org"}
    assert len(paths) == len(server.settled_log()["requests"])


def test_https_goes_through_a_proxys_tunnel(server: DemoServer, authority: trustme.CA, bundle: Path) -> None:
    with front(server, authority.issue_cert("xnat.example.org")) as tls, ForwardProxy(tls.port) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        assert "DEMO" in names(archive_of("https://xnat.example.org", proxy=url, ca_bundle=bundle))
        assert {head.split(" ")[:2][0] for head in proxy.heads} == {"CONNECT"}


def test_an_address_that_cannot_be_asked_is_named_without_the_password_in_it() -> None:
    archive = archive_of("http://xnat.example.org", proxy="http://mary:s3cret@127.0.0.1:99999")
    with pytest.raises(Unavailable, match="not an address") as caught:
        names(archive)
    assert "s3cret" not in str(caught.value) + caught.value.hint


def test_a_proxy_that_is_away_is_named_without_its_password() -> None:
    archive = archive_of("http://xnat.example.org", proxy="http://mary:s3cret@127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"the proxy failed: \[Errno 111\] Connection refused$") as caught:
        names(archive)
    assert "s3cret" not in str(caught.value) + caught.value.hint
    assert "s3cret" not in repr(HttpConfig(proxy="http://mary:s3cret@127.0.0.1:9"))
