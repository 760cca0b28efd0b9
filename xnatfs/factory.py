"""The composition root: the one place below the command line that names concrete classes. Starts nothing by itself."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xnatfs.archives.base import Archive, Learning
from xnatfs.archives.kept import KeptDocuments, KeptSizes, OfflineArchive
from xnatfs.blocks.base import BlockCache, Claims
from xnatfs.buffers import BufferPool
from xnatfs.config import MIB, CacheConfig, Config, ReadConfig
from xnatfs.errors import UsageError
from xnatfs.reading.keeping import CacheKeeper
from xnatfs.reading.reader import BlockReader
from xnatfs.stats import Stats
from xnatfs.tree.listing import ListingCache
from xnatfs.tree.stored import ListingStore
from xnatfs.tree.vfs import ArchiveVFS

if TYPE_CHECKING:
    # Also for the command line, which names no archive and no store.
    from xnatfs.archives.xnat.archive import XnatArchive as XnatArchive
    from xnatfs.blocks.upkeep import StoreUpkeep as StoreUpkeep

ARCHIVES = {
    "https": "xnatfs.archives.xnat.archive:XnatArchive",
    "http": "xnatfs.archives.xnat.archive:XnatArchive",
    "s3": "xnatfs.archives.objects.s3:S3Archive",
    "openneuro": "xnatfs.archives.objects.openneuro:open_dataset",
    "osf": "xnatfs.archives.objects.osf:OsfArchive",
    "web+http": "xnatfs.archives.objects.webtree:WebTreeArchive",
    "web+https": "xnatfs.archives.objects.webtree:WebTreeArchive",
    "tcia": "xnatfs.archives.nbia.archive:NbiaArchive",
}
"""Scheme of a SOURCE -> what makes the archive that reads it, imported when it is asked for."""

ANY_OTHER = "xnatfs.archives.objects.fsspec:FsspecArchive"
"""For the schemes that fsspec knows; it refuses the rest."""

LISTINGS = "listings"  # their folder in the cache directory

LISTINGS_SHARE = 20
LISTINGS_BYTES = 512 * MIB
"""Stored listings take at most a twentieth of the cache's cap, and 512 MiB: ten million files at about 50 bytes."""

PENDING_BYTES = 32 * MIB
"""Bytes that may wait to be written to disk before a transfer has to wait: about 30 ms of a fast one."""

IN_FLIGHT = 16
"""Blocks that may be under way beside those in memory: each transfer fills one, each reader looks at one or two."""


