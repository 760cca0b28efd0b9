"""Answers the kernel's questions from an ``ArchiveVFS``: paths to nodes, handles to bytes, failures to errnos.

Holds no policy of what is fetched or kept, and imports no FUSE binding (``fuse_binding`` does). Every operation may be
called from many threads at once; none holds a lock while the VFS works.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from xnatfs import callers
from xnatfs.config import MountConfig
from xnatfs.errors import CorruptContent, FuseError, NotFound, StaleContent
from xnatfs.frontends.fuse_binding import AttributePacker, Library, load
from xnatfs.frontends.fuse_interest import Interest, Wanted
from xnatfs.frontends.fuse_session import Opened, Page, Session
from xnatfs.frontends.fuse_versions import KernelView, Version
from xnatfs.frontends.mountpoint import detach
from xnatfs.tree.vfs import PlainFiles, rows_of

if TYPE_CHECKING:
    from xnatfs.tree.vfs import ArchiveVFS, Handle, Node

log = logging.getLogger(__name__)

MAX_THREADS = 128
"""Requests answered at once on libfuse 3, whose own limit is 10. A thread may wait for the network, and while all do,
even a file in the cache cannot be read; the kernel adds up to 64 read-ahead requests to those of the readers. A waiting
thread costs about 30 KB."""

NEGATIVE_TIMEOUT_S = 60.0  # at most: how long the kernel may believe that a name is not there
READ_AHEAD_KIB = 1024  # the largest request of libfuse 3; 1.1 to 1.3 times the kernel's 128 KiB, measured
UNPROVEN = 5000
"""Entries behind the first reply of a directory that bring their attributes although nobody has looked at a file since
the last of them. ``cp -r``, which takes all names first, then needs no look-up a file; ``find`` in directories of many
thousand files has the kernel and libfuse remember 200 bytes for so many of them at most."""

DOTS = 2  # entries of a directory before its children: "." and ".."
PAGE = 1024  # entries handed to libfuse at once: more than it takes in one call, so that few are prepared in vain

STOP_GRACE_S = 2.0  # for calls under way to end by themselves once a signal has come
STOP_LIMIT_S = 15.0  # for them to end once the VFS is closed as well; then the process goes without them
NUDGE_S = 0.05

STOP_SIGNALS = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))

_SPEAKER = re.compile(r"(fuse|fusermount3?): |(?=Ignoring invalid max threads)")  # libfuse 3.14 always says the latter

XATTRS = ("user.xnat.id", "user.xnat.uri", "user.xnat.xsitype", "user.xnat.digest", "user.xnat.cached")


class _OpenFile(NamedTuple):
    handle: Handle
    size: int
    path: str
    version: Version


class _OpenDirectory:
    __slots__ = ("begun", "children", "has_files_only", "node", "path", "wanted")

    def __init__(self, path: str, node: Node, children: Sequence[Node]) -> None:
        self.path = path  # "" for the root
        self.node = node
        self.children = children
        self.has_files_only = isinstance(children, PlainFiles) or not any(node.is_dir for node in children)
        self.wanted = Wanted.ALL  # until the kernel asks for attributes
        self.begun = False  # its first page has been asked for


class Operations:
    """The file system as libfuse sees it: read-only, attributes and names from memory, bytes through handles.

    What the kernel keeps of a path while the file there changes is ``fuse_versions.KernelView``'s to know.
    """

    def __init__(self, vfs: ArchiveVFS, packer: AttributePacker) -> None:
        self._vfs = vfs
        self._pread_into = vfs.pread_into
        self._packer = packer
        self._pack = packer.pack
        self._numbers = itertools.count(1)
        self._files: dict[int, _OpenFile] = {}
        self._directories: dict[int, _OpenDirectory] = {}
        self._interest = Interest()
        self._unproven = 0  # see UNPROVEN; about right is enough
        self.kernel = KernelView()

    def getattr(self, path: str) -> bytes:
        node = self._vfs.lookup(path)
        if not node.is_dir:
            self._unproven = 0
            self.kernel.tell(path, node.size, node.mtime_ns)
            if self._interest.watched:
                self._interest.looked_at(path)
        return self._packed(node)

    def getattr_open(self, path: str, fh: int) -> bytes:
        """As ``getattr``, asked with an open file, which the kernel does before it reads past the end.

        Raises:
            StaleContent: another version has taken the place of the one that is open.
        """
        handle = self._files[fh].handle
        try:
            node = self._vfs.lookup(path)
        except NotFound:  # like a file that was removed: what is open reads on
            return self._packed(handle.node)
        self._vfs.ensure_current(handle)
        self.kernel.tell(path, node.size, node.mtime_ns)
        return self._packed(node)

    def _packed(self, node: Node) -> bytes:
        return self._pack(node.ino, node.is_dir, node.size, node.mtime_ns)

    # --- files --------------------------------------------------------------------------------------------------------

    def open(self, path: str) -> Opened:
        self._unproven = 0
        handle = self._vfs.open(path)
        node = handle.node
        if not self.kernel.knows(path, node.size, node.mtime_ns):
            self._vfs.release(handle)
            self.kernel.refused(path)
            raise StaleContent("the file has changed since its attributes were asked for")
        version = (node.entry.key, node.entry.version)
        fh = next(self._numbers)
        keep_cache, direct_io = self.kernel.enter(fh, path, version, node.size, handle.keep_cache)
        self._files[fh] = _OpenFile(handle, node.size, path, version)
        return Opened(fh, keep_cache, direct_io)

    def read_into(self, fh: int, offset: int, buffer: memoryview) -> int:
        file = self._files[fh]
        if fh in self.kernel.dropping:
            self.kernel.dropped(fh)
        count = self._pread_into(file.handle, offset, buffer)
        if count < len(buffer) and offset + count < file.size:
            # libfuse fills up a short answer with zeroes, and zeroes look like pixels.
            raise CorruptContent(f"{count} bytes came where {min(len(buffer), file.size - offset)} are")
        if count < len(buffer):
            # The kernel fills up the last page with zeroes, and shows them if it was told a larger size meanwhile.
            self._vfs.ensure_current(file.handle)
        return count

    def release(self, fh: int) -> None:
        file = self._files.pop(fh)
        self.kernel.leave(fh, file.path, file.version)
        self._vfs.release(file.handle)

    # --- directories --------------------------------------------------------------------------------------------------

    def opendir(self, path: str) -> int:
        """A handle on the directory as it is now: paging through it is not disturbed by a refreshed listing."""
        fh = next(self._numbers)
        self._directories[fh] = self._directory(path)
        return fh

    def _directory(self, path: str) -> _OpenDirectory:
        return _OpenDirectory(path.rstrip("/"), self._vfs.lookup(path), self._vfs.listdir(path))

    def page(self, fh: int, start: int, with_attributes: bool) -> Page | None:
        directory = self._directories[fh]
        if not start:
            if directory.begun:  # rewinddir: from then on it is the directory as it is now
                directory = self._directories[fh] = self._directory(directory.path or "/")
            directory.begun = True
        children = directory.children
        first = max(start - DOTS, 0)
        if start >= DOTS and first >= len(children):
            return None
        if with_attributes and directory.has_files_only:
            if not start:
                directory.wanted = self._interest.wanted(callers.current(), directory.path, len(children))
            elif self._unproven >= UNPROVEN:
                directory.wanted = Wanted.NAMES
        wanted = directory.wanted if with_attributes else Wanted.NAMES
        rows = rows_of(children, first, first + PAGE)
        names: Iterable[bytes] = map(str.encode, rows.names)
        attributes: Iterable[bytes | None]
        complete: Iterable[bool]
        if wanted is Wanted.NAMES and directory.has_files_only:
            attributes, complete = self._packer.pack_types(rows.inos), repeat(False)
        else:
            sizes, are_dirs = list(rows.sizes), list(rows.are_dirs)
            if with_attributes:
                self.kernel.tell_sizes(directory.path, rows.names, sizes)
            attributes = map(self._pack, rows.inos, are_dirs, sizes, rows.mtimes_ns)
            complete = [size >= 0 for size in sizes]  # or the kernel must ask for the size
            if wanted is Wanted.TRIAL and not first and complete:
                complete[0] = False
        if start < DOTS:
            names = itertools.chain((b".", b"..")[start:], names)
            attributes = itertools.chain((self._packed(directory.node), None)[start:], attributes)
            complete = itertools.chain((False, False)[start:], complete)
        return Page(names, attributes, complete)

    def taken(self, fh: int, start: int, stop: int) -> None:
        """The kernel has the attributes of these entries now."""
        directory = self._directories[fh]
        start, stop = max(start - DOTS, 0), stop - DOTS
        if directory.wanted is Wanted.NAMES or stop <= start:
            return
        if start:
            self._unproven += stop - start
        rows = rows_of(directory.children, start, stop)
        ours = zip(rows.names, rows.sizes, rows.mtimes_ns, rows.are_dirs, strict=True)
        if directory.wanted is Wanted.TRIAL and not start:
            next(ours)
        self.kernel.told(
            directory.path, ((name, size, when) for name, size, when, is_dir in ours if size >= 0 and not is_dir)
        )

    def releasedir(self, fh: int) -> None:
        del self._directories[fh]

    # --- the rest -----------------------------------------------------------------------------------------------------

    def statfs(self) -> Mapping[str, int]:
        """Sizes of 0: nobody knows how much an archive holds, and df leaves such file systems out of its table."""
        return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255}

    def getxattr(self, path: str, name: str) -> bytes:
        if not name.startswith("user."):
            # "No such name space" rather than "no such name": ls then stops asking for ACLs, file by file.
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        value = self._xattrs(path).get(name)
        if value is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return value

    def listxattr(self, path: str) -> Sequence[str]:
        return tuple(self._xattrs(path))

    def _xattrs(self, path: str) -> dict[str, bytes]:
        node = self._vfs.lookup(path)
        entry = node.entry
        cached = "" if node.is_dir else str(100 * self._vfs.cached_bytes(node) // node.size if node.size else 100)
        values = zip(XATTRS, (entry.id, entry.key, entry.xsi_type, entry.digest, cached), strict=True)
        return {name: value.encode() for name, value in values if value}


def mount(
    vfs: ArchiveVFS,
    mountpoint: Path,
    config: MountConfig,
    *,
    fsname: str,
    ready: Callable[[], None] | None = None,
) -> None:
    """Mount ``vfs`` and answer until it is unmounted, from outside or by SIGTERM, SIGHUP or SIGINT.

    Runs in the main thread of a process that has daemonised by now or never will. Does not close ``vfs``, except to
    end calls that still wait for the network some time after a signal.

    Args:
        mountpoint: An absolute path to a directory.
        fsname: What ``mount`` and ``df`` show as the device.
        ready: Called once, from another thread, when the mount answers.
    Raises:
        FuseError: no libfuse, or the mount was refused.
    """
    library = load(config.fuse)
    uid = os.getuid() if config.uid is None else config.uid
    gid = os.getgid() if config.gid is None else config.gid
    packer = library.attribute_packer(uid, gid, config.umask)
    operations = Operations(vfs, packer)
    session = Session(library, operations)
    operations.kernel.keep_attributes = session.keep_attributes
    # libfuse's own signal handlers wait for calls under way, however long; so a thread of ours takes the signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    messages = LibfuseMessages()
    arrival = _Arrival(session, mountpoint, messages, ready)
    threading.Thread(target=arrival.announce, name="mount-ready", daemon=True).start()
    threading.Thread(target=_stop_on_signal, args=(session, vfs, mountpoint), name="signals", daemon=True).start()
    try:
        session.run(str(mountpoint), _options(library, config, fsname))
    except RuntimeError as exc:
        raise FuseError(f"mount {mountpoint}: {messages.reason() or f'libfuse refused it ({exc})'}") from exc
    finally:
        messages.pass_on()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if arrival.failure:
        raise FuseError(f"mount {mountpoint}: {arrival.failure}")


class _Arrival:
    """Watches a mount come up, from a thread of its own: asks it for its top directory, then tells the caller."""

    def __init__(
        self, session: Session, mountpoint: Path, messages: LibfuseMessages, ready: Callable[[], None] | None
    ) -> None:
        self._session = session
        self._mountpoint = mountpoint
        self._messages = messages
        self._ready = ready
        self._outside = mountpoint.stat().st_dev
        self.failure = ""

    def announce(self) -> None:
        if not self._session.wait_until_mounted():
            return
        self._messages.pass_on()
        try:
            if self._mountpoint.stat().st_dev == self._outside:
                raise OSError(errno.ENODEV, "it was mounted, but does not show there")
            _widen_read_ahead(self._mountpoint)
            if self._ready is not None:
                self._ready()
        except OSError as exc:
            self.failure = str(exc.strerror)
            self._session.stop()


def _options(library: Library, config: MountConfig, fsname: str) -> dict[str, object]:
    options: dict[str, object] = {
        "ro": True,
        "fsname": fsname.replace("\\", "\\\\").replace(",", "\\,"),
        "subtype": "xnatfs",
        "default_permissions": True,
        "allow_other": config.allow_other,
        "use_ino": True,
        "entry_timeout": config.attr_timeout_s,
        "attr_timeout": config.attr_timeout_s,
        "negative_timeout": min(config.attr_timeout_s, NEGATIVE_TIMEOUT_S),
    }
    if library.version >= (3, 12):  # the first that has a limit
        options["max_threads"] = MAX_THREADS
    return options


def _widen_read_ahead(mountpoint: Path) -> None:
    """Let the kernel read ahead in larger steps: root only, and a mount without it is merely slower."""
    device = mountpoint.stat().st_dev
    with suppress(OSError):
        knob = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        knob.write_text(str(READ_AHEAD_KIB), encoding="ascii")


def _stop_on_signal(session: Session, vfs: ArchiveVFS, mountpoint: Path) -> None:
    """Wait for a signal, then end the session: gently, by closing the VFS under calls that hang, at last by leaving."""
    number = signal.sigwait(STOP_SIGNALS)
    log.info("signal %d: unmounting %s", number, mountpoint)
    began_s = time.monotonic()
    closing = False
    while not session.wait_until_finished(NUDGE_S):
        session.stop()
        waited_s = time.monotonic() - began_s
        if waited_s > STOP_GRACE_S and not closing:
            closing = True
            threading.Thread(target=vfs.close, name="closing", daemon=True).start()
        if waited_s > STOP_LIMIT_S:
            log.error("calls under way do not end: leaving %s without them", mountpoint)
            detach(mountpoint)
            os._exit(1)


class LibfuseMessages:
    """What libfuse and fusermount write on file descriptor 2 while mounting: the only place where they say why."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept = os.memfd_create("libfuse messages", os.MFD_CLOEXEC)
        self._stderr = os.dup(2)  # guarded by _lock; -1 once it is back in its place
        os.dup2(self._kept, 2)

    def reason(self) -> str:
        """The last thing libfuse said, without its prefix, or ""."""
        said = [line for line in self._lines() if _SPEAKER.match(line)]
        return _SPEAKER.sub("", said[-1]) if said else ""

    def pass_on(self) -> None:
        """Put file descriptor 2 back, and write to it what others than libfuse wrote meanwhile."""
        with self._lock:
            if self._stderr < 0:
                return
            os.dup2(self._stderr, 2)
            os.close(self._stderr)
            self._stderr = -1
            others = [line for line in self._lines() if not _SPEAKER.match(line)]
            os.close(self._kept)
        with suppress(OSError):
            os.write(2, "".join(f"{line}\n" for line in others).encode(errors="surrogateescape"))

    def _lines(self) -> list[str]:
        size = os.fstat(self._kept).st_size
        return os.pread(self._kept, size, 0).decode(errors="surrogateescape").splitlines()
