"""One series as NBIA sends it: a zip made while it is sent, split as it arrives, its files left with the keeper.

A zip of NBIA has no length, no sizes in front and no range, and nothing else tells a file's name and size. So a series
is known when it has passed, whole, and every file of it has been kept by then. Knows no listings and no cache. For one
thread at a time.
"""

from __future__ import annotations

import csv
import hashlib
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from xnatfs.archives.base import Keeper, KeptWriter
from xnatfs.archives.http.client import PIECE, HttpClient
from xnatfs.archives.http.reply import Reply
from xnatfs.archives.nbia.dicom import sop_instance_uid
from xnatfs.archives.zipstream import Member, ZipStream
from xnatfs.errors import CorruptContent, StaleContent, TimedOut, Unavailable, UnexpectedReply
from xnatfs.model import Entry

LICENSE = "LICENSE"
DIGESTS = "md5hashes.csv"
NO_IMAGES = frozenset({LICENSE, DIGESTS})

MAX_DIGESTS = 32 << 20
"""Bytes of md5hashes.csv at most: 100,000 lines have 5 MB."""

HEAD = 4096
"""Bytes of a file in which its SOPInstanceUID stands: a usual group 2 has 200 to 400."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a series has to be.

    Attributes:
        images, size: Of its files, as the server's listing says; 0 when it does not.
        token: The version under which its files are kept.
    """

    uid: str
    images: int
    size: int
    token: str


@dataclass(frozen=True, slots=True)
class Received:
    """One file that has passed. ``sop`` is its SOPInstanceUID, "" when it is no DICOM file."""

    name: str
    sop: str
    size: int
    md5: str


class NoKeeper:
    """Keeps nothing: for an archive that nobody has given a keeper."""

    def writer(self, key: str, version: str) -> NoKeeper:
        return self

    def note(self, key: str, text: str) -> None: ...

    def recall(self, key: str) -> str | None:
        return None

    def write(self, data: memoryview) -> None: ...

    def finish(self) -> None: ...

    def discard(self) -> None: ...


class SeriesBody:
    """A zip whose first member is there, so that what answered is known to be a zip."""

    def __init__(self, reply: Reply, pace: _Paced, members: ZipStream, first: Member | None) -> None:
        self._reply = reply
        self._pace = pace
        self._members = members
        self._first = first

    def unpaced(self) -> SeriesBody:
        """The same, for a reader that may pause: what comes slowly then is not the server's fault."""
        self._pace.limit_s = float("inf")
        return self

    def next(self) -> Member | None:
        first, self._first = self._first, None
        return first or self._members.next_member()

    def interrupt(self) -> None:
        """Wake the thread that reads; it gets an error. From any thread."""
        self._reply.interrupt()

    def close(self, reusable: bool = False) -> None:
        self._reply.close(reusable)


def open_series(http: HttpClient, path: str, params: Mapping[str, str], what: str, timeout_s: float) -> SeriesBody:
    """The zip at ``path``. Failures up to its first member are tried again like those of any request.

    Raises:
        UnexpectedReply: no zip.
        Unavailable, TimedOut, CorruptContent, AccessDenied, LoginFailed, NotFound
    """

    def begin(reply: Reply) -> SeriesBody:
        if reply.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml+xml")):
            raise http.page_reply(what, reply.generation)
        if reply.status != 200:
            raise UnexpectedReply(f"{what}: status {reply.status} for a zip")
        pace = _Paced(reply, what, timeout_s)
        members = ZipStream(pace.read, what)
        return SeriesBody(reply, pace, members, members.next_member())

    return http.open_with(path, params, begin)


class _Paced:
    """A body that comes in drips is given up: less than a piece in ``limit_s``."""

    def __init__(self, reply: Reply, what: str, limit_s: float) -> None:
        self._reply = reply
        self._what = what
        self.limit_s = limit_s
        self._mark_at = time.monotonic()
        self._since_mark = 0

    def read(self, size: int) -> bytes:
        piece = self._reply.read1(size)
        self._since_mark += len(piece)
        now = time.monotonic()
        if self._since_mark >= PIECE:
            self._mark_at, self._since_mark = now, 0
        elif now - self._mark_at > self.limit_s:
            raise TimedOut(f"{self._what}: {self._since_mark} bytes in {self.limit_s:g} s")
        return piece


def receive(body: SeriesBody, wanted: Wanted, keeper: Keeper, key_of: Callable[[str, str], str]) -> list[Received]:
    """Every file of the series, checked, and kept under ``key_of(name, sop)``; nothing is kept of one that fails.

    The zip's own CRCs and directory are checked on the way, then each MD5, the number of files and their bytes.

    Raises:
        CorruptContent: damaged, or not all that the listing says. The server ends a series early, and in good order,
            where a file is missing on its disk.
        Unavailable, TimedOut: the body broke.
    """
    writers: list[KeptWriter] = []
    try:
        received, digests = _files(body, wanted, keeper, key_of, writers)
        _check(wanted, received, digests)
    except BaseException:
        for writer in writers:
            writer.discard()
        raise
    for writer in writers:
        writer.finish()
    return received


def _files(
    body: SeriesBody, wanted: Wanted, keeper: Keeper, key_of: Callable[[str, str], str], writers: list[KeptWriter]
) -> tuple[list[Received], dict[str, str]]:
    received: list[Received] = []
    digests: dict[str, str] = {}
    buffer = memoryview(bytearray(PIECE))
    while (member := body.next()) is not None:
        if member.name == DIGESTS:
            digests = _digests(member, f"series {wanted.uid}")
        elif member.name != LICENSE and not member.is_dir:
            head = _fill(member, buffer)
            sop = sop_instance_uid(bytes(head[:HEAD]))
            writer = keeper.writer(key_of(member.name, sop), wanted.token)
            writers.append(writer)
            size, md5 = _copy(member, buffer, head, writer)
            received.append(Received(member.name, sop, size, md5))
    return received, digests