def open_vfs(config: Config, stats: Stats | None = None) -> ArchiveVFS:
    """The tree of ``config.source``. No thread, socket or request before the first call on it.

    Args:
        stats: Counts what happens from here on.
    Raises:
        UsageError: no archive handles that kind of source.
    """
    stats = stats or Stats()
    archive = open_archive(config, stats)
    if config.listing.offline:
        archive = OfflineArchive(archive)
    block_size = config.cache.block_size
    buffers = BufferPool(block_size, memory_share(config) // block_size + IN_FLIGHT)
    cache = open_cache(config, stats, buffers)
    listing = config.listing
    keeper = CacheKeeper(archive.id, cache, block_size)
    if isinstance(archive, Learning):
        archive.keep_with(keeper)
        listing = replace(listing, ahead=0)  # a listing may be all that it lists: never on the chance that it is wanted
    store = open_listings(config)
    if store is not None:
        archive = KeptSizes(KeptDocuments(archive, store.document), keeper)
    reader = BlockReader(archive, cache, _read_config(config), block_size, stats, buffers, open_claims(config))
    listings = ListingCache(archive, listing, store=store, stats=stats)
    return ArchiveVFS(archive, reader, listings, config.tree, inside=config.source.inside)


def _read_config(config: Config) -> ReadConfig:
    """Without a disk, a folder that comes as one stream has to fit beside other blocks in memory."""
    if config.cache.directory is not None:
        return config.read
    return replace(config.read, max_bulk=min(config.read.max_bulk, config.cache.memory_bytes // 2))


def open_server(config: Config) -> XnatArchive:
    """The server of ``config.source`` as what it is, for what only it can do: tokens, versions."""
    archive: Any = open_archive(config)
    server: XnatArchive = archive
    return server


def open_archive(config: Config, stats: Stats | None = None) -> Archive:
    target = ARCHIVES.get(config.source.scheme, ANY_OTHER)
    module, _, name = target.partition(":")
    build: Any = getattr(importlib.import_module(module), name)
    from xnatfs import __version__

    agent = f"xnatfs/{__version__}"
    archive: Archive
    if hasattr(build, "from_config"):  # one that has settings of its own
        archive = build.from_config(config, agent, stats)
    else:
        archive = build(config.source.url, config.credentials, config.http, config.tree, agent, stats)
    return archive


def memory_share(config: Config) -> int:
    """Bytes of blocks to hold in memory: half of what we may use where a disk holds them too, for the kernel keeps its
    pages as well; the other half is for what is under way."""
    settings = config.cache
    return settings.memory_bytes if settings.directory is None else settings.memory_bytes // 2


def open_cache(config: Config, stats: Stats, buffers: BufferPool | None = None) -> BlockCache:
    """Memory in front of a directory; memory alone without one."""
    from xnatfs.blocks.disk import DiskBlocks
    from xnatfs.blocks.memory import MemoryBlocks
    from xnatfs.blocks.tiered import TieredBlocks

    settings = config.cache
    memory = MemoryBlocks(memory_share(config))
    disk = None
    if settings.directory is not None:
        limit_bytes = settings.limit_bytes - listings_limit(settings)
        disk = DiskBlocks(settings.directory, limit_bytes, settings.min_free, buffers)
        stats.gauges["cache_bytes"] = disk.used_bytes
    return TieredBlocks(memory, disk, PENDING_BYTES)


def open_claims(config: Config) -> Claims | None:
    """What keeps processes that share a cache directory from fetching a file twice; None without a directory."""
    from xnatfs.blocks.claims import FileClaims

    return None if config.cache.directory is None else FileClaims(config.cache.directory)


def open_upkeep(settings: CacheConfig) -> StoreUpkeep | None:
    """The block store of a directory, to be looked after in place of being read. None where no cache has been: looking
    must not make one, nor close somebody's directory to others.

    Raises:
        UsageError: there is no directory.
    """
    from xnatfs.blocks.upkeep import DATABASE, StoreUpkeep

    if settings.directory is None:
        raise UsageError("there is no cache directory", "give --cache-dir")
    directory = settings.directory
    used = any((directory / name).exists() for name in (DATABASE, LISTINGS))
    refused = directory.exists() and (not directory.is_dir() or directory.stat().st_mode & 0o022)  # by the store
    if not (used or refused):
        return None
    return StoreUpkeep(directory, settings.limit_bytes - listings_limit(settings), settings.min_free)


def all_listings(settings: CacheConfig) -> ListingStore:
    """The stored listings of every server and account, to be counted or removed.

    Raises:
        UsageError: there is no directory.
    """
    if settings.directory is None:
        raise UsageError("there is no cache directory", "give --cache-dir")
    return ListingStore(settings.directory / LISTINGS, (), listings_limit(settings), settings.min_free)


def listings_limit(settings: CacheConfig) -> int:
    """Bytes of the cap that are the listings' own: blocks, of which there is no end, must not drive them out."""
    return min(settings.limit_bytes // LISTINGS_SHARE, LISTINGS_BYTES)


def open_listings(config: Config) -> ListingStore | None:
    """The stored listings of one server as one account sees it; None without a directory."""
    settings, credentials = config.cache, config.credentials
    if settings.directory is None:
        return None
    from xnatfs import __version__

    # Another release may make other listings of the same answers, and other accounts see other projects.
    places = config.tcia if config.source.scheme == "tcia" else ""
    scope = (config.source.url, places, credentials.holder or credentials.user, config.tree, __version__)
    return ListingStore(settings.directory / LISTINGS, scope, listings_limit(settings), settings.min_free)
