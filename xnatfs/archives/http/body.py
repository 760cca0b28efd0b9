"""The body of a file's GET as a stream, checked against what the listing said. For every archive that speaks HTTP.

Knows no archive's paths. A body belongs to one thread; ``close`` may come from another.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from xnatfs.archives.http.reply import Reply, content_length, path_of
from xnatfs.errors import StaleContent, Unavailable, UnexpectedReply
from xnatfs.model import Entry

COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".z", ".zst", ".br")
"""Ends of names for which web servers tell an encoding, from their tables of types, and send the file as it is."""


class HttpBody:
    """The body of a file's GET, checked against what the listing said. See ``RangeStream``."""

    def __init__(self, reply: Reply, start: int, stop: int, total: int, validator: str, ranged: bool) -> None:
        self._reply = reply
        self._at = start
        self.start = start
        self.stop = stop
        self.total = total
        self.validator = validator
        self.ranged = ranged

    def readinto(self, buffer: memoryview) -> int:
        size = min(len(buffer), self.stop - self._at)
        if size <= 0:
            return 0
        count = self._reply.readinto(buffer[:size])
        if not count:
            raise Unavailable(f"{path_of(self._reply.url)}: the body ended at byte {self._at} of {self.stop}")
        self._at += count
        if self._at == self.stop:
            self._finish()
        return count

    def _finish(self) -> None:
        """At the last byte: nothing may follow (a body without a length could be longer than the file was)."""
        if content_length(self._reply) is None and self._reply.read1(1):
            raise StaleContent(f"{path_of(self._reply.url)}: longer than {self.total} bytes")
        self._reply.close(reusable=True)

    def close(self) -> None:
        self._reply.close()


def checked_body(
    reply: Reply, entry: Entry, start: int, stop: int, validator: str | None = None, stored: bool = False
) -> HttpBody:
    """Doubt every 200: a login page has a status of 200 as well.

    Args:
        validator: What tells versions of this file apart, when not its Last-Modified or else its ETag.
        stored: An encoding may be how the file is stored, so that what comes are its bytes: a bucket keeps the header
            with the object, Apache tells it of a name in .gz. Its length, which has to be told, proves it.
    """
    what = f"GET {entry.key}"
    assert entry.size is not None
    encoded = reply.headers.get("Content-Encoding", "identity").lower() not in ("", "identity")
    if encoded and not (stored and (reply.status == 206 or content_length(reply) is not None)):
        raise UnexpectedReply(f"{what}: an encoded body although identity was asked for")
    if validator is None:
        validator = reply.headers.get("Last-Modified") or reply.headers.get("ETag") or ""
    if reply.status == 206:
        first, last, total = content_range(reply, what)
        if not first <= start < last <= total:
            raise UnexpectedReply(f"{what}: bytes {first} to {last} of {total} in place of {start} to {stop}")
        length = content_length(reply)
        if length is not None and length != last - first:
            raise UnexpectedReply(f"{what}: {length} bytes for the range {first} to {last}")
        ranged = True
    else:
        length = content_length(reply)
        first, total = 0, entry.size if length is None else length
        last, ranged = total, False
    if total != entry.size:
        raise StaleContent(f"{what}: {total} bytes where the listing says {entry.size}", "list the directory again")
    return HttpBody(reply, first, last, total, validator, ranged)


def is_compressed(name: str) -> bool:
    """Whether a name says that the file itself is compressed, whatever a header says of it."""
    return name.lower().endswith(COMPRESSED)


def content_range(reply: Reply, what: str) -> tuple[int, int, int]:
    """(start, stop, total) of a 206, half-open."""
    text = reply.headers.get("Content-Range", "")
    try:
        unit, _, rest = text.partition(" ")
        span, _, total = rest.partition("/")
        first, _, last = span.partition("-")
        if unit.lower() != "bytes":
            raise ValueError(text)
        return int(first), int(last) + 1, int(total)
    except ValueError:
        raise UnexpectedReply(f"{what}: status 206 with Content-Range {text[:60]!r}") from None


def is_page(headers: Mapping[str, str], entry: Entry) -> bool:
    """Whether a web page came in place of a file. A file that is one is known by its name, or at least by its size."""
    kind = headers.get("Content-Type", "").split(";", 1)[0].strip().lower()
    if kind not in ("text/html", "application/xhtml+xml") or entry.name.lower().endswith((".html", ".htm")):
        return False
    return headers.get("Content-Length", "") != str(entry.size)


def http_time_ns(text: str) -> int:
    """A date of an HTTP header in nanoseconds since the epoch; 0 when there is none."""
    try:
        return int(parsedate_to_datetime(text).timestamp()) * 1_000_000_000
    except (TypeError, ValueError, IndexError):
        return 0
