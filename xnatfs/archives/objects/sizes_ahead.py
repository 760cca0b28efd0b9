"""Asks for the sizes of a directory's next files while the first are being looked at: `ls -l` where no page tells them.

Knows no requests: whoever asks for one file's size is handed in. Safe to call from any thread. Advice only: what was
asked for ahead and is not fetched soon is thrown away.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from xnatfs.errors import Unavailable
from xnatfs.model import Entry

AHEAD = 32
"""Files ahead of the one that is looked at: at 20 ms a request and 7 at once, 350 files a second. A guess."""

GOOD_FOR_S = 10.0
"""Seconds for which a size that was asked for ahead is as good as one asked for now."""

DIRECTORIES = 16
"""Directories whose order is remembered: a walk is in one of them, other programs in a few more."""


@dataclass(slots=True)
class _Directory:
    files: tuple[Entry, ...]
    place: dict[str, int]
    looked_at: int = 0  # files of it whose size somebody wanted
    asked: set[str] = field(default_factory=set)  # keys, each once: out of order no walk asks twice
    answers: dict[str, tuple[float, Future[Entry]]] = field(default_factory=dict)


class SizesAhead:
    """
    Args:
        ask: One request for one file's size. May raise; whoever wanted that file gets it.
        connections: Requests at once, one of which stays free for others.
    """

    def __init__(self, ask: Callable[[Entry], Entry], connections: int) -> None:
        self._ask = ask
        self._workers = max(1, connections - 1)
        self._lock = threading.Lock()
        self._directories: OrderedDict[str, _Directory] = OrderedDict()  # guarded by _lock
        self._pool: ThreadPoolExecutor | None = None  # guarded by _lock; made when first needed
        self._closed = False  # guarded by _lock

    def listed(self, key: str, entries: Sequence[Entry]) -> None:
        """A directory was listed: this is the order in which its files will be looked at, likely."""
        files = tuple(entry for entry in entries if not entry.is_dir and entry.size is None)
        with self._lock:
            self._directories.pop(key, None)
            if len(files) > 1:
                self._directories[key] = _Directory(files, {entry.key: n for n, entry in enumerate(files)})
            while len(self._directories) > DIRECTORIES:
                self._directories.popitem(last=False)

    def stat(self, entry: Entry) -> Entry:
        """The file with its size, asked for already or now."""
        answer: Future[Entry] | None = None
        with self._lock:
            directory = self._directories.get(entry.key.rpartition("/")[0] + "/")
            if directory is not None and entry.key in directory.place:
                directory.looked_at += 1
                asked_at, answer = directory.answers.pop(entry.key, (0.0, None))
                if entry.version or time.monotonic() - asked_at > GOOD_FOR_S:
                    answer = None  # an entry with a version had a size that proved wrong
                directory.asked.add(entry.key)
                if directory.looked_at > 1 and not self._closed:  # one file alone is no walk
                    self._run_ahead(directory, directory.place[entry.key])
        if answer is None:
            return self._ask(entry)
        try:
            return answer.result()
        except CancelledError:
            raise Unavailable(f"{entry.key}: the archive has been closed") from None

    def _run_ahead(self, directory: _Directory, at: int) -> None:
        """Under the lock."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, "xnatfs-sizes")
        now = time.monotonic()
        for entry in directory.files[at + 1 : at + 1 + AHEAD]:
            if entry.key not in directory.asked:
                directory.asked.add(entry.key)
                directory.answers[entry.key] = now, self._pool.submit(self._ask, entry)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
            self._directories.clear()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
