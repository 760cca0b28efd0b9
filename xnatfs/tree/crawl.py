"""Notices a program that walks through an archive, and has the listings that it will want next fetched ahead of it.

``find``, ``ls -R``, ``du``, ``cp -r`` and loops over sessions enter directories in an order that can be told: that of
the listing, by name, or by inode. After three in a row the next few are fetched, more as the walk goes on, never more
than ``WINDOW`` beyond it. Advice only: what is fetched here is what would have been asked for a moment later.

Knows nothing of XNAT: what counts is which directories of one listing have listings of their own. Safe from any thread;
the lock is held for dictionary operations, and once a listing while its order is worked out. Threads are started for
the fetching and end with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence

from xnatfs.columns import lazy
from xnatfs.model import Entry, Listing
from xnatfs.tree.names import assign_names

log = logging.getLogger(__name__)

TRIGGER = 2  # steps in a row: the third directory entered begins a crawl, so that one `ls` or two cost nothing
STRIDE = 3  # the largest step that still counts: programs pass over `resources` or a session without the scan they want
FIRST, GROWTH = 2, 4  # listings ahead when a crawl begins, and how many more after each step: three more steps are sure
WINDOW = 40  # listings ahead at most: what a walk reads until the slowest of those under way is there; 24 was too few
PAUSE_S = 30.0  # a walk that rests for longer has stopped
PASSED_OVER = 4  # directories of the tree's own (`resources`) are fetched while one was entered so few steps ago
PLANS = 8  # listings walked through at the same time

BATCH = 4  # listings asked for together, where the archive can
BATCH_ENTRIES = 10_000  # ... if they are this small together: a large answer would keep the first of them waiting

Fetch = Callable[[Sequence[Entry]], None]


class _Order:
    """One order in which the directories of a listing may be entered, and how far a walk in it has come."""

    __slots__ = ("at", "entries", "places", "reserved_at", "sent", "steps")

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.places = {entry.listing: place for place, entry in enumerate(entries)}
        self.at = -STRIDE - 1
        self.reserved_at = -PASSED_OVER - 1
        self.steps = 0
        self.sent = 0  # up to here, fetching has been asked for

    def step(self, listing_id: str) -> None:
        place = self.places[listing_id]
        near = 0 < place - self.at <= STRIDE
        if place != self.at:
            self.steps = self.steps + 1 if near else 0
        if not near:
            self.sent = 0
        if self.entries[place].reserved:
            self.reserved_at = place
        self.at = place

    def ahead(self, room: int) -> list[Entry]:
        """What to fetch now, at most ``room`` beyond the walk; each is returned once in a walk."""
        if self.steps < TRIGGER:
            return []
        size = min(FIRST + GROWTH * (self.steps - TRIGGER), WINDOW, room)
        if self.sent - self.at > size // 2:
            return []  # enough is under way: several are asked for together
        stop = self.at + 1 + size
        start, self.sent = max(self.sent, self.at + 1), max(self.sent, stop)
        with_reserved = self.at - self.reserved_at <= PASSED_OVER
        return [entry for entry in self.entries[start:stop] if with_reserved or not entry.reserved]


class _Plan:
    """The orders of one listing, worked out when a second of its directories is entered."""

    __slots__ = ("at_s", "last", "lengths", "listing", "orders")

    def __init__(self, listing: Listing, first: Entry, at_s: float) -> None:
        self.listing = listing
        self.last = first
        self.lengths: dict[bool, int] = {}  # entries of the newest listing known, of the tree's own and of others
        self.orders: list[_Order] = []
        self.at_s = at_s

    def note(self, entry: Entry, listing: Listing | None) -> None:
        if listing is not None:
            self.lengths[entry.reserved] = 1 + lazy(listing.children).total

    def lengths_ahead(self) -> tuple[int, int]:
        """Entries that a listing ahead may have: on the average, and at most."""
        lengths = self.lengths.values() or (BATCH_ENTRIES,)
        return sum(lengths) // len(lengths), max(lengths)


class Crawl:
    """Watches directories being entered.

    Args:
        listing: The listing of an id as far as it is in memory.
        fetch: Has listings at hand; what the archive fails with is not raised.
        touch: These listings are still wanted: they must not leave memory before they were used.
        ino: Inode of a path inside the archive.
        threads: Fetches at once; 0 switches all of it off.
        room: Entries that may be held ahead of a walk.
    """

    def __init__(
        self,
        listing: Callable[[str], Listing | None],
        fetch: Fetch,
        touch: Callable[[Sequence[str]], None],
        ino: Callable[[str], int],
        threads: int,
        room: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listing = listing
        self._fetch = fetch
        self._touch = touch
        self._ino = ino
        self._threads = threads
        self._room = room
        self._clock = clock
        self._lock = threading.Lock()
        self._plans: OrderedDict[str, _Plan] = OrderedDict()  # guarded by _lock
        self._waiting: deque[Entry] = deque()  # guarded by _lock
        self._batch = 1  # guarded by _lock
        self._running = 0  # guarded by _lock
        self._closed = False

    def entered(self, parent: Entry, path: str, entry: Entry) -> None:
        """A directory with a listing of its own is being entered; its listing may still be on its way.

        Args:
            parent: The directory that names it; ``path`` is where that stands in the archive.
        """
        if not self._threads or self._closed:
            return
        with self._lock:
            plan = self._plan(parent, path, entry)
            if plan is None or entry.listing not in plan.orders[0].places:
                return
            now = self._clock()
            rested = now - plan.at_s > PAUSE_S
            plan.at_s = now
            for each in (plan.last, entry):
                plan.note(each, self._listing(each.listing))
            plan.last = entry
            length, longest = plan.lengths_ahead()
            for order in plan.orders:
                if rested:
                    order.steps = 0
                order.step(entry.listing)
            order = max(plan.orders, key=_steps)
            self._touch([each.listing for each in order.entries[order.at + 1 : order.sent]])
            ahead = order.ahead(self._room // length)
            if not ahead:
                if not any(order.steps for order in plan.orders):
                    self._waiting.clear()  # it jumped: what was wanted is not wanted any more
                return
            self._batch = max(1, min(BATCH, BATCH_ENTRIES // longest, len(ahead)))
            self._waiting.extend(ahead)
            while self._running < min(self._threads, -(-len(self._waiting) // self._batch)):
                try:
                    threading.Thread(target=self._run, name="xnatfs-ahead", daemon=True).start()
                except RuntimeError:  # no thread to be had: the walk fetches for itself
                    self._waiting.clear()
                    return
                self._running += 1

    def close(self) -> None:
        """Begin nothing more."""
        with self._lock:
            self._closed = True
            self._waiting.clear()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                wanted = self._next_batch()
            try:
                self._fetch(wanted)
            except Exception:  # advice: the walk asks for itself, and meets what is wrong
                log.exception("listings ahead of a walk")

    def _next_batch(self) -> list[Entry]:
        """Under _lock. The next that waits, and others of its kind: an archive can answer these together."""
        reserved = self._waiting[0].reserved
        batch = [entry for entry in self._waiting if entry.reserved == reserved][: self._batch]
        taken = {entry.listing for entry in batch}
        self._waiting = deque(entry for entry in self._waiting if entry.listing not in taken)
        return batch

    def _plan(self, parent: Entry, path: str, entry: Entry) -> _Plan | None:
        """Under _lock. None for the first directory of a listing: most are the only one."""
        listing = self._listing(parent.listing)
        if listing is None:
            return None
        plan = self._plans.get(parent.listing)
        if plan is None or plan.listing is not listing:
            self._plans[parent.listing] = _Plan(listing, entry, self._clock())
            self._plans.move_to_end(parent.listing)
            if len(self._plans) > PLANS:
                self._plans.popitem(last=False)
            return None
        if not plan.orders:
            plan.orders = self._orders(listing, parent.key, path)
            for order in plan.orders:
                if plan.last.listing in order.places:
                    order.step(plan.last.listing)
        self._plans.move_to_end(parent.listing)
        return plan

    def _orders(self, listing: Listing, key: str, path: str) -> list[_Order]:
        named = {each: list(assign_names(entries).items()) for each, entries in listing.children.items()}
        top, above = _top_of(listing, key, path)
        as_listed = list(_walk(named, top, listing.id, lambda children, _: children))
        by_name = list(_walk(named, top, listing.id, lambda children, _: sorted(children, key=_name)))
        by_inode = list(_walk(named, top, listing.id, self._sorted_by_inode, above))
        return [_Order(as_listed), _Order(by_name), _Order(by_inode)]

    def _sorted_by_inode(self, children: _Named, path: str) -> _Named:
        return sorted(children, key=lambda child: self._ino(f"{path}/{child[0]}"))


_Named = list[tuple[str, Entry]]


def _steps(order: _Order) -> int:
    return order.steps


def _name(child: tuple[str, Entry]) -> str:
    return child[0]


def _top_of(listing: Listing, key: str, path: str) -> tuple[str, str]:
    """The directory from which all of a listing hangs, and its path, given that of one directory in it."""
    above = {entry.key: parent for parent, entries in listing.children.items() for entry in entries if entry.is_dir}
    while key in above and above[key] in listing.children:
        key = above[key]
        path = path.rpartition("/")[0]
    return key, path


def _walk(
    named: dict[str, _Named], key: str, listing_id: str, arrange: Callable[[_Named, str], _Named], path: str = ""
) -> Iterator[Entry]:
    """The directories below ``key`` that have listings of their own, as a walk meets them that goes down at once."""
    for name, entry in arrange([child for child in named.get(key, ()) if child[1].is_dir], path):
        if entry.hidden:
            continue
        if entry.listing != listing_id:
            yield entry
        else:
            yield from _walk(named, entry.key, listing_id, arrange, f"{path}/{name}")
