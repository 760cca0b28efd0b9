"""Notices walks through folders of small files, and has one bulk stream bring what the walk will want.

Advice only: with none of it, every file is fetched by itself. Knows nothing of paths, zips or HTTP. Safe to call from
any thread; a stream is read by a thread of its own (``BulkTransfer``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from xnatfs.archives.base import Archive
from xnatfs.blocks.base import BlockCache, Claim, Claims
from xnatfs.config import MIB, ReadConfig
from xnatfs.model import ContentId, Entry
from xnatfs.reading.bulk_neighbour import BulkNeighbour, is_fresh
from xnatfs.reading.bulk_transfer import LARGEST, BulkTransfer, Slots
from xnatfs.reading.flight import Flight
from xnatfs.stats import Stats

log = logging.getLogger(__name__)

WALK = 3
"""Files of one folder that had to be fetched make a walk: a program that samples one header a scan, or the first and
the last image of one, makes none. Doubled for a folder whose stream did not come to its end."""

USELESS = 16
"""... and this times for one whose stream brought nothing: the next will do no better."""

LEAST_LEFT = 8
"""Files that must be left to fetch: for fewer, requests of their own cost no more. A guess."""

SAMPLE = 256
"""Files of a folder that are looked up in the cache before a stream starts, at some 20 us each on disk."""

FOLDERS_KEPT = 1024  # whose walks are remembered, at about 1 KB each

TURNS = 4
"""Processes that may have a stream of one folder beside others that stand still; later ones ask nobody. A guess."""

FORGOTTEN_S = 60.0  # after which a stream of another process that no reader of ours has needed is not followed


class Folder(Protocol):
    """A directory, as far as it matters here.

    Attributes:
        key: Names it; hashable.
    """

    @property
    def key(self) -> str: ...

    def files(self) -> tuple[Sequence[Entry], Sequence[Entry]]:
        """Its own files, and those in the directories below it, as they are listed now. May take a while, no request.

        ``size`` may be unknown.
        """
        ...


_Stream = BulkTransfer | BulkNeighbour


class _Walk:
    """What has been read of one folder. Guarded by the lock of ``BulkReader``."""

    __slots__ = ("fetched", "needed", "turn")

    def __init__(self) -> None:
        self.fetched: set[str] = set()  # keys of files that had to be fetched since the last stream
        self.needed = WALK
        self.turn = 0  # streams of other processes that were found to stand still


class BulkReader:
    """Decides for one ``BlockReader`` which folders are worth a stream, and sends its readers there.

    Args:
        find: The flight of a content that is open now, or None.
        claims: Of the processes that share the cache: one of them has the stream, the others follow it.
        closing: Whether waits should end.
    """

    def __init__(
        self,
        archive: Archive,
        cache: BlockCache,
        config: ReadConfig,
        block_size: int,
        slots: Slots,
        stats: Stats,
        find: Callable[[ContentId], Flight | None],
        claims: Claims | None = None,
        closing: Callable[[], bool] = bool,
    ) -> None:
        self._new_transfer = partial(BulkTransfer, archive, cache, config, block_size, slots, stats, find)
        self._archive = archive
        self._cache = cache
        self._config = config
        self._block_size = block_size
        self._stats = stats
        self._claims = claims
        self._closing = closing
        self._limit = max(1, config.max_transfers // 2)  # streams at once: other reads go on beside them
        self._lock = threading.Lock()
        self._walks: OrderedDict[str, _Walk] = OrderedDict()  # guarded by _lock
        self._running: dict[str, _Stream] = {}  # by folder; replaced under _lock, read without

    def opened(self, folder: Folder, entry: Entry) -> None:
        """A reader goes on in this folder, whether its file is cached or not."""
        if self._running:
            stream = self._running.get(folder.key)
            if stream is not None:
                stream.follow(entry.size or 0)

    def brings(self, flight: Flight, folder: Folder) -> bool:
        """Called where a file is about to be fetched. True when a stream has brought it: it is cached or pinned now.

        Waits for a member that is to come, as long as that is no worse than fetching it.
        """
        if flight.size > LARGEST:
            return False
        stream = self._running.get(folder.key)
        if stream is None and flight.size <= self._block_size:
            stream = self.fetched(flight, folder)
        while stream is not None:
            if stream.wait_for(flight):
                return True
            if isinstance(stream, BulkNeighbour) and stream.over:
                self._leave(folder.key, stream)
            before, stream = stream, self._running.get(folder.key)
            if stream is before:
                break
        return False

    def fetched(self, flight: Flight, folder: Folder) -> _Stream | None:
        """Remember that all of a file is fetched; the folder's stream, begun now if that makes it a walk.

        Of a file of many blocks this is known when its end has been read: its header alone makes no walk.
        """
        if not self._config.bulk or flight.size > LARGEST:
            return None
        key = folder.key
        with self._lock:
            walk = self._walks.get(key)
            if walk is None:
                walk = self._walks[key] = _Walk()
                if len(self._walks) > FOLDERS_KEPT:
                    self._walks.popitem(last=False)
            else:
                self._walks.move_to_end(key)
            walk.fetched.add(flight.entry.key)
            if len(walk.fetched) < walk.needed:
                return None
            stream = self._running.get(key)
            if stream is not None:
                return stream
            if sum(isinstance(other, BulkTransfer) for other in self._running.values()) >= self._limit:
                return None
            walk.fetched.clear()
            transfer = self._new_transfer()
            self._running = {**self._running, key: transfer}
        thread = threading.Thread(target=self._run, args=(folder, transfer), name="xnatfs-bulk", daemon=True)
        thread.start()
        return transfer

    def _run(self, folder: Folder, transfer: BulkTransfer) -> None:
        """The stream's thread."""
        factor = 2
        claim: Claim | None = None
        neighbour: BulkNeighbour | None = None
        try:
            claim, neighbour = self._claim(folder.key)
            files = None if neighbour is not None else self._plan(folder)
            if files:
                self._stats.bulk_streams += 1
                complete = transfer.run(files, folder.key, claim)
                factor = 1 if complete else 2 if transfer.kept else USELESS
        except Exception:
            log.exception("bulk stream of %s failed", folder.key)
        finally:
            if claim is not None:
                claim.release()
            self._replace(folder.key, transfer, neighbour)
            if neighbour is None:
                with self._lock:
                    walk = self._walks.get(folder.key)
                    if walk is not None:
                        walk.needed *= factor
            transfer.end()

    # --- other processes ----------------------------------------------------------------------------------------

    def _claim(self, key: str) -> tuple[Claim | None, BulkNeighbour | None]:
        """Our claim on a folder, or the stream that another process has of it."""
        with self._lock:
            walk = self._walks.get(key)
            turn = TURNS if walk is None else walk.turn
        if self._claims is None or turn >= TURNS:
            return None, None
        name = ContentId(self._archive.id, f"{key}\0folder", str(turn))
        claim = self._claims.take(name)
        if claim is not None:
            before = claim.before
            if before is None or before.position < before.stop or not before.stop or not is_fresh(before):
                return claim, None
            claim.release()  # all of it has just been fetched
        log.debug("%s: another process has its stream", key)
        return None, BulkNeighbour(self._claims, self._cache, self._block_size, name, self._closing)

    def _leave(self, key: str, neighbour: BulkNeighbour) -> None:
        """Its stream brings nothing any more."""
        self._replace(key, neighbour, None)
        with self._lock:
            walk = self._walks.get(key)
            if walk is not None and neighbour.stuck:
                walk.turn += 1
                neighbour.stuck = False  # counted once, however many readers waited

    def _replace(self, key: str, stream: _Stream, by: _Stream | None) -> None:
        since = time.monotonic() - FORGOTTEN_S
        with self._lock:
            self._running = {
                at: other
                for at, other in self._running.items()
                if other is not stream and not (isinstance(other, BulkNeighbour) and other.used_at < since)
            }
            if by is not None:
                self._running[key] = by

    def _plan(self, folder: Folder) -> list[Entry] | None:
        """The files to ask for, or None where a stream would move much that nobody may want."""
        own, below = folder.files()
        files = [entry for entry in (*own, *below) if entry.size is not None]
        small = [entry for entry in files if 0 < (entry.size or 0) <= LARGEST]
        total = _bytes_of(files)
        wanted = _bytes_of(small)
        reason = ""
        if len(small) < LEAST_LEFT:
            reason = "few files"
        elif 2 * _bytes_of(own) < total:
            reason = "most of it lies in directories below"
        elif 5 * wanted < 4 * total:
            reason = "large files beside the small ones"
        elif total > self._config.max_bulk:
            reason = "more than the cache should take"
        else:
            missing = self._share_missing(small)
            if missing < 0.5 or missing * len(small) < LEAST_LEFT:
                reason = "most of it is cached"
        if reason:
            log.debug("%s: no bulk stream: %s", folder.key, reason)
            return None
        log.info("%s: %d files, %.1f MiB, as one bulk stream", folder.key, len(files), total / MIB)
        return files

    def _share_missing(self, files: Sequence[Entry]) -> float:
        """About which part of the files has nothing in the cache."""
        sample = files[:: -(-len(files) // SAMPLE)]
        archive = self._archive.id
        bases = (ContentId(archive, entry.key, entry.version) for entry in sample)
        return sum(self._cache.get_note(base) is None for base in bases) / len(sample)


def _bytes_of(files: Sequence[Entry]) -> int:
    return sum(entry.size or 0 for entry in files)
