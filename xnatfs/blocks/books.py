"""The books of the block store: which blocks there are, what they take, when a content was last used; and the notes.

diskcache's tables, imported here only; what a block holds and where it stands is ``format.py``'s and ``disk.py``'s
business. Not thread-safe: ``DiskBlocks`` holds its lock around every call. Any number of processes share one database.
"""

# ruff: noqa: PTH116  # a pathlib path costs as much as the call that it is made for

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import diskcache
from diskcache.core import MODE_BINARY, MODE_RAW
from xxhash import xxh3_64_intdigest

from xnatfs.blocks.base import Block, BlockKey
from xnatfs.blocks.format import HEADER_BYTES, SUM, Place, on_disk, place_of, place_of_name, tag_of
from xnatfs.model import ContentId

DATABASE = diskcache.core.DBNAME
Timeout = diskcache.Timeout
"""Raised for whatever keeps a transaction from beginning; why is its ``__context__``."""

MIB = 1024 * 1024

# Waiting for another process's transaction. Those take milliseconds; longer means trouble, and the block is not kept.
BUSY_S = 5.0

# The database's log is folded in at this length, in place of 4 MiB: small caps have no room for that.
LOG_PAGES = 256

# What the log grows by with the next block (some 10 pages), and its index of 32 KiB.
LOG_SLACK_BYTES = 128 * 1024

# Rows entered by one statement: as many as are written at once (SQLite's limit is 4,000 of 8 values).
ROWS_AT_ONCE = 64

# Blocks and notes as diskcache's ``set`` enters them.
_ENTER = (
    "INSERT INTO Cache (key, raw, store_time, expire_time, access_time, access_count, tag, size, mode, filename, value)"
    " VALUES "
)
_ENTRY = "(?, 1, ?, NULL, ?, 0, ?, ?, ?, ?, ?)"
_ENTER_AGAIN = (
    " ON CONFLICT (key, raw) DO UPDATE SET store_time = excluded.store_time, access_time = excluded.access_time,"
    " access_count = 0, expire_time = NULL, tag = excluded.tag, size = excluded.size, mode = excluded.mode,"
    " filename = excluded.filename, value = excluded.value"
)

SETTINGS = {
    "statistics": 0,
    "tag_index": 1,
    # Blocks are never read through diskcache, so this policy's write on each get does not happen; what is wanted is its
    # index on access_time. Eviction is done here, by contents: diskcache would take single blocks, after the fact.
    "eviction_policy": "least-recently-used",
    "cull_limit": 0,
    "sqlite_auto_vacuum": 2,  # incremental: given back after large evictions, not with every delete
    "sqlite_cache_size": 2048,  # pages, 8 MiB
    "sqlite_journal_mode": "wal",
    "sqlite_mmap_size": 64 * MIB,
    # After a power cut the database may be garbled, which costs the cache but never a byte read; kill -9 is harmless.
    # With NORMAL each checkpoint, one in about 150 blocks, waits for the disk.
    "sqlite_synchronous": 0,
}


class Arrival(NamedTuple):
    """A block or a note to be kept, with what it takes on disk. Of a note: its text's bytes, and no key."""

    name: str
    tag: str
    size: int
    place: Place | None
    key: BlockKey | None
    data: Block

    @classmethod
    def block(cls, key: BlockKey, data: Block) -> Arrival:
        place = place_of(key)
        return cls(place.name, tag_of(key.content), on_disk(len(data)), place, key, data)

    @classmethod
    def note(cls, content: ContentId, note: str) -> Arrival:
        tag = tag_of(content)
        text = note.encode("utf-8", "surrogatepass")
        value = SUM.pack(xxh3_64_intdigest(tag.encode() + text)) + text
        return cls(f"{tag}-note", tag, len(value), None, None, value)


