"""Which process of this machine fetches which file, so that two that share a cache directory do not both.

A claim is a lock on one byte of the file ``claims``, the byte being the content's hash: nothing is made or removed for
it, and the kernel drops it when its process ends, however it ends. Beside it stand how far the owner is and what
others want of it. All of it is advice: a claim that cannot be had costs a second download and no more. Nothing here
waits. Safe from any thread.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import struct
import threading
import time
from pathlib import Path

from xxhash import xxh3_64_intdigest

from xnatfs.blocks.base import Progress
from xnatfs.model import ContentId
from xnatfs.private import private_directory

log = logging.getLogger(__name__)

NAME = "claims"
ROWS = 4096
"""Contents whose progress is noted at the same time, give or take equal remainders: 230 KB on disk at most."""

_ROW = struct.Struct("=Qqqqdqq")  # tag, start, position, stop, seconds since the epoch, by whom; wanted
_WANTED = struct.Struct("=q")
_WANTED_AT = _ROW.size - _WANTED.size
_LOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux
_TAKEN_BY_OTHERS = (errno.EAGAIN, errno.EACCES)


class FileClaims:
    """The claims of all processes that use one cache directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._id = secrets.randbits(62)  # tells our rows from those of others
        self._lock = threading.Lock()
        self._file = -1  # guarded by _lock, opened at the first use; -1 when that failed, too
        self._tried = False  # guarded by _lock
        self._taken: dict[int, int] = {}  # guarded by _lock: tag -> how often we hold it

    def take(self, content: ContentId) -> FileClaim | None:
        """The claim on a content, ours until it is released; None while another process has it."""
        tag = _tag(content)
        with self._lock:
            file = self._opened()
            held = self._taken.get(tag, 0)
            if file >= 0 and not held and not self._set(file, fcntl.F_WRLCK, tag):
                return None
            self._taken[tag] = held + 1
            row = self._read(file, tag)
        if row is not None and row[6] and not held:  # what was fetched before is still news to those who wait
            self._write(_WANTED.pack(0), _offset(tag) + _WANTED_AT)
        before = None if row is None or row[5] == self._id else Progress(*row[1:5])
        return FileClaim(self, tag, before, is_new=row is None)

    def look(self, content: ContentId) -> Progress | None:
        """How far the one who has, or had, the claim is; None when that is not known (any more)."""
        row = self._row(_tag(content))
        return None if row is None else Progress(*row[1:5])

    def want(self, content: ContentId, stop: int) -> None:
        """Ask the owner to go on up to ``stop``, where it would pause."""
        tag = _tag(content)
        row = self._row(tag)
        if row is not None and row[6] < stop:
            self._write(_WANTED.pack(stop), _offset(tag) + _WANTED_AT)

    def close(self) -> None:
        """Give up all claims. Safe to call twice."""
        with self._lock:
            file, self._file, self._tried = self._file, -1, True
            self._taken.clear()
        if file >= 0:
            os.close(file)

    # --- for FileClaim ------------------------------------------------------------------------------------------

    def _release(self, tag: int) -> None:
        with self._lock:
            held = self._taken.pop(tag, 0) - 1
            if held > 0:
                self._taken[tag] = held
            elif held == 0 and self._file >= 0:
                self._set(self._file, fcntl.F_UNLCK, tag)

    def _row(self, tag: int) -> tuple[int, int, int, int, float, int, int] | None:
        with self._lock:  # it keeps the descriptor from meaning another file
            return self._read(self._opened(), tag)

    def _read(self, file: int, tag: int) -> tuple[int, int, int, int, float, int, int] | None:
        """Under the lock."""
        if file < 0:
            return None
        try:
            data = os.pread(file, _ROW.size, _offset(tag))
        except OSError:
            return None
        if len(data) < _ROW.size:
            return None
        row: tuple[int, int, int, int, float, int, int] = _ROW.unpack(data)
        return row if row[0] == tag else None

    def _packed(self, tag: int, start: int, position: int, stop: int) -> bytes:
        return _ROW.pack(tag, start, position, stop, time.time(), self._id, 0)

    def _write(self, data: bytes, offset: int) -> None:
        with self._lock:
            if (file := self._opened()) >= 0:
                try:  # contextlib.suppress costs a microsecond
                    os.pwrite(file, data, offset)
                except OSError as exc:  # a full disk
                    log.debug("nothing told: %s", exc.strerror)

    # --- inside -------------------------------------------------------------------------------------------------

    def _opened(self) -> int:
        """Under the lock."""
        if not self._tried:
            self._tried = True
            try:
                private_directory(self._directory)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                self._file = os.open(self._directory / NAME, flags, 0o600)
                os.fchmod(self._file, 0o600)
            except OSError as exc:
                log.info("no claims in %s: %s", self._directory, exc.strerror)
        return self._file

    def _set(self, file: int, kind: int, tag: int) -> bool:
        """Under the lock: whether the byte is ours now, or nobody can say."""
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, tag >> 2, 1, 0))  # offsets have 62 bits
        except OSError as exc:
            if exc.errno in _TAKEN_BY_OTHERS:
                return False
            log.debug("no locks in %s: %s", self._directory, exc.strerror)
        return True


class FileClaim:
    """A claim that is ours.

    Attributes:
        before: Progress of the other process that had it last, if known: what it fetched is in the cache, or soon.
    """

    __slots__ = ("_claims", "_is_new", "_tag", "before")

    def __init__(self, claims: FileClaims, tag: int, before: Progress | None, is_new: bool) -> None:
        self._claims = claims
        self._tag = tag
        self._is_new = is_new  # its row is another content's, or empty, until we tell something
        self.before = before

    def moved(self, start: int, position: int, stop: int) -> None:
        """Tell the others: [start, position) of a stream up to ``stop`` has passed; 0 while its end is not known."""
        if self._is_new and not stop:
            return  # no row says as much
        row = self._claims._packed(self._tag, start, position, stop)
        self._claims._write(row if self._is_new else row[:_WANTED_AT], _offset(self._tag))
        self._is_new = False

    def wanted(self) -> int:
        """Up to where somebody else wants us to go on."""
        row = self._claims._row(self._tag)
        return 0 if row is None else row[6]

    def release(self) -> None:
        self._claims._release(self._tag)


def _tag(content: ContentId) -> int:
    text = f"{content.archive}\0{content.key}\0{content.version}"
    return xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) or 1


def _offset(tag: int) -> int:
    return tag % ROWS * _ROW.size
