"""One server session for all processes of a user: a private file an account, and the locks that let one process log in.

Knows no HTTP: cookies come in and go out. Everything here is best effort: where files or locks cannot be had, a process
keeps a session of its own. Safe from any thread; ``alone`` is what keeps processes, and threads, apart.

Two files an account. ``<hash>.session`` holds the cookies, and every process that uses them holds a shared flock on it;
its mtime is the last use, so that sliding the expiry costs one system call. ``<hash>.lock`` is locked
exclusively, and shortly, by whoever reads, writes or removes the first, or logs in.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xnatfs.config import Credentials

log = logging.getLogger(__name__)

FORMAT = 1
MAX_FILE = 64 * 1024
"""Bytes of a session file at most; a few hundred are usual."""

POLL_S = 0.01
"""Seconds between two tries at the lock: a login takes about as long."""

KEY_ROUNDS = 20_000
"""Rounds of PBKDF2 that keep a password from being guessed by a file's name: about 10 ms, once a process."""

_COOKIE = re.compile(r"[ -:<-~]{1,4096}")  # what may stand in a header; servers send more than RFC 6265 allows
_NAME = re.compile(r"[ -:<>-~]{1,256}")  # likewise; load balancers call theirs ~Common~pool


@dataclass(frozen=True, slots=True)
class ServerSession:
    """What a login brought.

    Attributes:
        life_s: Seconds that it lives on after its last use; 0 when the server does not say.
        since_s: Of the login, in seconds since the epoch.
        used_s: Of the last use, likewise.
        open_site: The site serves guests, so that a forgotten session is not refused but silently a guest's.
    """

    cookies: Mapping[str, str] = field(repr=False)
    life_s: float = 0.0
    since_s: float = 0.0
    used_s: float = 0.0
    open_site: bool = True

    @property
    def left_s(self) -> float:
        """Seconds until the server forgets it, as far as known here; infinite when it does not say."""
        return self.used_s + self.life_s - time.time() if self.life_s else float("inf")


