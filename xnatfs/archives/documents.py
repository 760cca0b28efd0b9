"""The files that xnatfs makes out of an archive's answers: csv tables, item.json, metadata.csv, LICENSE. Bytes only.

A document's key is ``document:<listing>|<what>``: the listing that knows it, and what it is. Its size and MD5 are part
of its entry, so a reader gets the bytes that were announced or an error, like with any other file.
"""

from __future__ import annotations

import csv
import io
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import md5

from xnatfs.model import Entry

STORE_BYTES = 32 * 1024 * 1024
"""Bytes of documents kept between being announced and being read; one that has gone is made again."""

PREFIX = "document:"


def document_key(listing: str, what: str) -> str:
    return f"{PREFIX}{listing}|{what}"


def is_document(key: str) -> bool:
    return key.startswith(PREFIX)


def split_key(key: str) -> tuple[str, str]:
    """(listing, what) of a document key."""
    listing, _, what = key.removeprefix(PREFIX).rpartition("|")
    return listing, what


def made(name: str, key: str, data: bytes, mtime_ns: int, xsi_type: str = "") -> Entry:
    """The entry of a document whose bytes are known."""
    digest = md5(data, usedforsecurity=False).hexdigest()
    return Entry(
        name=name,
        key=key,
        is_dir=False,
        size=len(data),
        mtime_ns=mtime_ns,
        version=f"{len(data)}:{digest}",
        listing=split_key(key)[0],
        digest=digest,
        xsi_type=xsi_type,
        reserved=True,
    )


def unmade(name: str, key: str, mtime_ns: int, xsi_type: str = "") -> Entry:
    """The entry of a document that is made when somebody asks for its size or its bytes."""
    return Entry(name=name, key=key, is_dir=False, mtime_ns=mtime_ns, xsi_type=xsi_type, reserved=True)


def table_csv(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> bytes:
    """A listing as CSV, header first, UTF-8, one line an item; ``rows`` have lower-case keys.

    A NUL becomes U+FFFD: no reader of CSV takes it, and Python 3.10 does not write it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([row.get(column.lower(), "").replace("\0", "\ufffd") for column in columns])
    return text.getvalue().encode("utf-8", "surrogateescape")


def row_json(row: Mapping[str, object]) -> bytes:
    """One listing row as the server sent it."""
    # As dumps(indent=1, sort_keys=True) would, which takes 200 us for it: a crawl makes thousands of these.
    lines = ",\n".join(f" {_text(name)}: {_text(value)}" for name, value in sorted(row.items()))
    return f"{{\n{lines}\n}}\n".encode("utf-8", "surrogatepass")


_text = json.JSONEncoder(ensure_ascii=False).encode


class DocumentStore:
    """The bytes of documents by key, least recently used ones forgotten. Safe from any thread."""

    def __init__(self, limit_bytes: int = STORE_BYTES) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._documents: OrderedDict[str, bytes] = OrderedDict()  # guarded by _lock
        self._used = 0  # guarded by _lock

    def put(self, documents: Mapping[str, bytes]) -> None:
        with self._lock:
            for key, data in documents.items():
                self._used += len(data) - len(self._documents.pop(key, b""))
                self._documents[key] = data
            while self._used > self._limit and len(self._documents) > 1:
                self._used -= len(self._documents.popitem(last=False)[1])

    def get(self, key: str) -> bytes | None:
        with self._lock:
            data = self._documents.get(key)
            if data is not None:
                self._documents.move_to_end(key)
            return data


class BytesBody:
    """A document as a ``RangeStream``: all of it."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0
        self.start = 0
        self.stop = self.total = len(data)
        self.validator = ""
        self.ranged = False

    def readinto(self, buffer: memoryview) -> int:
        piece = self._data[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def close(self) -> None:
        """Nothing to let go."""
