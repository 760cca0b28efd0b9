"""An archive that is a dict: for tests, examples, and trying a front end without a server.

Obeys ``archives/base.py`` to the letter, and on request in XNAT's manner: with ``ranged=False`` every stream begins at
byte 0, sizes may be unknown until asked for, one listing may cover the whole tree.
No network, no cache, no threads of its own. Safe from any thread.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import md5
from typing import Union

from xnatfs.archives.base import BulkMember, BulkStream, RangeStream
from xnatfs.errors import NotFound, StaleContent, Unavailable
from xnatfs.model import Entry, Listing

Tree = Mapping[str, Union[bytes, "Tree"]]

FIRST_MTIME_S = 1_577_836_800  # 2020-01-01; each replacement of a file adds a second
WHOLE_TREE = "all"  # id of the only listing of an archive with ``one_listing``


@dataclass(slots=True)
class _File:
    data: bytes
    version: int
    id: str


@dataclass(slots=True)
class _Directory:
    children: dict[str, _File | _Directory]
    id: str


class MemoryArchive:
    """Serves a nested dict: bytes are files, dicts are directories. Keys are paths, "/" in a name written as "%2F".

    Args:
        tree: What to serve; copied, later changes go through ``replace`` and ``remove``.
        id: The archive's part of content ids.
        ranged: False serves every file from byte 0 whatever is asked for, like a server without Range.
        one_listing: One listing for the whole tree; otherwise each directory has its own.
        sizes: False leaves sizes out of listings, so that ``stat`` must be asked.
        digests: True lists each file's MD5.
        chunk_size: The most bytes one ``readinto`` of a stream gives.
        describe: Has the last word on each entry of a listing (aliases, hidden, reserved, id, ...).
        bulk: True lets ``open_bulk`` give many files at once.
        before: Called as ``before(operation, key)`` ahead of each ``children``, ``stat``, ``open_range``, ``open_bulk``
            (with the first key), ``next`` (with the member's) and ``readinto``, in the caller's thread and without
            locks: sleep in it for latency, raise in it for a failure.

    Attributes:
        calls: How often each operation ran, and under "bytes" how many bytes streams gave.
    """

    def __init__(
        self,
        tree: Tree,
        *,
        id: str = "memory:",
        ranged: bool = True,
        one_listing: bool = False,
        sizes: bool = True,
        digests: bool = False,
        bulk: bool = False,
        chunk_size: int = 256 * 1024,
        describe: Callable[[Entry], Entry] | None = None,
        before: Callable[[str, str], None] | None = None,
    ) -> None:
        self.id = id
        self.before = before
        self.calls: Counter[str] = Counter()  # guarded by _lock
        self._ranged = ranged
        self._one_listing = one_listing
        self._sizes = sizes
        self._digests = digests
        self._bulk = bulk
        self._chunk_size = chunk_size
        self._describe = describe
        self._lock = threading.Lock()
        self._ids = 0  # guarded by _lock
        self._root = self._directory(tree)  # guarded by _lock

    def root(self) -> Entry:
        return self._entry("", "", self._root)

    def children(self, directory: Entry) -> Listing:
        self._count("children", directory.key)
        with self._lock:
            found = self._find(directory.key)
            if not isinstance(found, _Directory):
                raise NotFound(f"{directory.key or '/'}: no such directory")
            if self._one_listing:
                return Listing(WHOLE_TREE, self._subtree("", self._root))
            return Listing(directory.key, {directory.key: self._entries(directory.key, found)})

    def stat(self, entry: Entry) -> Entry:
        self._count("stat", entry.key)
        with self._lock:
            return self._entry(entry.name, entry.key, self._file(entry.key), sized=True)

    def open_range(self, entry: Entry, start: int, stop: int) -> RangeStream:
        self._count("open_range", entry.key)
        with self._lock:
            file = self._file(entry.key)
        total = len(file.data)
        if entry.size != total:
            raise StaleContent(f"{entry.key}: has {total} bytes, the listing said {entry.size}")
        first, last = (min(start, total), min(stop, total)) if self._ranged else (0, total)
        return _MemoryStream(self, entry.key, file, first, last, ranged=self._ranged)

    def open_bulk(self, files: Sequence[Entry]) -> BulkStream | None:
        """The files as they are now, in the order given; those that are gone are left out."""
        if not self._bulk:
            return None
        self._count("open_bulk", files[0].key if files else "")
        with self._lock:
            found = [(entry, self._find(entry.key)) for entry in files]
        return _MemoryBulk(self, [(entry, file) for entry, file in found if isinstance(file, _File)])

    def close(self) -> None:
        """Nothing to release."""

    def replace(self, path: str, data: bytes) -> None:
        """Put new content at ``path`` ("/a/b"), making the file and its directories where they are missing."""
        *parents, name = path.strip("/").split("/")
        with self._lock:
            directory = self._root
            for parent in parents:
                step = directory.children.setdefault(parent, _Directory({}, self._next_id()))
                if not isinstance(step, _Directory):
                    raise ValueError(f"{path}: {parent} is a file")
                directory = step
            old = directory.children.get(name)
            if isinstance(old, _File):  # a new record: streams that are under way keep the old one's bytes
                directory.children[name] = _File(data, old.version + 1, old.id)
            else:
                directory.children[name] = _File(data, 1, self._next_id())

    def remove(self, path: str) -> None:
        """Take a file or a directory away."""
        *parents, name = path.strip("/").split("/")
        with self._lock:
            directory = self._find("".join(f"/{_key_part(parent)}" for parent in parents))
            if not isinstance(directory, _Directory) or name not in directory.children:
                raise KeyError(path)
            del directory.children[name]

    def _directory(self, tree: Tree) -> _Directory:
        children: dict[str, _File | _Directory] = {}
        directory = _Directory(children, self._next_id())
        for name, value in tree.items():
            if isinstance(value, Mapping):
                children[name] = self._directory(value)
            else:
                children[name] = _File(bytes(value), 1, self._next_id())
        return directory

    def _next_id(self) -> str:
        self._ids += 1
        return str(self._ids)

    def _find(self, key: str) -> _File | _Directory | None:
        at: _File | _Directory | None = self._root
        for part in key.split("/")[1:]:
            if not isinstance(at, _Directory):
                return None
            at = at.children.get(_name_of(part))
        return at

    def _file(self, key: str) -> _File:
        file = self._find(key)
        if not isinstance(file, _File):
            raise NotFound(f"{key}: no such file")
        return file

    def _subtree(self, key: str, directory: _Directory) -> dict[str, tuple[Entry, ...]]:
        tables = {key: self._entries(key, directory)}
        for name, child in directory.children.items():
            if isinstance(child, _Directory):
                tables.update(self._subtree(f"{key}/{_key_part(name)}", child))
        return tables

    def _entries(self, key: str, directory: _Directory) -> tuple[Entry, ...]:
        entries = (self._entry(name, f"{key}/{_key_part(name)}", child) for name, child in directory.children.items())
        return tuple(map(self._describe, entries)) if self._describe is not None else tuple(entries)

    def _entry(self, name: str, key: str, node: _File | _Directory, *, sized: bool = False) -> Entry:
        if isinstance(node, _Directory):
            listing = WHOLE_TREE if self._one_listing else key
            return Entry(name, key, True, mtime_ns=FIRST_MTIME_S * 10**9, id=node.id, listing=listing)
        return Entry(
            name,
            key,
            False,
            size=len(node.data) if sized or self._sizes else None,
            mtime_ns=(FIRST_MTIME_S + node.version) * 10**9,
            version=str(node.version),
            id=node.id,
            digest=md5(node.data, usedforsecurity=False).hexdigest() if self._digests else "",
        )

    def _count(self, operation: str, key: str, amount: int = 1) -> None:
        """Count first, then let ``before`` delay or fail the call: a failed request was a request."""
        with self._lock:
            self.calls[operation] += amount
        if self.before is not None and operation != "bytes":
            self.before(operation, key)


class _MemoryStream:
    """The bytes that a file had when the stream was opened."""

    def __init__(self, archive: MemoryArchive, key: str, file: _File, start: int, stop: int, *, ranged: bool) -> None:
        self.start = start
        self.stop = stop
        self.total = len(file.data)
        self.validator = f"version {file.version}"
        self.ranged = ranged
        self._archive = archive
        self._key = key
        self._data = memoryview(file.data)
        self._at = start
        self._closed = False

    def readinto(self, buffer: memoryview) -> int:
        if self._archive.before is not None:
            self._archive.before("readinto", self._key)
        if self._closed:
            raise Unavailable(f"{self._key}: the stream was closed")
        size = min(len(buffer), self.stop - self._at, self._archive._chunk_size)
        buffer[:size] = self._data[self._at : self._at + size]
        self._at += size
        self._archive._count("bytes", self._key, size)
        return size

    def close(self) -> None:
        self._closed = True


class _MemoryBulk:
    """Many files as one stream. A file that has changed comes as it is now, under its new validator."""

    def __init__(self, archive: MemoryArchive, files: list[tuple[Entry, _File]]) -> None:
        self._archive = archive
        self._files = iter(files)
        self._closed = False
        self._member: _MemoryStream | None = None

    def next(self) -> tuple[Entry, BulkMember] | None:
        entry, file = next(self._files, (None, None))
        if entry is None or file is None:
            return None
        if self._archive.before is not None:
            self._archive.before("next", entry.key)
        if self._closed:
            raise Unavailable(f"{entry.key}: the stream was closed")
        self._member = _MemoryStream(self._archive, entry.key, file, 0, len(file.data), ranged=False)
        return entry, self._member

    def close(self) -> None:
        self._closed = True
        if self._member is not None:
            self._member.close()


def _key_part(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F")


def _name_of(key_part: str) -> str:
    return key_part.replace("%2F", "/").replace("%25", "%")
