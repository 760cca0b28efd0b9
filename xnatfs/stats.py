"""What one mount has done so far: plain numbers that ``xnatfs status`` shows. Decides nothing, logs nothing.

Counted from any thread without a lock: an addition on an attribute is one step between two looks of CPython at its
threads, and a number that is one short would do no harm.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

ERRORS_KEPT = 10


@dataclass(slots=True)
class Stats:
    """Counters of one archive, its reader and its cache. Bytes and seconds; times are since the epoch, 0 for never.

    Attributes:
        requests: Sent to the server, logins apart.
        received_bytes: Of bodies.
        read_bytes: Given out to readers.
        hits: Pieces of a read that came from the cache.
        misses: Pieces that had to be waited for.
        bulk_streams: Folders asked for as one stream of many files.
        bulk_members: Files that came so and were kept.
        away_since_s: When the archive first did not answer, 0 while it does.
        listings_of_s: When the oldest listing was asked for that is served since, for want of an answer.
        gauges: Numbers that are asked for when they are shown (cache use, transfers under way).
    """

    started_s: float = field(default_factory=time.time)
    requests: int = 0
    retries: int = 0
    logins: int = 0
    received_bytes: int = 0
    read_bytes: int = 0
    hits: int = 0
    misses: int = 0
    bulk_streams: int = 0
    bulk_members: int = 0
    away_since_s: float = 0.0
    listings_of_s: float = 0.0
    session_since_s: float = 0.0
    session_until_s: float = 0.0
    errors: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=ERRORS_KEPT))
    gauges: dict[str, Callable[[], int]] = field(default_factory=dict)

    def gauge(self, name: str) -> int | None:
        ask = self.gauges.get(name)
        return None if ask is None else ask()

    def failed(self, message: str) -> None:
        """Remember a failure that a reader has seen. No message holds a secret."""
        self.errors.append((time.time(), message))
