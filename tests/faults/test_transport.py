"""What connections and bodies do wrong: breaks at each place, lengths, encodings, silence, ranges, statuses.

Every case runs with ``cat`` on a mount, on a server with and on one without support for ranges.
"""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.faults.matrix import BLOCK, EITHER, FAILED, RIGHT, Bench, Case

pytestmark = pytest.mark.fuse

PLACES = {"before the head": None, "0": 0, "1": 1, "block-1": BLOCK - 1, "block": BLOCK, "n-1": -1}
SILENT = frozenset({errno.ETIMEDOUT})


def broken(kind: str) -> list[Case]:
    """A connection that breaks once is asked for again; one that always does is an error."""
    return [
        case
        for name, at in PLACES.items()
        for case in (
            Case(f"{kind} at {name}, once", {"kind": kind, "at": at}, RIGHT),
            Case(
                f"{kind} at {name}, always", {"kind": kind, "at": at}, FAILED, None, ranged_outcomes=later(at, FAILED)
            ),
        )
    ]


def silent() -> list[Case]:
    return [
        case
        for name, at in PLACES.items()
        if at is not None
        for case in (
            Case(f"stall at {name}, once", {"kind": "stall", "at": at}, RIGHT | SILENT),
            Case(
                f"stall at {name}, always", {"kind": "stall", "at": at}, SILENT, None, ranged_outcomes=later(at, SILENT)
            ),
        )
    ]


def later(at: int | None, outcomes: frozenset[int]) -> frozenset[int]:
    """Where each request asks for a part of the file, none may be long enough to meet a fault that is far inside."""
    return outcomes | RIGHT if at is not None and not 0 <= at < BLOCK - 1 else outcomes


def statuses() -> list[Case]:
    cases = [
        Case(f"status {status}, once", {"kind": "status", "status": status}, RIGHT)
        for status in (429, 500, 502, 503, 504)
    ]
    cases += [
        Case(f"status {status}, {word}", {"kind": "status", "status": status}, outcomes, times)
        for status in (201, 204, 205, 300, 304, 400, 405, 406, 416, 418, 501, 505, 599)
        for word, times, outcomes in (("once", 1, EITHER), ("always", None, FAILED))
    ]
    cases += [
        Case("503 with Retry-After: 1", {"kind": "status", "retry_after": "1"}, RIGHT),
        Case("429 with Retry-After: 0", {"kind": "status", "status": 429, "retry_after": "0"}, RIGHT),
        Case("503 with Retry-After of an hour", {"kind": "status", "retry_after": "3600"}, FAILED, None),
        Case(
            "503 with a date as Retry-After",
            {"kind": "status", "retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"},
            RIGHT,
        ),
        Case("503 with nonsense as Retry-After", {"kind": "status", "retry_after": "-1 soon"}, RIGHT),
    ]
    return cases


TABLE = [
    *broken("reset"),
    *broken("close"),
    *silent(),
    *statuses(),
    Case("drip of the last bytes", {"kind": "drip", "at": -8}, RIGHT, None),
    Case("drip from the middle, always", {"kind": "drip", "at": 1000}, SILENT, None),
    Case("Content-Length 1 too large, once", {"kind": "length_plus_one"}, EITHER),
    Case("Content-Length 1 too large, always", {"kind": "length_plus_one"}, FAILED, None),
    Case("Content-Length 1 too small, once", {"kind": "length_minus_one"}, EITHER),
    Case("Content-Length 1 too small, always", {"kind": "length_minus_one"}, FAILED, None),
    Case("Content-Length twice the body, once", {"kind": "length_doubled"}, EITHER),
    Case("Content-Length twice the body, always", {"kind": "length_doubled"}, FAILED, None),
    Case("no length, in chunks", {"kind": "chunked"}, RIGHT, None),
    Case("no length, ended by the close", {"kind": "unframed"}, RIGHT, None),
    Case("no length, ended by a close too early, once", {"kind": "unframed", "at": 70_000}, RIGHT),
    Case("no length, ended by a close too early, always", {"kind": "unframed", "at": 70_000}, FAILED, None),
    Case("no length, and a byte too many", {"kind": "chunked_longer"}, FAILED, None),
    Case("chunks cut short, once", {"kind": "chunked_cut"}, RIGHT),
    Case("chunks cut short, always", {"kind": "chunked_cut"}, FAILED, None),
    Case("gzip although identity was asked for, once", {"kind": "gzip_encoding"}, EITHER),
    Case("gzip although identity was asked for, always", {"kind": "gzip_encoding"}, FAILED, None),
    Case("206 for another place", {"kind": "wrong_range", "at": 7}, FAILED, None),
    Case("206 in parts", {"kind": "multipart"}, FAILED, None),
    Case("206 without Content-Range", {"kind": "bare_206"}, FAILED, None),
    Case(
        "206 whose total is another", {"kind": "content_range", "value": "bytes {first}-{last}/{total}9"}, FAILED, None
    ),
    Case("206 whose total is unknown", {"kind": "content_range", "value": "bytes {first}-{last}/*"}, FAILED, None),
    Case("206 of another unit", {"kind": "content_range", "value": "items {first}-{last}/{total}"}, FAILED, None),
    Case("206 that ends before it begins", {"kind": "content_range", "value": "bytes 9-3/{total}"}, FAILED, None),
    Case("206 of negative numbers", {"kind": "content_range", "value": "bytes -5-3/{total}"}, FAILED, None),
    Case("206 beyond the end", {"kind": "content_range", "value": "bytes {first}-{total}9/{total}"}, FAILED, None),
    Case("206 of huge numbers", {"kind": "content_range", "value": "bytes 0-{last}/" + "9" * 5000}, FAILED, None),
    Case("206 of a part of what was asked for", {"kind": "half_range"}, RIGHT, None),
    Case("200 and the whole file in place of a part, once", {"kind": "whole"}, RIGHT),
    Case("200 and the whole file in place of a part, always", {"kind": "whole"}, RIGHT, None),
    *(
        Case(f"200 and {what}, {word}", {"kind": kind}, outcomes, times)
        for kind, what in (
            ("html", "a page"),
            ("empty", "nothing"),
            ("parent_item", "another item"),
            ("garbage", "other bytes"),
        )
        for word, times, outcomes in (("once", 1, EITHER), ("always", None, FAILED))
    ),
]


def sampled() -> list[Any]:
    """Every case on both kinds of server; the short mode takes every other on each, a quarter of those that wait."""
    rows = []
    for ranges, turn in (("off", 0), ("on", 2)):
        for number, case in enumerate(TABLE):
            every, first = (4, turn) if case.fault["kind"] in ("stall", "drip") else (2, turn // 2)
            marks = [pytest.mark.slow] if number % every != first else []
            rows.append(pytest.param(ranges, case, id=f"{ranges}-{case.name}", marks=marks))
    return rows


@pytest.mark.parametrize(("bench", "case"), sampled(), indirect=["bench"], scope="module")
def test_right_bytes_or_an_errno_and_then_it_heals(bench: Bench, case: Case) -> None:
    bench.prove(case)
