"""The block store on disk: survives remounts and ``kill -9``, bounded in bytes, shared by any number of processes.

A block's key says in which file it stands and where (``format.py``), so that a read, hit or miss, asks no database.
``books.py`` keeps the books: which blocks there are, what they take, when a content was last used.
Not a place of truth: every block carries its key and checksums, and what does not verify is a miss. No pickles.

Any thread may call, in any number of processes; the first call opens the store, after which the process must not
fork. ``_lock`` guards the one database connection and is held for single statements or short transactions, never while
a block is read or written. A block is booked, then written, its header last; it is removed in the opposite order.
A process killed at any point leaves too much booked, never a block that counts for nothing.

DIRECTORY/              0700
    cache.db[-wal,-shm]  0600, diskcache's tables: hashed names, sizes, times, notes
    lock                 0600, taken while a process opens or remakes the database
    00/ ... ff/          block files, 0600
"""

# Paths are strings on the hot paths: making a pathlib path costs as much as the system call it is for.
# ruff: noqa: PTH101, PTH102, PTH108, PTH120

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import re
import shutil
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from xxhash import xxh3_64_intdigest

from xnatfs.blocks.base import Block, BlockKey
from xnatfs.blocks.books import (
    DATABASE,
    GARBLED,
    LOG_PAGES,
    LOG_SLACK_BYTES,
    Arrival,
    Books,
    is_foreign,
)
from xnatfs.blocks.books import Timeout as BooksTimeout
from xnatfs.blocks.format import (
    DISK_UNIT,
    SUM,
    BlockFile,
    Damaged,
    Place,
    check,
    erase,
    is_block,
    place_of,
    read_span,
    tag_of,
    write,
)
from xnatfs.buffers import BufferPool
from xnatfs.model import ContentId
from xnatfs.private import private_directory

log = logging.getLogger(__name__)

MIB = 1024 * 1024

# Making room frees this much more than needed, at most: eviction then runs once in some hundred writes.
BATCH_BYTES = 256 * MIB
BATCH_FRACTION = 20  # ... and no more than a twentieth of the limit

# Rows deleted in one transaction: about 5 ms during which other processes wait.
ROWS_PER_TRANSACTION = 128

# Uses are written down at most once in this time for each content, so that reads are not writes.
USE_GRAIN_S = 60.0

# How long writing, or opening, is left alone after it failed. A guess: short enough to notice a freed disk.
PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0  # ... while another process holds the database

# The file system's free space, and whether the directory is still the one that was opened, are looked at this often.
LOOK_S = 1.0

# Block files kept open of contents that readers hold: 4 GB in blocks of 1 MiB.
FILES_KEPT = 64

# Warnings about damaged blocks: a rotten disk must not fill the log.
DAMAGE_WARNING_S = 60.0

# Contents remembered as damaged, 100 bytes each; what is forgotten is verified when it is read.
DAMAGED_KNOWN = 10_000


def _make_private(path: Path) -> None:
    """Make an empty file of mode 0600 whatever the umask, or set the mode of one that exists."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)


def _make_subdirectory(path: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)  # the umask may have taken bits away


def _verifies(fd: int, place: Place) -> bool:
    try:
        return check(fd, place) is not None
    except (Damaged, OSError):
        return False


@contextlib.contextmanager
def _open_to_write(path: str) -> Iterator[int]:
    """Open a block file, made with its directory when it is not there."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError:
        _make_subdirectory(os.path.dirname(path))
        fd = os.open(path, flags, 0o600)
    try:
        os.fchmod(fd, 0o600)
        yield fd
    finally:
        os.close(fd)


