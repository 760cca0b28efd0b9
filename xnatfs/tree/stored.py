"""Listings on disk: one compressed, checksummed document a listing, so that a remount lists without a request.

Knows nothing of archives, ages or paths: what is put is what is got, or nothing. Safe from any thread and any number of
processes; nothing is locked across a file operation. A document is written beside its place and renamed into it, so a
reader sees the old one, the new one or none, whatever was killed when.

Not a place of truth: whatever does not verify is a miss. A disk that is full, read-only or away costs requests, nothing
else. No pickles. What is inside is in clear, as blocks are: directory 0700, files 0600, file names hashed.

DIRECTORY/xx/<hash>     header, then two zlib streams: the entries as JSON; the documents that came with them
"""

# Paths are strings here: making a pathlib path costs as much as the system call it is for.
# ruff: noqa: PTH104, PTH108, PTH118, PTH120, PTH123

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_intdigest

from xnatfs import jsontext
from xnatfs.columns import FIELDS, Children, Columns, lazy
from xnatfs.model import Listing
from xnatfs.private import private_directory

log = logging.getLogger(__name__)

MAGIC = b"xnatfsL2"
LEVEL = 1  # of zlib: 12 times smaller at 5 times the speed of level 6, which gives 15 times (1,000 files of a session)
DISK_UNIT = 4096  # a file takes whole ones
HEADROOM = 0.9  # of the limit is what is left once room was made
RECOUNT = 16  # the directory is counted again after this part of the limit was written: others write there too

_HEADER = struct.Struct("<8sIIQQ")  # magic, lengths of the two streams, their checksums
_TIME = struct.Struct("<dQ")  # when it was asked for, seconds since the epoch; checksum of that and of the header
_ALIASES = FIELDS.index("aliases")
_numbers = itertools.count()


