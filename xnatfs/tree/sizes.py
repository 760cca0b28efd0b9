"""Sizes that a listing did not tell: the archive is asked once for each, whoever wants it.

Safe from any thread; the lock is never held across a request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from xnatfs import callers
from xnatfs.archives.base import Archive
from xnatfs.errors import ArchiveError, UnexpectedReply
from xnatfs.model import Entry
from xnatfs.tree.flights import Failures, Flight, begun_behind
from xnatfs.tree.table import Table


class Sizes:
    """Asks an archive for the sizes that are missing in its tables.

    Args:
        clock: Seconds; how long a failure is remembered counts on it.
    """

    def __init__(self, archive: Archive, clock: Callable[[], float]) -> None:
        self._archive = archive
        self._clock = clock
        self._lock = threading.Lock()
        self._flights: dict[Entry, Flight[Entry]] = {}  # guarded by _lock
        self._failures: Failures[Entry] = Failures()  # guarded by _lock

    def known(self, table: Table, name: str) -> Entry:
        """The entry called ``name`` with its size, which the table learns.

        Raises:
            NotFound, AccessDenied, LoginFailed, Unavailable, TimedOut, UnexpectedReply: as ``Archive.stat``.
        """
        entry = table.names[name]
        if entry.size is not None or entry.is_dir:
            return entry
        with self._lock:
            failure = self._failures.get(entry, self._clock())
            if failure is not None:
                raise failure.again()
            flight = self._flights.get(entry)
            leads = flight is None
            if flight is None:
                flight = self._flights[entry] = Flight()
        if leads:
            # The request goes on behind a caller who is killed, for those who wait for it as well.
            ask = partial(self._fly, flight, table, name, entry)
            if not (callers.has_caller() and begun_behind(ask, "xnatfs-size")):
                return ask()
        answer = flight.wait()
        table.learn(name, entry, answer)
        return answer

    def _fly(self, flight: Flight[Entry], table: Table, name: str, entry: Entry) -> Entry:
        try:
            answer = flight.run(lambda: self._ask(entry))
        except ArchiveError as error:
            with self._lock:
                self._failures.add(entry, self._clock(), error)
            raise
        else:
            table.learn(name, entry, answer)
            return answer
        finally:
            with self._lock:
                del self._flights[entry]

    def _ask(self, entry: Entry) -> Entry:
        answer = self._archive.stat(entry)
        if answer.size is None:
            raise UnexpectedReply(f"{entry.key}: the archive does not tell its size")
        return answer
