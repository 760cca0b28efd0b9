"""Archives around an archive: one that takes documents from what is stored, and one that asks nothing.

Knows no server and no store: what is kept comes from a function. Safe to call from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import md5

from xnatfs.archives.base import Archive, RangeStream
from xnatfs.archives.documents import BytesBody
from xnatfs.errors import Unavailable
from xnatfs.model import Entry, Listing

OFFLINE_HINT = "mount without --offline, or list and read it once while the server can be reached"


class KeptDocuments:
    """An archive whose documents, as far as they came with a listing, are read from the store.

    Args:
        find: (listing id, key) -> the bytes that came with that listing, or None.
    """

    def __init__(self, archive: Archive, find: Callable[[str, str], bytes | None]) -> None:
        self._archive = archive
        self._find = find
        self.id = archive.id
        self.root = archive.root
        self.children = archive.children
        self.children_of_several = getattr(archive, "children_of_several", None)
        self.stat = archive.stat
        self.open_bulk = archive.open_bulk
        self.close = archive.close

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
