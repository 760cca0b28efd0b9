"""A line: what goes out, how the head of an answer is understood, and when a connection serves again."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator

import pytest
import requests

from xnatfs.archives.http.account import Guest
from xnatfs.archives.http.client import HttpClient
from xnatfs.archives.http.line import Line, LineResponse
from xnatfs.config import HttpConfig

PATIENCE_S = 20.0


class Canned:
    """A server that says what it was given, one answer for each request, and hangs up where told to."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.hang_up_after = 10**6
        self.requests: list[bytes] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                if not self.answers:
                    return
                self.connections += 1
                served = 0
                while served < self.hang_up_after and self.answers and (request := connection.recv(65536)):
                    self.requests.append(request)
                    connection.sendall(self.answers.pop(0))
                    served += 1

    def close(self) -> None:
        self.answers.clear()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            pass
        self._thread.join(PATIENCE_S)
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Canned]:
    canned = Canned()
    yield canned
    canned.close()


@pytest.fixture
def line(server: Canned) -> Iterator[Line]:
    made = Line("127.0.0.1", server.port, None, [], "Host: here\r\n")
    yield made
    made.hang_up()


def get(line: Line, target: str = "/a", method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
    response = line.ask(method, target, {"X-One": "1"}, None, (PATIENCE_S, PATIENCE_S))
    body = b""
    while piece := response.read1(1000):
        body += piece
    response.close()
    return response, body


def said(body: bytes, *fields: str, status: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join([status, *fields, "", ""]).encode() + body


def test_a_request_is_one_piece_with_our_headers_and_no_others(server: Canned, line: Line) -> None:
    server.answers.append(said(b"abc", "Content-Length: 3"))
    assert get(line, "/a%20b?c=d")[1] == b"abc"
    assert server.requests == [b"GET /a%20b?c=d HTTP/1.1\r\nHost: here\r\nX-One: 1\r\n\r\n"]


def test_a_body_read_to_its_end_leaves_the_connection_for_the_next(server: Canned, line: Line) -> None:
    server.answers += [
        said(b"abc", "Content-Length: 3"),
        said(b"", "Content-Length: 0"),
        said(b"de", "content-length: 2"),
    ]
    assert [get(line)[1] for _ in range(3)] == [b"abc", b"", b"de"]
    assert server.connections == 1


def test_a_kept_connection_that_is_closed_under_a_request_is_made_anew_at_once(server: Canned, line: Line) -> None:
    server.hang_up_after = 2
    server.answers += [said(b"abc", "Content-Length: 3"), b"", said(b"de", "Content-Length: 2")]
    assert [get(line)[1] for _ in range(2)] == [b"abc", b"de"]
    assert server.connections == 2
    assert len(server.requests) == 3


def test_a_new_connection_that_is_closed_without_an_answer_is_an_error(server: Canned, line: Line) -> None:
    server.hang_up_after = 1
    server.answers += [b"", said(b"de", "Content-Length: 2")]
    with pytest.raises(http.client.RemoteDisconnected):
        get(line)
    assert len(server.requests) == 1


def test_a_connection_that_the_server_has_closed_is_made_anew(server: Canned, line: Line) -> None:
    server.hang_up_after = 1
    server.answers += [said(b"abc", "Content-Length: 3"), said(b"de", "Content-Length: 2")]
    assert get(line)[1] == b"abc"
    sock = line.sock
    assert sock is not None
    assert sock.recv(1, socket.MSG_PEEK) == b""  # its end has arrived
    assert get(line)[1] == b"de"
    assert server.connections == 2


def test_chunks_are_put_together_and_the_connection_serves_again(server: Canned, line: Line) -> None:
    chunks = b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: 1\r\n\r\n"
    server.answers += [said(chunks, "Transfer-Encoding: chunked"), said(b"h", "Content-Length: 1")]
    response, body = get(line)
    assert body == b"abcdefg"
    assert response.is_read  # type: ignore[attr-defined]  # a LineResponse
    assert get(line)[1] == b"h"
    assert server.connections == 1


def asked(line: Line) -> LineResponse:
    return line.ask("GET", "/a", {}, None, (PATIENCE_S, PATIENCE_S))


def test_chunks_go_straight_into_the_callers_memory(server: Canned, line: Line) -> None:
    chunks = b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: 1\r\n\r\n"
    server.answers += [said(chunks, "Transfer-Encoding: chunked"), said(b"h", "Content-Length: 1")]
    response = asked(line)
    buffer = bytearray(8)
    filled = 0
    while count := response.chunk_into(memoryview(buffer)[filled:]):
        filled += count
    assert bytes(buffer[:filled]) == b"abcdefg"
    assert response.is_read
    assert get(line)[1] == b"h"


@pytest.mark.parametrize("body", [b"5\r\nabc", b"3\r\nabc\r\n", b"3\r\nabc\r\nxyz\r\n"], ids=["in", "between", "none"])
def test_chunks_that_end_early_are_an_error_for_who_reads_into_memory(server: Canned, line: Line, body: bytes) -> None:
    server.hang_up_after = 1
    server.answers.append(said(body, "Transfer-Encoding: chunked"))
    response = asked(line)
    buffer = memoryview(bytearray(8))
    assert bytes(buffer[: response.chunk_into(buffer)]) == b"abc"
    with pytest.raises(http.client.HTTPException):
        response.chunk_into(buffer)


def test_a_body_that_ends_early_is_not_taken_for_read(server: Canned, line: Line) -> None:
    server.hang_up_after = 1
    server.answers.append(said(b"abc", "Content-Length: 5"))
    response, body = get(line)
    assert body == b"abc"
    assert not response.is_read  # type: ignore[attr-defined]


def test_a_head_request_and_a_204_have_no_body_whatever_the_length_says(server: Canned, line: Line) -> None:
    server.answers += [said(b"", "Content-Length: 500"), said(b"", status="HTTP/1.1 204 No Content")]
    response, body = get(line, method="HEAD")
    assert body == b""
    assert response.headers["content-length"] == "500"
    assert get(line)[1] == b""
    assert server.connections == 1


def test_headers_are_found_in_any_case_folded_repeated_and_in_latin_1(server: Canned, line: Line) -> None:
    fields = (
        "Content-Length: 0",
        "X-Long: a",
        "\tb",
        "Set-Cookie: a=1; Expires=Mon, 1",
        "set-cookie: b=2",
        "X-Umlaut: \xfc",
    )
    server.answers.append(said(b"", *fields).decode().encode("latin-1"))
    headers = get(line)[0].headers
    assert headers["x-long"] == "a b"
    assert headers.getlist("SET-COOKIE") == ["a=1; Expires=Mon, 1", "b=2"]  # type: ignore[attr-defined]
    assert headers["set-cookie"] == "a=1; Expires=Mon, 1, b=2"
    assert headers["X-UMLAUT"] == "\xfc"
    assert headers.get("absent") is None


def test_an_interim_answer_is_passed_over(server: Canned, line: Line) -> None:
    server.answers.append(said(b"", status="HTTP/1.1 103 Early Hints") + said(b"abc", "Content-Length: 3"))
    assert get(line)[1] == b"abc"


@pytest.mark.parametrize("status", ["HTTP/1.0 200 OK", "HTTP/1.1 200"])
def test_an_answer_without_a_length_goes_on_until_the_server_hangs_up(server: Canned, line: Line, status: str) -> None:
    server.hang_up_after = 1
    server.answers.append(said(b"abc", status=status))
    response, body = get(line)
    assert body == b"abc"
    assert not response.is_read  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 200\r\n\r\n",
        said(b"abc", "Content-Length: 3", "Content-Length: 4"),
        said(b"abc", "Content-Length: -3"),
        said(b"abc", "Content-Length: 3", "no colon in here"),
        said(b"abc", "Transfer-Encoding: gzip, chunked"),
        said(b"", "X: " + "x" * 70_000),
        said(b"", *(f"X-{number}: 1" for number in range(200))),
    ],
)
def test_a_head_that_cannot_be_trusted_is_an_error_and_ends_the_connection(
    server: Canned, line: Line, answer: bytes
) -> None:
    server.hang_up_after = 1
    server.answers += [answer]
    with pytest.raises((http.client.HTTPException, OSError)):
        get(line)
    assert line.sock is None


