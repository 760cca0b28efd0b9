"""One archive as a read-only file system: paths to nodes, handles to bytes. What FUSE, fsspec and the commands share.

Knows nothing of FUSE, HTTP or blocks. Every method may be called from any thread; locks are held for a few dictionary
operations, never across a request.

Paths begin with "/" and have "/" between names as ``listdir`` gives them; an alias (an XNAT ID) or the other Unicode
form of a name does as well. What was resolved once is kept by directory: while the listings on the way are valid, a
look-up is two dictionary look-ups.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple, overload

from xnatfs.archives.base import Archive
from xnatfs.config import TreeConfig
from xnatfs.errors import NotFound, StaleContent
from xnatfs.model import Entry
from xnatfs.reading.reader import BlockReader, OpenFile
from xnatfs.tree.crawl import Crawl
from xnatfs.tree.inodes import inode_of, inodes_of_files
from xnatfs.tree.listing import ListingCache
from xnatfs.tree.table import Names, Table

UNKNOWN_SIZE = -1
"""Size of a node that ``listdir`` returns where the listing does not tell it: never a guess, and refused by the kernel
should a front end pass it on. ``lookup`` always knows."""

OPENED_KEPT = 65_536
"""Paths whose last opened content is remembered, at about 250 bytes each. A forgotten one costs its page cache."""

_NOTHING = Table(())
_NOT_IN_MEMORY = Entry("", "", False)  # compared by identity
_RESTARTS = 8  # of a walk during which listings changed; a guess, two are rare


@dataclass(frozen=True, slots=True)
class Node:
    """A directory or file as it stands in the tree.

    Attributes:
        name: Safe, unique in its directory; "" for the root.
        ino: Made of the node's path inside the archive (``tree/inodes.py``): the same on every mount and after every
            remount, whichever directory of the archive is mounted. An alias has the inode of what it stands for.
        size: Bytes; 0 for directories; ``UNKNOWN_SIZE`` from ``listdir`` only.
    """

    name: str
    entry: Entry
    ino: int
    size: int
    mtime_ns: int
    is_dir: bool


class _Directory:
    """A directory at the path that someone used for it."""

    __slots__ = ("canonical", "entry", "fresh_until", "listing_ids", "nodes", "shown", "table")

    def __init__(
        self, canonical: str, entry: Entry, table: Table, fresh_until: float, above: _Directory | None = None
    ) -> None:
        self.canonical = canonical  # path inside the archive, by shown names, "" for its root
        # Of this directory and all above it, without repetitions in a row.
        self.listing_ids: tuple[str, ...] = () if above is None else above.listing_ids
        if entry.listing not in self.listing_ids[-1:]:
            self.listing_ids = (*self.listing_ids, entry.listing)
        self.entry = entry
        self.table = table
        self.fresh_until = fresh_until  # for the names of this directory and all above it
        self.nodes: dict[str, Node] = {}  # by name as asked for; sizes are known
        self.shown: Sequence[Node] | None = None  # what listdir returns, once asked for


class PlainFiles(Sequence[Node]):
    """The nodes of a directory that has files only, all of known size: made when they are looked at.

    ``find`` and ``ls`` want names and attributes of many files and look at none: ``rows`` tells these in a fraction of
    the time that nodes take.
    """

    __slots__ = ("_columns", "_directory", "_inos", "_names")

    def __init__(self, directory: _Directory, names: Names) -> None:
        above = f"{directory.canonical}/"
        self._directory = directory
        self._columns = names.columns
        self._names = names.columns.column("name")
        self._inos = inodes_of_files(above, self._names)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, place: int) -> Node: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Node]: ...
    def __getitem__(self, place: int | slice) -> Node | Sequence[Node]:
        if isinstance(place, slice):
            return [self._node(*each) for each in zip(self._names[place], self._inos[place], strict=True)]
        return self._node(self._names[place], self._inos[place])

    def __iter__(self) -> Iterator[Node]:
        self._directory.table.names.values()  # makes all entries at once
        return map(self._node, self._names, self._inos)

    def _node(self, name: str, ino: int) -> Node:
        node = self._directory.nodes.get(name)
        if node is None:
            entry = self._directory.table.names[name]
            size = UNKNOWN_SIZE if entry.size is None else entry.size
            node = Node(name, entry, ino, size, entry.mtime_ns, False)
            if entry.size is not None:  # it was when this was made; since then its size was doubted
                self._directory.nodes[name] = node
        return node

    def rows(self, start: int, stop: int) -> Rows:
        names = self._names[start:stop]
        sizes, times = self._columns.column("size"), self._columns.column("mtime_ns")
        return Rows(
            names,
            self._inos[start:stop],
            sizes[start:stop] if len(sizes) > 1 else repeat(sizes[0], len(names)),
            times[start:stop] if len(times) > 1 else repeat(times[0], len(names)),
            repeat(False, len(names)),
        )


class Rows(NamedTuple):
    """What nodes have besides their entries, field by field: to be gone through once."""

    names: Sequence[str]
    inos: Sequence[int]
    sizes: Iterable[int]
    mtimes_ns: Iterable[int]
    are_dirs: Iterable[bool]


def rows_of(nodes: Sequence[Node], start: int, stop: int) -> Rows:
    """What a listing tells of its nodes [start, stop). ``nodes`` is a result of ``listdir``."""
    if isinstance(nodes, PlainFiles):
        return nodes.rows(start, stop)
    some = nodes[start:stop]
    return Rows(
        [node.name for node in some],
        [node.ino for node in some],
        [node.size for node in some],
        [node.mtime_ns for node in some],
        [node.is_dir for node in some],
    )


class _Folder:
    """A directory as the reader sees it: asked for its files only when many of them are read."""

    __slots__ = ("_directory", "_listings", "key")

    def __init__(self, listings: ListingCache, directory: _Directory) -> None:
        self.key = directory.entry.key
        self._listings = listings
        self._directory = directory

    def files(self) -> tuple[Sequence[Entry], Sequence[Entry]]:
        """Its own files and those below it, as far as listings in memory tell."""
        own: list[Entry] = []
        below: list[Entry] = []
        found, tables = own, [self._directory.table]
        while tables:
            for entry in tables.pop().names.values():
                if not entry.is_dir:
                    found.append(entry)
                elif not entry.hidden and (table := self._listings.peek(entry)) is not None:
                    tables.insert(0, table)
            found = below
        return own, below


@dataclass(slots=True)
class Handle:
    """An open file. Any number of threads may read through one.

    Attributes:
        keep_cache: True when the content is the same as at the last open of this path in this process, so that pages
            which the kernel keeps for the path are still right.
    """

    node: Node
    keep_cache: bool
    file: OpenFile
    path: str
    directory: _Directory
    generation: int  # of the listings when the path last stood for this content
    stale: bool = False  # for good


class ArchiveVFS:
    """The tree below ``inside`` of one archive. Makes no request and starts no thread before it is first asked.

    Args:
        inside: The directory of the archive to show as "/"; its names may be aliases.
    """

    def __init__(
        self,
        archive: Archive,
        reader: BlockReader,
        listings: ListingCache,
        config: TreeConfig,
        inside: str = "/",
    ) -> None:
        self.config = config
        self._archive = archive
        self._reader = reader
        self._listings = listings
        self._clock = listings.clock
        self._inside = _names_of(inside)
        self._crawl = Crawl(
            listings.listing, listings.fetch, listings.touch, inode_of, listings.ahead, listings.room, listings.clock
        )
        self._lock = threading.Lock()
        self._generation = listings.generation  # guarded by _lock; that of all in _directories
        self._directories: dict[str, _Directory] = {}  # by path, "" for the root; added to and replaced under _lock
        self._opened: dict[str, int] = {}  # guarded by _lock: path -> hash of the content last opened there

    # --- names --------------------------------------------------------------------------------------------------------

    def lookup(self, path: str) -> Node:
        """The node at ``path``, its size known.

        Raises:
            NotFound: no such name in its directory.
            NotADirectoryError: a file stands where ``path`` needs a directory.
            AccessDenied, Unavailable, TimedOut, UnexpectedReply: the archive could not be asked.
        """
        parent, _, name = path.rpartition("/")
        directory = self._directories.get(parent)
        # As _is_valid, written out: it halves the time of what ls -l does most.
        if (
            directory is not None
            and self._generation == self._listings.generation
            and self._clock() < directory.fresh_until
        ):
            node = directory.nodes.get(name)
            if node is not None:
                return node
        return self._resolve(path)[1]

    def listdir(self, path: str) -> Sequence[Node]:
        """The nodes of a directory, hidden ones left out, in the archive's order.

        No file is asked for its size here, since names alone may be wanted: where the listing does not tell, the node
        has ``UNKNOWN_SIZE`` and ``lookup`` of it asks.

        Raises:
            NotADirectoryError: ``path`` is a file.
            Otherwise as ``lookup``.
        """
        directory = self._directory(_joined(_names_of(path)))
        shown = directory.shown
        if shown is None:
            shown = directory.shown = self._show(directory)
        return shown

    # --- bytes --------------------------------------------------------------------------------------------------------

    def open(self, path: str) -> Handle:
        """A handle on the file as it is now. The file itself is not asked for.

        Raises:
            IsADirectoryError: ``path`` is a directory.
            Otherwise as ``lookup``.
        """
        generation = self._listings.generation
        directory, node = self._resolve(path)
        if node.is_dir:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        file = self._reader.open(node.entry, _Folder(self._listings, directory))
        return Handle(node, self._note_opened(path, node.entry), file, path, directory, generation)

    def pread_into(self, handle: Handle, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` with the bytes from ``offset``; return how many: all, but for the end of the file.

        Raises:
            StaleContent: another version has taken the file's place since ``open``; opening it again gives that one.
            Otherwise as ``BlockReader.pread_into``.
        """
        if handle.stale or handle.generation != self._listings.generation:
            self._check_current(handle)
        try:
            return self._reader.pread_into(handle.file, offset, buffer)
        except StaleContent:
            self._distrust(handle)
            raise

    def pread(self, handle: Handle, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size), cut at the end of the file. Errors as ``pread_into``."""
        if handle.stale or handle.generation != self._listings.generation:
            self._check_current(handle)
        try:
            return self._reader.pread(handle.file, offset, size)
        except StaleContent:
            self._distrust(handle)
            raise

    def ensure_current(self, handle: Handle) -> None:
        """Raise StaleContent once listings in memory tell that another version has taken the place of this one."""
        if handle.stale or handle.generation != self._listings.generation:
            self._check_current(handle)

    def release(self, handle: Handle) -> None:
        """End a handle; to be called once for each ``open``."""
        self._reader.release(handle.file)

    def cached_bytes(self, node: Node) -> int:
        """How many bytes of a file can be read without a request."""
        return self._reader.cached_bytes(node.entry)

    def close(self) -> None:
        """Stop transfers, close the cache, end the archive's session. Safe to call twice; reads under way fail."""
        self._crawl.close()
        self._reader.close()
        self._archive.close()
        self._listings.close()

    # --- resolving ----------------------------------------------------------------------------------------------------

    def _resolve(self, path: str) -> tuple[_Directory, Node]:
        """The node at ``path`` and the directory that holds it; for the root that is itself."""
        parent, _, name = path.rpartition("/")
        directory = self._directories.get(parent)
        if directory is None or not name or not self._is_valid(directory):
            names = _names_of(path)
            if not names:
                return self._root()
            directory = self._directory(_joined(names[:-1]))
            name = names[-1]
        node = directory.nodes.get(name)
        if node is None:
            shown = directory.table.find(name)
            if shown is None:
                raise NotFound(f"{path}: no such file or directory")
            asked = directory.table.names[shown]
            entry = self._listings.sized(directory.table, shown)
            node = directory.nodes[name] = _node(directory.canonical, shown, entry)
            if entry is not asked:
                directory.shown = None  # made before the size was known
        return directory, node

    def _is_valid(self, directory: _Directory) -> bool:
        return self._generation == self._listings.generation and self._clock() < directory.fresh_until

    def _root(self) -> tuple[_Directory, Node]:
        if self._inside:
            directory = self._directory("")
        else:
            # Asking for "/" alone costs no request: a mount answers before the first listing is there.
            directory = self._directories.get("") or _Directory("", self._archive.root(), _NOTHING, 0.0)
        return directory, Node("", directory.entry, inode_of(directory.canonical), 0, directory.entry.mtime_ns, True)

    def _show(self, directory: _Directory) -> Sequence[Node]:
        names = directory.table.names
        if isinstance(names, Names) and not names.changed and None not in names.columns.column("size"):
            return PlainFiles(directory, names)
        nodes = []
        for name, entry in list(directory.table.names.items()):
            if entry.hidden:
                continue
            node = directory.nodes.get(name)
            if node is None:
                node = _node(directory.canonical, name, entry)
                if node.size != UNKNOWN_SIZE:
                    directory.nodes[name] = node
            nodes.append(node)
        return tuple(nodes)

    def _directory(self, path: str) -> _Directory:
        """The directory at ``path`` ("" or "/a/b"), all listings on the way being fresh."""
        for _ in range(_RESTARTS):
            directories = self._valid_directories()
            found = self._walk(path, directories)
            if directories is self._directories:
                break
        return found

    def _valid_directories(self) -> dict[str, _Directory]:
        """The directories resolved from the listings as they are now; empty again after any of those has changed."""
        generation = self._listings.generation
        if generation != self._generation:
            with self._lock:
                if generation != self._generation:
                    self._directories = {}
                    self._generation = generation
        return self._directories

    def _walk(self, path: str, directories: dict[str, _Directory]) -> _Directory:
        """Go up to the nearest directory that is still valid, then down again."""
        now = self._clock()
        missing = []
        while True:
            directory = directories.get(path)
            if directory is not None and now < directory.fresh_until:
                break
            if not path:
                directory = self._keep(directories, "", self._descend_to_inside())
                break
            parent, _, name = path.rpartition("/")
            missing.append((path, name))
            path = parent
        if missing:
            self._listings.touch(directory.listing_ids)
        for at, name in reversed(missing):
            directory = self._keep(directories, at, self._below(directory, name, at))
        return directory

    def _descend_to_inside(self) -> _Directory:
        root = self._archive.root()
        directory = _Directory("", root, *self._listings.table(root))
        inside = _joined(self._inside)
        for name in self._inside:
            try:
                directory = self._below(directory, name, inside)
            except FileNotFoundError as exc:
                raise NotFound(f"{inside}: the archive has no such directory ({name} is not there)") from exc
        return directory

    def _below(self, parent: _Directory, name: str, path: str) -> _Directory:
        shown = parent.table.find(name)
        if shown is None:
            raise NotFound(f"{path}: no such file or directory")
        entry = parent.table.names[shown]
        if not entry.is_dir:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if entry.listing != parent.entry.listing:  # told before it is asked for: what comes next can be asked beside it
            self._crawl.entered(parent.entry, parent.canonical, entry)
        table, fresh_until = self._listings.table(entry)
        return _Directory(f"{parent.canonical}/{shown}", entry, table, min(parent.fresh_until, fresh_until), parent)

    def _keep(self, directories: dict[str, _Directory], path: str, new: _Directory) -> _Directory:
        """Enter ``new`` at ``path``, or renew what is there when nothing but the time has changed."""
        with self._lock:
            old = directories.get(path)
            if old is not None and old.table is new.table and old.canonical == new.canonical:
                old.entry = new.entry
                old.fresh_until = new.fresh_until
                return old
            directories[path] = new
            return new

    # --- versions -----------------------------------------------------------------------------------------------------

    def _note_opened(self, path: str, entry: Entry) -> bool:
        """Remember the content opened at ``path``; whether it is the one opened there before."""
        content = _content(entry)
        with self._lock:
            before = self._opened.get(path)
            self._opened[path] = content
            if before is None and len(self._opened) > OPENED_KEPT:
                del self._opened[next(iter(self._opened))]
        return before == content

    def _check_current(self, handle: Handle) -> None:
        """After listings have changed: a handle is stale as soon as its path is known to stand for other content.

        Programs and the kernel may have been told the new size by then, and would cut or stretch the old bytes to it.
        A file that is no longer there is like an unlinked one: readable while it is open.
        """
        if not handle.stale:
            generation = self._listings.generation
            entry = self._peek([*self._inside, *_names_of(handle.path)])
            if entry is _NOT_IN_MEMORY:
                return  # nobody has been told of another version: look again at the next read
            handle.generation = generation
            handle.stale = entry is not None and _content(entry) != _content(handle.node.entry)
        if handle.stale:
            raise StaleContent(f"{handle.path}: another version has taken its place", "open the file again")

    def _peek(self, names: Sequence[str]) -> Entry | None:
        """The sized entry at a path inside the archive, by listings in memory, fresh or not; None when it is gone."""
        entry = self._archive.root()
        for name in names:
            table = self._listings.peek(entry) if entry.is_dir else _NOTHING
            if table is None:
                return _NOT_IN_MEMORY
            shown = table.find(name)
            if shown is None:
                return None
            entry = table.names[shown]
        return _NOT_IN_MEMORY if entry.size is None and not entry.is_dir else entry

    def _distrust(self, handle: Handle) -> None:
        """The archive holds another version than its listing says: have the listing and the file's size asked anew."""
        handle.stale = True
        directory, name = handle.directory, handle.node.name
        table = self._listings.peek(directory.entry)
        listed = None if table is None else table.names.get(name)
        if table is None or listed is None or listed != handle.node.entry:
            return  # the listing has been renewed since
        with self._lock:
            self._opened.clear()  # the content may have changed under an unchanged listing
        table.doubt(name, listed)
        self._listings.invalidate(directory.entry.listing)


def _node(parent: str, name: str, entry: Entry) -> Node:
    size = 0 if entry.is_dir else UNKNOWN_SIZE if entry.size is None else entry.size
    ino = inode_of(f"{parent}/{name}") if entry.is_dir else inodes_of_files(f"{parent}/", (name,))[0]
    return Node(name, entry, ino, size, entry.mtime_ns, entry.is_dir)


def _content(entry: Entry) -> int:
    return hash((entry.key, entry.version, entry.size))


def _names_of(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def _joined(names: Sequence[str]) -> str:
    return "".join(f"/{name}" for name in names)
