"""The seam to what is kept. A cache may forget anything at any time; it may never return anything but what was put."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from xnatfs.model import ContentId

Block = bytes | memoryview
"""A block's bytes. Never written again once it was put or got; slices of it are cheap or copies, by its type."""


class BlockKey(NamedTuple):
    """The span [number * unit, (number + 1) * unit) of a content, cut at its end."""

    content: ContentId
    number: int
    unit: int


class BlockCache(Protocol):
    """Holds blocks by key. Every method is safe from any thread and never raises: a fault is a miss and one warning."""

    def get(self, key: BlockKey) -> Block | None:
        """The block's bytes, verified against their checksum, or None."""
        ...

    def get_span(self, key: BlockKey, start: int, stop: int) -> Block | None:
        """Bytes [start, stop) of a block, cut at its end, verified too, or None. For scattered small reads."""
        ...

    def kept_bytes(self, content: ContentId) -> int:
        """Bytes of a content that are held, about: what is held twice may count twice."""
        ...

    def put(self, key: BlockKey, data: Block) -> None:
        """Keep a block, making room first."""
        ...

    def get_note(self, content: ContentId) -> str | None:
        """The short text last kept beside a content (the validator its blocks came with), or None."""
        ...

    def put_note(self, content: ContentId, note: str) -> None: ...

    def discard(self, content: ContentId) -> None:
        """Drop a content's blocks and note."""
        ...

    def hold(self, content: ContentId) -> None:
        """A reader has the content open: evict its blocks last. Counted; ends with ``release``."""
        ...

    def release(self, content: ContentId) -> None: ...

    def close(self) -> None:
        """Finish pending writes and close files."""
        ...


class Progress(NamedTuple):
    """How far a process is with a content: [start, position) of a stream up to ``stop`` has passed.

    Attributes:
        stop: 0 while the archive has not answered.
        when_s: When it was told, in seconds since the epoch.
    """

    start: int
    position: int
    stop: int
    when_s: float


class Claim(Protocol):
    """Ours to fetch. ``before`` is the progress of the other process that had it last, None when none is known."""

    @property
    def before(self) -> Progress | None: ...

    def moved(self, start: int, position: int, stop: int) -> None:
        """Tell other processes how far the stream is."""
        ...

    def wanted(self) -> int:
        """Up to where another process wants the stream to go on."""
        ...

    def release(self) -> None: ...


class Claims(Protocol):
    """Keeps processes that share a cache from fetching a file twice. Advice only: never waits, never raises."""

    def take(self, content: ContentId) -> Claim | None:
        """The claim on a content; None while another process has it. Where that cannot be told, it is ours."""
        ...

    def look(self, content: ContentId) -> Progress | None:
        """How far its owner is, or was."""
        ...

    def want(self, content: ContentId, stop: int) -> None:
        """Ask the owner to go on up to ``stop``."""
        ...

    def close(self) -> None: ...
