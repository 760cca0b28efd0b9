"""Whether a program that reads directories looks at the files in them, too, or is after their names alone.

The kernel takes the attributes of a directory's entries along with their names. ``ls -l``, ``cp -r`` and ``du`` look
at every file right away, so that saves them a question each. ``find -type f``, shell patterns and ``os.walk`` never do,
and for these it costs five times what names cost: in the packing, in libfuse and in the kernel, which both make an
inode of each file, and in memory until the kernel forgets them.

What a program does with attributes that it has cannot be seen from here. So one file of a directory comes without: who
looks at files asks for that one. A program that has not asked in two directories gets names from then on, and
attributes again as soon as it asks for those of a file; one that has asked gets them for the next few directories
without another trial. Advice only: a wrong guess costs time, never a wrong answer.

Knows nothing of FUSE or of what is in a directory. Safe from any thread; the lock is held for dictionary operations.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum

TRIALS = 2  # directories in which a program may leave the file without attributes alone; one may be passed over
TRUSTED = 8  # directories for which a program that has looked at a file is trusted to look at more
PAUSE_S = 1.0  # a program that reads no directory for this long may do something else next; a guess
FEW = 16  # files of a directory for which this is no matter: as many cost less than the one question more
REMEMBERED = 256  # programs, and directories; then the old ones go


class Wanted(Enum):
    """What comes with the names of files."""

    ALL = "the attributes of all files"
    TRIAL = "the attributes of all files but the first"
    NAMES = "no attributes"


class _Program:
    __slots__ = ("seen_s", "trials", "trusted")

    def __init__(self) -> None:
        self.seen_s = 0.0
        self.trials = 0  # directories whose files it has not looked at, in a row
        self.trusted = 0  # directories still to come without a trial


class Interest:
    """What the programs that read directories do with the files in them.

    Attributes:
        watched: Whether ``looked_at`` is worth a call.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.watched = False
        self._clock = clock
        self._lock = threading.Lock()
        self._programs: OrderedDict[int, _Program] = OrderedDict()  # guarded by _lock; by thread ID, latest last
        self._directories: OrderedDict[str, _Program] = OrderedDict()  # guarded by _lock; by path, latest last

    def wanted(self, caller: int, path: str, files: int) -> Wanted:
        """What a program should get that reads the directory at ``path``; 0 is nobody that is known."""
        if files < FEW or not caller:
            return Wanted.ALL
        now = self._clock()
        with self._lock:
            program = self._programs.pop(caller, None)
            if program is None or now - program.seen_s > PAUSE_S:
                program = _Program()
            self._programs[caller] = program
            program.seen_s = now
            if program.trusted:
                program.trusted -= 1
                return Wanted.ALL
            self._directories.pop(path, None)
            self._directories[path] = program
            for table in (self._programs, self._directories):
                if len(table) > REMEMBERED:
                    table.popitem(last=False)
            self.watched = True
            if program.trials >= TRIALS:
                return Wanted.NAMES
            program.trials += 1
            return Wanted.TRIAL

    def looked_at(self, path: str) -> None:
        """The attributes of the file at ``path`` were asked for."""
        above = path.rpartition("/")[0]
        if above not in self._directories:
            return
        with self._lock:
            program = self._directories.pop(above, None)
            if program is not None:
                program.trials = 0
                program.trusted = TRUSTED