class DiskBlocks:
    """A ``BlockCache`` in a directory. Opened by its first call; every fault is a miss or a block not kept.

    Args:
        directory: Made when absent, with its parents; nothing else may live in it.
        limit_bytes: Never exceeded by more than one block for each process, open contents included.
        min_free: Fraction of the file system that must stay free.
        buffers: Where whole blocks are read into.
    """

    def __init__(self, directory: Path, limit_bytes: int, min_free: float, buffers: BufferPool | None = None) -> None:
        self._buffers = buffers
        self._directory = directory
        self._root = str(directory)
        self._limit = limit_bytes
        self._min_free = min_free
        self._lock = threading.Lock()
        self._books: Books | None = None  # guarded by _lock
        self._readable = False  # the directory has been found private; set once
        self._closed = False
        self._suspect = False  # guarded by _lock: the database reported damage; check it when it is opened
        self._open_after = 0.0  # monotonic; no attempt to open before
        self._write_after = 0.0  # monotonic; no attempt to write before
        self._look_after = 0.0  # monotonic; see LOOK_S
        self._spare_bytes = 0  # what may still be written before min_free is reached, as of the last look
        self._complained = False  # a warning has been given and no block kept since
        self._waits = 0  # for another process's transaction, all in vain, since a block was kept
        self._damage_warning_after = 0.0
        self._damaged: set[str] = set()  # tags of contents a block of which was damaged; single operations only
        self._mending = threading.Lock()  # held while blocks of one file are written, or a damaged one is removed
        self._holds: dict[str, int] = {}  # guarded by _holds_lock; tag -> readers
        self._holds_lock = threading.Lock()
        self._files: dict[str, BlockFile] = {}  # changed under _holds_lock, read without: kept open, by name
        self._held_files: dict[str, set[str]] = {}  # guarded by _holds_lock; tag -> names that were put in _files
        _stores.add(self)
        self._uses: dict[str, None] = {}  # tags used since they were last written down; single operations only
        self._uses_after = 0.0  # monotonic; when to write them down

    # -- BlockCache ----------------------------------------------------------------------------------------------

    def get(self, key: BlockKey) -> Block | None:
        return self.get_span(key, 0, key.unit)

    def get_span(self, key: BlockKey, start: int, stop: int) -> Block | None:
        """Bytes [start, stop) of a block, verified, or None; reads little more than that from disk."""
        if not self._readable:
            self._open()
            if not self._readable:
                return None
        place = place_of(key)
        for _ in range(2):
            file: BlockFile | None = None
            try:
                file = self._files.get(place.filename) or self._opened(place, tag_of(key.content))
                data = read_span(file, place, key, start, stop, self._buffers)
            except FileNotFoundError:
                return None
            except Damaged as exc:
                if file is None or not file.is_gone():
                    if self._drop_damaged(place, tag_of(key.content), exc):
                        return None
                    continue  # mended since we read it
                data = None
            except OSError as exc:
                self._complain("reading a block", exc)
                return None
            if data is not None:
                self._note_use(tag_of(key.content))
                return data
            if self._files.get(place.filename) is not file or not file.is_gone():
                return None
            with self._holds_lock:
                self._files.pop(place.filename, None)  # removed while it was kept open: look at what has its name now
        return None

    def _opened(self, place: Place, tag: str) -> BlockFile:
        """A block file; kept open while a reader holds its content: opening and closing is a fifth of a small read."""
        file = BlockFile(os.open(f"{self._root}/{place.filename}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        with self._holds_lock:
            if tag in self._holds and not self._closed:
                if len(self._files) >= FILES_KEPT:
                    self._files.pop(next(iter(self._files)))
                self._files[place.filename] = file
                self._held_files.setdefault(tag, set()).add(place.filename)
        return file

    def put(self, key: BlockKey, data: Block) -> None:
        self.put_many([(key, data)])

    def put_many(self, blocks: Sequence[tuple[BlockKey, Block]], notes: Sequence[tuple[ContentId, str]] = ()) -> None:
        """Keep several in one transaction: booking a block takes 90 us by itself, 40 us in eight."""
        most = max(1, self._limit // BATCH_FRACTION)
        batch: list[Arrival] = []
        size = 0
        for new in (
            *(Arrival.block(key, data) for key, data in blocks),
            *(Arrival.note(content, note) for content, note in notes),
        ):
            if new.size > self._limit or (new.key is not None and len(new.data) > new.key.unit):
                continue
            if batch and size + new.size > most:
                self._put(batch)
                batch, size = [], 0
            batch.append(new)
            size += new.size
        if batch:
            self._put(batch)

    def _put(self, arrivals: list[Arrival]) -> None:
        with self._tolerant("keeping blocks"):
            if not self._writable():
                return
            new = [arrival for arrival in arrivals if not self._is_kept(arrival)]
            if not new:
                return
            blocks = [arrival for arrival in new if arrival.place is not None]
            if self._enter(new) and blocks:
                self._write(blocks)
                self._recovered()
            if blocks and blocks[-1].key is not None and blocks[-1].key.number:
                self._note_use(blocks[-1].tag)

    def kept_bytes(self, content: ContentId) -> int:
        with self._tolerant("counting blocks"):
            if self._open():
                with self._lock:
                    return self._books.bytes_of(tag_of(content)) if self._books is not None else 0
        return 0

    def get_note(self, content: ContentId) -> str | None:
        tag = tag_of(content)
        raw: bytes | None = None
        with self._tolerant("reading a note"):
            if self._open():
                with self._lock:
                    raw = self._books.note(f"{tag}-note") if self._books is not None else None
        if raw is None or SUM.pack(xxh3_64_intdigest(tag.encode() + raw[SUM.size :])) != raw[: SUM.size]:
            return None
        self._note_use(tag)
        return raw[SUM.size :].decode("utf-8", "surrogatepass")

    def put_note(self, content: ContentId, note: str) -> None:
        self.put_many([], [(content, note)])

    def discard(self, content: ContentId) -> None:
        with self._tolerant("dropping a content"):
            if self._open():
                self._remove_contents([tag_of(content)])

    def hold(self, content: ContentId) -> None:
        tag = tag_of(content)
        with self._holds_lock:
            self._holds[tag] = self._holds.get(tag, 0) + 1
        self._uses[tag] = None

    def release(self, content: ContentId) -> None:
        tag = tag_of(content)
        with self._holds_lock:
            count = self._holds.get(tag, 0)
            if count > 1:
                self._holds[tag] = count - 1
            elif count:
                del self._holds[tag]
                for filename in self._held_files.pop(tag, ()):
                    self._files.pop(filename, None)
        self._uses[tag] = None

    def close(self) -> None:
        """Write down what was used and let the database go. Later calls find nothing and keep nothing."""
        with self._tolerant("closing"):
            self._write_uses()
        with self._holds_lock:
            self._closed = True
            self._files.clear()
            self._held_files.clear()
        with self._lock:
            self._readable = False
            if self._books is not None:
                self._books.close()
                self._books = None

    def used_bytes(self) -> int:
        """What the store takes on disk, every process's blocks included; 0 while it cannot be opened."""
        with self._tolerant("measuring"):
            if self._open():
                with self._lock:
                    return self._books.volume() if self._books is not None else 0
        return 0

    # -- writing -------------------------------------------------------------------------------------------------

    def _enter(self, arrivals: Sequence[Arrival]) -> bool:
        """Book blocks and notes, making room first. False: there is no room to be made."""
        size = sum(arrival.size for arrival in arrivals)
        batch = min(self._limit // BATCH_FRACTION, BATCH_BYTES)
        short = size - self._spare_bytes
        if short > 0 and self._evict(short + batch) < short:
            raise OSError(errno.ENOSPC, f"less than {self._min_free:.0%} of the disk is free")
        for _ in range(4):  # another process may take the room that was just made
            with self._lock:
                if self._books is None:
                    return False
                missing = self._books.book(arrivals, self._limit)
            if not missing:
                self._spare_bytes -= size
                return True
            if not self._evict(missing + batch):
                return False
        return False

    def _is_kept(self, arrival: Arrival) -> bool:
        """Whether this block stands there already, by its header: what follows is verified when it is read.

        Where one block of a content was damaged, others may be: those are verified now, so that they are mended by the
        transfer that passes them, and cost no second one.
        """
        if arrival.place is None or arrival.key is None:
            return False
        try:
            fd = os.open(f"{self._root}/{arrival.place.filename}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            stands = is_block(fd, arrival.place, arrival.tag, arrival.key)
            return stands and (arrival.tag not in self._damaged or _verifies(fd, arrival.place))
        finally:
            os.close(fd)

    def _write(self, arrivals: Sequence[Arrival]) -> None:
        """Write booked blocks; take back what cannot be written."""
        places = [arrival.place for arrival in arrivals if arrival.place is not None]
        done = 0
        try:
            for filename, group in itertools.groupby(arrivals, key=lambda arrival: arrival.place.filename):  # type: ignore[union-attr]
                # From before it is opened: who removes a file's last block removes the file.
                with self._mending, _open_to_write(f"{self._root}/{filename}") as fd:
                    for arrival in group:
                        assert arrival.place is not None
                        assert arrival.key is not None
                        write(fd, arrival.place, arrival.key, arrival.data)
                        done += 1
        except OSError:
            failed = places[done:]
            self._erase_blocks(failed)
            with self._lock, contextlib.suppress(sqlite3.Error):
                if self._books is not None:
                    for place in failed:
                        self._books.strike(place.name)
            raise
        finally:
            with self._lock:
                known = self._books.known([place.name for place in places[:done]]) if self._books is not None else set()
            # Discarded or evicted meanwhile, here or in another process: those would count for nothing.
            self._erase_blocks([place for place in places[:done] if place.name not in known])

    def _erase_blocks(self, places: Iterable[Place]) -> None:
        """Remove single blocks, and files that are left without any."""
        for place in places:
            path = f"{self._root}/{place.filename}"
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    erase(fd, place)
                    if not os.fstat(fd).st_blocks:
                        os.unlink(path)
                except OSError:  # no holes on this file system: its neighbours go too, and are fetched again
                    os.unlink(path)
                finally:
                    os.close(fd)

    def _erase_files(self, places: Iterable[Place]) -> None:
        """Remove every block of the files that these stand in."""
        for filename in {place.filename for place in places}:
            path = f"{self._root}/{filename}"
            fd = -1
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            with contextlib.suppress(OSError):
                os.unlink(path)
                if fd >= 0:
                    os.ftruncate(fd, 0)  # for who has it open: nobody counts those bytes any more
            if fd >= 0:
                os.close(fd)

    def _evict(self, wanted: int) -> int:
        """Free ``wanted`` bytes: contents by least recent use, then just used ones, then blocks of held ones."""
        freed = 0
        with self._holds_lock:
            held = set(self._holds)
        freed += self._evict_contents(wanted, held | set(self._uses.copy()))
        if freed < wanted:
            self._write_uses()
            freed += self._evict_contents(wanted - freed, held)
        if freed < wanted:
            with self._lock:
                rows = self._books.oldest_rows(wanted - freed) if self._books is not None else []
            freed += self._remove(rows, self._erase_blocks)
        with self._lock:
            if self._books is not None:
                self._books.shrink()
        self._spare_bytes += freed
        log.debug("made room: %d bytes freed of %d wanted", freed, wanted)
        return freed

    def _evict_contents(self, wanted: int, spared: set[str]) -> int:
        with self._lock:
            tags = self._books.oldest_contents(wanted, spared) if self._books is not None else []
        return self._remove_contents(tags)

    def _remove_contents(self, tags: Iterable[str]) -> int:
        return self._remove(self._rows_of(tags), self._erase_files)

    def _rows_of(self, tags: Iterable[str]) -> Iterator[int]:
        for tag in tags:
            with self._lock:
                rows = self._books.rows_of(tag) if self._books is not None else []
            yield from rows

    def _remove(self, rows: Iterable[int], remove: Callable[[Iterable[Place]], None]) -> int:
        """Remove blocks in transactions short enough for other processes to wait for; returns the bytes freed."""
        freed = 0
        pending = iter(rows)
        while batch := list(itertools.islice(pending, ROWS_PER_TRANSACTION)):
            with self._lock:
                if self._books is None:
                    break
                freed += self._books.remove_rows(batch, remove)
        return freed

    # -- recency -------------------------------------------------------------------------------------------------

    def _note_use(self, tag: str) -> None:
        self._uses[tag] = None
        if time.monotonic() >= self._uses_after:
            with self._tolerant("writing down uses"):
                self._write_uses()

    def _write_uses(self) -> None:
        self._uses_after = time.monotonic() + USE_GRAIN_S
        uses, self._uses = self._uses, {}
        tags = iter(tuple(uses))
        while batch := list(itertools.islice(tags, ROWS_PER_TRANSACTION)):
            with self._lock:
                if self._books is None:
                    return
                self._books.write_uses(batch)

    # -- opening and recovering ----------------------------------------------------------------------------------

    def _writable(self) -> bool:
        """True when a block may be written now; looks around once in LOOK_S."""
        now = time.monotonic()
        if now < self._write_after or not self._open():
            return False
        if now >= self._look_after:
            with self._lock:
                if self._books is not None and not self._books.is_in_place():
                    self._books.close()
                    self._books = None
            if not self._open():
                return False
            disk = os.statvfs(self._root)
            spare = int(disk.f_frsize * (disk.f_bavail - self._min_free * disk.f_blocks))
            self._spare_bytes = spare - LOG_PAGES * DISK_UNIT - LOG_SLACK_BYTES  # the database may grow meanwhile
            self._look_after = now + LOOK_S  # last: until then other threads look for themselves
        return True

    def _open(self) -> bool:
        """True when the database is open; opens it unless that failed a moment ago."""
        if self._books is not None:
            return True
        if self._closed or time.monotonic() < self._open_after:
            return False
        with self._tolerant("opening"), self._lock:
            if self._books is None and not self._closed:
                private_directory(self._directory)
                self._readable = True
                self._books = self._open_books()
                self._suspect = False
        return self._books is not None

    def _open_books(self) -> Books:
        """Open the database, or set aside one that is garbled and start afresh. The caller holds ``_lock``."""
        _make_private(self._directory / "lock")
        with (self._directory / "lock").open("rb") as lock_file:
            fcntl.flock(lock_file, fcntl.LOCK_EX)  # two processes must not both replace it
            try:
                return self._open_books_alone()
            finally:
                fcntl.flock(lock_file, fcntl.LOCK_UN)  # a child forked meanwhile has it open as well

    def _open_books_alone(self) -> Books:
        try:
            books = self._try_books()
            if not self._suspect or books.is_sound():
                return books
            books.close()
            reason: Exception = sqlite3.DatabaseError("its integrity check failed")
        except GARBLED as exc:
            if isinstance(exc, sqlite3.OperationalError) and not is_foreign(exc):
                raise
            reason = exc
        self._complain("opening", reason, "starting with an empty one")
        self._start_afresh()
        return self._try_books()

    def _try_books(self) -> Books:
        _make_private(self._directory / DATABASE)
        return Books(self._directory)

    def _start_afresh(self) -> None:
        """Move the database and all blocks aside, then delete them: without books nobody could bound them."""
        aside = self._directory / f"damaged-{os.getpid()}-{time.time_ns()}"
        aside.mkdir(mode=0o700)
        for path in tuple(self._directory.iterdir()):
            if path.name.startswith(DATABASE) or re.fullmatch("[0-9a-f]{2}", path.name):
                path.rename(aside / path.name)
        shutil.rmtree(aside, ignore_errors=True)

    # -- faults --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _tolerant(self, doing: str) -> Iterator[None]:
        """Turn a fault into one warning and a pause."""
        try:
            yield
        except BooksTimeout as exc:
            cause = exc.__context__
            locked = not isinstance(cause, sqlite3.Error) or "locked" in str(cause)
            self._fault(doing, TimeoutError("another process holds the database") if locked else cause or exc)
        except (OSError, sqlite3.Error, TypeError, ValueError) as exc:  # the last two: Settings rows of a wrong type
            self._fault(doing, exc)

    def _fault(self, doing: str, exc: BaseException) -> None:
        self._complain(doing, exc)
        self._write_after = time.monotonic() + self._pause_s(exc)
        self._look_after = 0.0
        if isinstance(exc, OSError):
            return
        with self._lock:
            self._open_after = self._write_after
            self._suspect |= not isinstance(exc, sqlite3.OperationalError) or is_foreign(exc)
            if self._books is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._books.close()
                self._books = None

    def _pause_s(self, exc: BaseException) -> float:
        """How long to leave the disk alone. A process that was stopped within a transaction may stay so for long, and
        each time that it is waited for, readers are too."""
        if not isinstance(exc, TimeoutError) and "locked" not in str(exc):
            self._waits = 0
            return PAUSE_S
        self._waits += 1
        return min(PAUSE_S * float(4 ** min(self._waits, 8)), LONGEST_PAUSE_S)

    def _complain(self, doing: str, exc: BaseException, result: str = "reading goes on without it") -> None:
        """One warning until a block is kept again."""
        level = logging.DEBUG if self._complained else logging.WARNING
        self._complained = True
        log.log(level, "block cache %s: %s failed: %s; %s", self._root, doing, exc, result)

    def _recovered(self) -> None:
        self._waits = 0
        if self._complained:
            self._complained = False
            log.info("block cache %s: works again", self._root)

    def _drop_damaged(self, place: Place, tag: str, exc: Damaged) -> bool:
        """Remove a block that does not verify; its row is used again when it is put again.

        False: another thread has put it again in the meantime, and it is sound.
        """
        if len(self._damaged) >= DAMAGED_KNOWN:
            self._damaged.clear()
        self._damaged.add(tag)
        with self._mending:
            if self._is_sound(place):
                return False
            self._erase_blocks([place])
        now = time.monotonic()
        level = logging.WARNING if now >= self._damage_warning_after else logging.DEBUG
        if level == logging.WARNING:
            self._damage_warning_after = now + DAMAGE_WARNING_S
        log.log(level, "block cache %s: a block was dropped: %s; it will be fetched again", self._root, exc)
        return True

    def _is_sound(self, place: Place) -> bool:
        try:
            fd = os.open(f"{self._root}/{place.filename}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            return _verifies(fd, place)
        finally:
            os.close(fd)


# SQLite has locks of its own for the whole process: a child forked while another thread is in it could never open a
# database. So a fork waits until none is; the child's stores are of no use to it, but new ones are.

_stores: weakref.WeakSet[DiskBlocks] = weakref.WeakSet()
_stopped: list[DiskBlocks] = []  # between before and after a fork


def _before_fork() -> None:
    for store in sorted(_stores, key=id):
        store._lock.acquire()
        _stopped.append(store)


def _after_fork() -> None:
    while _stopped:
        _stopped.pop()._lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
