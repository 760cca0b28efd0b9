"""``xnatfs cache info``, ``verify`` and ``clear``: the block cache on disk, beside whatever mounts are using it.

Asks no server and touches no mount. Main thread.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xnatfs.cli.options import CACHE, MESSAGES, OptionsCommand, Settings, with_options
from xnatfs.cli.text import size_text
from xnatfs.config import CacheConfig
from xnatfs.errors import XnatfsError

if TYPE_CHECKING:
    from xnatfs.factory import StoreUpkeep
    from xnatfs.tree.stored import ListingStore

_WRONG = {
    "damaged": "damaged: removed, fetched again when read",
    "missing": "in the books and not on disk: struck out",
    "unbooked": "on disk and not in the books: removed",
}
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@click.command(cls=OptionsCommand)
@_JSON
@with_options(CACHE, MESSAGES)
def info(as_json: bool, settings: Settings) -> int:
    """Show where the cache is, what it holds and what it may hold."""
    with _opened(settings) as store:
        census = store.census() if store is not None else None
        listings = _listings(settings).used_bytes() if store is not None else 0
    facts = {
        "directory": str(settings.cache_dir),
        "used_bytes": (census.used_bytes if census else 0) + listings,
        "listings_bytes": listings,
        "limit_bytes": settings.cache_size,
        "files": census.files if census else 0,
        "blocks": census.blocks if census else 0,
        "oldest_use_s": census.oldest_s if census else None,
    }
    if as_json:
        click.echo(json.dumps(facts))
    elif census is None:
        click.echo(f"{settings.cache_dir}: nothing is kept yet")
    else:
        click.echo(f"{settings.cache_dir}")
        click.echo(f"  {size_text(census.used_bytes + listings)} of {size_text(settings.cache_size)}")
        click.echo(f"  {census.blocks} blocks of {census.files} files, and {size_text(listings)} of listings")
        if census.oldest_s is not None:
            day = time.strftime("%Y-%m-%d %H:%M", time.localtime(census.oldest_s))
            click.echo(f"  least recently used: {day}")
    return 0


@click.command(cls=OptionsCommand)
@_JSON
@with_options(CACHE, MESSAGES)
def verify(as_json: bool, settings: Settings) -> int:
    """Read every block and compare it with its checksums.

    What does not match is removed, and is fetched again when it is read. Exit code 1 when there was any.
    """
    found = dict.fromkeys(("sound", "sound_bytes", "damaged", "missing", "unbooked"), 0)
    with _opened(settings) as store:
        if store is not None:
            with _bar(store.census().used_bytes) as advance:
                found = dataclasses.asdict(store.verify(advance))
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(f"{found['sound']} blocks are sound ({size_text(found['sound_bytes'])})")
        for kind, what in _WRONG.items():
            if found[kind]:
                click.echo(f"{found[kind]} {what}")
    return 1 if any(found[kind] for kind in _WRONG) else 0


@click.command(cls=OptionsCommand)
@with_options(CACHE, MESSAGES)
def clear(settings: Settings) -> int:
    """Remove everything that is kept, blocks and listings.

    Mounts may go on meanwhile: what they read next, they fetch again.
    """
    freed = 0
    with _opened(settings) as store:
        if store is not None:
            listings = _listings(settings)
            freed = store.clear() + listings.used_bytes()
            listings.clear()
    click.echo(f"{settings.cache_dir}: {size_text(freed)} freed")
    return 0


@click.group(commands=[info, verify, clear])
def cache() -> None:
    """Look after the block cache on disk."""


@contextmanager
def _opened(settings: Settings) -> Iterator[StoreUpkeep | None]:
    """The store, or None where there is none yet.

    Raises:
        XnatfsError: it is there and cannot be used.
    """
    from xnatfs.factory import open_upkeep

    directory: Path = settings.cache_dir
    store = open_upkeep(_config(settings))
    if store is None:
        yield None
        return
    try:
        yield store
    except sqlite3.Error as exc:
        raise XnatfsError(f"cache {directory}: its database failed: {exc}", "is the disk full or failing?") from exc
    finally:
        store.close()


def _config(settings: Settings) -> CacheConfig:
    return CacheConfig(settings.cache_dir, limit_bytes=settings.cache_size, min_free=settings.min_free)


def _listings(settings: Settings) -> ListingStore:
    from xnatfs.factory import all_listings

    return all_listings(_config(settings))


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=total, file=sys.stderr, label="verifying") as shown:
        yield shown.update
