"""Where a block stands on disk and what stands there: pure functions over bytes and one open file.

Blocks of one content and unit share files of up to 64, each block at a place that follows from its number: a header,
then its bytes. The header names the block (format version, content hash, number, unit, length) and carries a checksum
for each sixteenth of it and one for itself. A place whose header is all zeroes, as in the hole of a sparse file, holds
nothing. Knows no directory, no database and no policy.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import os
import re
import struct
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from xnatfs.blocks.base import Block, BlockKey
from xnatfs.buffers import BufferPool
from xnatfs.model import ContentId

# Blocks are checksummed in this many chunks, so that 4 KB can be read and verified without reading 1 MiB: a part of a
# block then takes 20 us in place of 100 (measured, page cache warm).
CHUNKS = 16
SMALLEST_CHUNK = 4096

# What a file takes on ext4, xfs and tmpfs is a multiple of this.
DISK_UNIT = 4096

# Blocks in one file: 16 files for 1 GB. Making a file takes 20 to 500 us, as long as writing a block of 1 MiB.
BLOCKS_IN_FILE = 64
LARGEST_FILE = 1 << 30

_NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]{1,15})-([0-9a-f]{1,15})")

_FILENAME = re.compile(r"([0-9a-f]{2})/([0-9a-f]{30})-([0-9a-f]{1,15})-([0-9a-f]{1,15})")

# Magic and format version, content hash, number, unit, length, then CHUNKS checksums and the checksum of all that.
_FIELDS = struct.Struct(f"<8s16sQQQ{CHUNKS}Q")
SUM = struct.Struct("<Q")
HEADER_BYTES = _FIELDS.size + SUM.size
_MAGIC = b"xnatfs\x00\x01"

# Linux, linux/falloc.h. Python's os module has no call that makes a hole in a file.
_PUNCH_HOLE, _KEEP_SIZE = 2, 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Damaged(Exception):
    """A block file does not hold what its name says."""


@functools.lru_cache(maxsize=16384)
def tag_of(content: ContentId) -> str:
    """The content's hash, 32 hex digits: names of people and projects appear in no file name and no table."""
    text = f"{len(content.archive)}:{content.archive}{len(content.key)}:{content.key}{content.version}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Place(NamedTuple):
    """Where one block stands.

    Attributes:
        name: Names the block in the database.
        filename: Path below the directory. One level of 256 directories: two would make a directory for most files.
        offset: Of its header in that file.
        length: What it may take there, header included.
    """

    name: str
    filename: str
    offset: int
    length: int


@functools.lru_cache(maxsize=4096)
def place_of(key: BlockKey) -> Place:
    return _place(tag_of(key.content), key.unit, key.number)


def place_of_name(name: object) -> Place | None:
    """The place of a block that the database names; None for a note, and for what no block can be called."""
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    return _place(match[1], int(match[2], 16), int(match[3], 16)) if match else None


