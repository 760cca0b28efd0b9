"""Moves values between libfuse's callbacks and ``fuse.Operations``. Knows no archive and no tree.

One ``Session`` class serves both libraries. libfuse calls it from threads of its own, as many at once as there are
requests; it adds no lock to them.

What it does differently from the bindings' own ``FUSE`` class, and why (each measured with both):

- Every exception becomes an errno, EIO where it carries none. fusepy 3.0.1 replies to an ``OSError`` without errno
  with a short read, and the kernel takes that for the end of the file.
- Python's thread state is kept for each libfuse thread; ctypes makes and destroys one in every callback otherwise,
  which costs an mmap, a munmap and two thirds of a getattr.
- Reads go straight into libfuse's buffer; attributes are copied in one piece; on libfuse 3 a directory's entries
  bring their attributes along (readdirplus), which saves one lookup a file.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

from xnatfs import callers
from xnatfs.errors import ArchiveError
from xnatfs.frontends.fuse_binding import FILLERS, ConnInfo2, Library

log = logging.getLogger(__name__)

MAX_BACKGROUND = 64
"""Asynchronous (read-ahead) requests that the kernel may have under way. Its own limit of 12 leaves parallel readers of
a server 20 ms away at a fifth of the speed (41 against 192 MB/s, 8 readers)."""

MAX_PINS = 4096
"""Threads whose Python state is kept for good, at about 5 KB. libfuse 3 does not end its threads; libfuse 2 ends those
beyond ten idle ones, so the number must have an end: 20 MB, after which new threads go the slow way."""

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
FILL_FLAGS = (0, 2)  # libfuse 3, enum fuse_fill_dir_flags: 2 when the attributes passed are complete
READDIR_PLUS = 1  # libfuse 3, enum fuse_readdir_flags: the kernel takes attributes with this reply
READDIR_PLUS_AUTO = 1 << 14  # libfuse 3, fuse_common.h: the kernel takes them with a directory's first reply only
BUFFER_WRITABLE = 0x200  # CPython, PyBUF_WRITE

WRITES = (
    *("mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link", "chmod", "chown", "truncate", "ftruncate"),
    *("utimens", "create", "write", "fallocate", "setxattr", "removexattr"),
)
"""Operations that change something. On a read-only mount the kernel refuses them before they get here."""

READS = ("getattr", "open", "read", "release", "opendir", "readdir", "releasedir", "statfs", "getxattr", "listxattr")
"""The other operations that are answered. The kernel stops asking for what is not registered (flush, access)."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The reply to open. ``fh`` names the handle in later calls."""

    fh: int
    keep_cache: bool
    direct_io: bool


class Page(NamedTuple):
    """Entries of a directory, field by field, each to be gone through once; as many as there are names."""

    names: Iterable[bytes]
    attributes: Iterable[bytes | None]
    are_complete: Iterable[bool]  # or only inode and type are to be passed on


class Answers(Protocol):
    """What a session asks of ``fuse.Operations``. Paths are absolute; attributes are bytes of ``AttributePacker``."""

    def getattr(self, path: str) -> bytes: ...
    def getattr_open(self, path: str, fh: int) -> bytes: ...
    def open(self, path: str) -> Opened: ...
    def read_into(self, fh: int, offset: int, buffer: memoryview) -> int: ...
    def release(self, fh: int) -> None: ...
    def opendir(self, path: str) -> int: ...

    def page(self, fh: int, start: int, with_attributes: bool) -> Page | None:
        """Some entries of a directory from entry ``start`` on; None when there is none."""
        ...

    def taken(self, fh: int, start: int, stop: int) -> None:
        """Entries [start, stop) of a page with attributes were sent."""
        ...

    def releasedir(self, fh: int) -> None: ...
    def statfs(self) -> Mapping[str, int]: ...
    def getxattr(self, path: str, name: str) -> bytes: ...
    def listxattr(self, path: str) -> Sequence[str]: ...


