"""Notices walks through folders of small files, and has one bulk stream bring what the walk will want.

Advice only: with none of it, every file is fetched by itself. Knows nothing of paths, zips or HTTP. Safe to call from
any thread; a stream is read by a thread of its own (``BulkTransfer``).
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from xnatfs.archives.base import Archive
from xnatfs.blocks.base import BlockCache
from xnatfs.config import MIB, ReadConfig
from xnatfs.model import ContentId, Entry
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


class _Walk:
    """What has been read of one folder. Guarded by the lock of ``BulkReader``."""

    __slots__ = ("fetched", "needed")

    def __init__(self) -> None:
        self.fetched: set[str] = set()  # keys of files that had to be fetched since the last stream
        self.needed = WALK


class BulkReader:
    """Decides for one ``BlockReader`` which folders are worth a stream, and sends its readers there.

    Args:
        find: The flight of a content that is open now, or None.
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
    ) -> None:
        self._archive = archive
        self._cache = cache
        self._config = config
        self._block_size = block_size
        self._slots = slots
        self._stats = stats
        self._find = find
        self._limit = max(1, config.max_transfers // 2)  # streams at once: other reads go on beside them
        self._lock = threading.Lock()
        self._walks: OrderedDict[str, _Walk] = OrderedDict()  # guarded by _lock
        self._running: dict[str, BulkTransfer] = {}  # by folder; replaced under _lock, read without

    def opened(self, folder: Folder, entry: Entry) -> None:
        """A reader goes on in this folder, whether its file is cached or not."""
        if self._running:
            transfer = self._running.get(folder.key)
            if transfer is not None:
                transfer.follow(entry.size or 0)

    def brings(self, flight: Flight, folder: Folder) -> bool:
        """Called where a file is about to be fetched. True when a stream has brought it: it is cached or pinned now.

        Waits for a member that is to come, as long as that is no worse than fetching it.
        """
        if flight.size > LARGEST:
            return False
        transfer = self._running.get(folder.key)
        if transfer is None and flight.size <= self._block_size:
            transfer = self.fetched(flight, folder)
        return transfer is not None and transfer.wait_for(flight)

    def fetched(self, flight: Flight, folder: Folder) -> BulkTransfer | None:
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
            if len(walk.fetched) < walk.needed or len(self._running) >= self._limit:
                return None
            transfer = self._running.get(key)
            if transfer is not None:
                return transfer
            walk.fetched.clear()
            transfer = BulkTransfer(
                self._archive, self._cache, self._config, self._block_size, self._slots, self._stats, self._find
            )
            self._running = {**self._running, key: transfer}
        thread = threading.Thread(target=self._run, args=(folder, transfer), name="xnatfs-bulk", daemon=True)
        thread.start()
        return transfer

    def _run(self, folder: Folder, transfer: BulkTransfer) -> None:
        """The stream's thread."""
        factor = 2
        try:
            files = self._plan(folder)
            if files:
                self._stats.bulk_streams += 1
                complete = transfer.run(files, folder.key)
                factor = 1 if complete else 2 if transfer.kept else USELESS
        except Exception:
            log.exception("bulk stream of %s failed", folder.key)
        finally:
            with self._lock:
                self._running = {key: other for key, other in self._running.items() if other is not transfer}
                walk = self._walks.get(folder.key)
                if walk is not None:
                    walk.needed *= factor
            transfer.end()

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
