"""The seam to the outside world: what the tree and the reader ask of an archive. No I/O here.

An implementation owes its callers:

- It is safe to call from any thread, and creates threads, sockets and locks shared between threads only when first
  called (the FUSE process has forked by then).
- Every failure is an ``errors.ArchiveError``. A doubtful answer (HTML where JSON was asked for, an empty body, a parent
  item) is ``UnexpectedReply``, never an empty listing, a zero size or short bytes.
- Retries, back-off, timeouts and logging in happen inside. A call returns or raises within about twice its timeout.
- Nothing it sends changes anything on the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from xnatfs.model import Entry, Listing

WEAK = "~"
"""Begins the validator of bytes that came in a container (``weak_validator``); ``reading/validators.py`` compares."""


def weak_validator(modified: str, crc: int | None) -> str:
    """The validator of a member of a zip: its local time of change (``2024-01-15T10:00:02``, or "") and its CRC-32."""
    return f"{WEAK}{modified}" if crc is None else f"{WEAK}{modified} {crc:08x}"


class RangeStream(Protocol):
    """One response body, read forward by one thread.

    Attributes:
        start: Offset in the file of the first byte that ``read`` returns. A server that ignores Range gives 0.
        stop: Offset behind the last byte this body will give.
        total: Size of the whole file in bytes, as this response says.
        validator: What tells versions apart beyond the listing (Last-Modified, ETag) as sent; "" when none was.
        ranged: True when the server honoured the range (206).
    """

    start: int
    stop: int
    total: int
    validator: str
    ranged: bool

    def readinto(self, buffer: memoryview) -> int:
        """Fill at least one byte of ``buffer`` and return how many; 0 at ``stop`` only.

        Raises:
            Unavailable: the connection broke or the body ended before ``stop``.
            TimedOut: no byte for the archive's timeout.
        """
        ...

    def close(self) -> None:
        """Let the connection go. Safe to call twice, and from another thread while ``readinto`` waits."""
        ...


class BulkMember(Protocol):
    """One file in a bulk stream, to be read, or left, before the next is asked for.

    Attributes:
        validator: As ``RangeStream.validator``; a ``weak_validator`` where the container holds no more.
    """

    validator: str

    def readinto(self, buffer: memoryview) -> int:
        """Fill at least one byte of ``buffer`` and return how many; 0 at the member's end only.

        By the time it returns 0 the container's own checks of the member (length, CRC) have held.

        Raises:
            Unavailable, TimedOut, CorruptContent: what was read of this member is worth nothing, and the stream ends.
        """
        ...


class BulkStream(Protocol):
    """Many files as one response, read forward by one thread: a zip that is split as it arrives.

    It promises no completeness and no order: any file asked for may be missing, and the stream may break at any point.
    Whoever reads it asks for the rest with ``Archive.open_range``. What it gives as a member of ``entry`` was sent as
    that file, but its length is only known to be ``entry.size`` once that many bytes and then 0 have been read.
    """

    def next(self) -> tuple[Entry, BulkMember] | None:
        """The next member that is among the files asked for, others having been passed over; None behind a proper end.

        The rest of the member before is skipped. A file is given once at most.

        Raises:
            Unavailable, TimedOut, CorruptContent, UnexpectedReply: the stream is of no further use.
        """
        ...

    def close(self) -> None:
        """Let the connection go. Safe to call twice, and from another thread while ``next`` or ``readinto`` waits."""
        ...


class Archive(Protocol):
    """A tree of directories and immutable files."""

    @property
    def id(self) -> str:
        """Names the archive in content ids: the server's URL and what else decides what a key means."""
        ...

    def root(self) -> Entry:
        """The top directory. Makes no request."""
        ...

    def children(self, directory: Entry) -> Listing:
        """Ask for the listing called ``directory.listing``: it holds ``directory`` and what came for free with it.

        Raises:
            NotFound, AccessDenied, LoginFailed, Unavailable, TimedOut, UnexpectedReply
        """
        ...

    def stat(self, entry: Entry) -> Entry:
        """The same file entry with its ``size`` known, asked of the archive when the listing did not say."""
        ...

    def open_range(self, entry: Entry, start: int, stop: int) -> RangeStream:
        """Open a stream that contains [start, stop) of a file; it may begin before ``start`` and end after ``stop``.

        Raises:
            StaleContent: the file's length is not ``entry.size``; the listing is out of date.
            NotFound, AccessDenied, LoginFailed, Unavailable, TimedOut, UnexpectedReply
        """
        ...

    def open_bulk(self, files: Sequence[Entry]) -> BulkStream | None:
        """Ask for many files at once; None when this archive, or these files, cannot be had that way.

        None makes no request. The stream may carry other files too, which cost their transfer.

        Args:
            files: All files of one directory and of those below it, as their listing has them: entries whose ``size``
                is known. What they have in common decides what is asked for.
        Raises:
            NotFound, AccessDenied, LoginFailed, Unavailable, TimedOut, UnexpectedReply
        """
        ...

    def close(self) -> None:
        """Release connections and, where the archive has one, the login session. Safe to call twice."""
        ...


class KeptWriter(Protocol):
    """Takes one file's bytes from its start to its end, on one thread."""

    def write(self, data: memoryview) -> None: ...

    def finish(self) -> None:
        """All bytes are there. They may be read from here on."""
        ...

    def discard(self) -> None:
        """Forget them, finished or not."""
        ...


class Keeper(Protocol):
    """Where an archive leaves what comes before anyone has asked for it, so that no byte travels twice.

    For archives that learn names and sizes only while the bytes pass. May forget anything at any time; never raises.
    """

    def writer(self, key: str, version: str) -> KeptWriter:
        """For the content that an entry with this key and version will name, its stream having the validator ""."""
        ...

    def note(self, key: str, text: str) -> None:
        """Keep a text of the archive's own, in place of the one kept before."""
        ...

    def recall(self, key: str) -> str | None:
        """The text kept last, or None."""
        ...


@runtime_checkable
class Alone(Protocol):
    """An archive whose streams of one file would be in each other's way: it has one connection, or one lock."""

    @property
    def alone(self) -> bool: ...


@runtime_checkable
class Learning(Protocol):
    """An archive that has use for a keeper."""

    def keep_with(self, keeper: Keeper) -> None:
        """To be called once, before anything else."""
        ...