def test_a_header_of_two_lines_is_not_sent(server: Canned, line: Line) -> None:
    with pytest.raises(ValueError, match="more than one line"):
        line.ask("GET", "/", {"X": "a\r\nAuthorization: b"}, None, (PATIENCE_S, PATIENCE_S))
    assert server.requests == []


def test_an_interrupted_request_fails_at_once_and_the_line_serves_again(server: Canned, line: Line) -> None:
    server.answers += [b"", said(b"abc", "Content-Length: 3")]
    timer = threading.Timer(0.2, line.interrupt)
    timer.start()
    with pytest.raises((OSError, http.client.HTTPException)) as raised:
        get(line)  # PATIENCE_S is longer than anyone would wait
    timer.join()
    assert not isinstance(raised.value, TimeoutError)
    assert get(line)[1] == b"abc"


def test_a_line_that_is_interrupted_before_it_connects_sends_nothing(server: Canned, line: Line) -> None:
    server.answers.append(said(b"abc", "Content-Length: 3"))
    line.interrupt()
    with pytest.raises(ConnectionAbortedError):
        get(line)
    assert server.requests == []


@pytest.mark.parametrize("path", ["/data/experiments/E1,E2/files", "/data/projects/a%20b", "/x/?a=b", "/ä b", "/"])
@pytest.mark.parametrize(
    "params", [{}, {"format": "json", "all": "true"}, {"columns": "ID,ä b&c=d/e~f+g%", "empty": ""}]
)
def test_an_address_is_written_as_requests_would(path: str, params: dict[str, str]) -> None:
    client = HttpClient("http://127.0.0.1:1/xnat", HttpConfig(), Guest(), "xnatfs/0")
    url = f"http://127.0.0.1:1/xnat{path}"
    expected = requests.Request("GET", url, params=params).prepare().path_url
    assert client._target(url, params) == expected