def places_in(filename: str, size: int) -> list[Place]:
    """Every place in a block file of this size; none when no block file is called so."""
    match = _FILENAME.fullmatch(filename)
    if match is None:
        return []
    tag, unit, file = match[1] + match[2], int(match[3], 16), int(match[4], 16)
    slots = _slots(unit)
    used = -(-size // on_disk(unit))
    return [_place(tag, unit, file * slots + slot) for slot in range(min(slots, used))]


def _slots(unit: int) -> int:
    return max(1, min(BLOCKS_IN_FILE, LARGEST_FILE // on_disk(unit)))


def _place(tag: str, unit: int, number: int) -> Place:
    length = on_disk(unit)
    file, slot = divmod(number, _slots(unit))
    return Place(f"{tag}-{unit:x}-{number:x}", f"{tag[:2]}/{tag[2:]}-{unit:x}-{file:x}", slot * length, length)


def on_disk(size: int) -> int:
    """What a block of ``size`` bytes takes on disk."""
    return -(-(HEADER_BYTES + size) // DISK_UNIT) * DISK_UNIT


def _chunk_bytes(unit: int) -> int:
    return max(SMALLEST_CHUNK, -(-unit // CHUNKS))


def header_of(key: BlockKey, data: Block) -> bytes:
    chunk = _chunk_bytes(key.unit)
    view = memoryview(data)
    sums = [xxh3_64_intdigest(view[at : at + chunk]) for at in range(0, len(data), chunk)]
    sums += [0] * (CHUNKS - len(sums))
    fields = _FIELDS.pack(_MAGIC, bytes.fromhex(tag_of(key.content)), key.number, key.unit, len(data), *sums)
    return fields + SUM.pack(xxh3_64_intdigest(fields))


def _checked_header(raw: bytes, tag: str, number: int, unit: int) -> tuple[int, list[int]]:
    """The block's length and its checksums, if ``raw`` is the header of this very block."""
    if len(raw) != HEADER_BYTES or xxh3_64_intdigest(raw[: _FIELDS.size]) != SUM.unpack_from(raw, _FIELDS.size)[0]:
        raise Damaged("its header is damaged")
    magic, found_tag, found_number, found_unit, length, *sums = _FIELDS.unpack_from(raw)
    if magic != _MAGIC or (found_tag.hex(), found_number, found_unit) != (tag, number, unit) or length > unit:
        raise Damaged("it holds another block")
    return length, sums


def is_empty(fd: int, place: Place) -> bool:
    """True where no block has been put, or has been removed."""
    header = os.pread(fd, HEADER_BYTES, place.offset)
    return header == bytes(len(header))


def is_block(fd: int, place: Place, tag: str, key: BlockKey) -> bool:
    """True where the header of this very block stands."""
    try:
        _checked_header(os.pread(fd, HEADER_BYTES, place.offset), tag, key.number, key.unit)
    except Damaged:
        return False
    return True


class BlockFile:
    """An open block file, and the headers in it that have been read and verified. Closed with its last reference."""

    __slots__ = ("fd", "headers")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.headers: dict[int, tuple[int, list[int]]] = {}  # offset -> length and checksums of the block there

    def __del__(self) -> None:
        os.close(self.fd)

    def is_gone(self) -> bool:
        """Whether it has been removed, by whatever process: another one may have its name by now."""
        return os.fstat(self.fd).st_nlink == 0


def read_span(
    file: BlockFile, place: Place, key: BlockKey, start: int, stop: int, buffers: BufferPool | None = None
) -> Block | None:
    """Bytes [start, stop) of a block, cut at its end, read in whole chunks and verified; None where there is none.

    Raises:
        Damaged: something else stands there.
    """
    known = file.headers.get(place.offset)
    if known is not None:
        try:
            return _span(file.fd, place, known, key.unit, start, stop, buffers)
        except Damaged:  # or removed since its header was read, and maybe put again
            file.headers.pop(place.offset, None)
    header = os.pread(file.fd, HEADER_BYTES, place.offset)
    if header == bytes(len(header)):
        return None
    known = _checked_header(header, tag_of(key.content), key.number, key.unit)
    try:
        data = _span(file.fd, place, known, key.unit, start, stop, buffers)
    except Damaged:
        if is_empty(file.fd, place):  # evicted between its header and its bytes, which is no damage
            return None
        raise
    file.headers[place.offset] = known
    return data


def _span(
    fd: int,
    place: Place,
    header: tuple[int, list[int]],
    unit: int,
    start: int,
    stop: int,
    buffers: BufferPool | None,
) -> Block:
    length, sums = header
    stop = min(stop, length)
    if start >= stop:
        return b""
    chunk = _chunk_bytes(unit)
    begin, end = start // chunk * chunk, min(length, -(-stop // chunk) * chunk)
    data = _verified(fd, place, chunk, sums, begin, end, buffers)
    return data if (begin, end) == (start, stop) else data[start - begin : stop - begin]


def check(fd: int, place: Place) -> int | None:
    """Read and verify the whole block that ``place.name`` names; its bytes, or None where there is none.

    Raises:
        Damaged: something else stands there.
    """
    tag, unit, number = place.name.split("-")
    header = os.pread(fd, HEADER_BYTES, place.offset)
    if header == bytes(len(header)):
        return None
    length, sums = _checked_header(header, tag, int(number, 16), int(unit, 16))
    try:
        _verified(fd, place, _chunk_bytes(int(unit, 16)), sums, 0, length)
    except Damaged:
        if is_empty(fd, place):  # as in read_span
            return None
        raise
    return length


def _verified(
    fd: int, place: Place, chunk: int, sums: list[int], begin: int, end: int, buffers: BufferPool | None = None
) -> memoryview:
    """Bytes [begin, end) of a block, both at the edge of a chunk or the block's end."""
    offset = place.offset + HEADER_BYTES + begin
    if buffers is not None and end - begin == buffers.size:
        view = memoryview(buffers.take(end - begin))
        count = os.preadv(fd, [view], offset)
        view = view.toreadonly()
    else:  # os.pread makes bytes of exactly this size and reads into them: no second copy
        view = memoryview(os.pread(fd, end - begin, offset))
        count = len(view)
    if count != end - begin:
        raise Damaged("it is cut short")
    for index, at in enumerate(range(0, end - begin, chunk), begin // chunk):
        if xxh3_64_intdigest(view[at : at + chunk]) != sums[index]:
            raise Damaged("its bytes do not match their checksum")
    return view


def write(fd: int, place: Place, key: BlockKey, data: Block) -> None:
    """Put a block in its place, the header last: until then a reader, or a later process, finds nothing there."""
    header = header_of(key, data)
    # Space asked for first: the kernel then takes 160 us to copy 1 MiB, else 220. Where that cannot be done: slower.
    _libc.fallocate(fd, 0, place.offset, on_disk(len(data)))
    for part, offset in ((data, place.offset + HEADER_BYTES), (header, place.offset)):
        if os.pwrite(fd, part, offset) != len(part):  # a full disk takes a part without an error
            raise OSError(errno.ENOSPC, "only a part of the block was written")


def erase(fd: int, place: Place) -> None:
    """Give a block's space back to the file system and leave zeroes.

    Raises:
        OSError: EOPNOTSUPP where the file system cannot do that.
    """
    if _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, place.offset, place.length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
