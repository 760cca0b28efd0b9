"""Threads for requests that an archive sends beside the caller's own. Knows nothing of what they ask."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

LEFT_TO_OTHERS = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


def threads_beside(count: int, name: str) -> ThreadPoolExecutor:
    """A pool whose threads take no signals: one that came to such a thread would be lost to the mount it is to end.

    A mount masks its signals before it starts threads, but the first listing comes before it.
    """
    return ThreadPoolExecutor(count, name, initializer=_leave_signals)


def _leave_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_OTHERS)
