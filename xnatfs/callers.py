"""Whether whoever a thread works for still waits: a program that was killed leaves only once its call is answered.

The kernel lets a process that has been killed wait for the answer to a call of the file system it has made. So what may
wait for long looks here now and then, and fails with EINTR when the process is ending. A process that merely has a
signal to handle goes on waiting: programs do not expect EINTR of stat or open. Knows no FUSE; safe from any thread.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from xnatfs.errors import Interrupted

LOOK_S = 0.25
"""Seconds between two looks: at once for who presses Ctrl-C, and 20 us of each quarter of a second."""

# A signal that ends a process shows as SIGKILL at each of its threads; one of the others is handled, and is to end it.
ENDING = sum(
    1 << number - 1 for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM)
)

_thread = threading.local()
_numbers = itertools.count()
_lock = threading.Lock()
_watched: dict[int, tuple[float, int, Callable[[], None]]] = {}  # guarded by _lock: since when, thread ID, what to do
_watcher: threading.Thread | None = None  # guarded by _lock


def works_for(thread_id: Callable[[], int]) -> None:
    """From now on this thread works for callers: ``thread_id`` gives the system's ID of that of the moment, or 0."""
    _thread.caller = thread_id


def has_caller() -> bool:
    """Whether this thread works for somebody who may end."""
    return getattr(_thread, "caller", None) is not None


def current() -> int:
    """The system's ID of the thread that this one works for at the moment; 0 when there is none, or it is not known."""
    caller = getattr(_thread, "caller", None)
    return 0 if caller is None else caller()


def wait(done: Callable[[float | None], bool], timeout_s: float | None = None) -> bool:
    """``done(timeout_s)``, a wait that says whether what it waited for has come.

    Raises:
        Interrupted: the caller is ending.
    """
    caller = getattr(_thread, "caller", None)
    if caller is None:
        return done(timeout_s)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while not done(LOOK_S if deadline is None else max(0.0, min(LOOK_S, deadline - time.monotonic()))):
        if is_ending(caller()):
            raise Interrupted("whoever asked has ended")
        if deadline is not None and time.monotonic() >= deadline:
            return False
    return True


def check() -> None:
    """
    Raises:
        Interrupted: the caller is ending.
    """
    caller = getattr(_thread, "caller", None)
    if caller is not None and is_ending(caller()):
        raise Interrupted("whoever asked has ended")


def sleep(seconds: float) -> None:
    """For who looks again and again, many times a second at most: a look here is 20 us.

    Raises:
        Interrupted: the caller is ending.
    """
    time.sleep(seconds)
    check()


@contextmanager
def watched(end: Callable[[], None]) -> Iterator[None]:
    """While this thread waits where it cannot look, another calls ``end`` when the caller is ending."""
    caller = getattr(_thread, "caller", None)
    thread_id = 0 if caller is None else caller()
    if not thread_id:
        yield
        return
    number = next(_numbers)
    with _lock:
        _watched[number] = time.monotonic(), thread_id, end
        if _watcher is None:
            _start()
    try:
        yield
    finally:
        with _lock:
            del _watched[number]


def _start() -> None:
    """Under the lock."""
    global _watcher
    _watcher = threading.Thread(target=_watch, name="callers", daemon=True)
    _watcher.start()


def _watch() -> None:
    global _watcher
    while True:
        time.sleep(LOOK_S)
        since = time.monotonic() - LOOK_S
        with _lock:
            if not _watched:
                _watcher = None
                return
            old = [(thread_id, end) for began, thread_id, end in _watched.values() if began < since]
        for thread_id, end in old:
            if is_ending(thread_id):
                end()


def is_ending(thread_id: int) -> bool:
    """Whether a thread of this system has been told to end, or has. False for one that cannot be seen from here."""
    try:
        status = Path(f"/proc/{thread_id}/status").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return thread_id > 0 and _sees_all()
    except OSError:
        return False
    fields = dict(line.split(b":\t", 1) for line in status.splitlines() if b":\t" in line)
    pending = int(fields.get(b"SigPnd", b"0"), 16) | int(fields.get(b"ShdPnd", b"0"), 16)
    blocked = int(fields.get(b"SigBlk", b"0"), 16)
    return bool(pending & ~blocked & ENDING) or fields.get(b"State", b"")[:1] in (b"Z", b"X")


def _sees_all() -> bool:
    """Whether /proc shows the processes of other users, too."""
    return Path("/proc/1/status").exists()