class Session:
    """One mount, from ``run`` until it is unmounted. ``run`` belongs to the main thread, the rest to any other."""

    def __init__(self, library: Library, answers: Answers) -> None:
        self._library = library
        self._fuse_class = _fuse_class(library, answers, self._on_init, self._on_destroy)
        self._lock = threading.Lock()
        self._config: Any = None  # guarded by _lock: libfuse 3's own struct fuse_config, while it is there
        self._attr_timeout_s = 0.0  # guarded by _lock: what stood in it
        self._handle: ctypes.c_void_p | None = None  # guarded by _lock: struct fuse *, while there is one
        self._settled = threading.Event()
        self._finished = threading.Event()

    def run(self, mountpoint: str, options: Mapping[str, object]) -> None:
        """Mount and answer until unmounted.

        Raises:
            RuntimeError: libfuse refused; it has said why on the file descriptor 2.
        """
        registered = dict.fromkeys(("destroy", *READS, *WRITES), True)
        operations = SimpleNamespace(use_ns=True, init=lambda _path: None, **registered)
        signal.signal(signal.SIGUSR1, _wake)  # for good: a late nudge must find it
        try:
            self._fuse_class(operations, mountpoint, foreground=True, **options)
        finally:
            self._finished.set()
            self._settled.set()

    def wait_until_mounted(self) -> bool:
        """Wait until the kernel talks to us; False when the mount was refused or is over already."""
        self._settled.wait()
        return not self._finished.is_set()

    def wait_until_finished(self, timeout_s: float) -> bool:
        return self._finished.wait(timeout_s)

    def stop(self) -> None:
        """Make ``run`` unmount and return once the calls under way are answered. Returns at once; may be repeated."""
        with self._lock:
            if self._handle is not None:
                self._library.exit(self._handle)
        if not self._finished.is_set():
            # libfuse's main thread sits in sem_wait and looks at nothing until a signal handler interrupts it.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def keep_attributes(self, kept: bool) -> None:
        """Whether the kernel may keep the attributes that it is told from now on. On libfuse 2 it always may."""
        with self._lock:
            if self._config is not None:
                self._config.attr_timeout = self._attr_timeout_s if kept else 0.0

    def _on_init(self, config: Any) -> None:
        with self._lock:
            self._handle = self._library.current_handle()
            if config is not None:
                self._config, self._attr_timeout_s = config, config.attr_timeout
        self._settled.set()

    def _on_destroy(self) -> None:
        with self._lock:
            self._handle = self._config = None


def _wake(_number: int, _frame: object) -> None:
    """Nothing: that a handler runs at all ends ``sem_wait``."""


_memory = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)(
    ("PyMemoryView_FromMemory", ctypes.pythonapi)
)

_thread = threading.local()
_pins = itertools.count()
_ensure_gil_state = ctypes.PYFUNCTYPE(ctypes.c_int)(("PyGILState_Ensure", ctypes.pythonapi))


def _pin_thread(library: Library) -> None:
    """Keep this thread's Python state: one Ensure without its Release."""
    _thread.pinned = True
    callers.works_for(library.caller)
    if next(_pins) < MAX_PINS:
        _ensure_gil_state()


def _answer(library: Library, function: Callable[..., int | None], *args: Any) -> int:
    """Call one operation and make its outcome an answer: a count, 0, or a negative errno. Lets nothing through."""
    try:
        _thread.pinned  # noqa: B018 (one look-up is all that a pinned thread pays)
    except AttributeError:
        _pin_thread(library)
    try:
        return function(*args) or 0
    except OSError as exc:
        return -_errno_of(function.__name__, exc)
    except UnicodeDecodeError:
        return -errno.ENOENT  # names here are UTF-8, so this one is not
    except BaseException:  # one that reached C would be lost, and the caller told "done"
        log.exception("%s failed, answered with EIO", function.__name__)
        return -errno.EIO


def _errno_of(operation: str, exc: OSError) -> int:
    if not isinstance(exc.errno, int) or exc.errno <= 0:
        log.error("%s failed, answered with EIO", operation, exc_info=exc)
        return errno.EIO
    degraded = isinstance(exc, ArchiveError) and exc.errno in (errno.EIO, errno.ETIMEDOUT)
    log.log(logging.WARNING if degraded else logging.DEBUG, "%s: %s", operation, exc)
    return exc.errno


