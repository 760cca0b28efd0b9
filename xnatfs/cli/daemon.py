"""Leaves a process behind that serves a mount: fork, a pipe that carries "ready" or the failure, then silence.

Also the record that each mount leaves in the user's runtime directory, by which ``umount`` waits for the process's end.
Knows no FUSE and no archive. ``start`` must be called before any thread is; a record belongs to one thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import select
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from xnatfs import errors
from xnatfs.errors import ArchiveError, XnatfsError

log = logging.getLogger(__name__)

END_LIMIT_S = 5.0  # for a process that has failed, or was told to end, to be gone
POLL_S = 0.01
HELD_BACK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # while it forks
END_GRACE_S = 2.0  # for the process of a mount that has been taken away to end by itself

SECRET_WORDS = ("PASS", "SECRET", "TOKEN")

Serve = Callable[[Callable[[], None]], None]
"""Serves until unmounted; calls its argument once, from any thread, when the mount answers."""


def start(serve: Serve, log_file: Path | None, limit_s: float) -> int:
    """Run ``serve`` in a process of its own and return 0 once it is ready, its process id left to nobody.

    Raises:
        XnatfsError or ArchiveError: what ``serve`` raised before it was ready, or that it ended, or took ``limit_s``.
    """
    reading, writing = os.pipe()
    # Python ignores what a signal's handler raises while the hooks run that libraries have put around a fork.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    if pid == 0:
        _run_child(serve, log_file, reading, writing, before)
    os.close(writing)
    with _signals_end_what_was_started():
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            message = _await_message(reading, limit_s)
        except BaseException:
            _end(pid)
            raise
        finally:
            os.close(reading)
    if message.get("ready"):
        return 0
    code = _reap(pid, END_LIMIT_S)
    if not message:
        raise XnatfsError(f"mount: the process that was to serve it ended unexpectedly ({_describe_end(code)})")
    raise _error_from(message)


# --- the parent -------------------------------------------------------------------------------------------------------


class _Stopped(BaseException):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _signals_end_what_was_started() -> Iterator[None]:
    """Within, a signal that would end us on the spot (`timeout 10 xnatfs mount ...`) raises first, so that no child is
    left that mounts later. What others handle or ignore is left to them."""
    ours = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]

    def answer_with(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        for number in ours:
            signal.signal(number, handler)

    def stop(number: int, frame: FrameType | None) -> None:
        answer_with(signal.SIG_IGN)
        raise _Stopped(number)

    answer_with(stop)
    try:
        yield
    except _Stopped as stopped:
        answer_with(signal.SIG_DFL)
        os.kill(os.getpid(), stopped.number)
        raise
    finally:
        answer_with(signal.SIG_DFL)


def _await_message(reading: int, limit_s: float) -> dict[str, Any]:
    """What the child says; {} when it ends without a word."""
    ready, _, _ = select.select([reading], [], [], limit_s)
    if not ready:
        raise errors.TimedOut(f"mount: no answer within {limit_s:.0f} s")
    with os.fdopen(os.dup(reading), "rb") as stream:
        text = stream.readline()
    message: dict[str, Any] = json.loads(text) if text else {}
    return message


def _end(pid: int) -> None:
    """Stop a child that is not wanted any more: politely, so that it unmounts, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if _reap(pid, END_LIMIT_S) is not None:
            return


def _reap(pid: int, limit_s: float) -> int | None:
    """The exit status of a child, or None when it is still there after ``limit_s``."""
    deadline_s = time.monotonic() + limit_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline_s:
            return None
        time.sleep(POLL_S)


def _describe_end(code: int | None) -> str:
    if code is None:
        return "still running"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _error_from(message: dict[str, Any]) -> Exception:
    """The child's failure as an error of the same class, so that it ends in the same line, hint and exit code."""
    kind: type[XnatfsError | ArchiveError] = getattr(errors, message["kind"] or "XnatfsError")
    return kind(message["text"], message["hint"])


# --- the child --------------------------------------------------------------------------------------------------------


