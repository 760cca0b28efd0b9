"""Takes what an archive comes by while it lists, and puts it into the block cache: see ``archives.base.Keeper``.

Knows nothing of paths or HTTP. One block of memory a file. A writer belongs to one thread, the keeper to all.
"""

from __future__ import annotations

from xnatfs.blocks.base import BlockCache, BlockKey
from xnatfs.model import ContentId
from xnatfs.reading.flight import with_validator

TEXT_UNIT = 1 << 20
"""Bytes of one block of a text: its own, so that another ``--block-size`` finds it."""

SHORT = 1000
"""Characters of a text that is a note itself, and takes no block."""

_IS_TEXT = "="
"""Begins such a note. Others are a length."""


class CacheKeeper:
    """The cache as one archive's keeper."""

    def __init__(self, archive_id: str, cache: BlockCache, block_size: int) -> None:
        self._archive_id = archive_id
        self._cache = cache
        self._block_size = block_size

    def writer(self, key: str, version: str) -> BlockWriter:
        return BlockWriter(self._cache, ContentId(self._archive_id, key, version), self._block_size)

    def note(self, key: str, text: str) -> None:
        """A long text is one content, its length the note beside it: what is there in part counts as forgotten."""
        content = self._text(key)
        if len(text) <= SHORT:
            self._cache.put_note(content, _IS_TEXT + text)
            return
        data = text.encode("utf-8", "surrogatepass")
        self._cache.discard(content)
        for number, start in enumerate(range(0, len(data), TEXT_UNIT)):
            self._cache.put(BlockKey(content, number, TEXT_UNIT), data[start : start + TEXT_UNIT])
        self._cache.put_note(content, str(len(data)))

    def recall(self, key: str) -> str | None:
        content = self._text(key)
        length = self._cache.get_note(content)
        if length is not None and length.startswith(_IS_TEXT):
            return length.removeprefix(_IS_TEXT)
        if length is None or not length.isdigit():
            return None
        pieces = []
        for number in range(-(-int(length) // TEXT_UNIT)):
            piece = self._cache.get(BlockKey(content, number, TEXT_UNIT))
            if piece is None:
                return None
            pieces.append(bytes(piece))
        data = b"".join(pieces)
        return data.decode("utf-8", "surrogatepass") if len(data) == int(length) else None

    def _text(self, key: str) -> ContentId:
        return ContentId(self._archive_id, f"text of the archive: {key}", "")


class BlockWriter:
    """Cuts one file into blocks. See ``archives.base.KeptWriter``."""

    def __init__(self, cache: BlockCache, base: ContentId, block_size: int) -> None:
        self._cache = cache
        self._base = base
        self._content = with_validator(base, "")
        self._block_size = block_size
        self._piece = bytearray()
        self._number = 0

    def write(self, data: memoryview) -> None:
        at = 0
        while at < len(data):
            taken = data[at : at + self._block_size - len(self._piece)]
            self._piece += taken
            at += len(taken)
            if len(self._piece) == self._block_size:
                self._put()

    def finish(self) -> None:
        if self._piece:
            self._put()
        self._cache.put_note(self._base, "")  # in this order: who finds the note finds the blocks

    def discard(self) -> None:
        self._piece.clear()
        self._cache.discard(self._content)
        self._cache.discard(self._base)

    def _put(self) -> None:
        key = BlockKey(self._content, self._number, self._block_size)
        self._cache.put(key, bytes(self._piece))
        self._piece.clear()
        self._number += 1
