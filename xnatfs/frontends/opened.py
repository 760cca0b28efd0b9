"""Trees that are open in this process, one for each (SOURCE, options), shared by all who ask for it.

For front ends whose users open file systems freely and never close them. A tree is closed when nobody refers to it any
more, and at the end of the program. Not for the mount, which has one tree and knows when it ends. Safe from any thread.

After a fork the child opens its own: threads, sockets and locks of the parent's are of no use to it.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections.abc import Callable

from xnatfs.tree.vfs import ArchiveVFS

Key = tuple[object, ...]

END_LIMIT_S = 10.0
"""Seconds that the end of a program waits for a tree to be closed: last blocks written, the session ended. A guess."""

_lock = threading.Lock()
_trees: weakref.WeakValueDictionary[Key, OpenedTree] = weakref.WeakValueDictionary()  # guarded by _lock
_closers: set[_Closer] = set()  # guarded by _lock


class OpenedTree:
    """A tree, open for as long as somebody holds this object."""

    __slots__ = ("__weakref__", "pid", "vfs")

    def __init__(self, vfs: ArchiveVFS) -> None:
        self.vfs = vfs
        self.pid = os.getpid()
        closer = _Closer(vfs)
        weakref.finalize(self, closer.wake).atexit = False
        closer.start()


class _Closer(threading.Thread):
    """Closes one tree when told to.

    In a thread of its own: the garbage collector runs in any thread, in one that holds a lock of the tree as well, and
    closing takes that lock. Waking it is all that the collector does, and ``SimpleQueue.put`` is made for that.
    """

    def __init__(self, vfs: ArchiveVFS) -> None:
        super().__init__(name="xnatfs-close", daemon=True)
        self._vfs = vfs
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        with _lock:
            _closers.add(self)

    def wake(self) -> None:
        self._woken.put(None)

    def run(self) -> None:
        self._woken.get()
        try:
            self._vfs.close()
        finally:
            with _lock:
                _closers.discard(self)


def opened(key: Key, build: Callable[[], ArchiveVFS]) -> OpenedTree:
    """The tree of ``key``, built when this process has none open. ``build`` runs without a lock."""
    with _lock:
        found = _trees.get(key)
    if found is not None:
        return found
    built = OpenedTree(build())
    with _lock:
        return _trees.setdefault(key, built)  # one built by another thread meanwhile wins


@atexit.register
def _close_all() -> None:
    with _lock:
        closers = list(_closers)
    for closer in closers:
        closer.wake()
    for closer in closers:
        closer.join(END_LIMIT_S)


def _forget_the_parents() -> None:
    global _lock, _trees, _closers
    _lock = threading.Lock()
    _trees = weakref.WeakValueDictionary()
    _closers = set()


os.register_at_fork(after_in_child=_forget_the_parents)
