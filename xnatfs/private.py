"""Directories and files that belong to one user alone, made so whatever the umask. Standard library only, no state."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path


def private_directory(directory: Path) -> None:
    """Make a directory of mode 0700, or refuse one that others could have filled: what lies there would be believed.

    An empty one is closed to others. One that holds something may be theirs to look into (a home, /var): it is left as
    it is, and refused.

    Raises:
        NotADirectoryError: something else stands there, a symbolic link included.
        PermissionError: it belongs to another user, or others may write to it, or enter it and find something.
    """
    _make(directory)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory, or a symbolic link", str(directory))
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"it belongs to user {found.st_uid}", str(directory))
    if found.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others may write to it; run chmod 700", str(directory))
    if found.st_mode & 0o055 and any(directory.iterdir()) and directory.lstat().st_mode & 0o055:  # nobody closed it now
        raise PermissionError(errno.EPERM, "others may enter it; name a directory of its own", str(directory))
    if stat.S_IMODE(found.st_mode) != 0o700:
        directory.chmod(0o700)


def _make(directory: Path) -> None:
    """With what is missing above it, which is private too: it may be a cache that has been removed."""
    with contextlib.suppress(FileExistsError):
        try:
            directory.mkdir(mode=0o700)
        except FileNotFoundError:
            _make(directory.parent)
            directory.mkdir(mode=0o700)
        directory.chmod(0o700)  # the umask may have taken bits away
