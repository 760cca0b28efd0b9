"""Any file system that fsspec knows, as an archive: gs, abfs, ftp, sftp, hf, file, memory and many more.

The only archive that imports fsspec. Web servers, S3 and OSF have archives of their own (``s3.py``, ``webtree.py``,
``osf.py``): fsspec hands out whole ranges, not streams, and brings its own connections, retries and redirects. Here a
stream is a row of growing ranges, and the version is looked at after each: old or new, never a mix. Safe to call from
any thread; each call runs in a thread of its own, so that a library without timeouts cannot hold its caller.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, TypeVar

from xnatfs.archives.base import RangeStream
from xnatfs.config import KIB, MIB, Credentials, HttpConfig, TreeConfig
from xnatfs.errors import AccessDenied, ArchiveError, NotFound, StaleContent, TimedOut, Unavailable, UsageError
from xnatfs.model import Entry, Listing
from xnatfs.stats import Stats

FIRST_RANGE = 256 * KIB
LAST_RANGE = 4 * MIB
"""Bytes of the first range of a stream, doubling up to the last: what is held of a body at once."""

VERSION_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "generation",
    "VersionId",
    "version_id",
    "sha",
    "sha256",
    "ino",
    "hex",
    "blob_id",
    "modificationTime",
    "CRC",
    "date_time",
)
TIME_KEYS = ("mtime", "LastModified", "last_modified", "modified", "updated", "modify", "created", "last_commit")
"""What the file systems of fsspec call the things that tell versions apart; each uses its own words."""

T = TypeVar("T")


class FsspecArchive:
    """The tree below one URL of fsspec.

    Args:
        url: As fsspec writes it: ``protocol://path``.
        credentials: Given as ``username`` and ``password`` where there are any (ftp, sftp, smb).
        tree: Not used.
        user_agent: Not used: fsspec's libraries have their own.
    """

    alone = True  # ftp has one connection for commands, and many others have one loop or lock

    def __init__(
        self,
        url: str,
        credentials: Credentials,
        http: HttpConfig,
        tree: TreeConfig,
        user_agent: str,
        stats: Stats | None = None,
    ) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise UsageError(f"{url}: needs fsspec", "pip install 'xnatfs[fsspec]'") from error
        self._protocol, _, _ = url.partition("://")
        if self._protocol not in fsspec.available_protocols() and self._protocol not in fsspec.registry:
            raise UsageError(f"{url}: no archive for {self._protocol!r}", "write https://host, s3://bucket/prefix, …")
        self.id = url
        self._credentials = credentials
        self._timeout_s = http.timeout_s
        self._stats = stats or Stats()
        self._slots = threading.BoundedSemaphore(http.max_connections)
        self._lock = threading.Lock()
        self._opened: tuple[Any, str] | None = None  # guarded by _lock; made when first needed: it starts threads

    def root(self) -> Entry:
        return Entry("", "", True, listing="/")

    # --- the seam ----------------------------------------------------------------------------------------------

    def children(self, directory: Entry) -> Listing:
        """See ``Archive.children``."""

        def ask(fs: Any, top: str) -> list[dict[str, Any]]:
            path = _joined(top, directory.key)
            rows: list[dict[str, Any]] = fs.ls(path, detail=True)
            if len(rows) == 1 and rows[0]["type"] != "directory" and _same(rows[0]["name"], path):
                raise NotFound(f"{directory.key or self.id}: is a file, not a directory")
            if not rows and fs.info(path)["type"] != "directory":
                raise NotFound(f"{directory.key or self.id}: no such directory")
            return [found for row in rows if (found := _followed(fs, row)) is not None]

        entries = [self._entry(directory.key, row) for row in self._call(ask, f"listing of {directory.key or self.id}")]
        return Listing(directory.listing, {directory.key: tuple(entry for entry in entries if entry.name)})

    def _entry(self, above: str, row: Mapping[str, Any]) -> Entry:
        name = str(row["name"]).rstrip("/").rpartition("/")[2]
        key = f"{above}/{name}"
        if row["type"] == "directory":
            return Entry(name, key, True, mtime_ns=_mtime_ns(row), listing=key)
        size = row.get("size")
        return Entry(name, key, False, size if isinstance(size, int) else None, _mtime_ns(row), _version(row))

    def stat(self, entry: Entry) -> Entry:
        """See ``Archive.stat``."""
        row = self._info(entry.key)
        size = row.get("size")
        if row["type"] == "directory" or not isinstance(size, int):
            raise NotFound(f"{entry.key}: no file with a size")
        return replace(entry, size=size, mtime_ns=_mtime_ns(row), version=_version(row))

    def open_range(self, entry: Entry, start: int, stop: int) -> RangeStream:
        """See ``Archive.open_range``. The version is what ``info`` says now: a listing may tell it in other words."""
        now = self.stat(entry)
        if now.size != entry.size:
            raise StaleContent(f"{entry.key}: has changed", "list the directory again")
        return _Stream(self, now, start, stop)

    def open_bulk(self, files: Sequence[Entry]) -> None:
        """See ``Archive.open_bulk``. Files come one by one."""

    def close(self) -> None:
        with self._lock:
            self._opened = None

    # --- calls -------------------------------------------------------------------------------------------------

    def piece(self, entry: Entry, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the version that ``entry`` describes.

        Raises:
            StaleContent: it was another one when they had come.
        """

        def ask(fs: Any, top: str) -> bytes:
            return bytes(fs.cat_file(_joined(top, entry.key), start=start, end=stop))

        data = self._call(ask, f"reading {entry.key}")
        if _version(self._info(entry.key)) != entry.version:
            raise StaleContent(f"{entry.key}: changed while it was read", "open it again")
        if len(data) != stop - start:
            raise Unavailable(f"{entry.key}: {len(data)} bytes in place of {stop - start}")
        self._stats.received_bytes += len(data)
        return data

    def _info(self, key: str) -> dict[str, Any]:
        def ask(fs: Any, top: str) -> dict[str, Any]:
            row: dict[str, Any] = fs.info(_joined(top, key))
            return row

        return self._call(ask, f"looking at {key}")

    def _file_system(self) -> tuple[Any, str]:
        """fsspec's file system, and the path in it that is mounted."""
        import fsspec

        with self._lock:
            if self._opened is None:
                who = {"username": self._credentials.user, "password": self._credentials.secret}
                options = who if self._credentials.user is not None else {}
                # Its own listing cache would hide changes: our tree has one, with an age.
                fs, path = fsspec.core.url_to_fs(self.id, use_listings_cache=False, skip_instance_cache=True, **options)
                self._opened = fs, path.rstrip("/") or path[:1]
            return self._opened

    def _call(self, ask: Callable[[Any, str], T], what: str) -> T:
        """Run ``ask`` in a thread of its own, at most ``max_connections`` at once, for at most the timeout."""
        if not self._slots.acquire(timeout=self._timeout_s):
            raise TimedOut(f"{what}: all connections are busy", "raise --connections")
        outcome: list[T] = []
        failure: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                outcome.append(ask(*self._file_system()))
            except BaseException as error:  # noqa: BLE001  # each library raises its own; translated below
                failure.append(error)
            finally:
                self._slots.release()
                done.set()

        self._stats.requests += 1
        threading.Thread(target=run, name="fsspec-call", daemon=True).start()
        if not done.wait(self._timeout_s):
            raise TimedOut(f"{what}: no answer in {self._timeout_s:g} s")
        if failure:
            raise _translated(failure[0], what) from failure[0]
        return outcome[0]