def _fuse_class(
    library: Library, answers: Answers, on_init: Callable[[Any], None], on_destroy: Callable[[], None]
) -> Any:
    """A subclass of the binding's ``FUSE`` whose callbacks ask ``answers``."""
    base: Any = library.module.FUSE
    stat_size = ctypes.sizeof(library.module.c_stat)
    filler_type = FILLERS[library.major]
    memmove = ctypes.memmove
    fillers: dict[int, Any] = {}  # libfuse has two functions of the kind; ctypes.cast takes 5 us

    def filler_at(pointer: Any) -> Any:
        address = ctypes.c_void_p.from_buffer(pointer).value or 0
        fill = fillers.get(address)
        if fill is None:
            fill = fillers[address] = filler_type(address)
        return fill

    read_into = answers.read_into

    def getattr_(_self: Any, path: bytes, buf: Any, fip: Any = None) -> None:
        if fip:
            memmove(buf, answers.getattr_open(path.decode(), fip.contents.fh), stat_size)
        else:
            memmove(buf, answers.getattr(path.decode()), stat_size)

    def open_(_self: Any, path: bytes, fip: Any) -> int:
        info = fip.contents
        if info.flags & WRITE_FLAGS:
            return -errno.EROFS
        opened = answers.open(path.decode())
        info.fh, info.keep_cache, info.direct_io = opened.fh, opened.keep_cache, opened.direct_io
        return 0

    def read(_self: Any, _path: bytes, buf: Any, size: int, offset: int, fip: Any) -> int:
        return read_into(fip.contents.fh, offset, _memory(buf, size, BUFFER_WRITABLE))

    def release(_self: Any, _path: bytes, fip: Any) -> None:
        answers.release(fip.contents.fh)

    def opendir(_self: Any, path: bytes, fip: Any) -> None:
        fip.contents.fh = answers.opendir(path.decode())

    # The entries of a page are passed on without a step of the interpreter between them: 0.6 us each in place of 3.

    def readdir_2(_self: Any, _path: bytes, buf: Any, filler: Any, _offset: int, fip: Any) -> None:
        # Offsets of 0: libfuse keeps the whole directory and pages through it by itself.
        fill, fh, start = filler_at(filler), fip.contents.fh, 0
        while (page := answers.page(fh, start, False)) is not None:
            names = list(page.names)
            if any(map(fill, repeat(buf), names, page.attributes, repeat(0))):
                break
            start += len(names)

    def readdir_3(_self: Any, _path: bytes, buf: Any, filler: Any, offset: int, fip: Any, flags: int) -> None:
        # Offsets from 1: libfuse drops the attributes of entries that come without one.
        fh, plus = fip.contents.fh, bool(flags & READDIR_PLUS)
        page = answers.page(fh, offset, plus)
        if page is None:
            return
        places = itertools.count(offset + 1)
        how = map(FILL_FLAGS.__getitem__, page.are_complete) if plus else repeat(0)
        full = any(map(filler_at(filler), repeat(buf), page.names, page.attributes, places, how))
        if plus:
            answers.taken(fh, offset, next(places) - 1 - full)

    def releasedir(_self: Any, _path: bytes, fip: Any) -> None:
        answers.releasedir(fip.contents.fh)

    def statfs(_self: Any, _path: bytes, buf: Any) -> None:
        for name, value in answers.statfs().items():
            setattr(buf.contents, name, value)

    def getxattr(_self: Any, path: bytes, name: bytes, buf: Any, size: int) -> int:
        return _copy_out(answers.getxattr(path.decode(), name.decode()), buf, size)

    def listxattr(_self: Any, path: bytes, buf: Any, size: int) -> int:
        names = answers.listxattr(path.decode())
        return _copy_out(b"".join(name.encode() + b"\0" for name in names), buf, size)

    def read_only(_self: Any, *_args: Any) -> int:
        return -errno.EROFS

    def init_2(_self: Any, conn: int) -> None:
        _widen(ConnInfo2.from_address(conn))
        on_init(None)

    def init_3(self: Any, conn: Any, config: Any) -> None:
        base.init_fuse_3(self, conn, config)  # mfusepy sets use_ino in config here
        conn.contents.want &= ~READDIR_PLUS_AUTO  # ``page`` knows better
        _widen(conn.contents)
        on_init(config.contents)  # struct fuse's own, which libfuse looks at for each reply

    def destroy(_self: Any, _private_data: Any) -> None:
        on_destroy()

    methods: dict[str, Callable[..., Any]] = {
        "getattr": getattr_,
        "fgetattr": getattr_,
        "open": open_,
        "read": read,
        "release": release,
        "opendir": opendir,
        "readdir": readdir_3 if library.major == 3 else readdir_2,
        "releasedir": releasedir,
        "statfs": statfs,
        "getxattr": getxattr,
        "listxattr": listxattr,
        "init": init_3 if library.major == 3 else init_2,
        "destroy": destroy,
        **dict.fromkeys(WRITES, read_only),
    }
    # mfusepy calls an operation whose arguments differ between the libraries by a name with this suffix.
    suffix = f"_fuse_{library.major}"
    named = {name + suffix if hasattr(base, name + suffix) else name: function for name, function in methods.items()}
    return type("Fuse", (base,), {**named, "_wrapper": staticmethod(partial(_answer, library))})


def _widen(conn: Any) -> None:
    conn.max_background = MAX_BACKGROUND
    conn.congestion_threshold = MAX_BACKGROUND * 3 // 4  # the kernel's own proportion


def _copy_out(value: bytes, buf: Any, size: int) -> int:
    """Answer for extended attributes: a size of 0 asks how much room is needed."""
    if size == 0:
        return len(value)
    if len(value) > size:
        return -errno.ERANGE
    ctypes.memmove(buf, value, len(value))
    return len(value)
