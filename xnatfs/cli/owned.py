"""A mount that belongs to the command which made it: served by a child process, gone when the command is.

For ``demo`` and ``run``; ``mount`` leaves a process behind that belongs to nobody. Runs in the main thread, before any
other is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from xnatfs.cli import daemon
from xnatfs.cli.mount import serve
from xnatfs.config import Config
from xnatfs.frontends import mountpoint as mountpoints

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_TIMEOUT_S = 20.0  # a guess: the cache's last blocks are written, the session ended

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Stopped(BaseException):
    """A signal asked for the end. Not an Exception: nothing in between may take it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """The first of ``STOP_SIGNALS`` raises ``Stopped`` in the main thread; later ones count for nothing."""

    def stop(number: int, frame: FrameType | None) -> None:
        ignore_signals()
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def mount_directory(wanted: Path | None) -> Iterator[Path]:
    """An absolute path to mount at; made, and taken away at the end, unless it was there before.

    Taken away by rmdir, which never reaches into a mount that would not go.
    """
    made: list[Path] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until we know what we have made
    try:
        if wanted is None:
            place = Path(tempfile.mkdtemp(prefix="xnatfs-")).resolve()
            made.append(place)
        else:
            place = wanted.absolute()
            for missing in reversed([each for each in (place, *place.parents) if not each.exists()]):
                missing.mkdir(mode=0o700)
                made.append(missing)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield place
    finally:
        with contextlib.suppress(OSError):
            for each in reversed(made):
                each.rmdir()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclasses.dataclass(slots=True)
class Mount:
    """The process that answers for a mount point; a child of ours, whose end is seen like the server's."""

    pid: int
    mountpoint: Path
    log: Path | None
    exit_code: int | None = None

    def wait(self) -> int:
        if self.exit_code is None:
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.exit_code

    def stop(self) -> None:
        """Unmount, by force if need be."""
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        if self.exit_code is None:
            os.kill(self.pid, signal.SIGTERM)
        while self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline_s:
                os.kill(self.pid, signal.SIGKILL)
                self.wait()
            else:
                time.sleep(0.02)
        if mountpoints.find_mount(mountpoints.resolve(self.mountpoint)) is not None:
            mountpoints.detach(self.mountpoint)


@contextlib.contextmanager
def mounted(config: Config, place: Path, log: Path | None, limit_s: float) -> Iterator[Mount]:
    """``config``'s archive at ``place``, answering; unmounted at the end. The process is that of ``xnatfs mount``.

    Args:
        limit_s: How long it may take to answer.
    """
    path = mountpoints.prepare(place, allow_other=config.mount.allow_other)
    reading, writing = os.pipe()

    def serve_as_child(ready: Callable[[], None]) -> None:
        _belong_to_the_command()
        os.write(writing, b"%d" % os.getpid())
        serve(config, path, ready)

    try:
        daemon.start(serve_as_child, log, limit_s)
        mount = Mount(int(os.read(reading, 32)), path, log)
    finally:
        os.close(reading)
        os.close(writing)
    try:
        yield mount
    finally:
        mount.stop()


def _belong_to_the_command() -> None:
    """In the child: signals mean what they usually do, and the kernel sends one when the command is killed."""
    import ctypes

    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
