"""Finds libfuse and describes its structures: the only importer of fusepy and mfusepy.

mfusepy on libfuse 3, fusepy on libfuse 2. Answers no request (``fuse_session`` does) and keeps no state. Any thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from xnatfs.errors import FuseError

SONAMES = {3: ("libfuse3.so.4", "libfuse3.so.3"), 2: ("libfuse.so.2",)}
MODULES = {3: "mfusepy", 2: "fuse"}
INSTALL_HINT = "install libfuse; on Debian or Ubuntu: sudo apt install fuse3 libfuse3-3"


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded libfuse and the module that describes its structures."""

    module: Any  # mfusepy or fusepy: neither is typed
    version: tuple[int, int]

    @property
    def major(self) -> int:
        return self.version[0]

    def current_handle(self) -> ctypes.c_void_p:
        """``struct fuse *`` of the mount that the calling thread, one of libfuse's own, works for."""
        return ctypes.c_void_p(self.module._libfuse.fuse_get_context().contents.fuse)

    def caller(self) -> int:
        """The system's ID of the thread whose request the calling thread, one of libfuse's own, answers; 0: unknown."""
        return int(self.module._libfuse.fuse_get_context().contents.pid)

    def exit(self, handle: ctypes.c_void_p) -> None:
        """Tell a mount's main loop to end once it looks; ``handle`` must be alive."""
        self.module._libfuse.fuse_exit(handle)

    def attribute_packer(self, uid: int, gid: int, umask: int) -> AttributePacker:
        return AttributePacker(self.module.c_stat, uid, gid, umask)


def load(choice: str) -> Library:
    """Load libfuse 3 or 2, or for "auto" the newest there is. Starts no thread.

    Raises:
        FuseError: the library is not installed, or the Python module cannot be imported.
    """
    majors = {"auto": (3, 2), "3": (3,), "2": (2,)}[choice]
    for major in majors:
        soname = _loadable(SONAMES[major])
        if soname is not None:
            return _import(major, soname)
    wanted = "libfuse" if choice == "auto" else f"libfuse {choice}"
    hint = "install it, or leave --fuse away; on Debian or Ubuntu: sudo apt install libfuse2 fuse3"
    raise FuseError(f"mount: {wanted} is not installed", hint if choice == "2" else INSTALL_HINT)


def _loadable(sonames: Sequence[str]) -> str | None:
    for soname in sonames:
        with contextlib.suppress(OSError):
            ctypes.CDLL(soname)
            return soname
    return None


def _import(major: int, soname: str) -> Library:
    # Both modules look for their library at import, by running ldconfig and gcc; the variable spares them that, and
    # keeps mfusepy from preferring libfuse 2 where both are installed.
    name, before = "FUSE_LIBRARY_PATH", os.environ.get("FUSE_LIBRARY_PATH")
    os.environ[name] = soname
    try:
        module = importlib.import_module(MODULES[major])
        number = int(module._libfuse.fuse_version())
    except (ImportError, OSError, AttributeError) as exc:
        raise FuseError(f"mount: the Python module {MODULES[major]} cannot be used: {exc}") from exc
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    return Library(module, divmod(number, 10 if number < 100 else 100))


TIMES_KEPT = 1000


