"""Every failure a user can meet, each with the errno or exit code it ends in. Knows no HTTP and no FUSE.

XnatfsError                     a command that cannot go on: one line, a hint, an exit code (contract 1)
├── UsageError          exit 2  an option, a SOURCE or a config key makes no sense
├── CredentialsError    exit 3  a secrets file that others can read, a malformed netrc
└── FuseError           exit 5  no libfuse, no /dev/fuse, a mount point that cannot be used
OSError
└── ArchiveError                an operation on the archive failed; always carries an errno
    ├── NotFound        ENOENT     the archive has no such thing (404)
    ├── AccessDenied    EACCES     it is there, closed to this user (403)
    │   └── LoginFailed EACCES     the user name or password was refused (401); exit 3
    ├── Unavailable     EIO        no usable answer: refused, reset, 5xx after retries; exit 4
    │   └── TimedOut    ETIMEDOUT  silence longer than the timeout
    ├── StaleContent    ESTALE     the archive now holds another version than the one opened
    ├── Interrupted     EINTR      whoever asked is ending
    ├── CorruptContent  EIO        short body, wrong digest, wrong Content-Range
    └── UnexpectedReply EIO        a 200 that is not what was asked for: a login page, an empty body
"""

from __future__ import annotations

import errno


class XnatfsError(Exception):
    """A command failed for a reason the user can act on.

    ``str(error)`` is "what failed: why"; ``hint`` is what to do about it, or "".
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(XnatfsError):
    exit_code = 2


class CredentialsError(XnatfsError):
    exit_code = 3


class FuseError(XnatfsError):
    exit_code = 5


class ArchiveError(OSError):
    """An archive operation failed. ``errno`` is always set: both front ends reply with it.

    fusepy turns an ``OSError`` without errno into a short file (see ``frontends/fuse.py``), so the
    constructor takes the message alone and the class decides the errno.
    """

    code = errno.EIO
    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(type(self).code, message)
        self.hint = hint

    def __str__(self) -> str:
        return str(self.strerror)

    def again(self) -> ArchiveError:
        """The same failure to raise in another thread: one object would collect the tracebacks of all who raise it."""
        fresh = type(self)(str(self), self.hint)
        fresh.__cause__ = self
        return fresh


class NotFound(ArchiveError, FileNotFoundError):
    code = errno.ENOENT


class AccessDenied(ArchiveError, PermissionError):
    code = errno.EACCES


class LoginFailed(AccessDenied):
    exit_code = 3


class Unavailable(ArchiveError, ConnectionError):
    code = errno.EIO
    exit_code = 4


class TimedOut(Unavailable, TimeoutError):
    code = errno.ETIMEDOUT


class Interrupted(ArchiveError, InterruptedError):
    code = errno.EINTR


class StaleContent(ArchiveError):
    code = errno.ESTALE


class CorruptContent(ArchiveError):
    code = errno.EIO


class UnexpectedReply(ArchiveError):
    code = errno.EIO
    exit_code = 4
