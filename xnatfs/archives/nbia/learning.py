"""Learns what a series of NBIA holds by having it sent, once for all who ask, and remembers it.

Knows series by the ids of their listings and nothing of trees or IDC. Safe to call from any thread; a call lasts as
long as the series' zip comes.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from random import uniform

from xnatfs.archives.base import Keeper
from xnatfs.archives.http.errors import BACKOFF_S, Unreachable
from xnatfs.archives.nbia.series import NoKeeper, Received, SeriesBody, Wanted, receive
from xnatfs.archives.nbia.tree import file_key, parse_listing_id
from xnatfs.errors import AccessDenied, ArchiveError, CorruptContent, TimedOut, Unavailable
from xnatfs.stats import Stats

log = logging.getLogger(__name__)

SERIES_AT_ONCE = 3
"""Zips under way at the same time, as in the Data Retriever: the server packs each while it sends."""

SERIES_KNOWN = 64
"""Series whose files are remembered in memory, about 200 KB each; the keeper remembers more."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """The files of one series, as they passed."""

    token: str
    files: tuple[Received, ...]


class SeriesLearner:
    """What is known of series, and the transfers that are under way to know more.

    Args:
        open_zip: The zip of the series with this UID.
        retries: Further tries of a series that comes damaged or short.

    Attributes:
        keeper: Gets the files, and keeps what was learnt for other mounts.
    """

    def __init__(self, open_zip: Callable[[str], SeriesBody], retries: int, stats: Stats) -> None:
        self.keeper: Keeper = NoKeeper()
        self._open_zip = open_zip
        self._retries = retries
        self._stats = stats
        self._at_once = threading.BoundedSemaphore(SERIES_AT_ONCE)
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Learnt] = OrderedDict()  # guarded by _lock; by the id of the series' listing
        self._doubted: set[str] = set()  # guarded by _lock: UIDs of which nothing that was kept is to be believed
        self._flights: dict[str, Future[Learnt]] = {}  # guarded by _lock
        self._bodies: set[SeriesBody] = set()  # guarded by _lock: zips under way
        self._closed = False  # guarded by _lock

    def learn(self, identifier: str, fields: Mapping[str, str]) -> Learnt:
        """The files of a series, for which it is transferred once, whoever asks and however many do."""
        with self._lock:
            known = self._known.get(identifier)
            if known is not None:
                self._known.move_to_end(identifier)
                return known
            doubted = fields["uid"] in self._doubted
            flight = self._flights.get(identifier)
            leads = flight is None
            if flight is None:
                flight = self._flights[identifier] = Future()
        if not leads:
            try:
                return flight.result()
            except ArchiveError as error:
                raise error.again() from error
        try:
            learnt = None if doubted else self._recalled(identifier)
            learnt = learnt or self._received(identifier, fields)
        except BaseException as error:
            with self._lock:
                del self._flights[identifier]
            flight.set_exception(error if isinstance(error, ArchiveError) else Unavailable("interrupted"))
            raise
        with self._lock:
            del self._flights[identifier]
            self._known[identifier] = learnt
            self._doubted.discard(fields["uid"])
            while len(self._known) > SERIES_KNOWN:
                self._known.popitem(last=False)
        flight.set_result(learnt)
        return learnt

    def _recalled(self, identifier: str) -> Learnt | None:
        """What an earlier mount has learnt of it, or another one that shares the cache."""
        try:
            document = json.loads(self.keeper.recall(identifier) or "null")
            return document and Learnt(
                str(document["token"]),
                tuple(Received(str(name), str(sop), int(size), str(md5)) for name, sop, size, md5 in document["files"]),
            )
        except (ValueError, KeyError, TypeError):
            return None

    def _received(self, identifier: str, fields: Mapping[str, str]) -> Learnt:
        """Transfer the series, again where it comes damaged or short, and leave its files with the keeper."""
        try:
            with self._at_once:
                learnt = self._tried(fields)
        except AccessDenied:
            raise  # that is how it is, and no failure
        except ArchiveError as error:
            self._stats.failed(str(error))
            log.warning("%s; its directory cannot be listed", error)
            raise
        size = sum(one.size for one in learnt.files)
        log.info("series %s: %d files, %.1f MB, in one transfer", fields["uid"], len(learnt.files), size / 1e6)
        document = {"token": learnt.token, "files": [[one.name, one.sop, one.size, one.md5] for one in learnt.files]}
        self.keeper.note(identifier, json.dumps(document, ensure_ascii=False))
        return learnt

    def _tried(self, fields: Mapping[str, str]) -> Learnt:
        uid = fields["uid"]
        attempt = 0
        while True:
            attempt += 1
            wanted = Wanted(uid, int(fields["images"]), int(fields["size"]), secrets.token_hex(8))
            opened = False
            try:
                body = self._open_zip(uid)  # tries again by itself
                opened = True
                return Learnt(wanted.token, tuple(self._received_from(body, wanted)))
            except AccessDenied:
                raise
            except ArchiveError as error:
                again = opened and isinstance(error, CorruptContent | Unavailable) and not self._closed
                if not again or isinstance(error, Unreachable | TimedOut) or attempt > self._retries:
                    what = "" if uid in str(error) else f"series {uid}: "
                    tries = f" after {attempt} tries" if attempt > 1 else ""
                    raise type(error)(f"{what}{error}{tries}", error.hint) from error
                log.info("%s; asking for series %s again", error, uid)
            self._stats.retries += 1
            time.sleep(BACKOFF_S * 2 ** (attempt - 1) * uniform(0.5, 1.5))  # noqa: S311  # jitter, not a secret

    def _received_from(self, body: SeriesBody, wanted: Wanted) -> list[Received]:
        with self._lock:
            self._bodies.add(body)
            closed = self._closed
        try:
            if closed:
                raise Unavailable("the archive has been closed")
            return receive(body, wanted, self.keeper, lambda name, sop: file_key(wanted.uid, name, sop))
        finally:
            with self._lock:
                self._bodies.discard(body)
            body.close()

    def doubt(self, uid: str) -> None:
        """What was learnt of a series has proved wrong: it is asked for anew."""
        with self._lock:
            self._doubted.add(uid)
            for identifier in [each for each in self._known if parse_listing_id(each)[1].get("uid") == uid]:
                del self._known[identifier]

    def close(self) -> None:
        """End what is under way; those who wait for it get an error."""
        with self._lock:
            self._closed = True
            bodies = list(self._bodies)
        for body in bodies:
            body.interrupt()
