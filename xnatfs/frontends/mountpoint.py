"""What hangs at a mount point, who uses it, and how to take it away. Knows libc and /proc; no libfuse and no archive.

Functions without state, safe from any thread. Nothing here touches the mounted tree itself unless it says so: a dead
daemon's tree answers with an error, a hung one's not at all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xnatfs.errors import FuseError, XnatfsError

DEVICE = Path("/dev/fuse")
ANSWER_LIMIT_S = 5.0  # how long a mounted tree may take to say that it is alive; a guess
FUSERMOUNT_LIMIT_S = 20.0
HOLDERS_SHOWN = 5
MAX_LINKS = 40  # as the kernel's own limit
MNT_DETACH = 2  # linux/fs.h

OWN_TYPE = "fuse.xnatfs"


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of /proc/self/mountinfo."""

    path: Path
    device: str  # "major:minor"
    fs_type: str
    fsname: str
    uid: int  # who mounted it, as FUSE says; 0 for others


def resolve(path: Path) -> Path:
    """Absolute and without symlinks. Does not ask the file system mounted there, as ``realpath`` would: it may hang."""
    for _ in range(MAX_LINKS):
        absolute = os.path.abspath(path)  # noqa: PTH100 (Path.absolute keeps "..")
        parent, name = os.path.split(absolute)
        found = Path(os.path.realpath(parent)) / name
        try:
            path = found.parent / os.readlink(found)  # noqa: PTH115 (no upcall for the root of a mount)
        except OSError:
            return found
    return path


def find_mount(path: Path) -> Mounted | None:
    """The uppermost file system mounted exactly at ``path`` (resolved)."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split(" ")
        separator = fields.index("-", 6)
        if _unescape(fields[4]) == str(path):
            uid = re.search(r"\buser_id=(\d+)", fields[separator + 3])
            fs_type, fsname = fields[separator + 1], _unescape(fields[separator + 2])
            found = Mounted(path, fields[2], fs_type, fsname, int(uid[1]) if uid else 0)
    return found


def _unescape(text: str) -> str:
    """Undo the kernel's octal escapes for blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def is_dead(path: Path) -> bool:
    """Whether the FUSE mount at ``path`` has lost its daemon. Asks the mount; one that is silent counts as alive."""
    outcome: list[int] = []

    def ask() -> None:
        try:
            os.statvfs(path)  # never answered from the kernel's cache, unlike stat
        except OSError as exc:
            outcome.append(exc.errno or 0)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_LIMIT_S)
    return outcome in ([errno.ENOTCONN], [errno.ECONNABORTED])


def detach(path: Path) -> None:
    """Take a mount away at once, whoever uses it. Best effort."""
    with suppress(OSError, XnatfsError):
        _unmount(path, lazily=True)


def unmount(path: Path) -> None:
    """Unmount the FUSE file system at ``path``.

    Raises:
        XnatfsError: it is in use, with the names of who uses it, or this user may not.
    """
    try:
        _unmount(path, lazily=False)
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            raise _busy(path) from exc
        raise XnatfsError(f"umount {path}: {exc.strerror}") from exc


