"""What the kernel holds of a path while the file there changes: one size, one set of pages, whatever version is open.

Knows no VFS and no libfuse: paths, versions and sizes come in, and what an answer to the kernel must say goes out. Safe
from any thread; the lock is held for dictionary operations.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

TOLD_LIMIT = 200_000  # files whose attributes in the kernel are remembered, at about 150 bytes each

DROPPING_S = 1.0
"""For so long at most the kernel is taken to be at an open that drops a path's old pages; a read shows that it is done.
A guess, for handles that never read because others have filled the pages: it takes microseconds."""

Version = tuple[str, str]


class KernelView:
    """Keeps versions of a file apart (contract 3.2).

    libfuse names an inode by its path, so the kernel keeps one size and one set of cached pages a path, whatever
    version of the file a handle is on. Three rules:

    - ``open`` answers ESTALE when the kernel was last told another size or date than the file has now (``knows``). The
      kernel then asks for the attributes again and repeats the open once, unseen by the program.
    - A version opened while another one is still open gets ``direct_io``: it neither fills nor reads the pages that
      belong to the other.
    - The kernel ends a reading at the size that it was told last, without a question while that is fresh: a file that
      became shorter under its reader would end early. So while a handle is longer than what the kernel is told,
      ``keep_attributes`` makes it ask each time, and the question that comes with such a handle is answered ESTALE.

    Attributes:
        keep_attributes: Told False when the kernel must not keep attributes from now on, True when it may again.
        dropping: Handle -> its path and until when; looked at without the lock, to see that there is nothing to do.
    """

    def __init__(self) -> None:
        self.keep_attributes: Callable[[bool], None] = lambda _kept: None
        self.dropping: dict[int, tuple[str, float]] = {}  # changed under _lock; see DROPPING_S
        self._told: dict[int, int] = {}  # hash of a path -> hash of the attributes that the kernel holds for it
        self._lock = threading.Lock()
        self._versions: dict[str, dict[Version, int]] = {}  # guarded by _lock: open handles by path and version
        self._mixed: set[str] = set()  # guarded by _lock: paths whose cached pages may be of an older version
        self._longest: dict[str, int] = {}  # changed under _lock: size of the longest version open at a path
        self._shorter: set[str] = set()  # guarded by _lock: paths of which the kernel was told less than that

    # --- attributes ---------------------------------------------------------------------------------------------------

    def tell(self, path: str, size: int, mtime_ns: int) -> None:
        """The kernel is being told this of a file."""
        if size < self._longest.get(path, 0):
            self._ask_each_time(path)
        if len(self._told) >= TOLD_LIMIT:
            self._told.clear()  # costs one more look-up at each file's next open
        self._told[hash(path)] = hash((size, mtime_ns))

    def tell_sizes(self, above: str, names: Iterable[str], sizes: Iterable[int]) -> None:
        """The kernel is about to be told sizes of a directory's files, some of which may be open."""
        if not self._longest:
            return
        prefix = f"{above}/"
        if any(path.startswith(prefix) for path in tuple(self._longest)):
            for name, size in zip(names, sizes, strict=True):
                if 0 <= size < self._longest.get(prefix + name, 0):
                    self._ask_each_time(prefix + name)

    def told(self, above: str, files: Iterable[tuple[str, int, int]]) -> None:
        """The kernel has the sizes and dates of these files of a directory now."""
        prefix = f"{above}/"
        for name, size, mtime_ns in files:
            self._told[hash(prefix + name)] = hash((size, mtime_ns))
        if len(self._told) >= TOLD_LIMIT:
            self._told.clear()

    def knows(self, path: str, size: int, mtime_ns: int) -> bool:
        """Whether this is what the kernel was told last."""
        return self._told.get(hash(path)) == hash((size, mtime_ns))

    def _ask_each_time(self, path: str) -> None:
        with self._lock:
            if path in self._longest:
                self._shorter.add(path)
                self.keep_attributes(False)

    # --- pages --------------------------------------------------------------------------------------------------------

    def refused(self, path: str) -> None:
        """An open is answered ESTALE: the VFS takes the new version for opened, the kernel still has the old pages."""
        with self._lock:
            self._mixed.add(path)

    def enter(self, fh: int, path: str, version: Version, size: int, unchanged: bool) -> tuple[bool, bool]:
        """Count a handle in; whether the path's cached pages may stay, and whether this handle must pass them by."""
        with self._lock:
            self._longest[path] = max(size, self._longest.get(path, 0))
            versions = self._versions.setdefault(path, {})
            others = any(other != version for other in versions)
            versions[version] = versions.get(version, 0) + 1
            if others:
                self._mixed.add(path)
                return True, True
            # Who opens the new version second may have its answer first, and would be shown the pages of the old one.
            keep = unchanged and path not in self._mixed and not self._is_dropping(path)
            self._mixed.discard(path)
            if not keep:
                self.dropping[fh] = path, time.monotonic() + DROPPING_S
            return keep, False

    def _is_dropping(self, path: str) -> bool:
        """Under _lock."""
        now = time.monotonic()
        return any(each == path and now < until for each, until in self.dropping.values())

    def dropped(self, fh: int) -> None:
        """The kernel has our answer to this open, and so has dropped the path's old pages."""
        with self._lock:
            self.dropping.pop(fh, None)

    def leave(self, fh: int, path: str, version: Version) -> None:
        """Count a handle out."""
        with self._lock:
            self.dropping.pop(fh, None)
            versions = self._versions[path]
            versions[version] -= 1
            if not versions[version]:
                del versions[version]
            if not versions:
                del self._versions[path]
                del self._longest[path]
                if path in self._shorter:
                    self._shorter.discard(path)
                    self.keep_attributes(not self._shorter)
