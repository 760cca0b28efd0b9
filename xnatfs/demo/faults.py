"""Faults on demand: what a real network, proxy or server does to a reply once in a while.

A fault is chosen by a regular expression on "path?query", works a number of times, and then is gone. Knows nothing of
records. Used from the event loop only.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from xnatfs.demo.replies import LOGIN_PAGE, Reply, error, plain
from xnatfs.demo.sending import Body, Cut, Piece, of_bytes

PARENT_ITEM = {"items": [{"children": [], "data_fields": {"ID": "XNAT_E00001"}, "meta": {"isHistory": False}}]}


@dataclass(slots=True)
class Fault:
    """One line of the fault list.

    Attributes:
        match: Regular expression, searched in "path?query".
        kind: One of KINDS.
        at: Bytes of the body that still go out as they should; None is the kind's own default.
        times: How often it works before it is gone; None is for ever.
        probability: Of working at a request that matches.
        method: Only this method; "" is any.
        value: What a header is to say, or which column is to be missing, where the kind is about one.
    """

    match: str
    kind: str
    at: int | None = None
    status: int = 503
    retry_after: str | None = None
    times: int | None = 1
    probability: float = 1.0
    method: str = ""
    value: str = ""


class UnknownFault(ValueError):
    """The fault list names a kind that does not exist."""


@dataclass(slots=True)
class FaultList:
    faults: list[Fault] = field(default_factory=list)
    random: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311 - repeatable, not secret

    def replace(self, entries: list[dict[str, object]]) -> None:
        """Put these faults in place of the present ones."""
        self.faults = []
        self.extend(entries)

    def extend(self, entries: list[dict[str, object]]) -> None:
        made = [Fault(**entry) for entry in entries]  # type: ignore[arg-type]  # JSON from a test
        for fault in made:
            re.compile(fault.match)
            if fault.kind not in KINDS:
                raise UnknownFault(fault.kind)
        self.faults.extend(made)

    def take(self, method: str, target: str) -> Fault | None:
        """The first fault that applies to this request; used up by one."""
        for fault in self.faults:
            if fault.method and fault.method != method:
                continue
            if not re.search(fault.match, target) or self.random.random() >= fault.probability:
                continue
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
            return fault
        return None


def apply(fault: Fault, reply: Reply, range_header: str) -> Reply:
    """The reply as this fault leaves it."""
    return KINDS[fault.kind](fault, reply, range_header)


def _cut(kind: str) -> Callable[[Fault, Reply, str], Reply]:
    def fault_kind(fault: Fault, reply: Reply, range_header: str) -> Reply:
        if fault.at is None and kind in ("reset", "close"):
            reply.dead = kind
        else:
            reply.cut = Cut(kind, fault.at or 0)
        return reply

    return fault_kind


def _status(fault: Fault, reply: Reply, range_header: str) -> Reply:
    answer = error(fault.status, f"made to fail with {fault.status}")
    if fault.retry_after is not None:
        answer.headers["Retry-After"] = str(fault.retry_after)
    return answer


def _html(fault: Fault, reply: Reply, range_header: str) -> Reply:
    return plain(LOGIN_PAGE, "text/html")


def _empty(fault: Fault, reply: Reply, range_header: str) -> Reply:
    return Reply(200, {"Content-Type": reply.headers.get("Content-Type", "application/json")})


def _short(fault: Fault, reply: Reply, range_header: str) -> Reply:
    """Content-Length right, body cut, connection closed in good order."""
    length = reply.body.length
    reply.cut = Cut("close", fault.at if fault.at is not None else (length or 2) // 2)
    return reply


def _plus_one(fault: Fault, reply: Reply, range_header: str) -> Reply:
    if reply.body.length is not None:
        reply.declared = reply.body.length + 1
        reply.cut = Cut("close", reply.body.length)
    return reply


def _doubled(fault: Fault, reply: Reply, range_header: str) -> Reply:
    if reply.body.length is not None:
        reply.declared = 2 * reply.body.length
        reply.cut = Cut("close", reply.body.length)
    return reply


def _minus_one(fault: Fault, reply: Reply, range_header: str) -> Reply:
    body = reply.body
    if body.length:
        reply.body = Body(body.length - 1, body.pieces)
    return reply


def _wrong_range(fault: Fault, reply: Reply, range_header: str) -> Reply:
    """A 206 for another place than the one asked for, and honest about it."""
    found = re.match(r"bytes=(\d+)-", range_header)
    whole = reply.whole or reply.body
    length = whole.length
    if not found or not length:
        return reply
    start = (int(found.group(1)) + (fault.at or 1)) % length
    pieces = whole.pieces
    reply.status = 206
    reply.headers["Content-Range"] = f"bytes {start}-{length - 1}/{length}"
    reply.body = Body(length - start, lambda a, b: pieces(start + a, start + b))
    return reply


def _half_range(fault: Fault, reply: Reply, range_header: str) -> Reply:
    """A 206 for the first half of the range asked for, as a server may; honest about it."""
    found = re.match(r"bytes=(\d+)-(\d*)", range_header)
    whole = reply.whole or reply.body
    length = whole.length
    if not found or not length:
        return reply
    start = int(found.group(1))
    stop = min(int(found.group(2)) + 1, length) if found.group(2) else length
    half = max(1, (stop - start) // 2)
    pieces = whole.pieces
    reply.status = 206
    reply.headers["Content-Range"] = f"bytes {start}-{start + half - 1}/{length}"
    reply.body = Body(half, lambda a, b: pieces(start + a, start + b))
    return reply


def _whole(fault: Fault, reply: Reply, range_header: str) -> Reply:
    """200 and the whole file, whatever part was asked for: as if there were no Range."""
    if reply.whole is not None:
        reply.status = 200
        reply.body = reply.whole
        reply.headers.pop("Content-Range", None)
    return reply


def _bare_206(fault: Fault, reply: Reply, range_header: str) -> Reply:
    reply.status = 206
    reply.headers.pop("Content-Range", None)
    return reply


def _content_range(fault: Fault, reply: Reply, range_header: str) -> Reply:
    """A 206 whose Content-Range is ``value``, with {first}, {last} and {total} as they would be right."""
    whole = reply.whole or reply.body
    total = whole.length or 0
    found = re.match(r"bytes (\d+)-(\d+)/", reply.headers.get("Content-Range", ""))
    first, last = (int(found.group(1)), int(found.group(2))) if found else (0, total - 1)
    reply.status = 206
    reply.headers["Content-Range"] = fault.value.format(first=first, last=last, total=total)
    return reply


def _multipart(fault: Fault, reply: Reply, range_header: str) -> Reply:
    whole = reply.whole or reply.body
    length = whole.length or 0
    first = b"".join(bytes(p) for p in whole.pieces(0, min(length, 1000)))
    head = (
        f"--PART\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes 0-{len(first) - 1}/{length}\r\n\r\n"
    )
    data = head.encode() + first + b"\r\n--PART--\r\n"
    return Reply(206, {"Content-Type": "multipart/byteranges; boundary=PART"}, of_bytes(data))


def _garbage(fault: Fault, reply: Reply, range_header: str) -> Reply:
    """The right length and the right headers around bytes that are not the file's."""
    length = reply.body.length
    pieces = reply.body.pieces

    def wrong(start: int, stop: int) -> Iterator[Piece]:
        for piece in pieces(start, stop):
            yield bytes(piece).translate(_SCRAMBLED)

    reply.body = Body(length, wrong)
    return reply