class AttributePacker:
    """Makes ``struct stat`` as bytes: what never changes is laid out once, the rest is packed in (0.4 us a file)."""

    def __init__(self, layout: Any, uid: int, gid: int, umask: int) -> None:
        """``layout`` is the binding's ``c_stat``, which knows this machine's field order."""
        if getattr(layout, "st_ino", None) is None or layout.st_ino.size != 8:
            raise FuseError("mount: struct stat of this machine is not known", "xnatfs mounts on 64-bit Linux")
        self.size = ctypes.sizeof(layout)
        # Writable by the mode alone: the mount is read-only anyway, and `cp -r` makes copies one can edit and remove.
        # One link, also for directories: "unknown", or find would take two for "no directory in here".
        file = _template(layout, stat.S_IFREG | 0o666 & ~umask, uid, gid)
        directory = _template(layout, stat.S_IFDIR | 0o777 & ~umask, uid, gid)
        self._fields, self._times, gaps = _layout(layout, self.size)
        self._file = [file[start:stop] for start, stop in gaps]
        self._directory = [directory[start:stop] for start, stop in gaps]
        self._packed_times: dict[tuple[bool, int], bytes] = {}  # files that are listed together share their time
        plain, at = self.pack(0, False, 0, 0), layout.st_ino.offset
        self._before_ino, self._after_ino = plain[:at], plain[at + 8 :]
        self._bare_file = struct.Struct(f"={at}sQ{self.size - at - 8}s").pack

    def pack(self, ino: int, is_dir: bool, size: int, mtime_ns: int) -> bytes:
        a, b, c, *_ = self._directory if is_dir else self._file
        times = self._packed_times.get((is_dir, mtime_ns)) or self._pack_times(is_dir, mtime_ns)
        return self._fields(a, ino, b, size, c, (size + 511) // 512, times)

    def _pack_times(self, is_dir: bool, mtime_ns: int) -> bytes:
        *_, d, e, f, g = self._directory if is_dir else self._file
        s, ns = divmod(mtime_ns, 1_000_000_000)
        if len(self._packed_times) >= TIMES_KEPT:
            self._packed_times.clear()
        times = self._packed_times[is_dir, mtime_ns] = self._times(d, s, ns, e, s, ns, f, s, ns, g)
        return times

    def pack_types(self, inos: Iterable[int]) -> Iterator[bytes]:
        """Of files: type and inode alone, which is what a directory's entry has without its attributes."""
        return map(self._bare_file, repeat(self._before_ino), inos, repeat(self._after_ino))


def _layout(layout: Any, size: int) -> tuple[Callable[..., bytes], Callable[..., bytes], list[tuple[int, int]]]:
    """What packs a whole ``struct stat`` in one call, what packs the part of it from its first time on, and where the
    bytes that stay the same lie: before, between and after the fields."""
    fields = [("st_ino", "Q", 8), ("st_size", "q", 8), ("st_blocks", "q", 8)]
    fields += [(f"st_{letter}timespec", "qq", 16) for letter in "amc"]
    forms, at = [], 0
    gaps: list[tuple[int, int]] = []
    for name, code, width in fields:
        start = getattr(layout, name).offset
        if start < at:
            raise FuseError("mount: struct stat of this machine is not known", "xnatfs mounts on 64-bit Linux")
        gaps.append((at, start))
        forms.append(f"{start - at}s{code}")
        at = start + width
    gaps.append((at, size))
    before = struct.calcsize("=" + "".join(forms[:3]))
    whole = struct.Struct(f"={''.join(forms[:3])}{size - before}s")
    return whole.pack, struct.Struct(f"={''.join(forms[3:])}{size - at}s").pack, gaps


def _template(layout: Any, mode: int, uid: int, gid: int) -> bytes:
    # 4 KiB: what stdio and Python read at once when a program asks for a header.
    return bytes(layout(st_mode=mode, st_nlink=1, st_uid=uid, st_gid=gid, st_blksize=4096))


class ConnInfo2(ctypes.Structure):
    """``struct fuse_conn_info`` of libfuse 2.9, which fusepy does not describe."""

    _fields_ = [
        *((name, ctypes.c_uint) for name in ("proto_major", "proto_minor", "async_read", "max_write")),
        *((name, ctypes.c_uint) for name in ("max_readahead", "capable", "want")),
        *((name, ctypes.c_uint) for name in ("max_background", "congestion_threshold")),
        ("reserved", ctypes.c_uint * 23),
    ]


# fuse_fill_dir_t, with the attributes as plain memory: a bytes object is passed without a copy. The interpreter's lock
# is kept: this only copies memory, and a thread that let go for each name would wait to have it back a thousand times.
FILLERS = {
    2: ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64),
    3: ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int),
}