class ListingStore:
    """The stored listings of one archive as one account and one choice of what is shown sees it.

    Args:
        directory: Made when first used, in a directory that is private too; shared by all scopes.
        scope: What decides the content besides a listing's id: server, account, filters, release.
        limit_bytes: Of the whole directory. 0 stores nothing.
        min_free: Fraction of the file system that must stay free.
    """

    def __init__(self, directory: Path, scope: Iterable[object], limit_bytes: int, min_free: float = 0.0) -> None:
        self._directory = str(directory)
        self._scope = blake2b(json.dumps([repr(part) for part in scope]).encode(), digest_size=16).digest()
        self._limit = limit_bytes
        self._min_free = min_free
        self._private: bool | None = None  # not looked at yet
        self._lock = threading.Lock()
        self._used = 0  # guarded by _lock: bytes, as far as known
        self._unseen = 0  # guarded by _lock: bytes written since the directory was counted
        self._counted = False  # guarded by _lock
        self._warned: set[str] = set()  # guarded by _lock

    def get(self, listing_id: str) -> tuple[Listing, float] | None:
        """A listing and when it was asked for (seconds since the epoch), without its documents; None when not held."""
        if not self._is_private():
            return None
        path = self._path(listing_id)
        try:
            with open(path, "rb") as file:
                lengths, sums, asked_at_s = _read_header(file.read(_HEADER.size + _TIME.size))
                data = file.read(lengths[0])
            listing = _decoded(_verified(data, lengths[0], sums[0]), self._tag(listing_id))
            os.utime(path)  # what goes first when room is made
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn("read", "stored listings cannot be read: %s", error)
            return None
        except (ValueError, TypeError, KeyError, IndexError, zlib.error, struct.error) as error:
            self._remove_damaged(path, error)
            return None
        return None if listing.id != listing_id else (listing, asked_at_s)

    def document(self, listing_id: str, key: str) -> bytes | None:
        """The bytes of a document that came with a listing."""
        if not self._is_private():
            return None
        path = self._path(listing_id)
        try:
            with open(path, "rb") as file:
                lengths, sums, _ = _read_header(file.read(_HEADER.size + _TIME.size))
                file.seek(lengths[0], os.SEEK_CUR)
                data = _verified(file.read(lengths[1]), lengths[1], sums[1])
            return _document_in(data, key)
        except OSError:
            return None
        except (ValueError, TypeError, KeyError, zlib.error, struct.error) as error:
            self._remove_damaged(path, error)
            return None

    def put(self, listing: Listing, asked_at_s: float) -> None:
        """Keep a listing in place of what is there. A failure is a warning, the first time."""
        if not self._limit or not self._is_private():
            return
        data = _encoded(listing, asked_at_s, self._tag(listing.id))
        path = self._path(listing.id)
        try:
            if not self._has_room(len(data)):
                return
            self._write(path, data)
        except OSError as error:
            self._warn("write", "listings are not stored: %s", error)

    def renew(self, listing_id: str, asked_at_s: float) -> bool:
        """The archive has said the same again at ``asked_at_s``; False when the listing is not held."""
        try:
            with open(self._path(listing_id), "r+b", buffering=0) as file:
                header = file.read(_HEADER.size)
                file.write(_time(asked_at_s, header))
        except OSError:
            return False
        return True

    def forget(self, listing_id: str) -> None:
        """The listing has proved wrong, or is none of this account's any more."""
        with contextlib.suppress(OSError):
            os.unlink(self._path(listing_id))

    def used_bytes(self) -> int:
        """Disk space that all listings take, of every scope."""
        return sum(size for _, size, _ in self._files())

    def clear(self) -> None:
        """Remove all listings, of every scope."""
        for _, _, path in self._files():
            with contextlib.suppress(OSError):
                os.unlink(path)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _is_private(self) -> bool:
        """Whether nobody else can have put anything here; looked at once, and the directory is made then."""
        if self._private is None:
            try:
                for directory in (Path(self._directory).parent, Path(self._directory)):
                    private_directory(directory)
                self._private = True
            except OSError as error:
                self._private = False
                self._warn("private", "listings are neither stored nor read from disk: %s", error)
        return self._private

    def _tag(self, listing_id: str) -> str:
        return blake2b(listing_id.encode("utf-8", "surrogatepass"), digest_size=16, key=self._scope).hexdigest()

    def _path(self, listing_id: str) -> str:
        tag = self._tag(listing_id)
        return os.path.join(self._directory, tag[:2], tag[2:])

    def _write(self, path: str, data: bytes) -> None:
        parent = os.path.dirname(path)
        beside = f"{path}.{os.getpid()}-{next(_numbers)}"
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            private_directory(Path(parent))
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb", buffering=0) as file:
                if file.write(data) != len(data):
                    raise OSError(f"{beside}: written in part")
            os.rename(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        with self._lock:
            self._used += _on_disk(len(data))
            self._unseen += _on_disk(len(data))

    def _has_room(self, size: int) -> bool:
        """Whether a document may be written, the least recently used ones having made room for it."""
        size = _on_disk(size)
        if size > self._limit:
            return False
        with contextlib.suppress(FileNotFoundError):
            room = os.statvfs(self._directory)
            if room.f_bavail * room.f_frsize - size < self._min_free * room.f_blocks * room.f_frsize:
                self._warn("full", "listings are not stored: %s", "the disk is full up to --min-free")
                return False
        with self._lock:
            known = self._counted and self._unseen * RECOUNT < self._limit
            if known and self._used + size <= self._limit:
                return True
            self._counted, self._unseen = True, 0
        self._make_room(size)
        return True

    def _make_room(self, size: int) -> None:
        files = sorted(self._files())
        used = sum(taken for _, taken, _ in files)
        if used + size > self._limit:
            for _, taken, path in files:
                if used + size <= self._limit * HEADROOM:
                    break
                with contextlib.suppress(OSError):
                    os.unlink(path)
                used -= taken
        with self._lock:
            self._used = used

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """(last use, bytes on disk, path) of every document, and of what a killed process left beside one."""
        with contextlib.suppress(OSError), os.scandir(self._directory) as top:
            for folder in top:
                with contextlib.suppress(OSError), os.scandir(folder.path) as inside:
                    for file in inside:
                        with contextlib.suppress(OSError):
                            state = file.stat(follow_symlinks=False)
                            yield state.st_mtime, _on_disk(state.st_size), file.path

    def _remove_damaged(self, path: str, error: Exception) -> None:
        self._warn("damaged", "a stored listing is damaged and is asked for again: %s", error)
        with contextlib.suppress(OSError):
            os.unlink(path)

    def _warn(self, kind: str, message: str, why: object) -> None:
        with self._lock:
            if kind in self._warned:
                return
            self._warned.add(kind)
        log.warning(message, why)


def _on_disk(size: int) -> int:
    return -(-size // DISK_UNIT) * DISK_UNIT


# --- the format -------------------------------------------------------------------------------------------------------


def _encoded(listing: Listing, asked_at_s: float, tag: str) -> bytes:
    held = lazy(listing.children)
    children = {key: _as_json(held.columns(key)) for key in held}
    entries = zlib.compress(jsontext.dumps([tag, listing.id, children]), LEVEL)
    documents = zlib.compress(_documents_joined(listing.documents), LEVEL)
    header = _HEADER.pack(MAGIC, len(entries), len(documents), xxh3_64_intdigest(entries), xxh3_64_intdigest(documents))
    return b"".join((header, _time(asked_at_s, header), entries, documents))


def _time(asked_at_s: float, header: bytes) -> bytes:
    return _TIME.pack(asked_at_s, xxh3_64_intdigest(struct.pack("<d", asked_at_s) + header))


def _read_header(data: bytes) -> tuple[tuple[int, int], tuple[int, int], float]:
    header = data[: _HEADER.size]
    magic, *numbers = _HEADER.unpack(header)
    asked_at_s, _ = _TIME.unpack(data[_HEADER.size :])
    if magic != MAGIC or _time(asked_at_s, header) != data[_HEADER.size :]:
        raise ValueError("not a listing of this format")
    return (numbers[0], numbers[1]), (numbers[2], numbers[3]), asked_at_s


def _verified(data: bytes, length: int, checksum: int) -> bytes:
    if len(data) != length or xxh3_64_intdigest(data) != checksum:
        raise ValueError("its checksum is another")
    return zlib.decompress(data)


def _decoded(data: bytes, tag: str) -> Listing:
    found, listing_id, children = jsontext.loads(data)
    if found != tag:
        raise ValueError("it belongs elsewhere")
    return Listing(listing_id, Children({key: _from_json(*columns) for key, columns in children.items()}))


def _as_json(columns: Columns) -> tuple[int, Sequence[Sequence[object]]]:
    """How many entries, and field by field what they say: [value] where all say the same, else the list of values.

    A third of the time that rows take, to write and to read: most fields of a directory's files are alike.
    """
    return len(columns), columns.cells


def _from_json(count: int, cells: list[list[Any]]) -> Columns:
    cells[_ALIASES] = [tuple(aliases) for aliases in cells[_ALIASES]]
    return Columns(count, cells)


def _documents_joined(documents: Mapping[str, bytes]) -> bytes:
    index = json.dumps([[key, len(data)] for key, data in documents.items()]).encode("ascii")
    return b"".join((struct.pack("<I", len(index)), index, *documents.values()))


def _document_in(data: bytes, key: str) -> bytes | None:
    (length,) = struct.unpack_from("<I", data)
    at = 4 + length
    for name, size in json.loads(data[4:at]):
        if name == key:
            return data[at : at + size]
        at += size
    return None