class SharedSession:
    """The session file of one account on one server.

    Args:
        directory: Made when it is not there; must belong to this user alone.
    """

    def __init__(self, directory: Path, server: str, credentials: Credentials) -> None:
        self._directory = directory
        self._server = server
        self._credentials = credentials
        self._lock = threading.Lock()
        self._name = ""  # guarded by _lock
        self._file = -1  # guarded by _lock, changed only under alone(): the session file, with our shared lock on it
        self._touched_s = 0.0  # when its mtime was set last; guarded by _lock, read without

    @property
    def joined(self) -> bool:
        """Whether we are one of the users of a session file."""
        return self._file >= 0

    @contextlib.contextmanager
    def alone(self, limit_s: float) -> Iterator[bool]:
        """Keep all other processes and threads out; False when that cannot be had within ``limit_s``."""
        descriptor = -1
        try:
            self._make_private()
            descriptor = self._locked(time.monotonic() + limit_s)
        except OSError as exc:
            log.info("no shared session in %s: %s", self._directory, exc.strerror)
        try:
            yield descriptor >= 0
        finally:
            if descriptor >= 0:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child forked meanwhile has it open as well
                os.close(descriptor)

    def read(self) -> ServerSession | None:
        """The session that is there, if it is sound and not over. Only under ``alone``."""
        try:
            session = self._read()
        except (OSError, ValueError, KeyError, TypeError) as exc:
            log.info("the session file is not usable (%s) and will be replaced", type(exc).__name__)
            self._discard()
            return None
        return session if session is not None and session.left_s > 0 else None

    def write(self, session: ServerSession) -> None:
        """Put a session there in place of what was. Only under ``alone``."""
        content = {
            "format": FORMAT,
            "cookies": dict(session.cookies),
            "life_s": session.life_s,
            "since_s": session.since_s,
            "open_site": session.open_site,
        }
        data = json.dumps(content).encode()
        try:
            if not self._opened(create=True):
                return
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, data, 0)
            self._set_used(session.used_s)
        except OSError as exc:
            log.info("the session is not shared: %s", exc.strerror)
            self._discard()

    def touch(self, life_s: float) -> None:
        """The session has just been used. At most twenty times in its life: any thread, one system call."""
        now = time.time()
        if now - self._touched_s > life_s / 20:
            with contextlib.suppress(OSError):
                self._set_used(now)

    def leave(self) -> ServerSession | None:
        """Stop using it. The last user gets the session, to end it at the server; its file is gone then.

        Only under ``alone``. Safe to call twice.
        """
        if self._file < 0:
            return None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            session = self._read()
            self._discard()
            self._path("lock").unlink(missing_ok=True)
            return session
        except BlockingIOError:
            return None  # others use it
        except (OSError, ValueError, KeyError, TypeError):
            return None
        finally:
            self._close()

    # --- the session file ----------------------------------------------------------------------------------------

    def _read(self) -> ServerSession | None:
        if not self._opened(create=False):
            return None
        used_s = os.fstat(self._file).st_mtime
        content = json.loads(os.pread(self._file, MAX_FILE, 0))
        if content["format"] != FORMAT:
            raise ValueError("another format")
        cookies = {str(name): str(value) for name, value in content["cookies"].items()}
        if not cookies or not all(_NAME.fullmatch(name) and _COOKIE.fullmatch(cookies[name]) for name in cookies):
            raise ValueError("not cookies")
        return ServerSession(
            cookies,
            life_s=max(0.0, float(content["life_s"])),
            since_s=float(content["since_s"]),
            used_s=min(used_s, time.time()),
            open_site=bool(content["open_site"]),
        )

    def _opened(self, create: bool) -> bool:
        """Have the present session file open, private, and locked as one of its users."""
        path = self._path("session")
        if self._file >= 0 and not _is_at(self._file, path):
            self._close()  # its last user of then has removed it
        if self._file >= 0:
            return True
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            if not create:
                return False
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            os.close(descriptor)
            raise PermissionError(1, "the session file is not this user's alone")
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self._file = descriptor
        return True

    def _discard(self) -> None:
        self._close()
        with contextlib.suppress(OSError):
            self._path("session").unlink(missing_ok=True)

    def _close(self) -> None:
        with self._lock:
            descriptor, self._file = self._file, -1
            if descriptor >= 0:
                os.close(descriptor)

    def _set_used(self, used_s: float) -> None:
        with self._lock:  # or the descriptor could be closed, and be another file's, by now
            self._touched_s = used_s
            if self._file >= 0:
                os.utime(self._file, (used_s, used_s))

    # --- the lock ------------------------------------------------------------------------------------------------

    def _locked(self, deadline_s: float) -> int:
        """A descriptor that holds the lock; -1 when others hold it for too long."""
        path = self._path("lock")
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, path):
                    return descriptor
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    os.close(descriptor)
                    log.warning("another process has been logging in for too long; going on without it")
                    return -1
                time.sleep(POLL_S)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _make_private(self) -> None:
        missing = [place for place in (self._directory, *self._directory.parents) if not place.exists()]
        for place in reversed(missing):  # parents too: mkdir gives its mode to the last one only
            with contextlib.suppress(FileExistsError):
                place.mkdir(mode=0o700)
        found = self._directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(1, "it is not a directory of this user")
        if found.st_mode & 0o077:
            self._directory.chmod(0o700)

    def _path(self, suffix: str) -> Path:
        with self._lock:
            if not self._name:
                self._name = _file_name(self._server, self._credentials)
        return self._directory / f"{self._name}.{suffix}"


def _file_name(server: str, credentials: Credentials) -> str:
    """Names an account: another password is another file, so that a session never makes up for a wrong one."""
    who = f"guest of {server}" if credentials.user is None else f"{len(credentials.user)} {credentials.user} {server}"
    secret = (credentials.secret or "").encode()
    return hashlib.pbkdf2_hmac("sha256", secret, who.encode(), KEY_ROUNDS, 16).hex()


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has that name: it may have been removed, and made anew, since it was opened."""
    opened = os.fstat(descriptor)
    try:
        named = path.lstat()
    except FileNotFoundError:
        return False
    return (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino)