def _parent_item(fault: Fault, reply: Reply, range_header: str) -> Reply:
    return plain(json.dumps(PARENT_ITEM), "application/json")


def _without_column(fault: Fault, reply: Reply, range_header: str) -> Reply:
    """A table that lacks the column called ``value``; any other document as it is."""
    data = b"".join(bytes(p) for p in reply.body.pieces(0, reply.body.length or 0))
    document = json.loads(data)
    for row in document.get("ResultSet", {}).get("Result", ()):
        for name in [name for name in row if name.lower() == fault.value.lower()]:
            del row[name]
    return plain(json.dumps(document), "application/json")


def _gzip(fault: Fault, reply: Reply, range_header: str) -> Reply:
    data = b"".join(bytes(p) for p in reply.body.pieces(0, reply.body.length or 0))
    reply.headers["Content-Encoding"] = "gzip"
    reply.body = of_bytes(gzip.compress(data, 1, mtime=0))
    return reply


def _chunked_cut(fault: Fault, reply: Reply, range_header: str) -> Reply:
    """No length, and no last chunk either."""
    body = reply.body
    length = body.length if body.length is not None else 0
    at = fault.at if fault.at is not None else length // 2
    reply.body = Body(None, lambda start, stop: body.pieces(0, length))
    reply.cut = Cut("close", at)
    return reply


def _variant(kind: str) -> Callable[[Fault, Reply, str], Reply]:
    """A body that only whoever made the reply can make wrong in this way."""

    def fault_kind(fault: Fault, reply: Reply, range_header: str) -> Reply:
        if kind in reply.variants:
            reply.body = reply.variants[kind]()
        return reply

    return fault_kind


def _chunked(more: bytes) -> Callable[[Fault, Reply, str], Reply]:
    """The body, whole and in good order, in chunks and so without a length; with ``more`` bytes behind its end."""

    def fault_kind(fault: Fault, reply: Reply, range_header: str) -> Reply:
        body = reply.body

        def pieces(start: int, stop: int) -> Iterator[Piece]:
            yield from body.pieces(0, body.length or 0)
            yield more

        if body.length is not None:
            reply.body = Body(None, pieces)
        return reply

    return fault_kind


def _unframed(fault: Fault, reply: Reply, range_header: str) -> Reply:
    """Neither length nor chunks: the end of the connection ends the body, at ``at`` if that is before its end."""
    length = reply.body.length
    if length is not None:
        reply.framed = False
        reply.cut = Cut("close", length if fault.at is None else min(fault.at, length))
    return reply


_SCRAMBLED = bytes((value * 167 + 13) % 256 for value in range(256))
KINDS: dict[str, Callable[[Fault, Reply, str], Reply]] = {
    "reset": _cut("reset"),
    "close": _cut("close"),
    "stall": _cut("stall"),
    "drip": _cut("drip"),
    "status": _status,
    "html": _html,
    "empty": _empty,
    "short": _short,
    "length_plus_one": _plus_one,
    "length_minus_one": _minus_one,
    "length_doubled": _doubled,
    "chunked": _chunked(b""),
    "chunked_longer": _chunked(b"!"),
    "unframed": _unframed,
    "bare_206": _bare_206,
    "content_range": _content_range,
    "half_range": _half_range,
    "whole": _whole,
    "wrong_range": _wrong_range,
    "multipart": _multipart,
    "garbage": _garbage,
    "parent_item": _parent_item,
    "without_column": _without_column,
    "gzip_encoding": _gzip,
    "chunked_cut": _chunked_cut,
    "missing_member": _variant("missing_member"),
    "wrong_md5": _variant("wrong_md5"),
}
