"""The fsspec door: ``fsspec.open("xnat://host/PROJECT/SUBJECT/...")`` for pandas, dask, zarr, nibabel and the like.

A translation and no policy: paths, listings and bytes are those of ``ArchiveVFS``, blocks are cached below it, so that
fsspec's own caches are not used. The only importer of fsspec. Safe from any thread, after a fork and after pickling: a
pickle holds the source and the options, never a password; the other side finds its credentials as any command does.

URLs: ``xnat://host[:port]/PROJECT/...`` (https), ``xnat+http://...`` (http, for a server on this machine), and with a
"#" where the archive has a context path: ``xnat://host/context#/PROJECT/...``. Other archives go by their own schemes,
as in ``openneuro://ds000228/sub-01/...``. What follows the archive is a path as ``ls`` shows it. Or the source by
itself, and bare paths: ``fsspec.filesystem("xnat", source="https://host/context#/PROJECT")``.
Further options are those of the command line, with ``_`` for ``-``: ``cache_dir``, ``cache_size``, ``user``, ...
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractFileSystem
from fsspec.utils import glob_translate, isfilelike, stringify_path

from xnatfs.cli.library import config_of, settings_of, source_of
from xnatfs.config import MIB, Config
from xnatfs.errors import StaleContent, UsageError
from xnatfs.factory import open_vfs
from xnatfs.forks import unforked
from xnatfs.frontends.opened import OpenedTree, opened

if TYPE_CHECKING:
    from xnatfs.tree.vfs import ArchiveVFS, Handle, Node

SOURCES = {
    "xnat": "https://",
    "xnat+http": "http://",
    "openneuro": "openneuro://",
    "osf": "osf://",
    "tcia": "tcia://",
}
"""Protocol of a URL -> how the SOURCE begins that it stands for. A row here needs one in pyproject's fsspec.specs."""

BUFFER_SIZE = 32 * 1024
"""Bytes that an open file reads ahead for small reads and lines: what the block reader serves without taking a whole
block in hand (``SCATTERED`` in reading/reader.py). Larger reads go around the buffer."""

_FSSPECS_OWN = ("use_listings_cache", "listings_expiry_time", "max_paths", "asynchronous", "loop", "batch_size")
_ABSENT = (FileNotFoundError, NotADirectoryError)


class ArchiveFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """An archive as a read-only fsspec file system; paths begin with "/".

    Args:
        source: ``https://host[/context][#/PROJECT...]``, as on the command line; a URL brings its own.
        options: As on the command line, ``_`` for ``-``. No passwords: they would travel in every pickle.
    Raises:
        UsageError: no source, an unknown option, a value that makes no sense.
    """

    protocol = tuple(SOURCES)
    root_marker = "/"
    blocksize = MIB

    def __init__(self, source: str | None = None, **options: Any) -> None:
        own = {name: options.pop(name) for name in _FSSPECS_OWN if name in options}
        super().__init__(**own)
        if not source:
            raise UsageError("an archive is missing", 'write xnat://host/PROJECT, or source="https://host"')
        self._source = source_of(source)
        self._threads = settings_of(options).connections
        self._key = (source, *sorted((name, repr(value)) for name, value in options.items()))
        self._build: Callable[[], ArchiveVFS] = lambda: _open(config_of(source, options))
        self._tree: OpenedTree | None = None  # replaced as a whole; two threads that set it set the same one

    @property
    def vfs(self) -> ArchiveVFS:
        """The tree below, opened when it is first needed, anew in a forked child."""
        return self._opened().vfs

    def _opened(self) -> OpenedTree:
        tree = self._tree
        if tree is None or tree.pid != os.getpid():
            tree = self._tree = opened(self._key, self._build)
        return tree

    def close(self) -> None:
        """Let the tree go: its session on the server ends when no open file and no other instance uses it. Optional,
        the end of the program does it too; another call opens it again."""
        self._tree = None

    # --- URLs ---------------------------------------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text = stringify_path(path)
        return "/" + (_split_url(text)[1] if "://" in text else text).strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        source = _split_url(path)[0]
        return {"source": source} if source else {}

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path, which opens it anywhere."""
        transport, _, server = self._source.url.partition("://")
        path = self._source.inside.rstrip("/") + self._strip_protocol(name)
        if not server:  # tcia, whose collections are the first names of its paths
            return f"{self._source.scheme}:/{path}"
        mark = "#" if "/" in server or "#/" in path else ""
        protocol = next((key for key, prefix in SOURCES.items() if prefix == f"{transport}://"), transport)
        return f"{protocol}://{server}{mark}{path}"

    @property
    def fsid(self) -> str:
        return f"xnat_{sha256(self._source.url.encode()).hexdigest()[:32]}"

    # --- what is there ------------------------------------------------------------------------------------------------

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        return _info(path, self.vfs.lookup(path))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """The entries of a directory, or the file itself. ``size`` is None where the listing does not tell it: ``info``
        asks for it, one request each."""
        path = self._strip_protocol(path)
        try:
            nodes = self.vfs.listdir(path)
        except NotADirectoryError:
            found = self.info(path)
            return [found] if detail else [path]
        above = path.rstrip("/")
        if detail:
            return [_info(f"{above}/{node.name}", node) for node in nodes]
        return [f"{above}/{node.name}" for node in nodes]

    def exists(self, path: str, **kwargs: Any) -> bool:
        """False when it is not there; an archive that cannot be asked is an error."""
        return self._type_of(path) is not None

    def isdir(self, path: str) -> bool:
        return self._type_of(path) == "directory"

    def isfile(self, path: str) -> bool:
        return self._type_of(path) == "file"

    def _type_of(self, path: str) -> str | None:
        try:
            return "directory" if self.vfs.lookup(self._strip_protocol(path)).is_dir else "file"
        except _ABSENT:
            return None

    def walk(
        self, path: str, maxdepth: int | None = None, topdown: bool = True, on_error: Any = "absent", **kwargs: Any
    ) -> Iterator[tuple[str, Any, Any]]:
        """As in fsspec, but that ``on_error`` goes for directories below as well.

        Args:
            on_error: "absent" passes over what has gone meanwhile and raises all else; "omit", "raise", a callable.
        """
        detail = kwargs.pop("detail", False)
        only: Sequence[re.Pattern[str]] = kwargs.pop("only", ())
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        yield from self._walk(self._strip_protocol(path), maxdepth, topdown, on_error, detail, only)

    def _walk(
        self,
        path: str,
        depth: int | None,
        topdown: bool,
        on_error: Any,
        detail: bool,
        only: Sequence[re.Pattern[str]],
    ) -> Iterator[tuple[str, Any, Any]]:
        try:
            entries = self.ls(path, detail=True)
        except OSError as exc:
            if on_error == "raise" or (on_error == "absent" and not isinstance(exc, _ABSENT)):
                raise
            if callable(on_error):
                on_error(exc)
            return
        dirs: Any = {}
        files: Any = {}
        for info in entries:
            name = "" if info["name"] == path else info["name"].rpartition("/")[2]
            (dirs if info["type"] == "directory" else files)[name] = info
        if not detail:
            dirs, files = list(dirs), list(files)
        if topdown:
            yield path, dirs, files
        if depth is None or depth > 1:
            wanted = only[0] if only else None
            for name in dirs:
                if wanted is None or wanted.match(name):
                    below = f"{path.rstrip('/')}/{name}"
                    yield from self._walk(below, depth and depth - 1, topdown, on_error, detail, only[1:])
        if not topdown:
            yield path, dirs, files

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """As in fsspec, but that directories which cannot match are not listed."""
        names = self._strip_protocol(path).split("/")[1:]
        first = next((at for at, name in enumerate(names) if re.search(r"[*?\[]", name)), len(names))
        patterns = []
        for name in names[first:]:
            if "**" in name:
                break
            patterns.append(re.compile(glob_translate(name)))
        return super().glob(path, maxdepth, only=patterns, **kwargs)

    # --- versions -----------------------------------------------------------------------------------------------------

    def ukey(self, path: str) -> str:
        """The same for the same bytes in this archive, on any machine; another once the file has changed."""
        entry = self.vfs.lookup(self._strip_protocol(path)).entry
        named = (self._source.url, entry.key, entry.version, entry.size, entry.digest)
        return sha256(repr(named).encode()).hexdigest()

    def checksum(self, path: str) -> int:
        return int(self.ukey(path), 16)

    def modified(self, path: str) -> datetime:
        """When the archive says that the file has changed last (for most, the date of its session).

        Raises:
            OSError: ENODATA, the archive does not say.
        """
        path = self._strip_protocol(path)
        mtime_ns = self.vfs.lookup(path).mtime_ns
        if not mtime_ns:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), path)
        return datetime.fromtimestamp(mtime_ns / 1e9, timezone.utc)

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> ArchiveFile:
        if mode != "rb":
            raise _read_only(path)
        return ArchiveFile(self, path)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        return self._read_spans(path, [(start, end)])[0]

    def _read_spans(self, path: str, spans: Sequence[tuple[int | None, int | None]]) -> list[bytes]:
        """Spans of one file, opened once; negative bounds count from its end."""
        try:
            return self._read_spans_once(path, spans)
        except StaleContent:  # the listing told of another version: now the tree knows better
            return self._read_spans_once(path, spans)

    def _read_spans_once(self, path: str, spans: Sequence[tuple[int | None, int | None]]) -> list[bytes]:
        tree = self._opened()
        handle = tree.vfs.open(self._strip_protocol(path))
        try:
            size = handle.node.size
            found = []
            for start, end in spans:
                begin, stop, _ = slice(start, end).indices(size)
                found.append(tree.vfs.pread(handle, begin, stop - begin) if begin < stop else b"")
            return found
        finally:
            tree.vfs.release(handle)

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Spans of files, several files at once; spans of one file in the order of their place in it.

        Args:
            max_gap: Of no use here: blocks are what travels.
        """
        if not isinstance(paths, list):
            raise TypeError("paths is not a list")
        starts = starts if isinstance(starts, list) else [starts] * len(paths)
        ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if len(starts) != len(paths) or len(ends) != len(paths):
            raise ValueError("paths, starts and ends differ in length")
        by_path: dict[str, list[int]] = {}
        for number in sorted(range(len(paths)), key=lambda number: starts[number] or 0):
            by_path.setdefault(paths[number], []).append(number)
        read = self._together(
            lambda path: self._read_spans(path, [(starts[number], ends[number]) for number in by_path[path]]), by_path
        )
        found: list[Any] = [None] * len(paths)
        for numbers, result in zip(by_path.values(), read, strict=True):
            if isinstance(result, Exception) and on_error != "return":
                raise result
            for at, number in enumerate(numbers):
                found[number] = result if isinstance(result, Exception) else result[at]
        return found

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any) -> Any:
        """Bytes of a file, or {path: bytes} of several, read side by side."""
        paths = self.expand_path(path, recursive=recursive)
        if not isinstance(path, list) and paths == [self._strip_protocol(path)] and not recursive:
            return self.cat_file(paths[0], **kwargs)
        if recursive:
            paths = [each for each in paths if not self.isdir(each)]
        found = {}
        for each, result in zip(paths, self._together(lambda each: self.cat_file(each, **kwargs), paths), strict=True):
            if isinstance(result, Exception):
                if on_error == "raise":
                    raise result
                if on_error != "return":
                    continue
            found[each] = result
        return found

    def _together(self, task: Callable[[str], Any], paths: Iterable[str]) -> list[Any]:
        """What ``task`` gives, or raises, for each path, as many at once as there are connections."""

        def tried(path: str) -> Any:
            try:
                return task(path)
            except Exception as exc:  # noqa: BLE001  # handed to the caller, which raises or returns it
                return exc

        paths = list(paths)
        if len(paths) < 2:
            return [tried(path) for path in paths]
        with ThreadPoolExecutor(min(self._threads, len(paths)), thread_name_prefix="xnatfs-fsspec") as pool:
            return list(pool.map(tried, paths))

    def get_file(
        self,
        rpath: str,
        lpath: Any = None,
        callback: Any = DEFAULT_CALLBACK,
        outfile: BinaryIO | None = None,
        **kwargs: Any,
    ) -> None:
        """Copy a file to this machine. It has its name when it is there whole, never before."""
        rpath = self._strip_protocol(rpath)
        out = lpath if outfile is None and isfilelike(lpath) else outfile
        if out is not None:
            self._copy(rpath, out, callback)
            return
        if self.isdir(rpath):
            Path(lpath).mkdir(parents=True, exist_ok=True)
            return
        target = Path(lpath)
        if target.exists() and not target.is_file():  # a pipe or a device is written to, a directory refuses
            with target.open("wb") as file:
                self._copy(rpath, file, callback)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with part.open("xb") as file:
                try:
                    self._copy(rpath, file, callback)
                except StaleContent:
                    file.seek(0)
                    file.truncate()
                    self._copy(rpath, file, callback)
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _copy(self, path: str, out: Any, callback: Any) -> None:
        tree = self._opened()
        handle = tree.vfs.open(path)
        try:
            callback.set_size(handle.node.size)
            buffer = memoryview(bytearray(min(self.blocksize, handle.node.size)))
            offset = 0
            while offset < handle.node.size:
                count = tree.vfs.pread_into(handle, offset, buffer)
                out.write(buffer[:count])
                offset += count
                callback.relative_update(count)
        finally:
            tree.vfs.release(handle)

    # --- writing ------------------------------------------------------------------------------------------------------

    def _refuse(self, path: Any = None, *args: Any, **kwargs: Any) -> None:
        raise _read_only(path)

    mkdir = makedirs = rmdir = rm = rm_file = _rm = touch = _refuse
    copy = cp_file = mv = put = put_file = pipe = pipe_file = write_text = _refuse


