"""Files that XNAT's firewall refuses by path, read as a member of a zip of their folder or resource.

XNAT's web stack turns away any URL with an encoded ``%``, ``/``, ``\\`` or ``;``, with ``//`` or with ``.`` and ``..``
segments, in later versions one with a line break; XNAT itself takes ``x.zip/`` for a look inside a zip file, and ``*``
for a pattern. Listings have them all.
Knows nothing of listings, logins and caches. Safe to call from any thread; a body belongs to one, ``close`` to all.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar
from urllib.parse import quote

from xnatfs.archives.base import weak_validator
from xnatfs.archives.http.client import PIECE, HttpClient
from xnatfs.archives.http.reply import Reply
from xnatfs.archives.zipstream import Member, ZipStream
from xnatfs.errors import NotFound, StaleContent, TimedOut, UnexpectedReply
from xnatfs.model import Entry

log = logging.getLogger(__name__)

T = TypeVar("T")

QUERY = {"format": "zip", "compression": "0"}
"""Stored, which is XNAT's default too: with its size and CRC before each member."""

_REFUSED = re.compile(
    r"[%\\;*\x00-\x1f\x7f\u2028\u2029]"
    r"|//|(?:^|/)\.{1,2}(?:/|$)"
    r"|\.(?:zip|jar|rar|ear|gar|mrb)[/!]",
    re.IGNORECASE,
)


def needs_zip(key: str) -> bool:
    """Whether a file with this listed URI cannot be had by its path."""
    _, found, path = key.partition("/files/")
    return _REFUSED.search(found + path) is not None


def open_in_zip(http: HttpClient, entry: Entry, timeout_s: float) -> ZipBody:
    """The content of a file from its first byte, out of a zip that is read up to it. See ``Archive.open_range``.

    Raises:
        NotFound: the zip does not hold the file: it is gone from the server's disk.
        StaleContent: it has another size there than the listing says.
        UnexpectedReply: a page or nothing in place of a zip, or one that cannot be split.
        Unavailable, TimedOut, CorruptContent, AccessDenied, LoginFailed
    """
    assert entry.size is not None
    size = entry.size

    def begin(reply: Reply) -> ZipBody:
        check_zip_reply(http, reply, f"GET {entry.key}")
        source = ZipSource(reply, timeout_s)
        member = _find(source, entry)
        if member.size is not None and member.size != size:
            raise StaleContent(
                f"{entry.key}: {member.size} bytes where the listing says {size}", "list the directory again"
            )
        member.expect(size)
        source.paced = False  # from here on the reader sets the pace, and may pause
        return ZipBody(reply, member, size, _validator(member))

    return _asked(http, entry.key, begin)


def stat_in_zip(http: HttpClient, entry: Entry, timeout_s: float) -> Entry:
    """The entry with its size, from the member's header; one without a size there is read to its end."""

    def begin(reply: Reply) -> Entry:
        check_zip_reply(http, reply, f"GET {entry.key}")
        member = _find(ZipSource(reply, timeout_s), entry)
        validator = _validator(member)
        if member.size is None:
            member.skip()
        reply.close()
        return replace(entry, size=member.size, version=f"{member.size}:{entry.digest}:{validator}")

    return _asked(http, entry.key, begin)


class ZipBody:
    """One member of a zip, as a ``RangeStream``: its CRC is checked before its last bytes are given out."""

    def __init__(self, reply: Reply, member: Member, size: int, validator: str) -> None:
        self._reply = reply
        self._member = member
        self._left = size
        self.start = 0
        self.stop = size
        self.total = size
        self.validator = validator
        self.ranged = False

    def readinto(self, buffer: memoryview) -> int:
        count = self._member.readinto(buffer)
        self._left -= count
        if self._left == 0:
            self._reply.close()  # what follows in the zip is others'
        return count

    def close(self) -> None:
        self._reply.close()


class ZipSource:
    """A reply's body for a ``ZipStream``; while ``paced``, one that comes in drips is given up."""

    def __init__(self, reply: Reply, timeout_s: float) -> None:
        self._reply = reply
        self._timeout_s = timeout_s
        self._started = time.monotonic()
        self._received = 0
        self.paced = True

    def read(self, size: int) -> bytes:
        piece = self._reply.read1(size)
        self._count(len(piece))
        return piece

    def readinto(self, buffer: memoryview) -> int:
        count = self._reply.readinto(buffer)
        self._count(count)
        return count

    def _count(self, count: int) -> None:
        self._received += count
        if self.paced and time.monotonic() - self._started > self._timeout_s * (1 + self._received / PIECE):
            raise TimedOut(f"{self._reply.url}: {self._received} bytes in {self._timeout_s:g} s")


def _asked(http: HttpClient, key: str, begin: Callable[[Reply], T]) -> T:
    """What ``begin`` makes of the zip of the file's folder."""
    top, _, path = key.partition("/files/")
    return zip_of(http, top, path.rpartition("/")[0], begin)


def zip_of(http: HttpClient, top: str, folder: str, begin: Callable[[Reply], T]) -> T:
    """What ``begin`` makes of the zip of a folder ("a/b"), or of its whole resource where the folder cannot be had.

    Args:
        top: The resource's URI, without ``/files``.
    """
    if folder and not _REFUSED.search(f"/{folder}/"):
        try:
            return http.open_with(f"{_quoted(f'{top}/files/{folder}')}/", QUERY, begin)
        except NotFound:
            # How a server decodes a folder's name is not the same everywhere (facts 3.6); the resource has it for sure.
            log.debug("%s: not in a zip of %s; asking for all of its resource", top, folder)
    return http.open_with(f"{_quoted(top)}/files", QUERY, begin)


def check_zip_reply(http: HttpClient, reply: Reply, what: str) -> None:
    """Doubt every 200, before a byte of it is taken for a zip."""
    if reply.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml+xml")):
        raise http.page_reply(what, reply.generation)
    if reply.status != 200:
        raise UnexpectedReply(f"{what}: status {reply.status} for a zip")
    if reply.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise UnexpectedReply(f"{what}: an encoded body although identity was asked for")


def _find(source: ZipSource, entry: Entry) -> Member:
    """The member that is the file, after those before it have passed."""
    path = entry.key.partition("/files/")[2]
    members = ZipStream(source.read, f"{entry.key} in a zip", source.readinto)
    while (member := members.next_member()) is not None:
        if path_in_resource(member.name) == path:
            return member
    raise NotFound(f"{entry.key}: listed, and not in the zip of its resource: gone from the server's disk?")


def path_in_resource(name: str) -> str:
    """The path of a member below its resource: ``SESSION/scans/1-T1w/resources/LABEL/files/PATH`` as XNAT names them.

    Both the label and a directory of the path may be called ``files``: it is the first one behind a label that counts.
    """
    _, found, labelled = name.partition("/resources/")
    return (labelled if found else name).partition("/files/")[2]


def _validator(member: Member) -> str:
    return weak_validator(member.modified, member.crc)


def _quoted(path: str) -> str:
    return quote(path, safe="/")
