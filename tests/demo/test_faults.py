"""Each kind of fault does what it says, seen by a plain HTTP client and, where that hides too much, by a socket."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import select
import socket
import struct
import time
from typing import Any

import pytest
import requests

from tests.helpers.server import DemoServer

FILE = "/data/experiments/XNAT_E00001/scans/1/resources/NIFTI/files/anatomical.nii"
LIST = "/data/experiments/XNAT_E00001/scans"
SIZE = 68002


@pytest.fixture
def wire(server: DemoServer, http: requests.Session) -> Any:
    """Fetch FILE (or another path) with http.client; returns status, headers, body."""

    def wire(path: str = FILE, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        connection = http_client(server)
        try:
            connection.request("GET", path, headers=basic(headers))
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    return wire


def http_client(server: DemoServer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)


def basic(headers: dict[str, str] | None = None) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(b"demo:demo").decode(), **(headers or {})}


@pytest.fixture
def content(wire: Any) -> bytes:
    data: bytes = wire()[2]
    assert len(data) == SIZE
    return data


def test_reset_before_the_head_breaks_the_connection(server: DemoServer, wire: Any) -> None:
    server.fault("anatomical", "reset")
    with pytest.raises(ConnectionResetError):
        wire()
    assert server.requests()[0]["aborted"]
    assert wire()[0] == 200  # used up


def test_reset_at_a_byte_sends_no_more_than_that(server: DemoServer, content: bytes) -> None:
    server.fault("anatomical", "reset", at=50_000)
    connection = http_client(server)
    connection.request("GET", FILE, headers=basic())
    answer = connection.getresponse()
    assert answer.getheader("Content-Length") == str(SIZE)
    with pytest.raises(ConnectionResetError):
        answer.read()
        answer.read()
    connection.close()
    record = server.data_requests()[-1]
    assert (record["sent"], record["aborted"], record["fault"]) == (50_000, True, "reset")


def test_close_at_a_byte_is_an_incomplete_body(server: DemoServer, wire: Any, content: bytes) -> None:
    server.fault("anatomical", "close", at=1000)
    with pytest.raises(http.client.IncompleteRead) as caught:
        wire()
    assert caught.value.partial == content[:1000]


def test_close_before_the_head_says_nothing(server: DemoServer, wire: Any) -> None:
    server.fault("anatomical", "close")
    with pytest.raises(http.client.RemoteDisconnected):
        wire()


def test_short_claims_the_right_length_and_sends_half(server: DemoServer, wire: Any, content: bytes) -> None:
    server.fault("anatomical", "short")
    with pytest.raises(http.client.IncompleteRead) as caught:
        wire()
    assert caught.value.partial == content[: SIZE // 2]


def test_stall_goes_silent_after_its_byte(server: DemoServer) -> None:
    server.fault("anatomical", "stall", at=100)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        auth = basic()["Authorization"]
        raw.sendall(f"GET {FILE} HTTP/1.1\r\nHost: x\r\nAuthorization: {auth}\r\n\r\n".encode())
        got = b""
        while len(got.partition(b"\r\n\r\n")[2]) < 100:
            got += raw.recv(65536)
        assert len(got.partition(b"\r\n\r\n")[2]) == 100
        assert select.select([raw], [], [], 1.0)[0] == []
    record = server.data_requests()[0]
    assert (record["sent"], record["aborted"]) == (100, True)


def test_drip_sends_single_bytes_slowly(server: DemoServer) -> None:
    server.fault("anatomical", "drip", at=SIZE - 5)
    started = time.monotonic()
    connection = http_client(server)
    connection.request("GET", FILE, headers=basic())
    assert len(connection.getresponse().read()) == SIZE
    connection.close()
    assert time.monotonic() - started >= 0.2


def test_status_with_retry_after(server: DemoServer, wire: Any) -> None:
    server.fault("anatomical", "status", status=503, retry_after="2")
    status, headers, _ = wire()
    assert (status, headers["Retry-After"]) == (503, "2")


def test_html_is_a_login_page_with_status_200(server: DemoServer, wire: Any) -> None:
    server.fault("anatomical", "html")
    status, headers, body = wire()
    assert (status, headers["Content-Type"]) == (200, "text/html")
    assert body.startswith(b"<!DOCTYPE html>")


def test_empty_is_a_200_without_a_body(server: DemoServer, wire: Any) -> None:
    server.fault("/scans", "empty")
    assert wire(LIST)[0::2] == (200, b"")


def test_a_length_one_too_large_never_ends_well(server: DemoServer, wire: Any, content: bytes) -> None:
    server.fault("anatomical", "length_plus_one")
    with pytest.raises(http.client.IncompleteRead) as caught:
        wire()
    assert caught.value.partial == content


def test_a_length_one_too_small_looks_complete(server: DemoServer, wire: Any, content: bytes) -> None:
    server.fault("anatomical", "length_minus_one")
    status, headers, body = wire()
    assert (status, headers["Content-Length"]) == (200, str(SIZE - 1))
    assert body == content[:-1]


def test_wrong_range_is_another_place_than_asked_for(server: DemoServer, wire: Any, content: bytes) -> None:
    server.switch(range=True)
    server.fault("anatomical", "wrong_range", at=7)
    status, headers, body = wire(headers={"Range": "bytes=1000-1999"})
    assert (status, headers["Content-Range"]) == (206, f"bytes 1007-{SIZE - 1}/{SIZE}")
    assert body == content[1007:]


def test_multipart_is_a_206_of_parts(server: DemoServer, wire: Any, content: bytes) -> None:
    server.fault("anatomical", "multipart")
    status, headers, body = wire(headers={"Range": "bytes=0-999"})
    assert status == 206
    assert headers["Content-Type"].startswith("multipart/byteranges")
    assert content[:1000] in body


def test_garbage_has_the_right_length_only(server: DemoServer, wire: Any, content: bytes) -> None:
    server.fault("anatomical", "garbage")
    status, headers, body = wire()
    assert (status, len(body)) == (200, SIZE)
    assert body != content
    assert "Last-Modified" in headers


def test_parent_item_is_json_without_a_result_set(server: DemoServer, wire: Any) -> None:
    server.fault("/scans$", "parent_item")
    assert wire(LIST)[2].startswith(b'{"items"')


def test_gzip_encoding_compresses_the_body(server: DemoServer, wire: Any, content: bytes) -> None:
    server.fault("anatomical", "gzip_encoding")
    _, headers, body = wire()
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == content


def test_chunked_cut_has_no_length_and_no_end(server: DemoServer, wire: Any, content: bytes) -> None:
    server.fault("anatomical", "chunked_cut", at=2000)
    with pytest.raises(http.client.IncompleteRead) as caught:
        wire()
    assert content.startswith(caught.value.partial)


def test_a_doubled_length_never_ends_well(server: DemoServer, wire: Any, content: bytes) -> None:
    server.fault("anatomical", "length_doubled")
    with pytest.raises(http.client.IncompleteRead) as caught:
        wire()
    assert (caught.value.partial, caught.value.expected) == (content, SIZE)


@pytest.mark.parametrize(("kind", "more"), [("chunked", b""), ("chunked_longer", b"!")])
def test_chunked_has_no_length(server: DemoServer, wire: Any, content: bytes, kind: str, more: bytes) -> None:
    server.fault("anatomical", kind)
    _, headers, body = wire()
    assert "Content-Length" not in headers
    assert body == content + more


@pytest.mark.parametrize(("at", "length"), [(None, SIZE), (5000, 5000)])
def test_unframed_ends_with_the_connection(
    server: DemoServer, wire: Any, content: bytes, at: int | None, length: int
) -> None:
    server.fault("anatomical", "unframed", at=at)
    status, headers, body = wire()
    assert (status, headers["Connection"]) == (200, "close")
    assert not {"Content-Length", "Transfer-Encoding"} & set(headers)
    assert body == content[:length]


def test_half_range_is_an_honest_206_of_less_than_asked_for(server: DemoServer, wire: Any, content: bytes) -> None:
    server.fault("anatomical", "half_range")
    status, headers, body = wire(headers={"Range": "bytes=1000-1999"})
    assert (status, headers["Content-Range"]) == (206, f"bytes 1000-1499/{SIZE}")
    assert body == content[1000:1500]


def test_whole_is_a_200_of_the_whole_file_in_place_of_a_part(server: DemoServer, wire: Any, content: bytes) -> None:
    server.switch(range=True)
    server.fault("anatomical", "whole")
    status, headers, body = wire(headers={"Range": "bytes=1000-1999"})
    assert (status, "Content-Range" in headers, body) == (200, False, content)


def test_bare_206_does_not_say_what_it_holds(server: DemoServer, wire: Any, content: bytes) -> None:
    server.switch(range=True)
    server.fault("anatomical", "bare_206")
    status, headers, body = wire(headers={"Range": "bytes=1000-1999"})
    assert (status, "Content-Range" in headers, body) == (206, False, content[1000:2000])


def test_content_range_says_what_the_test_wants(server: DemoServer, wire: Any, content: bytes) -> None:
    server.switch(range=True)
    server.fault("anatomical", "content_range", value="items {first}-{last}/{total}0")
    status, headers, body = wire(headers={"Range": "bytes=1000-1999"})
    assert (status, headers["Content-Range"]) == (206, f"items 1000-1999/{SIZE}0")
    assert body == content[1000:2000]


def test_a_zip_can_be_cut_too(server: DemoServer, wire: Any) -> None:
    server.fault("format=zip", "reset", at=100_000)
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        wire("/data/experiments/XNAT_E00001/scans/1/files?format=zip")
    assert server.data_requests()[0]["sent"] == 100_000


def test_a_fault_stays_as_often_as_asked(server: DemoServer, wire: Any) -> None:
    server.fault("anatomical", "status", status=500, times=2)
    assert [wire()[0] for _ in range(3)] == [500, 500, 200]
    server.fault("anatomical", "status", status=502, times=None)
    assert [wire()[0] for _ in range(3)] == [502] * 3
    server.clear_faults()
    assert wire()[0] == 200


def test_a_fault_of_half_the_requests_is_repeatable(server: DemoServer, wire: Any) -> None:
    server.fault("anatomical", "status", status=500, times=None, probability=0.5)
    statuses = [wire()[0] for _ in range(20)]
    assert {200, 500} == set(statuses)


def test_an_unknown_kind_is_refused(server: DemoServer) -> None:
    with pytest.raises(RuntimeError, match="UnknownFault"):
        server.fault("x", "no such kind")


def test_an_outage_resets_everything_and_ends(server: DemoServer, wire: Any) -> None:
    server.switch(outage=True)
    with pytest.raises(ConnectionResetError):
        wire()
    server.switch(outage=False)
    assert wire()[0] == 200


def test_latency_comes_before_the_first_byte(server: DemoServer, wire: Any) -> None:
    server.switch(latency_s=2.0)
    started = time.monotonic()
    wire(LIST)
    assert 2.0 <= time.monotonic() - started < 4.0  # once


def test_a_client_that_resets_is_logged_as_aborted(server: DemoServer) -> None:
    row = next(r for r in server.truth("BIG") if r["name"] == "bold_1g.nii")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    raw.connect(("127.0.0.1", server.port))
    raw.sendall(f"GET {row['uri']} HTTP/1.1\r\nHost: x\r\nAuthorization: {basic()['Authorization']}\r\n\r\n".encode())
    raw.recv(1000)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()
    record = server.data_requests()[0]
    assert record["aborted"]
    assert record["sent"] < 1_000_000  # what lay in the kernel's buffers


def test_a_replaced_file_is_new_to_the_next_reader(server: DemoServer, wire: Any, http: requests.Session) -> None:
    row = next(r for r in server.truth("ODDITIES") if r["name"] == "right.txt")
    before = http.get(server.url + row["uri"])
    server.edit("replace", row["uri"], b"changed\n")
    after = http.get(server.url + row["uri"])
    assert (before.content, after.content) == (b"right\n", b"changed\n")
    assert before.headers["Last-Modified"] != after.headers["Last-Modified"]
    listed = http.get(f"{server.url}/data/experiments/XNAT_E00020/resources/stale/files").json()["ResultSet"]["Result"]
    assert listed[2]["digest"] == hashlib.md5(b"changed\n").hexdigest()
    server.edit("replace", row["uri"], b"right\n")


def test_edits_can_leave_the_listing_behind(server: DemoServer, http: requests.Session) -> None:
    row = next(r for r in server.truth("DEMO") if r["name"] == "scores.csv")
    server.edit("grow", row["uri"], b"DEMO_003,9\n", keep_size=True, keep_digest=True)
    now = next(r for r in server.truth("DEMO") if r["name"] == "scores.csv")
    assert now["listed_size"] == row["listed_size"]
    assert now["listed_digest"] == row["listed_digest"]
    assert now["size"] == row["size"] + 11
    server.edit("remove", row["uri"])
    assert http.get(server.url + row["uri"]).status_code == 404
    server.edit("restore", row["uri"])
    content = http.get(server.url + row["uri"]).content
    assert content.endswith(b"DEMO_003,9\n")
    server.edit("replace", row["uri"], content[: row["size"]])


def test_a_file_can_be_added_and_unlisted(server: DemoServer, http: requests.Session) -> None:
    uri = "/data/experiments/XNAT_E00001/resources/QC/files/new/late.txt"
    server.edit("add", uri, b"late\n")
    assert http.get(server.url + uri).content == b"late\n"
    server.edit("unlist", uri)
    assert http.get(server.url + uri).status_code == 404