class ArchiveFile(io.BufferedReader):
    """An open file, as ``open`` gives one: buffered for small reads, safe from several threads, to be pickled.

    A pickled one is open again at the same place on the other side, if the file is still the same.
    """

    def __init__(self, fs: ArchiveFileSystem, path: str) -> None:
        self._bytes = _ArchiveBytes(fs, path)
        super().__init__(self._bytes, BUFFER_SIZE)
        self.fs = fs
        self.path = path
        self.size = self._bytes.node.size
        self.blocksize = fs.blocksize

    @property
    def details(self) -> dict[str, Any]:
        return self.info()

    @property
    def full_name(self) -> str:
        return self.fs.unstrip_protocol(self.path)

    def info(self) -> dict[str, Any]:
        """What the file system said of it when it was opened."""
        return _info(self.path, self._bytes.node)

    def __reduce__(self) -> Any:
        return _reopen, (self.fs, self.path, self.tell(), _content(self._bytes.node))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__reduce__()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"


class _ArchiveBytes(io.RawIOBase):
    """Offsets for a handle of the tree. Opens its own one in a forked child."""

    mode = "rb"

    def __init__(self, fs: ArchiveFileSystem, path: str) -> None:
        super().__init__()
        self._fs = fs
        self._path = path
        self._position = 0
        self._handle: Handle | None = None  # so that what could not be opened can be closed, as Python does at its end
        self._tree = fs._opened()
        self._handle = self._tree.vfs.open(path)
        self.node = self._handle.node

    @property
    def name(self) -> str:
        """What a buffered file calls itself, which pydicom and others ask for; no path of this machine."""
        return self._fs.unstrip_protocol(self._path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.node.size}.get(whence)
        if base is None:
            raise ValueError(f"whence {whence} is none of 0, 1, 2")
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self._path)
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._tree.pid != os.getpid():
            self._reopen()
        assert self._handle is not None
        count = self._tree.vfs.pread_into(self._handle, self._position, memoryview(buffer).cast("B"))
        self._position += count
        return count

    def readall(self) -> bytes:
        buffer = bytearray(max(0, self.node.size - self._position))
        return bytes(memoryview(buffer)[: self.readinto(buffer)])

    def _reopen(self) -> None:
        self._tree = self._fs._opened()
        self._handle = self._tree.vfs.open(self._path)
        if _content(self._handle.node) != _content(self.node):
            raise StaleContent(f"{self._path}: another version has taken its place", "open the file again")

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._handle is not None and self._tree.pid == os.getpid():
                self._tree.vfs.release(self._handle)


