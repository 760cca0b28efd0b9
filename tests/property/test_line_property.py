"""Answers made up piece by piece: a head is understood as the standard library does, or is an expected error."""

from __future__ import annotations

import http.client
import io
from collections.abc import Iterator
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from xnatfs.archives.http.errors import TRANSPORT_ERRORS
from xnatfs.archives.http.line import LineResponse

names = st.sampled_from(
    [
        b"Content-Length", b"content-length", b"Transfer-Encoding", b"Connection", b"Set-Cookie", b"Content-Range",
        b"Location", b"X", b"", b" ", b"a b", b"\xff", b"\0", b"Last-Modified",
    ]
)  # fmt: skip
values = st.one_of(
    st.sampled_from(
        [
            b"0", b"5", b"+5", b"-1", b"5, 5", b"5,6", b"0x5", b"1e3", b"\xb2", b" 5 ", b"9" * 30, b"9" * 5000, b"5\t",
            b"chunked", b"gzip, chunked", b"identity", b"close", b"keep-alive", b"", b"\0", b"\xff\xfe", b"a: b",
        ]
    ),
    st.binary(max_size=20),
)  # fmt: skip
statuses = st.one_of(
    st.just(b"HTTP/1.1 200 OK"),
    st.sampled_from(
        [
            b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 200", b"HTTP/1.1 204 No", b"HTTP/1.1 100 Continue",
            b"HTTP/1.1 304 -", b"HTTP/2 200", b"HTTP/1.1 20", b"HTTP/1.1 2000", b"HTTP/1.1 -20", b"ICY 200 OK",
            b"HTTP/1.1 \xb2\xb2\xb2", b"",
        ]
    ),
    st.binary(max_size=20),
)  # fmt: skip
ends = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n\r\n", b"\r\n "])
chunks = st.lists(
    st.sampled_from(
        [b"5\r\nabcde\r\n", b"0\r\n\r\n", b"5;x=y\r\nabcde\r\n", b"-5\r\n", b"\xb2\r\n", b"f" * 40, b"5\r\n"]
    )
).map(b"".join)
bodies = st.one_of(st.binary(max_size=40), chunks)


@st.composite
def answers(draw: Any) -> bytes:
    lines = [draw(statuses)]
    lines += [name + b":" + value for name, value in draw(st.lists(st.tuples(names, values), max_size=5))]
    return b"".join(line + draw(ends) for line in lines) + draw(ends) + draw(bodies)


class Sent:
    """What a socket would have received, and then the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(io.BytesIO(self._data))  # type: ignore[arg-type]  # raw enough


def read(response: http.client.HTTPResponse, most: int) -> Iterator[bytes]:
    while (piece := response.read1(7)) and most > 0:
        most -= 1
        yield piece


@settings(max_examples=500, deadline=None)
@given(answers())
@example(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n")
def test_any_answer_is_understood_or_an_error_that_is_translated(data: bytes) -> None:
    response = LineResponse(Sent(data), method="GET")  # type: ignore[arg-type]  # all that it uses of a socket
    try:
        response.begin()
        body = b"".join(read(response, len(data)))
    except TRANSPORT_ERRORS:
        return
    finally:
        response.close()
    assert 200 <= response.status <= 999
    assert len(body) <= len(data)
    if response.length is not None and not response.chunked:
        assert response.length >= 0


@settings(max_examples=200, deadline=None)
@given(
    body=st.binary(max_size=200),
    framing=st.sampled_from(["length", "chunks", "close"]),
    fields=st.lists(
        st.tuples(st.sampled_from(["X-A", "x-a", "Set-Cookie", "Date"]), st.text("abc ,;=\xe9", max_size=9))
    ),
)
def test_a_good_answer_is_read_as_the_standard_library_reads_it(
    body: bytes, framing: str, fields: list[tuple[str, str]]
) -> None:
    head = [f"{name}: {value}".encode("latin-1") for name, value in fields]
    if framing == "length":
        head.append(b"Content-Length: %d" % len(body))
    elif framing == "chunks":
        head.append(b"Transfer-Encoding: chunked")
    sent = body
    if framing == "chunks":
        parts = [body[at : at + 30] for at in range(0, len(body), 30)]
        sent = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    data = b"\r\n".join([b"HTTP/1.1 200 OK", *head, b"", b""]) + sent
    ours = LineResponse(Sent(data), method="GET")  # type: ignore[arg-type]
    theirs = http.client.HTTPResponse(Sent(data), method="GET")  # type: ignore[arg-type]
    ours.begin()
    theirs.begin()
    assert (ours.status, ours.will_close) == (theirs.status, theirs.will_close)
    for name in {name for name, _ in fields}:
        assert ours.headers.getlist(name) == [value.strip() for value in theirs.headers.get_all(name, [])]
    assert b"".join(read(ours, 1000)) == b"".join(read(theirs, 1000)) == body
