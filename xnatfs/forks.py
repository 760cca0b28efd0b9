"""Keeps a fork from falling into an import. Standard library only. Safe from any thread.

A module that one thread is importing while another forks stays locked in the child, where nobody ends the import: the
first use there would wait for ever. What is imported late, in threads of programs that fork, is imported ``unforked``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()  # held by who imports, and by who forks: the child's only thread lets it go as well

os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@contextmanager
def unforked() -> Iterator[None]:
    """No other thread forks meanwhile. For imports alone: whoever wants to fork waits."""
    with _lock:
        yield
