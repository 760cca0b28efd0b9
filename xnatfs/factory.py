"""The composition root: the one place below the command line that names concrete classes. Starts nothing by itself."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from xnatfs.archives.base import Archive
from xnatfs.blocks.base import BlockCache
from xnatfs.config import Config
from xnatfs.errors import UsageError
from xnatfs.reading.reader import BlockReader
from xnatfs.stats import Stats
from xnatfs.tree.listing import ListingCache
from xnatfs.tree.vfs import ArchiveVFS

if TYPE_CHECKING:
    from xnatfs.archives.xnat import XnatArchive as XnatArchive  # also for the command line, which names no archive

ARCHIVES = {
    "https": "xnatfs.archives.xnat:XnatArchive",
    "http": "xnatfs.archives.xnat:XnatArchive",
}
"""Scheme of a SOURCE -> the class that reads it, imported when it is asked for."""

PENDING_BYTES = 32 * 1024 * 1024
"""Bytes that may wait to be written to disk before a transfer has to wait: about 30 ms of a fast one."""


def open_vfs(config: Config, stats: Stats | None = None) -> ArchiveVFS:
    """The tree of ``config.source``. No thread, socket or request before the first call on it.

    Args:
        stats: Counts what happens from here on.
    Raises:
        UsageError: no archive handles that kind of source.
    """
    stats = stats or Stats()
    archive = open_archive(config, stats)
    cache = open_cache(config, stats)
    reader = BlockReader(archive, cache, config.read, config.cache.block_size, stats)
    listings = ListingCache(archive, config.listing)
    return ArchiveVFS(archive, reader, listings, config.tree, inside=config.source.inside)


def open_server(config: Config) -> XnatArchive:
    """The server of ``config.source`` as what it is, for what only it can do: tokens, versions."""
    archive: Any = open_archive(config)
    server: XnatArchive = archive
    return server


def open_archive(config: Config, stats: Stats | None = None) -> Archive:
    target = ARCHIVES.get(config.source.scheme)
    if target is None:
        known = ", ".join(sorted(ARCHIVES))
        raise UsageError(f"{config.source.url}: no archive for {config.source.scheme!r}", f"known: {known}")
    module, _, name = target.partition(":")
    build: Any = getattr(importlib.import_module(module), name)
    from xnatfs import __version__

    agent = f"xnatfs/{__version__}"
    archive: Archive = build(config.source.url, config.credentials, config.http, config.tree, agent, stats)
    return archive


def open_cache(config: Config, stats: Stats) -> BlockCache:
    """Memory in front of a directory; memory alone without one."""
    from xnatfs.blocks.disk import DiskBlocks
    from xnatfs.blocks.memory import MemoryBlocks
    from xnatfs.blocks.tiered import TieredBlocks

    settings = config.cache
    memory = MemoryBlocks(settings.memory_bytes)
    disk = None
    if settings.directory is not None:
        disk = DiskBlocks(settings.directory, settings.limit_bytes, settings.min_free)
        stats.gauges["cache_bytes"] = disk.used_bytes
    return TieredBlocks(memory, disk, PENDING_BYTES)
