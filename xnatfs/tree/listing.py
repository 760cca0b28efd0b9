"""Keeps what an archive said about its directories: asked for once, by one thread, valid for a time, bounded in memory.

Knows nothing of paths or handles: a directory is an ``Entry``, an answer a ``Listing``, and a ``Table`` has the names
of one directory. Safe from any thread. One lock guards the bookkeeping and is never held across a request; threads that
want a listing that is being asked for wait for that one request and share its outcome.

Where a listing comes from is decided in one place, ``_lead``: memory, the store (``keeping.py``), the archive. Threads
are started for what goes on behind a caller (a renewal that is slow, listings ahead of a crawl); each ends with its
work.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from heapq import nlargest

from xnatfs import callers
from xnatfs.archives.base import Archive
from xnatfs.config import ListingConfig
from xnatfs.errors import AccessDenied, ArchiveError, LoginFailed, NotFound, Unavailable, UnexpectedReply
from xnatfs.model import Entry, Listing
from xnatfs.stats import Stats
from xnatfs.tree.flights import Failures, Flight, begun_behind
from xnatfs.tree.held import Held
from xnatfs.tree.keeping import Keeper, Store
from xnatfs.tree.sizes import Sizes
from xnatfs.tree.table import Table

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""After a listing could not be renewed because the server is away, the old one serves this long before the next try:
trying a dead server takes up to ``HttpConfig.timeout_s``, and ``ls`` should not wait for each. A guess."""

PATIENCE_S = 2.0
"""A caller waits this long for the renewal of a listing of which an old one is at hand, then gets the old one while the
request goes on. Long enough for a server that is well, so that what is new shows in time; short enough for people where
the server takes a minute over a large project, or swallows packets. A guess."""

QUIET_S = 0.15  # nobody has looked into a directory for this long: a walk is over, or waits for the server


