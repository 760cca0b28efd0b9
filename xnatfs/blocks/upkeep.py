"""Looks after a block store: counts it, verifies all of it, empties it. What ``xnatfs cache`` does.

Serves no reads. Safe beside mounts that use the same directory: what it removes goes the way that eviction takes, and
what another process is writing at the moment is left alone. Main thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from xnatfs.blocks.books import DATABASE as DATABASE
from xnatfs.blocks.disk import ROWS_PER_TRANSACTION, DiskBlocks
from xnatfs.blocks.format import SUM, Damaged, Place, check, is_empty, place_of_name, places_in
from xnatfs.errors import XnatfsError

GRACE_S = 60.0
"""Seconds for which a booked block may still be on its way to the disk. A guess: writing one takes milliseconds."""

Progress = Callable[[int], None]
"""Called with the number of bytes looked at since the last call."""


@dataclass(frozen=True, slots=True)
class Census:
    """What a store holds.

    Attributes:
        used_bytes: As the cap counts it: blocks in units of the file system, the database and its log.
        files: Versions of files of which something is kept.
        blocks: Pieces of them.
        oldest_s: When the least recently used of them was last used, seconds since the epoch; None when empty.
    """

    used_bytes: int
    files: int
    blocks: int
    oldest_s: float | None


@dataclass(slots=True)
class Findings:
    """What verifying found. Everything counted but ``sound`` has been removed, and is fetched again when read."""

    sound: int = 0  # blocks that match their checksums
    sound_bytes: int = 0
    damaged: int = 0  # blocks that do not
    missing: int = 0  # booked, and not on disk: left by a process that was killed
    unbooked: int = 0  # on disk, and not in the books: would not count towards the cap


class StoreUpkeep(DiskBlocks):
    """The store in a directory, opened to be looked after.

    Every method raises XnatfsError when the store cannot be opened, sqlite3.Error when its database fails meanwhile.
    """

    def census(self) -> Census:
        self._demand()
        with self._lock:
            assert self._books is not None
            query = "SELECT COUNT(DISTINCT tag), COUNT(*), MIN(access_time) FROM Cache WHERE size > 0"
            ((files, blocks, oldest_s),) = self._books._con.execute(query).fetchall()
            return Census(self._books.volume(), files, blocks, oldest_s)

    def clear(self) -> int:
        """Remove every block and note; returns the bytes freed. Files that are open stay readable, by new requests."""
        self._demand()
        freed = 0
        while rows := [rowid for rowid, *_ in self._rows(0)]:
            freed += self._remove(rows, self._erase_files)
        self._sweep(Findings())
        with self._lock:
            if self._books is not None:
                self._books.shrink()
        return freed

    def verify(self, progress: Progress) -> Findings:
        """Read every block, compare it with its checksums, and remove what is not as it should be."""
        self._demand()
        findings = Findings()
        last = 0
        while rows := self._rows(last):
            last = rows[-1][0]
            bad = [rowid for rowid, name, size, stored_s in rows if not self._holds_up(name, stored_s, findings)]
            self._remove(bad, self._erase_blocks)
            progress(sum(size for _, _, size, _ in rows))
        self._sweep(findings)
        return findings

    def _demand(self) -> None:
        if not self._open():
            raise XnatfsError(f"cache {self._root}: cannot be opened", "the warning above says why")

    def _rows(self, after: int) -> list[tuple[int, str, int, float]]:
        """The next rows: id, name, size and when it was booked."""
        query = "SELECT rowid, key, size, store_time FROM Cache WHERE rowid > ? ORDER BY rowid LIMIT ?"
        with self._lock:
            if self._books is None:
                return []
            return list(self._books._con.execute(query, (after, ROWS_PER_TRANSACTION)).fetchall())

    def _holds_up(self, name: str, stored_s: float, findings: Findings) -> bool:
        place = place_of_name(name)
        if place is None:
            return self._note_holds_up(name, findings)
        try:
            length = self._checked(place)
        except (Damaged, OSError):
            findings.damaged += 1
            return False
        if length is None:
            if time.time() - stored_s < GRACE_S:
                return True
            findings.missing += 1
            return False
        findings.sound += 1
        findings.sound_bytes += length
        return True

    def _note_holds_up(self, name: str, findings: Findings) -> bool:
        with self._lock:
            raw = self._books.note(name) if self._books is not None else None
        tag, is_note, _ = str(name).partition("-note")
        if raw and is_note and SUM.pack(xxh3_64_intdigest(tag.encode() + raw[SUM.size :])) == raw[: SUM.size]:
            return True
        findings.damaged += 1
        return False

    def _checked(self, place: Place) -> int | None:
        try:
            fd = os.open(f"{self._root}/{place.filename}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            return check(fd, place)
        finally:
            os.close(fd)

    def _sweep(self, findings: Findings) -> None:
        """Remove what stands on disk and in no book, and what an interrupted clean-up has left."""
        for filename in self._block_files():
            with contextlib.suppress(FileNotFoundError):
                unbooked = self._unbooked(filename)
                findings.unbooked += len(unbooked)
                self._erase_if_unbooked(unbooked)
        for path in self._directory.iterdir():
            if re.fullmatch("damaged-[0-9]+-[0-9]+", path.name):  # and nothing that a user may have called so
                shutil.rmtree(path, ignore_errors=True)

    def _block_files(self) -> Iterator[str]:
        for folder in sorted(self._directory.iterdir()):
            if re.fullmatch("[0-9a-f]{2}", folder.name) and folder.is_dir():
                for path in folder.iterdir():
                    yield f"{folder.name}/{path.name}"

    def _unbooked(self, filename: str) -> list[Place]:
        path = f"{self._root}/{filename}"
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            filled = [place for place in places_in(filename, os.fstat(fd).st_size) if not is_empty(fd, place)]
        finally:
            os.close(fd)
        with self._lock:
            books = self._books
            known = books.known([place.name for place in filled]) if books is not None else {p.name for p in filled}
        return [place for place in filled if place.name not in known]

    def _erase_if_unbooked(self, places: list[Place]) -> None:
        """Look again within a transaction: blocks are booked in one before they are written, so none can come."""
        with self._lock:
            if self._books is not None and places:
                with self._books.transact():
                    known = self._books.known([place.name for place in places])
                    self._erase_blocks([place for place in places if place.name not in known])