def _unmount(path: Path, *, lazily: bool) -> None:
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(path), MNT_DETACH if lazily else 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return
    program = fusermount()
    if program is None:
        raise XnatfsError(f"umount {path}: there is no fusermount", FUSERMOUNT_HINT)
    command = [program, "-uz" if lazily else "-u", "--", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=FUSERMOUNT_LIMIT_S, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        why = re.sub(r"^fusermount3?: ", "", said[-1]) if said else f"fusermount ended with {done.returncode}"
        busy = "busy" in why.lower()
        raise OSError(errno.EBUSY if busy else errno.EPERM, why)


FUSERMOUNT_HINT = "on Debian or Ubuntu: sudo apt install fuse3"


def fusermount() -> str | None:
    return shutil.which("fusermount3") or shutil.which("fusermount")


def _busy(path: Path) -> XnatfsError:
    names = list(holders(path))
    shown = ", ".join(names[:HOLDERS_SHOWN]) + (
        f" and {len(names) - HOLDERS_SHOWN} more" if names[HOLDERS_SHOWN:] else ""
    )
    hint = "close it there, or leave the directory, and try again"
    return XnatfsError(f"umount {path}: in use by {shown or 'a process of another user'}", hint)


def holders(path: Path) -> Iterator[str]:
    """``name (pid)`` of every process with a working directory, an open file or a mapping below ``path``.

    Sees this user's processes, and all of them as root. Our own process does not count.
    """
    inside = re.compile(re.escape(str(path)) + r"(/|$)")
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid() and _uses(process, inside):
            with suppress(OSError):
                yield f"{(process / 'comm').read_text(errors='replace').strip()} ({process.name})"


def _uses(process: Path, inside: re.Pattern[str]) -> bool:
    links = [process / "cwd", process / "root", process / "exe"]
    with suppress(OSError):
        links.extend((process / "fd").iterdir())
    for link in links:
        with suppress(OSError):
            if inside.match(os.readlink(link)):  # noqa: PTH115 (a Path made of it would lose what follows a blank)
                return True
    with suppress(OSError):
        for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
            name = line.split(None, 5)[5:]
            if name and inside.match(name[0]):
                return True
    return False


def prepare(path: Path, *, allow_other: bool) -> Path:
    """See that a FUSE file system can be mounted at ``path``, clearing away a dead one; the path as the kernel has it.

    Raises:
        FuseError: it cannot, and what to do about it.
    """
    resolved = resolve(path)
    _check_device(resolved)
    _check_privileges(resolved, allow_other)
    mounted = find_mount(resolved)
    if mounted is not None:
        if not (mounted.fs_type.startswith("fuse") and is_dead(resolved)):
            raise FuseError(
                f"mount {path}: {mounted.fsname} is mounted there already",
                f"xnatfs umount {path}" if mounted.fs_type == OWN_TYPE else "choose another directory",
            )
        detach(resolved)
        if find_mount(resolved) is not None:
            raise FuseError(f"mount {path}: a dead mount is in the way", f"run: fusermount3 -uz {path}")
    _check_directory(path, resolved)
    return Path(os.path.realpath(resolved))


def _check_device(path: Path) -> None:
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        hint = "load the module (sudo modprobe fuse); in a container, start it with --device /dev/fuse"
        raise FuseError(f"mount {path}: there is no {DEVICE}", hint) from None
    except PermissionError:
        hint = f"let users open it: sudo chmod 0666 {DEVICE}"
        raise FuseError(f"mount {path}: {DEVICE} is closed to this user", hint) from None
    except OSError as exc:
        raise FuseError(f"mount {path}: {DEVICE}: {exc.strerror}", "load the module: sudo modprobe fuse") from exc


def _check_privileges(path: Path, allow_other: bool) -> None:
    if os.geteuid() == 0:
        return
    if fusermount() is None:
        raise FuseError(f"mount {path}: there is no fusermount, which ordinary users need", FUSERMOUNT_HINT)
    if allow_other and not _users_may_allow_other():
        hint = "leave --allow-other away, or have root put the line user_allow_other into /etc/fuse.conf"
        raise FuseError(f"mount {path}: this system forbids --allow-other to ordinary users", hint)


def _users_may_allow_other() -> bool:
    try:
        lines = Path("/etc/fuse.conf").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def _check_directory(path: Path, resolved: Path) -> None:
    try:
        with os.scandir(resolved) as entries:
            occupied = next(entries, None) is not None
    except FileNotFoundError:
        raise FuseError(f"mount {path}: there is no such directory", f"make it: mkdir -p {path}") from None
    except NotADirectoryError:
        raise FuseError(f"mount {path}: it is not a directory", "choose an empty directory") from None
    except OSError as exc:
        raise FuseError(f"mount {path}: {exc.strerror}", "choose an empty directory of yours") from exc
    if occupied:
        raise FuseError(f"mount {path}: the directory is not empty", "mounting would hide what is in it")
    if os.geteuid() != 0 and not os.access(resolved, os.W_OK):
        raise FuseError(f"mount {path}: you may not write there", "fusermount wants a directory of yours")