class _Stream:
    """A row of ranges of one file. See ``RangeStream``."""

    def __init__(self, archive: FsspecArchive, entry: Entry, start: int, stop: int) -> None:
        assert entry.size is not None
        self.start, self.stop, self.total = start, min(stop, entry.size), entry.size
        self.validator = entry.version
        self.ranged = True
        self._archive = archive
        self._entry = entry
        self._at = start
        self._held = memoryview(b"")
        self._next = FIRST_RANGE
        self._closed = False

    def readinto(self, buffer: memoryview) -> int:
        if self._closed:
            raise Unavailable(f"{self._entry.key}: reading was interrupted")
        if not self._held:
            size = min(self._next, self.stop - self._at)
            if size <= 0:
                return 0
            self._held = memoryview(self._archive.piece(self._entry, self._at, self._at + size))
            self._at += size
            self._next = min(2 * self._next, LAST_RANGE)
        count = min(len(buffer), len(self._held))
        buffer[:count] = self._held[:count]
        self._held = self._held[count:]
        return count

    def close(self) -> None:
        self._closed = True


def _followed(fs: Any, row: dict[str, Any]) -> dict[str, Any] | None:
    """A row that is a file or a directory. A link to a file is that file; other links could lead in a ring."""
    if row["type"] in ("file", "directory"):
        return row
    if not (row.get("islink") or row["type"] == "link"):  # as the local one says it, and as sftp does
        return None  # a device, a pipe
    try:
        target: dict[str, Any] = fs.info(row["name"])
    except FileNotFoundError:
        return None
    return {**target, "name": row["name"]} if target["type"] == "file" else None


def _joined(top: str, key: str) -> str:
    """A path in the file system; key is "" or begins with a slash. That of a zip has no slash before the first name:
    given one, fsspec lists each directory as its own child, without end."""
    return f"{top}{key}" if top not in ("", "/") else top + key[1:]


def _same(one: str, other: str) -> bool:
    return one.strip("/") == other.strip("/")


def _mtime_ns(row: Mapping[str, Any]) -> int:
    for key in TIME_KEYS:
        value = row.get(key)
        if isinstance(value, datetime):
            when = value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)
            return int(when.timestamp() * 1_000_000) * 1000
        if isinstance(value, int | float) and not isinstance(value, bool):
            return int(value * 1_000_000) * 1000
        if isinstance(value, str):
            try:
                return _text_time_s(value) * 1_000_000_000
            except ValueError:
                continue
    return 0


def _text_time_s(text: str) -> int:
    if re.fullmatch(r"\d{14}(\.\d+)?", text):  # as ftp writes it, RFC 3659
        return int(datetime.strptime(text[:14], "%Y%m%d%H%M%S").replace(tzinfo=timezone.utc).timestamp())
    return int(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp())


def _version(row: Mapping[str, Any]) -> str:
    """What changes when the content does, in as many words as the file system has for it."""
    said = [f"{key}={row[key]}" for key in ("size", *VERSION_KEYS) if row.get(key) is not None]
    # A time in words of its own, such as those of ftp's `ls -l`, still tells versions apart.
    said.append(str(_mtime_ns(row) or [row[key] for key in TIME_KEYS if row.get(key) is not None]))
    return hashlib.sha256("\n".join(said).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _translated(error: BaseException, what: str) -> ArchiveError:
    """One table from what file systems raise to our errors."""
    if isinstance(error, ArchiveError):
        return error
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return NotFound(f"{what}: no such thing")
    if isinstance(error, PermissionError):
        return AccessDenied(f"{what}: closed to this account")
    if isinstance(error, ImportError):
        return Unavailable(f"{what}: {error}", "install the package that fsspec names for this protocol")
    if isinstance(error, TimeoutError):
        return TimedOut(f"{what}: no answer in time")
    return Unavailable(f"{what}: {type(error).__name__}: {str(error)[:200]}")
