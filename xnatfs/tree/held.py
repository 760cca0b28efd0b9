"""A listing in memory, with its age and the tables of the directories that somebody looked into."""

from __future__ import annotations

import threading

from xnatfs.columns import lazy
from xnatfs.model import Listing
from xnatfs.tree.table import Table


class Held:
    """One listing in memory.

    Attributes:
        fresh_until: On the cache's clock. Guarded by the cache's lock.
        doubted: Proved wrong: not to be served while it is being renewed. Guarded by the cache's lock.
    """

    __slots__ = (
        "_earlier",
        "_lock",
        "_tables",
        "asked_at_s",
        "children",
        "doubted",
        "fresh_until",
        "listing",
        "weight",
    )

    def __init__(self, listing: Listing, fresh_until: float, old: Held | None, asked_at_s: float = 0.0) -> None:
        self.listing = listing
        self.fresh_until = fresh_until
        self.asked_at_s = asked_at_s  # since the epoch
        self.doubted = False
        self.children = lazy(listing.children)
        self.weight = self.children.total + len(self.children)
        self._lock = threading.Lock()
        self._tables: dict[str, Table] = {}  # guarded by _lock
        self._earlier: dict[str, Table] = {}  # guarded by _lock; tables of directories that changed, where of use
        if old is not None:
            self._inherit(old)

    def _inherit(self, old: Held) -> None:
        with old._lock:
            tables = dict(old._tables)
            earlier = dict(old._earlier)
        for key, table in tables.items():
            if self.children.has_same(key, old.children):
                self._tables[key] = table
            elif table._raw:
                earlier[key] = table
        self._earlier = {key: table for key, table in earlier.items() if key in self.listing.children}

    def table(self, key: str) -> Table:
        with self._lock:
            table = self._tables.get(key)
            if table is None:
                table = self._tables[key] = Table(self.children.held(key), self._earlier.pop(key, None))
            return table
