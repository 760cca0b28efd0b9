"""What the sample archive's files hold: bytes in memory, packaged files, and large files made on the fly.

Knows nothing of HTTP or of the archive's records. Immutable once made, so any number of threads may read one content;
digests and checksums are worked out once and kept.
"""

from __future__ import annotations

import hashlib
import random
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

MIB = 1024 * 1024
PIECE = MIB  # bytes in one piece of ``pieces``: large enough that Python's share of a transfer is a few per cent
TILE_LENGTH = 8 * MIB + 4099  # odd, so that every 1 MiB block of a tiled file starts at another place of the tile
_TILE_SEED = 20240229

_tile_lock = threading.Lock()
_tile_doubled: memoryview | None = None  # guarded by _tile_lock


class Content:
    """The bytes of one file. ``size`` is exact; ``pieces`` may be called from any thread."""

    __slots__ = ("_crc32", "_lock", "_md5", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._md5 = ""  # guarded by _lock
        self._crc32: int | None = None  # guarded by _lock

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        """Bytes [start, stop) as views of at most PIECE bytes."""
        raise NotImplementedError

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        return b"".join(self.pieces(start, self.size if stop is None else min(stop, self.size)))

    @property
    def md5_known(self) -> bool:
        return bool(self._md5)

    def md5(self) -> str:
        with self._lock:
            if not self._md5:
                digest = hashlib.md5(usedforsecurity=False)
                for piece in self.pieces(0, self.size):
                    digest.update(piece)
                self._md5 = digest.hexdigest()
            return self._md5

    def crc32(self) -> int:
        with self._lock:
            if self._crc32 is None:
                value = 0
                for piece in self.pieces(0, self.size):
                    value = zlib.crc32(piece, value)
                self._crc32 = value
            return self._crc32


def _split(view: memoryview, start: int, stop: int) -> Iterator[memoryview]:
    for position in range(start, stop, PIECE):
        yield view[position : min(position + PIECE, stop)]


class BytesContent(Content):
    """Bytes held in memory."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        super().__init__(len(data))
        self._data = memoryview(data)

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        return _split(self._data, start, stop)


class FileContent(Content):
    """A small file on this disk (one that pydicom or nibabel ships), read when asked for."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        super().__init__(path.stat().st_size)
        self._path = path

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        return _split(memoryview(self._path.read_bytes()), start, stop)


class MadeContent(Content):
    """Bytes that a function makes anew for each reader: thousands of files cost no memory."""

    __slots__ = ("_make",)

    def __init__(self, size: int, make: Callable[[], bytes]) -> None:
        super().__init__(size)
        self._make = make

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        return _split(memoryview(self._make()), start, stop)


class TiledContent(Content):
    """A header, then a pseudo-random tile again and again: gigabytes that cost neither memory nor computing.

    Pieces are views into the one tile in memory. ``phase`` is where in the tile the body begins.
    """

    __slots__ = ("_header", "_phase")

    def __init__(self, header: bytes, size: int, phase: int = 0) -> None:
        super().__init__(size)
        self._header = memoryview(header)
        self._phase = phase

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        header_length = len(self._header)
        if start < header_length:
            yield self._header[start : min(stop, header_length)]
        tile = doubled_tile()
        position = max(start, header_length)
        while position < stop:
            length = min(PIECE, stop - position)
            place = (position - header_length + self._phase) % TILE_LENGTH
            yield tile[place : place + length]
            position += length


def doubled_tile() -> memoryview:
    """The tile followed by its own first PIECE bytes, so that a piece never has to be put together at its end."""
    global _tile_doubled
    with _tile_lock:
        if _tile_doubled is None:
            tile = random.Random(_TILE_SEED).randbytes(TILE_LENGTH)  # noqa: S311 - content, not a secret
            _tile_doubled = memoryview(tile + tile[:PIECE])
        return _tile_doubled


def nifti1(dim: tuple[int, ...], phase: int) -> TiledContent:
    """An uncompressed NIfTI-1 volume of 16-bit numbers: a true header of 352 bytes, then ``prod(dim)`` voxels."""
    voxels = 1
    for length in dim:
        voxels *= length
    dims = (len(dim), *dim, *([1] * (7 - len(dim))))
    pixdim = (1.0, 1.0, 1.0, 1.0, 2.0, 0.0, 0.0, 0.0)
    int16, bits = 4, 16
    header = struct.pack("<i10s18sihcB", 348, b"", b"", 0, 0, b"r", 0)
    header += struct.pack("<8h3f4h8f", *dims, 0.0, 0.0, 0.0, 0, int16, bits, 0, *pixdim)
    header += struct.pack("<3fhcB4f2i", 352.0, 1.0, 0.0, 0, b"\x00", 10, 0.0, 0.0, 0.0, 0.0, 0, 0)
    header += struct.pack("<80s24s2h6f", b"made by the demo archive", b"", 0, 1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    header += struct.pack("<12f16s4s4x", 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, b"", b"n+1\x00")
    return TiledContent(header, 352 + 2 * voxels, phase)
