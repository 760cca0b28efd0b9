"""A transfer's turn on a connection, which it can be asked to give up: by who hands out connections, or for who waits.

The seam between reading, which knows what can be fetched later, and archives, which know who waits for a connection
and how to end a request. Knows no HTTP. A thread has one turn at most; all of a turn may be called from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

_thread = threading.local()


class Turn:
    """``with turn:`` what this thread asks of an archive is asked in this turn.

    Attributes:
        brief: The transfer has a connection that else is kept free, and leaves it when that is wanted.
        over: True once it was interrupted. What is asked in it fails then, and is not tried again.
        give_way: Asks the transfer to end now and to come again later. Returns at once.
    """

    __slots__ = ("_lock", "_wake", "brief", "give_way", "over")

    def __init__(self, brief: bool, give_way: Callable[[], None]) -> None:
        self.brief = brief
        self.give_way = give_way
        self.over = False
        self._lock = threading.Lock()
        self._wake: Callable[[], None] | None = None  # guarded by _lock

    def __enter__(self) -> Turn:
        _thread.turn = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _thread.turn = None

    def waits_with(self, wake: Callable[[], None] | None) -> None:
        """What ends the request under way; None when there is none. Once this returns the one before is not called."""
        with self._lock:
            self._wake = wake
            if self.over and wake is not None:
                wake()

    def interrupt(self) -> None:
        """End the request under way, and let no other begin. Returns at once."""
        with self._lock:
            self.over = True
            if self._wake is not None:
                self._wake()


def current_turn() -> Turn | None:
    """The turn that this thread is in; None for a listing, which is nobody's to interrupt."""
    turn: Turn | None = getattr(_thread, "turn", None)
    return turn
