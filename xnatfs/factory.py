"""The composition root: the one place below the command line that names concrete classes. Starts nothing by itself."""

from __future__ import annotations

import importlib
from typing import Any

from xnatfs.archives.base import Archive
from xnatfs.blocks.base import BlockCache
from xnatfs.config import Config
from xnatfs.errors import UsageError
from xnatfs.reading.reader import BlockReader
from xnatfs.tree.listing import ListingCache
from xnatfs.tree.vfs import ArchiveVFS

ARCHIVES = {
    "https": "xnatfs.archives.xnat:XnatArchive",
    "http": "xnatfs.archives.xnat:XnatArchive",
}
"""Scheme of a SOURCE -> the class that reads it, imported when it is asked for."""

PENDING_BYTES = 32 * 1024 * 1024
"""Bytes that may wait to be written to disk before a transfer has to wait: about 30 ms of a fast one."""


def open_vfs(config: Config) -> ArchiveVFS:
    """The tree of ``config.source``. No thread, socket or request before the first call on it.

    Raises:
        UsageError: no archive handles that kind of source.
    """
    archive = open_archive(config)
    cache = open_cache(config)
    reader = BlockReader(archive, cache, config.read, config.cache.block_size)
    listings = ListingCache(archive, config.listing)
    return ArchiveVFS(archive, reader, listings, config.tree, inside=config.source.inside)


def open_archive(config: Config) -> Archive:
    target = ARCHIVES.get(config.source.scheme)
    if target is None:
        known = ", ".join(sorted(ARCHIVES))
        raise UsageError(f"{config.source.url}: no archive for {config.source.scheme!r}", f"known: {known}")
    module, _, name = target.partition(":")
    build: Any = getattr(importlib.import_module(module), name)
    from xnatfs import __version__

    archive: Archive = build(
        config.source.url, config.credentials, config.http, config.tree, user_agent=f"xnatfs/{__version__}"
    )
    return archive


def open_cache(config: Config) -> BlockCache:
    """Memory in front of a directory; memory alone without one."""
    from xnatfs.blocks.disk import DiskBlocks
    from xnatfs.blocks.memory import MemoryBlocks
    from xnatfs.blocks.tiered import TieredBlocks

    settings = config.cache
    memory = MemoryBlocks(settings.memory_bytes)
    disk = None
    if settings.directory is not None:
        disk = DiskBlocks(settings.directory, settings.limit_bytes, settings.min_free)
    return TieredBlocks(memory, disk, PENDING_BYTES)