def _open(config: Config) -> ArchiveVFS:
    with unforked():  # it imports what the source needs
        return open_vfs(config)


def _reopen(fs: ArchiveFileSystem, path: str, position: int, content: tuple[Any, ...]) -> ArchiveFile:
    file = ArchiveFile(fs, path)
    if _content(file._bytes.node) != content:
        file.close()
        raise StaleContent(f"{path}: another version has taken its place", "open the file again")
    file.seek(position)
    return file


def _content(node: Node) -> tuple[Any, ...]:
    return node.entry.key, node.entry.version, node.size


def _info(path: str, node: Node) -> dict[str, Any]:
    entry = node.entry
    return {
        "name": path,
        "type": "directory" if node.is_dir else "file",
        "size": None if node.size < 0 else node.size,
        "mtime": node.mtime_ns / 1e9 if node.mtime_ns else None,  # seconds since the epoch
        "ino": node.ino,
        "id": entry.id,
        "uri": entry.key,
        "xsi_type": entry.xsi_type,
        "digest": entry.digest,
    }


def _split_url(url: str) -> tuple[str, str]:
    """(SOURCE or "", path in the archive) of a URL."""
    protocol, _, rest = url.partition("://")
    prefix = SOURCES.get(protocol)
    if prefix is None:
        return "", url
    server, _, path = rest.partition("#") if "#/" in rest else rest.partition("/")
    return prefix + server if server else "", path


def _read_only(path: Any) -> OSError:
    return OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
