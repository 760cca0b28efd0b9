"""Requests that are under way, shared by all who want the same, and failures that are still the answer for a moment.

Knows nothing of listings. A ``Flight`` is safe from any thread; ``Failures`` belong to the lock of their owner.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from xnatfs import callers
from xnatfs.errors import ArchiveError, Unavailable

FAILURE_S = 1.0
"""A failure is the answer to the same question for this long: a program that tries twenty names below a directory which
cannot be listed waits for one timeout, not twenty. Short, since the cure should show at once. A guess."""

FAILURES_KEPT = 1000  # then the old ones go

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Flight(Generic[Value]):
    """One request that is under way, and those who wait for it."""

    __slots__ = ("_done", "_error", "_value")

    def __init__(self) -> None:
        self._done = threading.Event()
        self._value: Value | None = None
        self._error: ArchiveError | None = None

    def run(self, ask: Callable[[], Value]) -> Value:
        """Ask, and give every waiter the same outcome."""
        self._error = Unavailable("the request that others waited for was interrupted")  # unless it comes to an end
        try:
            self._value = ask()
            self._error = None
        except ArchiveError as error:
            self._error = error
            raise
        finally:
            self._done.set()
        return self._value

    def wait(self) -> Value:
        """The outcome of the thread that asks. No timeout: ``Archive`` promises that every call ends."""
        value = self.wait_for(None)
        assert value is not None
        return value

    def wait_for(self, timeout_s: float | None) -> Value | None:
        """The outcome, or None when there is none yet."""
        if not callers.wait(self._done.wait, timeout_s):
            return None
        if self._error is not None:
            raise self._error.again()
        assert self._value is not None
        return self._value


class Failures(Generic[Key]):
    """What failed a moment ago. Calls are made under the owner's lock."""

    def __init__(self) -> None:
        self._errors: OrderedDict[Key, tuple[float, ArchiveError]] = OrderedDict()

    def add(self, key: Key, now: float, error: ArchiveError) -> None:
        self._errors[key] = (now + FAILURE_S, error)
        self._errors.move_to_end(key)
        if len(self._errors) > FAILURES_KEPT:
            self._errors.popitem(last=False)

    def get(self, key: Key, now: float) -> ArchiveError | None:
        until, error = self._errors.get(key, (now, None))
        if now < until:
            return error
        self._errors.pop(key, None)
        return None

    def forget(self, key: Key) -> None:
        self._errors.pop(key, None)


def begun_behind(ask: Callable[[], object], name: str) -> bool:
    """Whether a thread of its own asks now; there may be none to be had. What it fails with, the flight tells."""

    def work() -> None:
        with contextlib.suppress(ArchiveError):
            ask()

    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError:
        return False
    return True
