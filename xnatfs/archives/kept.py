"""Archives around an archive: they take documents from what is stored, remember sizes, or ask nothing.

Knows no server and no store: what is kept comes from a function. Safe to call from any thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import md5

from xnatfs.archives.base import Archive, Keeper, RangeStream
from xnatfs.archives.documents import BytesBody
from xnatfs.errors import Unavailable
from xnatfs.model import Entry, Listing

OFFLINE_HINT = "mount without --offline, or list and read it once while the server can be reached"


class _Around:
    """Passes everything on to the archive within."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self.id = archive.id
        self.alone = getattr(archive, "alone", False)
        self.root = archive.root
        self.children = archive.children
        self.children_of_several = getattr(archive, "children_of_several", None)
        self.open_bulk = archive.open_bulk
        self.close = archive.close

    def stat(self, entry: Entry) -> Entry:
        return self._archive.stat(entry)

    def open_range(self, entry: Entry, start: int, stop: int) -> RangeStream:
        return self._archive.open_range(entry, start, stop)


class KeptSizes(_Around):
    """An archive whose answers about files that listings tell no size of outlast it: what is cached of them can be read
    when nobody answers.

    Args:
        keeper: Remembers them, for other mounts too.
    """

    def __init__(self, archive: Archive, keeper: Keeper) -> None:
        super().__init__(archive)
        self._keeper = keeper

    def stat(self, entry: Entry) -> Entry:
        """See ``Archive.stat``. What was answered before, where there is no answer now."""
        try:
            answer = self._archive.stat(entry)
        except Unavailable:
            kept = self._recalled(entry)
            if kept is None:
                raise
            return kept
        facts = [answer.size, answer.version, answer.mtime_ns, answer.digest]
        self._keeper.note(_size_of(entry), json.dumps(facts))
        return answer

    def _recalled(self, entry: Entry) -> Entry | None:
        try:
            size, version, mtime_ns, digest = json.loads(self._keeper.recall(_size_of(entry)) or "")
            return replace(entry, size=int(size), version=str(version), mtime_ns=int(mtime_ns), digest=str(digest))
        except (ValueError, TypeError):
            return None


def _size_of(entry: Entry) -> str:
    """With the version that the listing told, which is another one once a size has proved wrong."""
    return f"size of {entry.key} {entry.version}"


class KeptDocuments(_Around):
    """An archive whose documents, as far as they came with a listing, are read from the store.

    Args:
        find: (listing id, key) -> the bytes that came with that listing, or None.
    """

    def __init__(self, archive: Archive, find: Callable[[str, str], bytes | None]) -> None:
        super().__init__(archive)
        self._find = find

    def open_range(self, entry: Entry, start: int, stop: int) -> RangeStream:
        """See ``Archive.open_range``. What is kept is served only as exactly the bytes that the entry announces."""
        data = self._find(entry.listing, entry.key) if entry.listing else None
        if (
            data is not None
            and len(data) == entry.size
            and md5(data, usedforsecurity=False).hexdigest() == entry.digest
        ):
            return BytesBody(data)
        return self._archive.open_range(entry, start, stop)


class OfflineArchive:
    """The archive with nobody to ask: its name and its top, and an error for everything else.

    Takes nothing else of ``archive``, so that it never opens a connection, logs in or logs out.
    """

    def __init__(self, archive: Archive) -> None:
        self.id = archive.id
        self.root = archive.root

    def children(self, directory: Entry) -> Listing:
        raise Unavailable(f"offline: the listing of {directory.key or '/'} is not stored", OFFLINE_HINT)

    def stat(self, entry: Entry) -> Entry:
        raise Unavailable(f"offline: the size of {entry.key} is not known", OFFLINE_HINT)

    def open_range(self, entry: Entry, start: int, stop: int) -> RangeStream:
        raise Unavailable(f"offline: bytes {start} to {stop} of {entry.key} are not cached", OFFLINE_HINT)

    def open_bulk(self, files: Sequence[Entry]) -> None:
        """Nobody to ask: each file then fails by itself, or is cached."""

    def close(self) -> None:
        """Nothing was opened."""
