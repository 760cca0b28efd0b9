"""Many files of one XNAT resource as one response: the zip of the resource, or of a folder in it, split as it arrives.

Knows nothing of what is cached or wanted next. A stream belongs to one thread; its ``close`` to all.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os.path import commonprefix

from xnatfs.archives.base import weak_validator
from xnatfs.archives.documents import is_document
from xnatfs.archives.http.client import HttpClient
from xnatfs.archives.http.reply import Reply
from xnatfs.archives.xnat.zips import ZipSource, check_zip_reply, path_in_resource, zip_of
from xnatfs.archives.zipstream import Member, ZipStream
from xnatfs.model import Entry

log = logging.getLogger(__name__)


def open_zip(http: HttpClient, files: Sequence[Entry], timeout_s: float) -> XnatBulk | None:
    """See ``Archive.open_bulk``. None when the files are not all of one resource: safest is one resource a zip."""
    place = common_place([entry.key for entry in files])
    if place is None:
        return None
    top, folder = place
    wanted = {entry.key.partition("/files/")[2]: entry for entry in files}

    def begin(reply: Reply) -> XnatBulk:
        check_zip_reply(http, reply, f"GET {top}/files")
        source = ZipSource(reply, timeout_s)
        members = ZipStream(source.read, f"zip of {top}/{folder}", source.readinto)
        first = members.next_member()  # a page in place of a zip shows here, where asking again is still possible
        source.paced = False  # from here on the reader sets the pace, and may pause
        return XnatBulk(reply, members, first, wanted)

    return zip_of(http, top, folder, begin)


def common_place(keys: Sequence[str]) -> tuple[str, str] | None:
    """The resource that all these files are in and the deepest folder that has them all ("" for the top), or None."""
    parted = [key.partition("/files/") for key in keys if not is_document(key)]
    tops = {top for top, _, _ in parted}
    if len(tops) != 1 or len(parted) != len(keys) or not all(found for _, found, _ in parted):
        return None
    paths = [path.rpartition("/")[0] + "/" for _, _, path in parted]
    return tops.pop(), commonprefix(paths).rpartition("/")[0]  # noqa: RUF071  # cut behind a "/"


class XnatBulk:
    """See ``BulkStream``: the members whose path and size are those of a file asked for."""

    def __init__(self, reply: Reply, members: ZipStream, first: Member | None, wanted: dict[str, Entry]) -> None:
        self._reply = reply
        self._members = members
        self._ahead = first
        self._wanted = wanted  # still to come

    def next(self) -> tuple[Entry, XnatMember] | None:
        member, self._ahead = self._ahead or self._members.next_member(), None
        while member is not None:
            entry = self._wanted.pop(path_in_resource(member.name), None)
            if entry is not None and member.size in (entry.size, None):
                return entry, XnatMember(member)
            if entry is not None:
                log.info("%s: %s bytes in a zip, not %s as listed", entry.key, member.size, entry.size)
            member = self._members.next_member()
        self._reply.close(reusable=True)
        return None

    def close(self) -> None:
        self._reply.close()


class XnatMember:
    """See ``BulkMember``."""

    def __init__(self, member: Member) -> None:
        self.validator = weak_validator(member.modified, member.crc)
        self.readinto = member.readinto
