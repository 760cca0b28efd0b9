"""What a block file is called and what it holds: pure functions over bytes and one open file.

A file is a header and the block. The header names the block (format version, content hash, number, unit, length) and
carries a checksum for each sixteenth of it and one for itself. Knows no directory, no database and no policy.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import struct

from xxhash import xxh3_64_intdigest

from xnatfs.blocks.base import BlockKey
from xnatfs.model import ContentId

# Blocks are checksummed in this many chunks, so that 4 KB can be read and verified without reading 1 MiB: a part of a
# block then takes 20 us in place of 100 (measured, page cache warm).
CHUNKS = 16
SMALLEST_CHUNK = 4096

NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]+-[0-9a-f]+")

# Magic and format version, content hash, number, unit, length, then CHUNKS checksums and the checksum of all that.
_FIELDS = struct.Struct(f"<8s16sQQQ{CHUNKS}Q")
SUM = struct.Struct("<Q")
HEADER_BYTES = _FIELDS.size + SUM.size
_MAGIC = b"xnatfs\x00\x01"


class Damaged(Exception):
    """A block file does not hold what its name says."""


@functools.lru_cache(maxsize=16384)
def tag_of(content: ContentId) -> str:
    """The content's hash, 32 hex digits: names of people and projects appear in no file name and no table."""
    text = f"{len(content.archive)}:{content.archive}{len(content.key)}:{content.key}{content.version}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def name_of(key: BlockKey) -> str:
    return f"{tag_of(key.content)}-{key.unit:x}-{key.number:x}"


def filename_of(name: str) -> str:
    """A block's path below the directory. One level of 256: two would make a directory of 4 KiB for most blocks."""
    return f"{name[:2]}/{name[2:]}"


def _chunk_bytes(unit: int) -> int:
    return max(SMALLEST_CHUNK, -(-unit // CHUNKS))


def header_of(key: BlockKey, data: bytes) -> bytes:
    chunk = _chunk_bytes(key.unit)
    view = memoryview(data)
    sums = [xxh3_64_intdigest(view[at : at + chunk]) for at in range(0, len(data), chunk)]
    sums += [0] * (CHUNKS - len(sums))
    fields = _FIELDS.pack(_MAGIC, bytes.fromhex(tag_of(key.content)), key.number, key.unit, len(data), *sums)
    return fields + SUM.pack(xxh3_64_intdigest(fields))


def _checked_header(raw: bytes, key: BlockKey) -> tuple[int, list[int]]:
    """The block's length and its checksums, if ``raw`` is the header of this very block."""
    if len(raw) != HEADER_BYTES or xxh3_64_intdigest(raw[: _FIELDS.size]) != SUM.unpack_from(raw, _FIELDS.size)[0]:
        raise Damaged("its header is damaged")
    magic, tag, number, unit, length, *sums = _FIELDS.unpack_from(raw)
    if magic != _MAGIC or (tag.hex(), number, unit) != (tag_of(key.content), key.number, key.unit) or length > unit:
        raise Damaged("it holds another block")
    return length, sums


def read_span(fd: int, key: BlockKey, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a block, cut at its end, read in whole chunks and verified."""
    length, sums = _checked_header(os.read(fd, HEADER_BYTES), key)
    stop = min(stop, length)
    if start >= stop:
        return b""
    chunk = _chunk_bytes(key.unit)
    first = start // chunk
    begin, end = first * chunk, min(length, -(-stop // chunk) * chunk)
    # os.read makes bytes of exactly this size and reads into them: no second copy.
    data = os.read(fd, end) if not begin else os.pread(fd, end - begin, HEADER_BYTES + begin)
    if len(data) != end - begin:
        raise Damaged("it is cut short")
    view = memoryview(data)
    for index, at in enumerate(range(0, len(data), chunk), first):
        if xxh3_64_intdigest(view[at : at + chunk]) != sums[index]:
            raise Damaged("its bytes do not match their checksum")
    return data if (begin, end) == (start, stop) else data[start - begin : stop - begin]