class _Disk(diskcache.Disk):  # type: ignore[misc]  # diskcache ships no types
    """Keys are str, values are bytes. Everything else would be pickled and is refused (CVE-2025-69872)."""

    def put(self, key: object) -> tuple[str, bool]:
        if type(key) is not str:
            raise TypeError("only str keys are stored")
        return key, True

    def get(self, key: object, raw: object) -> str:
        if type(key) is not str or not raw:
            raise ValueError("a key that is no text is refused")
        return key

    def store(self, value: object, read: bool, key: object = None) -> tuple[int, int, str | None, object]:
        if type(value) is not bytes:
            raise TypeError("only bytes are stored")
        return 0, MODE_RAW, None, value

    def fetch(self, mode: object, filename: object, value: object, read: bool) -> bytes:
        if mode != MODE_RAW or type(value) is not bytes:
            raise ValueError("a value that is no bytes is refused")
        return value

    def remove(self, file_path: str) -> None:
        """Nothing: diskcache's rows are blocks, and a file holds many. ``DiskBlocks`` removes both."""


class Books(diskcache.Cache):  # type: ignore[misc]  # diskcache ships no types
    """diskcache's tables on one connection for all threads; its callers hold a lock.

    diskcache keeps a connection for each Python thread. Each call of a FUSE worker thread is a new Python thread, and
    would open a connection of its own: 0.5 ms in place of 10 us.
    """

    def __init__(self, directory: Path) -> None:
        self._shared: sqlite3.Connection | None = None
        try:
            super().__init__(str(directory), timeout=BUSY_S, disk=_Disk, **SETTINGS)
            self._con.execute(
                "SELECT rowid, key, raw, access_time, tag, size, mode, value FROM Cache LIMIT 1"
            ).fetchall()
            self.volume()
            self.inode = os.stat(self._path).st_ino
        except BaseException:
            self.close()
            raise

    @property
    def _path(self) -> str:
        return f"{self._directory}/{DATABASE}"

    @property
    def _con(self) -> sqlite3.Connection:
        if self._shared is None:
            self._shared = sqlite3.connect(
                self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False
            )
            for pragma in ("cache_size", "mmap_size", "synchronous"):
                self._shared.execute(f"PRAGMA {pragma} = {SETTINGS[f'sqlite_{pragma}']}").fetchall()
            self._shared.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}").fetchall()
        return self._shared

    @property
    def _sql_retry(self) -> Callable[..., sqlite3.Cursor]:
        """How diskcache asks while it opens. Its own way goes on for a minute where another process holds the database,
        which may be one that was stopped; readers wait for that."""
        until_s = time.monotonic() + BUSY_S

        def ask(statement: str, *values: Any) -> sqlite3.Cursor:
            while True:
                try:
                    return self._con.execute(statement, *values)
                except sqlite3.OperationalError as exc:
                    if "locked" not in str(exc) or time.monotonic() > until_s:
                        raise
                time.sleep(0.01)

        return ask

    def close(self) -> None:
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def is_sound(self) -> bool:
        return bool(self._con.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)])

    def is_in_place(self) -> bool:
        """False when the directory, or the database in it, has been removed or replaced since it was opened."""
        try:
            return os.stat(self._path).st_ino == self.inode
        except OSError:
            return False

    def volume(self) -> int:
        """Bytes on disk: blocks in multiples of DISK_UNIT, the database and its log."""
        try:
            log_bytes = os.stat(f"{self._path}-wal").st_size
        except OSError:
            log_bytes = 0
        return int(super().volume()) + log_bytes + LOG_SLACK_BYTES

    def book(self, arrivals: Sequence[Arrival], limit: int) -> int:
        """Enter blocks and notes if they stay within ``limit`` together; returns the bytes missing, else 0."""
        with self.transact():
            missing = int(self.volume()) + sum(arrival.size for arrival in arrivals) - limit
            if missing <= 0:
                for at in range(0, len(arrivals), ROWS_AT_ONCE):
                    self._enter(arrivals[at : at + ROWS_AT_ONCE])
        return max(0, missing)

    def _enter(self, arrivals: Sequence[Arrival]) -> None:
        """What ``set`` does for each, in one statement: 64 rows take 0.7 ms in place of 1.2, and one turn on the
        interpreter's lock in place of 400. Of a block its size and its file, which is written afterwards.
        """
        now = time.time()
        values: list[object] = []
        for new in arrivals:
            if new.place is None:
                values += (new.name, now, now, new.tag, 0, MODE_RAW, None, new.data)
            else:
                values += (new.name, now, now, new.tag, new.size, MODE_BINARY, new.place.filename, None)
        self._con.execute(_ENTER + ",".join([_ENTRY] * len(arrivals)) + _ENTER_AGAIN, values)

    def known(self, names: Sequence[str]) -> set[str]:
        """Those of the names that are booked."""
        marks = ",".join("?" * len(names))
        query = f"SELECT key FROM Cache WHERE raw = 1 AND key IN ({marks})"  # noqa: S608  # only question marks
        return {name for (name,) in self._con.execute(query, tuple(names))}

    def strike(self, name: str) -> None:
        self._con.execute("DELETE FROM Cache WHERE key = ? AND raw = 1", (name,))

    def bytes_of(self, tag: str) -> int:
        """Bytes that the blocks of a content hold; a block's size is rounded up to DISK_UNIT, header included."""
        query = "SELECT TOTAL(size - ?) FROM Cache WHERE tag = ? AND size > ?"
        ((found,),) = self._con.execute(query, (HEADER_BYTES, tag, HEADER_BYTES)).fetchall()
        return int(found)

    def note(self, name: str) -> bytes | None:
        query = "SELECT value FROM Cache WHERE key = ? AND raw = 1 AND mode = ?"
        rows = self._con.execute(query, (name, MODE_RAW)).fetchall()
        return rows[0][0] if rows and type(rows[0][0]) is bytes else None

    def write_uses(self, tags: Iterable[str]) -> None:
        now = time.time()
        with self.transact():
            self._con.executemany("UPDATE Cache SET access_time = ? WHERE tag = ?", [(now, tag) for tag in tags])

    def oldest_contents(self, wanted: int, spared: set[str]) -> list[str]:
        """Tags of the least recently used contents that together free at least ``wanted`` bytes, if there are."""
        tags: dict[str, None] = {}
        rows = self._con.execute("SELECT tag, size FROM Cache ORDER BY access_time")
        with contextlib.closing(rows):
            for tag, size in rows:
                if wanted <= 0:
                    break
                if tag not in spared:
                    tags[tag] = None
                    wanted -= size
        return list(tags)

    def oldest_rows(self, wanted: int) -> list[int]:
        """Single blocks, oldest first: for when only contents in use are left."""
        ids: list[int] = []
        rows = self._con.execute("SELECT rowid, size FROM Cache WHERE size > 0 ORDER BY access_time, rowid")
        with contextlib.closing(rows):
            for rowid, size in rows:
                if wanted <= 0:
                    break
                ids.append(rowid)
                wanted -= size
        return ids

    def rows_of(self, tag: str) -> list[int]:
        return [rowid for (rowid,) in self._con.execute("SELECT rowid FROM Cache WHERE tag = ?", (tag,))]

    def remove_rows(self, ids: list[int], remove: Callable[[Iterable[Place]], None]) -> int:
        """Delete rows, and what they stand for by ``remove``; returns the bytes freed.

        Blocks go first: a process killed in between leaves rows without blocks, which count too much, not blocks
        without rows, which would count nothing. They go again afterwards, for one that another process was just
        writing: it looks for its row after that (``DiskBlocks._write``), so one of the two removes the block.
        """
        marks = ",".join("?" * len(ids))
        with self.transact():
            rows = self._con.execute(f"SELECT key, size FROM Cache WHERE rowid IN ({marks})", ids).fetchall()  # noqa: S608
            places = [place for place in (place_of_name(key) for key, _ in rows) if place is not None]
            remove(places)
            self._con.execute(f"DELETE FROM Cache WHERE rowid IN ({marks})", ids)  # noqa: S608  # only question marks
        remove(places)
        return sum(size for _, size in rows)

    def shrink(self) -> None:
        """Give the pages of deleted rows back to the file system when they are many."""
        ((free,),) = self._con.execute("PRAGMA freelist_count").fetchall()
        ((pages,),) = self._con.execute("PRAGMA page_count").fetchall()
        if free > 64 and free > pages // 4:
            self._con.execute("PRAGMA incremental_vacuum").fetchall()
            self._con.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


# What opening a garbled or foreign database raises, in sqlite3 or in diskcache's reading of its Settings table.
GARBLED: tuple[type[Exception], ...] = (sqlite3.DatabaseError, TypeError, ValueError, AttributeError, KeyError)


def is_foreign(exc: sqlite3.Error) -> bool:
    """A database of another make: readable, with other tables."""
    return str(exc).startswith(("no such", "table ", "near "))