def _run_child(
    serve: Serve, log_file: Path | None, reading: int, writing: int, signals: set[int | signal.Signals]
) -> NoReturn:
    code = 0
    said = False

    def tell(message: dict[str, Any]) -> None:
        nonlocal said
        said = True
        with contextlib.suppress(BrokenPipeError):
            os.write(writing, json.dumps(message).encode() + b"\n")
        os.close(writing)

    def ready() -> None:
        _point_at(2, log_file)  # until now, messages went to whoever ran the command
        tell({"ready": True})

    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)  # here, where what a handler raises ends this process
        os.close(reading)
        os.setsid()
        os.chdir("/")
        _close_inherited(writing)
        for descriptor in (0, 1):
            _point_at(descriptor, None)
        serve(ready)
    except BaseException as exc:  # the outermost frame of this process
        code = int(getattr(exc, "exit_code", 1))
        if said:
            log.error("the mount ended: %s", exc, exc_info=exc)
        else:
            log.debug("mounting failed", exc_info=exc)
            tell(_failure(exc))
    logging.shutdown()
    # The frames below belong to the command that was called; its clean-up is its own.
    os._exit(code)


def _failure(exc: BaseException) -> dict[str, Any]:
    known = isinstance(exc, (XnatfsError, ArchiveError))
    if isinstance(exc, OSError) and not known:
        text = f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc.strerror or exc)
    else:
        text = str(exc) if known else f"unexpected {type(exc).__name__}: {exc}"
    kinds = (kind.__name__ for kind in type(exc).__mro__ if kind.__module__ == errors.__name__)
    return {"kind": next(kinds, ""), "text": text, "hint": str(getattr(exc, "hint", ""))}


def _close_inherited(keep: int) -> None:
    """Close what the caller's shell or script left open. Our own descriptors are not inheritable (PEP 446)."""
    for link in list(Path("/proc/self/fd").iterdir()):
        descriptor = int(link.name)
        with contextlib.suppress(OSError):
            if descriptor > 2 and descriptor != keep and os.get_inheritable(descriptor):
                os.close(descriptor)


def _point_at(descriptor: int, file: Path | None) -> None:
    """Make a standard descriptor lead to a file, or nowhere."""
    flags = os.O_RDWR if file is None else os.O_WRONLY | os.O_CREAT | os.O_APPEND
    opened = os.open(os.devnull if file is None else file, flags | os.O_CLOEXEC, 0o600)
    os.dup2(opened, descriptor)
    os.close(opened)


def forget_secrets() -> None:
    """Take passwords out of the environment, so that no program we start (fusermount) gets them."""
    for name in list(os.environ):
        if name.upper().startswith(("XNAT", "AWS")) and any(word in name.upper() for word in SECRET_WORDS):
            del os.environ[name]


# --- records ----------------------------------------------------------------------------------------------------------


