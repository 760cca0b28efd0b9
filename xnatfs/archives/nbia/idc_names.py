"""Gives the images of an IDC folder the names that NBIA has for them, from the beginning of each.

A series costs one small request an image, once: the names are kept. Which requests; the rule itself is
``image_names.py``. Safe to call from any thread.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from xnatfs.archives.base import Keeper, RangeStream
from xnatfs.archives.nbia.dicom import MARK, PREAMBLE
from xnatfs.archives.nbia.tree import ONLY_IMAGE
from xnatfs.errors import TimedOut, UnexpectedReply
from xnatfs.forks import unforked
from xnatfs.model import Entry

if TYPE_CHECKING:
    from xnatfs.archives.nbia.image_names import Numbers

HEADS = (16 << 10, 256 << 10, 4 << 20)
"""Bytes of an image that are asked for until its numbers are found: they stand behind 2 to 6 KB in images of scanners,
further back where a sequence or a maker's own elements come before. What has them nowhere here has none."""

SERIES_KNOWN = 64
"""Series whose names are remembered in memory, some 50 KB each; the keeper remembers more."""

Open = Callable[[Entry, int, int], RangeStream]


class IdcNames:
    """NBIA's names of images by the folder that holds them.

    Args:
        open_range: As ``Archive.open_range``.
        keeper: Remembers names for other mounts.
        timeout_s: In which the beginning of an image has to come.
        at_once: Requests side by side.
    """

    def __init__(self, open_range: Open, keeper: Callable[[], Keeper], timeout_s: float, at_once: int) -> None:
        self._open = open_range
        self._timeout_s = timeout_s
        self._at_once = at_once
        self._keeper = keeper
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Mapping[str, str]] = OrderedDict()  # guarded by _lock; by folder

    def named(self, folder: str, files: Sequence[Entry]) -> tuple[Entry, ...]:
        """``files`` under NBIA's names, in their order; IDC's are aliases.

        Args:
            folder: Names the folder among all folders.

        Raises:
            NotFound, StaleContent, Unavailable, TimedOut, UnexpectedReply: an image cannot be looked into, or is none.
        """
        names = self._names(folder, files)
        renamed = [replace(file, name=names[_mark(file)], aliases=(file.name,)) for file in files]
        return tuple(sorted(renamed, key=lambda file: file.name))

    def _names(self, folder: str, files: Sequence[Entry]) -> Mapping[str, str]:
        if len(files) == 1:
            return {_mark(files[0]): ONLY_IMAGE}
        marks = {_mark(file) for file in files}
        with self._lock:
            known = self._known.get(folder)
        if known is None:
            known = _parsed(self._keeper().recall(f"names {folder}"))
        if known.keys() != marks:
            known = self._worked_out(files)
            self._keeper().note(f"names {folder}", json.dumps(known))
        with self._lock:
            self._known[folder] = known
            self._known.move_to_end(folder)
            while len(self._known) > SERIES_KNOWN:
                self._known.popitem(last=False)
        return known

    def _worked_out(self, files: Sequence[Entry]) -> Mapping[str, str]:
        with unforked():
            from xnatfs.archives.nbia.image_names import names_of  # imports pydicom

        pool = ThreadPoolExecutor(self._at_once, "xnatfs-names")
        try:
            return dict(zip(map(_mark, files), names_of(list(pool.map(self._numbers, files))), strict=True))
        finally:  # after a failure nobody wants the rest
            pool.shutdown(cancel_futures=True)

    def _numbers(self, file: Entry) -> Numbers:
        from xnatfs.archives.nbia.image_names import Numbers, numbers_in

        assert file.size is not None
        head = b""
        for stop in HEADS:
            head += self._read(file, len(head), min(stop, file.size))
            if head[PREAMBLE : PREAMBLE + len(MARK)] != MARK:
                raise UnexpectedReply(f"{file.key}: not a DICOM file", "--names id lists it as it is")
            found = numbers_in(head, whole=len(head) == file.size)
            if found is not None:
                return found
        return Numbers()

    def _read(self, file: Entry, start: int, stop: int) -> bytes:
        if start == stop:
            return b""
        stream = self._open(file, start, stop)
        try:
            if stream.start != start or stream.stop < stop:
                raise UnexpectedReply(f"{file.key}: the store sent another part of it than was asked for")
            buffer = memoryview(bytearray(stop - start))
            filled = 0
            deadline = time.monotonic() + self._timeout_s
            while filled < len(buffer):
                filled += stream.readinto(buffer[filled:])
                if time.monotonic() > deadline:  # it drips
                    raise TimedOut(f"{file.key}: {filled} of {len(buffer)} bytes in {self._timeout_s:g} s")
            return bytes(buffer)
        finally:
            stream.close()


def _mark(file: Entry) -> str:
    """An image and its version: an object's name and ETag."""
    return f"{file.name} {file.version}"


def _parsed(text: str | None) -> Mapping[str, str]:
    """Kept names; none when what was kept is no such thing."""
    try:
        known = json.loads(text or "{}")
    except ValueError:
        return {}
    if not isinstance(known, dict) or not all(isinstance(name, str) for name in known.values()):
        return {}
    return known