def _fill(member: Member, buffer: memoryview) -> memoryview:
    """The member's first bytes: enough for a DICOM file's own header, or all there is."""
    filled = 0
    while filled < HEAD and (count := member.readinto(buffer[filled:])):
        filled += count
    return buffer[:filled]


def _copy(member: Member, buffer: memoryview, head: memoryview, writer: KeptWriter) -> tuple[int, str]:
    digest = hashlib.md5(usedforsecurity=False)
    size, piece = 0, head
    while len(piece):
        digest.update(piece)
        writer.write(piece)
        size += len(piece)
        piece = buffer[: member.readinto(buffer)]
    return size, digest.hexdigest()


def _digests(member: Member, what: str) -> dict[str, str]:
    data = bytearray()
    buffer = memoryview(bytearray(PIECE))
    while count := member.readinto(buffer):
        data += buffer[:count]
        if len(data) > MAX_DIGESTS:
            raise UnexpectedReply(f"{what}: the list of MD5 sums does not end")
    lines = csv.reader(io.StringIO(data.decode("utf-8", "replace")))
    return {line[0]: line[1].strip().lower() for line in lines if len(line) >= 2 and len(line[1].strip()) == 32}


def _check(wanted: Wanted, received: list[Received], digests: Mapping[str, str]) -> None:
    what = f"series {wanted.uid}"
    for file in received:
        if digests.get(file.name, file.md5) != file.md5:
            raise CorruptContent(f"{what}: the MD5 of {file.name} differs from the server's")
    if wanted.images and len(received) != wanted.images:
        raise CorruptContent(f"{what}: {len(received)} of {wanted.images} files came")
    size = sum(file.size for file in received)
    if wanted.size and size != wanted.size:
        raise CorruptContent(f"{what}: {size} of {wanted.size} bytes came")
    if not received:
        raise CorruptContent(f"{what}: no file came")


class MemberBody:
    """One file out of a series' zip as a ``RangeStream``, where it cannot be had by itself.

    Args:
        alone: It is all of its series: then the zip has to say the same, and its MD5 is checked, before the last bytes
            are given out.
    """

    def __init__(self, body: SeriesBody, member: Member, size: int, what: str, alone: bool) -> None:
        self._body = body
        self._member = member
        self._left = size
        self._what = what
        self._sum = hashlib.md5(usedforsecurity=False) if alone else None
        self.start = 0
        self.stop = self.total = size
        self.validator = ""
        self.ranged = False

    def readinto(self, buffer: memoryview) -> int:
        if not self._left or not len(buffer):
            return 0
        count = self._member.readinto(buffer)
        if not count:
            raise Unavailable(f"{self._what}: ends early in its zip")
        self._left -= count
        if self._sum is not None:
            self._sum.update(buffer[:count])
        if self._left == 0:
            if self._sum is not None:
                self._check_rest(self._sum.hexdigest())
            self._body.close(reusable=self._sum is not None)
        return count

    def _check_rest(self, md5: str) -> None:
        while (member := self._body.next()) is not None:
            if member.name == DIGESTS:
                if _digests(member, self._what).get(self._member.name, md5) != md5:
                    raise CorruptContent(f"{self._what}: its MD5 differs from the server's")
            elif member.name != LICENSE:
                raise StaleContent(f"{self._what}: its series has more files than the listing says")

    def close(self) -> None:
        self._body.close()


def open_member(body: SeriesBody, name: str, size: int, what: str, alone: bool) -> MemberBody | None:
    """The member called ``name``, or the first file where it is ``alone``; None when it is not there.

    The body is the result's, and closed where there is none.

    Raises:
        StaleContent: it has another size.
    """
    try:
        while (member := body.next()) is not None:
            if member.name == name or (alone and member.name not in NO_IMAGES):
                if member.size is not None and member.size != size:
                    raise StaleContent(f"{what}: {member.size} bytes where the listing says {size}")
                member.expect(size)
                return MemberBody(body.unpaced(), member, size, what, alone)
    except BaseException:
        body.close()
        raise
    body.close()
    return None


class SeriesBulk:
    """A series' zip as a ``BulkStream``: its files by what they are, since their names may have changed places.

    Args:
        wanted: SOPInstanceUID, or the name of a file that has none, -> the file asked for.
    """

    def __init__(self, body: SeriesBody, wanted: Mapping[str, Entry]) -> None:
        self._body = body.unpaced()
        self._wanted = dict(wanted)  # still to come

    def next(self) -> tuple[Entry, SeriesMember] | None:
        while (member := self._body.next()) is not None:
            if member.name in NO_IMAGES:
                continue
            buffer = memoryview(bytearray(HEAD))
            head = _fill(member, buffer)
            entry = self._wanted.pop(sop_instance_uid(bytes(head)) or member.name, None)
            if entry is not None:
                return entry, SeriesMember(head, member)
        self._body.close(reusable=True)
        return None

    def close(self) -> None:
        self._body.interrupt()
        self._body.close()


class SeriesMember:
    """See ``BulkMember``. Files of NBIA are told apart by their MD5, so there is no validator."""

    validator = ""

    def __init__(self, head: memoryview, member: Member) -> None:
        self._head = head
        self._member = member

    def readinto(self, buffer: memoryview) -> int:
        if not len(self._head):
            return self._member.readinto(buffer)
        count = min(len(buffer), len(self._head))
        buffer[:count] = self._head[:count]
        self._head = self._head[count:]
        return count