class Record:
    """A locked file that lives as long as the process that serves a mount; the kernel drops the lock at its end."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._path: Path | None = None

    def write(self, device: str, mountpoint: Path, server: str) -> None:
        """Publish the mount. A record that cannot be kept costs ``umount`` its waiting, and nothing else."""
        directory = records_directory(os.getuid())
        try:
            _make_private(directory)
            for path in directory.glob(_record_name(device, "*")):
                _forget_if_killed(path)  # the kernel has given its device number to this mount
            path = directory / _record_name(device, os.getpid())
            hidden = path.with_suffix(".new")  # until it is locked, so that nobody takes it for one of a killed process
            self._descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            content = {"pid": os.getpid(), "mountpoint": str(mountpoint), "server": server, "device": device}
            os.write(self._descriptor, json.dumps(content).encode())
            hidden.replace(path)
            self._path = path
        except OSError as exc:
            log.info("no record of this mount in %s: %s", directory, exc.strerror)

    @property
    def socket(self) -> Path | None:
        """Where this mount's control socket belongs; None when there is no record of it."""
        return None if self._path is None else self._path.with_suffix(".sock")

    def remove(self) -> None:
        """Take the record's name away. The lock stays until the process ends."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Recorded:
    """What a record says of a mount, and whether its process lives."""

    mountpoint: Path
    server: str
    device: str
    pid: int
    alive: bool
    socket: Path


def recorded(uid: int) -> list[Recorded]:
    """Every mount of a user that has left a record, those whose process was killed included."""
    found = []
    for path in sorted(records_directory(uid).glob("mount-*.json")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # it has gone meanwhile
        try:
            content = json.loads(os.pread(descriptor, 65536, 0))
            place, server, device = (str(content[key]) for key in ("mountpoint", "server", "device"))
            alive = not _unlocked(descriptor)
            found.append(Recorded(Path(place), server, device, int(content["pid"]), alive, path.with_suffix(".sock")))
        except (ValueError, KeyError, TypeError):
            log.info("%s: not a record of a mount", path)
        finally:
            os.close(descriptor)
    return found


def forget(record: Recorded) -> None:
    """Remove what a killed process has left, once nothing is mounted there any more."""
    _remove(record.socket.with_suffix(".json"))


def _forget_if_killed(path: Path) -> None:
    with contextlib.suppress(OSError), _opened(path) as descriptor:
        if _unlocked(descriptor):
            _remove(path)


def _remove(record: Path) -> None:
    for path in (record.with_suffix(".sock"), record):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(record: Path) -> Iterator[int]:
    descriptor = os.open(record, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def records_directory(uid: int) -> Path:
    """Where a user's records are: found by root too, and without the environment, which cron and sudo change."""
    if uid == 0:
        return Path("/run/xnatfs")
    login = Path(f"/run/user/{uid}")
    with contextlib.suppress(OSError):
        if login.stat().st_uid == uid:
            return login / "xnatfs"
    return Path(f"/tmp/xnatfs-{uid}")  # noqa: S108 (_make_private refuses a directory that others made)


def _record_name(device: str, pid: int | str) -> str:
    """The kernel gives a device number to the next mount while the process that served the last may still be ending."""
    return f"mount-{device.replace(':', '-')}-{pid}.json"


def _make_private(directory: Path) -> None:
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "it is not a private directory of this user", str(directory))


@contextlib.contextmanager
def end_of(device: str, uid: int, limit_s: float) -> Iterator[None]:
    """Wait, on leaving, until the process that serves the mount ``device`` of user ``uid`` has ended.

    One that does not end by itself is told to: reads of a silent server keep it until their timeouts, though nobody
    waits for them any more.

    Raises:
        XnatfsError: it is still there after ``limit_s``.
    """
    descriptor = _lock_of(device, uid)
    if descriptor is None:
        yield
        return
    try:
        yield
        started_s = time.monotonic()
        told = False
        while not _unlocked(descriptor):
            waited_s = time.monotonic() - started_s
            if waited_s > limit_s:
                raise XnatfsError(
                    f"umount: unmounted, but its process (pid {_pid(descriptor) or 'unknown'}) has not ended yet"
                )
            if waited_s > END_GRACE_S and not told:
                told = True
                if pid := _pid(descriptor):
                    with contextlib.suppress(OSError):  # another user's, which only root may tell
                        os.kill(pid, signal.SIGTERM)
            time.sleep(POLL_S)
    finally:
        os.close(descriptor)


def _lock_of(device: str, uid: int) -> int | None:
    """A descriptor of the record of a mount whose process lives; None when there is none."""
    newest: tuple[int, int] | None = None  # when it was written, descriptor
    for path in records_directory(uid).glob(_record_name(device, "*")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # it has gone meanwhile
        found = (os.fstat(descriptor).st_mtime_ns, descriptor)
        if _unlocked(descriptor) or (newest is not None and newest > found):
            os.close(descriptor)
            continue
        if newest is not None:
            os.close(newest[1])
        newest = found
    return None if newest is None else newest[1]


def _unlocked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid(descriptor: int) -> int:
    """The process that holds a record's lock, by what it has written there; 0 when it does not say."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return max(0, int(json.loads(os.pread(descriptor, 4096, 0))["pid"]))
    return 0