class ListingCache:
    """The listings of one archive.

    Within ``ListingConfig.ttl_s`` a listing is served without a request, from memory or from the store. After that the
    next caller asks again and waits for the answer, ``PATIENCE_S`` at most; others are served the old one until it is
    there. If the archive does not answer (``Unavailable``) old ones serve on, with one warning for the outage. Any
    other failure is the caller's, and nothing old is served: the directory may be gone or closed to this user. Beyond
    ``memory_entries`` the least recently used listings go, but not what one path needs (``_limit``).

    Args:
        store: Keeps listings between mounts; None: nothing does.
        clock: Seconds; what ``fresh_until`` counts on.
        epoch: Seconds since the epoch: tells the age of what is stored.

    Attributes:
        ahead: How many fetches ahead of a crawl there may be at once.
        room: How many entries these may bring.
        generation: Grows whenever something served before no longer holds: a listing changed, was doubted, or went.
    """

    def __init__(
        self,
        archive: Archive,
        config: ListingConfig,
        clock: Callable[[], float] = time.monotonic,
        store: Store | None = None,
        stats: Stats | None = None,
        epoch: Callable[[], float] = time.time,
    ) -> None:
        self.generation = 0  # grows under _lock, read without
        self.room = config.memory_entries // 4
        self.ahead = 0 if config.offline else config.ahead
        self.clock = clock
        self._epoch = epoch
        self._archive = archive
        self._config = config
        self._stats = stats or Stats()
        self._lock = threading.Lock()
        self._held: OrderedDict[str, Held] = OrderedDict()  # guarded by _lock; least recently used first
        self._weight = 0  # guarded by _lock: entries in _held
        self._flights: dict[str, Flight[Held]] = {}  # guarded by _lock
        self._failures: Failures[str] = Failures()  # guarded by _lock
        self._away_until = 0.0  # guarded by _lock: until when an archive that did not answer is left alone
        self._away_error: ArchiveError | None = None  # guarded by _lock
        self._used_s = 0.0  # when a listing was last used or asked for; time.monotonic
        self._sizes = Sizes(archive, clock)
        self._kept = Keeper(store, config.memory_entries, self._in_use)

    def table(self, directory: Entry) -> tuple[Table, float]:
        """The names below ``directory`` and until when they hold, on ``clock``; asks the archive when need be.

        Raises:
            NotFound, AccessDenied, LoginFailed, Unavailable, TimedOut, UnexpectedReply: as ``Archive.children``.
        """
        self._used_s = time.monotonic()
        held = self._current(directory)
        return held.table(directory.key), held.fresh_until

    def peek(self, directory: Entry) -> Table | None:
        """The names below ``directory`` as far as they are in memory, fresh or not. Makes no request."""
        with self._lock:
            held = self._held.get(directory.listing)
        if held is None or directory.key not in held.listing.children:
            return None
        return held.table(directory.key)

    def touch(self, listing_ids: Iterable[str]) -> None:
        """These are in use, though nobody asks for them: what is above a directory must not be the first to go."""
        with self._lock:
            for listing_id in listing_ids:
                if listing_id in self._held:
                    self._held.move_to_end(listing_id)

    def sized(self, table: Table, name: str) -> Entry:
        """The entry called ``name`` with its size, which the archive is asked for once if the listing did not say.

        Raises:
            NotFound, AccessDenied, LoginFailed, Unavailable, TimedOut, UnexpectedReply: as ``Archive.stat``.
        """
        return self._sizes.known(table, name)

    def fresh(self, listing_id: str) -> bool:
        """Whether the listing would be served now without a request."""
        with self._lock:
            held = self._held.get(listing_id)
            return held is not None and self.clock() < held.fresh_until

    def invalidate(self, listing_id: str) -> None:
        """The listing has proved wrong: the next use asks again, whatever its age and whatever is under way."""
        with self._lock:
            held = self._held.get(listing_id)
            if held is not None:
                held.fresh_until = float("-inf")
                held.doubted = True
            self._flights.pop(listing_id, None)  # its answer may be older than the change; it is for its waiters only
            self._failures.forget(listing_id)
            self._kept.doubt(listing_id, self._epoch())
            self.generation += 1
        self._kept.forget(listing_id)

    def listing(self, listing_id: str) -> Listing | None:
        """A listing as far as it is in memory, fresh or not."""
        with self._lock:
            held = self._held.get(listing_id)
        return None if held is None else held.listing

    def fetch(self, directories: Sequence[Entry]) -> None:
        """Have listings at hand, as far as they are not, before somebody wants them. Raises nothing."""
        missing: list[tuple[Entry, Flight[Held]]] = []
        for directory in directories:
            with contextlib.suppress(ArchiveError):
                _, flight, leads = self._join(directory)
                if flight is not None and leads and not self._fly_if_stored(directory, flight):
                    missing.append((directory, flight))
        asked_at_s = self._epoch()
        answers: Mapping[str, Listing] = {}
        try:
            answers = self._ask_together([directory for directory, _ in missing])
        finally:  # whatever happens, nobody is left waiting
            for directory, flight in missing:
                answer = answers.get(directory.listing)
                with contextlib.suppress(ArchiveError):  # whoever wants it asks again, and has an error of its own
                    self._fly(directory, flight, partial(self._renew, directory, flight, answer, asked_at_s))

    def _fly_if_stored(self, directory: Entry, flight: Flight[Held]) -> bool:
        try:
            old, fresh = self._old(directory)
        except BaseException:
            self._fly(directory, flight, self._interrupted)
            raise
        if old is not None and fresh:
            self._fly(directory, flight, lambda: old)
        return fresh

    def _ask_together(self, directories: Sequence[Entry]) -> Mapping[str, Listing]:
        """What the archive says of several in fewer requests; those that are missing are to be asked for one by one."""
        together = getattr(self._archive, "children_of_several", None)
        if together is None or len(directories) < 2:
            return {}
        try:
            answers: Mapping[str, Listing] = together(directories)
        except ArchiveError as error:
            log.debug("listings ahead: %s", error)
            return {}
        return answers

    def close(self) -> None:
        """Wait until what was listed is stored."""
        self._kept.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _in_use(self) -> bool:
        with self._lock:
            return bool(self._flights) or time.monotonic() - self._used_s < QUIET_S

    def _current(self, directory: Entry) -> Held:
        while True:
            held, flight, leads = self._join(directory)
            if flight is None:
                assert held is not None
                return held
            held = self._lead(directory, flight) if leads else flight.wait()
            if directory.key in held.listing.children:
                return held
            # The thread that asked did so for another directory, and this one did not come along: ask for it.

    def _join(self, directory: Entry) -> tuple[Held | None, Flight[Held] | None, bool]:
        """A listing to serve as it is, or else the flight to wait for and whether the caller is to lead it."""
        listing_id = directory.listing
        now = self.clock()
        with self._lock:
            held = self._held.get(listing_id)
            if held is not None:
                self._held.move_to_end(listing_id)
                if directory.key not in held.listing.children:
                    held = None
                elif now < held.fresh_until:
                    return held, None, False
            failure = self._failures.get(listing_id, now)
            if failure is not None:
                raise failure.again()
            flight = self._flights.get(listing_id)
            if flight is None:
                flight = self._flights[listing_id] = Flight()
                return None, flight, True
            if held is not None and not held.doubted:
                return held, None, False
            return None, flight, False

    def _lead(self, directory: Entry, flight: Flight[Held]) -> Held:
        """Get a listing that is not at hand, or has grown old, for the caller and for all who wait for ``flight``."""
        try:
            old, fresh = self._old(directory)
        except BaseException:
            self._fly(directory, flight, self._interrupted)
            raise
        if old is not None and fresh:
            return self._fly(directory, flight, lambda: old)
        if old is None and not callers.has_caller():
            return self._fly(directory, flight, lambda: self._renew(directory, flight))
        # What is left of this outlives the call when the archive is slow, or the caller is killed.
        renew = partial(self._fly, directory, flight, partial(self._renew, directory, flight))
        if not begun_behind(renew, "xnatfs-renew"):
            return renew()
        return flight.wait() if old is None else flight.wait_for(PATIENCE_S) or old

    def _fly(self, directory: Entry, flight: Flight[Held], get: Callable[[], Held]) -> Held:
        try:
            return flight.run(get)
        finally:
            with self._lock:
                if self._flights.get(directory.listing) is flight:
                    del self._flights[directory.listing]

    @staticmethod
    def _interrupted() -> Held:
        raise Unavailable("the look into the store that others waited for was interrupted")

    def _old(self, directory: Entry) -> tuple[Held | None, bool]:
        """What is held of a directory, in memory or else in the store, and whether it will do as it is."""
        with self._lock:
            held = self._held.get(directory.listing)
        if held is None or directory.key not in held.listing.children:
            held = self._load(directory)
        now = self.clock()
        with self._lock:
            if held is None or held.doubted:
                return None, False
            if now >= held.fresh_until and now < self._away_until:
                held.fresh_until = self._away_until  # it was asked a moment ago, and did not answer
                self._note_served(held)
            return held, now < held.fresh_until

    def _load(self, directory: Entry) -> Held | None:
        """The stored listing, put into memory with the age that it has."""
        found = self._kept.get(directory.listing)
        if found is None or directory.key not in found[0].children:
            return None
        listing, asked_at_s = found
        age_s = self._epoch() - asked_at_s
        fresh_s = self._config.ttl_s - age_s if age_s >= 0 else 0.0  # of the future: a clock was wrong
        if asked_at_s < self._config.not_before_s and not self._config.offline:
            return None
        if self._config.offline:
            fresh_s = float("inf")
        with self._lock:
            if self._kept.doubted(directory.listing, asked_at_s):
                return None
            held = Held(listing, self.clock() + fresh_s, self._held.get(listing.id), asked_at_s)
            self._put(held)
        return held

    def _renew(
        self, directory: Entry, flight: Flight[Held], answer: Listing | None = None, answer_of_s: float = 0.0
    ) -> Held:
        """Ask, and make the answer current unless the flight was overtaken by ``invalidate``.

        Args:
            answer: What the archive has said already, to a question of ``answer_of_s``.
        """
        asked_at_s = self._epoch() if answer is None else answer_of_s
        try:
            listing = self._checked(directory, self._archive.children(directory) if answer is None else answer)
        except ArchiveError as error:
            return self._not_renewed(directory, error)
        with self._lock:
            old = self._held.get(listing.id)
        same = old is not None and old.listing.children == listing.children  # outside the lock: long for a long listing
        # Without the documents: they are in the store, and long.
        held = old if same and old is not None else Held(Listing(listing.id, listing.children), 0.0, old)
        with self._lock:
            self._answered()
            current = self._flights.get(listing.id) is flight
            if current:
                held.fresh_until = self.clock() + self._config.ttl_s
                held.asked_at_s = asked_at_s
                held.doubted = False
                self._put(held)
        if current:
            self._kept.keep(listing, asked_at_s, same)
        return held

    # --- asking -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _checked(directory: Entry, listing: Listing) -> Listing:
        if listing.id != directory.listing:
            raise UnexpectedReply(f"listing of {directory.key or '/'}: the answer is listing {listing.id}")
        if directory.key not in listing.children:
            raise UnexpectedReply(f"listing of {directory.key or '/'}: the answer does not hold that directory")
        return listing

    def _not_renewed(self, directory: Entry, error: ArchiveError) -> Held:
        """Serve on what is held when the archive is away; otherwise fail, now and for the next moment."""
        now = self.clock()
        with self._lock:
            held = self._held.get(directory.listing)
            if isinstance(error, Unavailable):
                self._unanswered(now, error)
                if held is not None and directory.key in held.listing.children:
                    held.fresh_until = self._away_until
                    self._note_served(held)
                    return held
            elif held is not None:
                held.doubted = True  # not to be served while the next caller asks
            gone = isinstance(error, NotFound | AccessDenied) and not isinstance(error, LoginFailed)
            if isinstance(error, NotFound) and held is not None:
                self._drop(directory.listing)
            if gone:
                self._kept.doubt(directory.listing, self._epoch())
            self._failures.add(directory.listing, now, error)
        if gone:
            self._kept.forget(directory.listing)
        raise error

    def _unanswered(self, now: float, error: ArchiveError) -> None:
        """Under _lock. The archive is away: say so once, and leave it alone for a moment."""
        self._stats.away_since_s = self._stats.away_since_s or self._epoch()
        self._away_error = error
        self._away_until = now + RETRY_S

    def _answered(self) -> None:
        """Under _lock."""
        self._away_until = 0.0
        if self._stats.listings_of_s:
            log.info("the archive answers again")
        self._stats.away_since_s = self._stats.listings_of_s = 0.0

    def _note_served(self, held: Held) -> None:
        """Under _lock. An old listing is served for want of an answer."""
        if not self._stats.listings_of_s:
            log.warning("the archive does not answer (%s); listings are served as they were", self._away_error)
        self._stats.listings_of_s = min(self._stats.listings_of_s or held.asked_at_s, held.asked_at_s)

    def _put(self, held: Held) -> None:
        """Under _lock."""
        old = self._held.get(held.listing.id)
        if old is not held:
            if old is not None:
                self._drop(old.listing.id)
            self._held[held.listing.id] = held
            self._weight += held.weight
        self._held.move_to_end(held.listing.id)
        if self._weight > self._config.memory_entries:
            limit = self._limit()
            while self._weight > limit and len(self._held) > 1:
                self._drop(next(iter(self._held)))

    def _limit(self) -> int:
        """Under _lock. Entries in memory at most; more where a path leads through listings that fill it alone.

        A file of a long session in a long project takes both, and the few above them, again with each call: where one
        drove out the other, every call had seconds of work, and requests where nothing is stored.
        """
        long = nlargest(2, (held.weight for held in self._held.values()))
        return max(self._config.memory_entries, sum(long) + self._config.memory_entries // 4)

    def _drop(self, listing_id: str) -> None:
        """Under _lock."""
        self._weight -= self._held.pop(listing_id).weight
        self.generation += 1
