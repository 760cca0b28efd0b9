"""Splits a zip into its members as it arrives: forward only, no seek, no directory needed beforehand.

Knows nothing of HTTP, XNAT or disks: bytes come from a callable, names are only names. For one thread at a time.

Each member's size and CRC are checked before its last bytes are given out. At the end the central directory must list
what has passed, and the end record must be the last thing there is. The format is PKWARE's APPNOTE 6.3; what XNAT makes
of it is the normal case: STORED members with their sizes in front.

- ``Unavailable``: the stream ended before the zip did.
- ``CorruptContent``: what arrived is damaged.
- ``UnexpectedReply``: no zip at all (a page, an empty body), or one that cannot be split: encrypted, another
  compression, stored without a size in front.
- ``StaleContent``: a member has another size than the caller expects.

Every error is final for the whole stream: where the next member begins is then in doubt.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xnatfs.errors import ArchiveError, CorruptContent, StaleContent, Unavailable, UnexpectedReply

STORED = 0
DEFLATED = 8

PIECE = 256 * 1024
"""Bytes of a member asked for at once: more than a socket's receive buffer holds."""

HEAD_PIECE = 64 * 1024
"""Bytes asked for where a header is due, and of deflated data. What comes with a header is copied no more often."""

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")

_LOCAL_MARK = b"PK\3\4"
_CENTRAL_MARK = b"PK\1\2"
_END_MARK = b"PK\5\6"
_END64_MARK = b"PK\6\6"
_LOCATOR64_MARK = b"PK\6\7"
_DESCRIPTOR_MARK = b"PK\7\x08"

_DESCRIPTOR = 0x0008
_UTF8 = 0x0800
_UNREADABLE = 0x0001 | 0x0020 | 0x0040 | 0x2000  # encrypted, a patch, strongly encrypted, masked headers
_ZIP64 = 0x0001  # id of the extra field
_MAX16 = 0xFFFF
_MAX32 = 0xFFFFFFFF
_SUM_MASK = (1 << 128) - 1


class ZipStream:
    """One zip, read once from its first byte to its last.

    Args:
        read: Called with a size: gives at least one byte and at most that many, ``b""`` at the end of the stream.
        what: Names the zip in messages.
        readinto: The same into memory of ours, at least one byte of it, 0 at the end: bytes of members then go to where
            they belong at once.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        what: str = "zip",
        readinto: Callable[[memoryview], int] | None = None,
    ) -> None:
        self._read = read
        self._readinto = readinto
        self._what = what
        self._held = b""  # read; used up to _at
        self._at = 0
        self._position = 0  # offset of the next byte to use
        self._member: Member | None = None
        self._count = 0
        self._sum = 0  # of all that the directory has to repeat, whatever its order
        self._ended = False
        self._failed = False

    def next_member(self) -> Member | None:
        """The next member, after the rest of the one before has been skipped; None behind a proper end.

        Raises:
            Unavailable, CorruptContent, UnexpectedReply
        """
        self._usable()
        if self._ended:
            return None
        if self._member is not None:
            self._member.skip()
        mark = self._next_mark() if self._position else self._first_mark()
        if mark == _LOCAL_MARK:
            self._member = self._local()
            return self._member
        self._member = None
        self._directory(mark)
        self._ended = True
        return None

    # --- structures --------------------------------------------------------------------------------------------

    def _first_mark(self) -> bytes:
        """Doubt the whole reply: login pages come with a status of 200 too."""
        data = b""
        while len(data) < len(_LOCAL_MARK) and (piece := self._pull_or_end(HEAD_PIECE)):
            data += piece
        self._held = data
        mark = data[:4]
        if mark in (_LOCAL_MARK, _END_MARK):
            return mark
        if data and len(data) < len(_LOCAL_MARK) and (_LOCAL_MARK.startswith(data) or _END_MARK.startswith(data)):
            raise self._bad(Unavailable, "the stream ends in its first bytes")
        what = "an empty body" if not data else "an HTML page" if data.lstrip()[:1] == b"<" else "something else"
        raise self._bad(UnexpectedReply, f"{what} in place of a zip")

    def _next_mark(self) -> bytes:
        self._need(4)
        return self._held[self._at : self._at + 4]

    def _local(self) -> Member:
        start = self._position
        _, _, flags, method, time, date, crc, packed, size, name_length, extra_length = self._unpack(_LOCAL)
        raw_name = self._take(name_length)
        extra = self._take(extra_length)
        if flags & _UNREADABLE:
            raise self._bad(UnexpectedReply, "a member is encrypted")
        if method not in (STORED, DEFLATED):
            raise self._bad(UnexpectedReply, f"a member is compressed in a way that is not understood ({method})")
        size, packed = self._wide(extra, size, packed)
        name = raw_name.decode("utf-8", "surrogateescape") if flags & _UTF8 else raw_name.decode("cp437")
        described = bool(flags & _DESCRIPTOR)
        sized = bool(packed) or not described or (method == STORED and name.endswith("/"))
        if method == STORED:
            if not sized:
                raise self._bad(UnexpectedReply, "a member is stored without its size in front")
            if size != packed:
                raise self._bad(CorruptContent, "a stored member has two sizes")
        self._count += 1
        head = _Head(
            name,
            size if sized else None,
            packed if sized else None,
            None if described else crc,
            method,
            _dos_time(date, time),
            described,
            (start, struct.pack("<4H", flags & _UTF8, method, time, date) + raw_name),
        )
        return Member(self, head) if method == STORED else _Deflated(self, head)

    def _wide(self, extra: bytes, *shown: int) -> list[int]:
        """The values of a header, those over 32 bits from its Zip64 field."""
        if _MAX32 not in shown:
            return list(shown)
        field = memoryview(_extra_field(extra, _ZIP64))
        values: list[int] = []
        for value in shown:
            if value == _MAX32:
                if len(field) < 8:
                    raise self._bad(CorruptContent, "a Zip64 size is missing")
                value = int.from_bytes(field[:8], "little")
                field = field[8:]
            values.append(value)
        return values

    def _descriptor(self, crc: int, packed: int, size: int) -> None:
        """What follows a member that had no sizes in front. Its form is not announced; its values are known by now."""
        self._need(24)  # at least a directory's end follows the shortest form, so these must come
        seen = self._held[self._at : self._at + 24]
        body64 = struct.pack("<I2Q", crc, packed, size)
        body32 = struct.pack("<3I", crc, packed, size) if max(packed, size) <= _MAX32 else body64
        # The longer first: of an empty member the shorter is its beginning, and no mark begins with zeroes.
        for form in (_DESCRIPTOR_MARK + body64, _DESCRIPTOR_MARK + body32, body64, body32):
            if seen.startswith(form):
                self._take(len(form))
                return
        raise self._bad(CorruptContent, "a member's CRC or size is wrong")

    def _passed(self, label: tuple[int, bytes], crc: int, packed: int, size: int) -> None:
        """A member is through: its line in the directory has to say the same."""
        self._sum = (self._sum + _line_sum(label, crc, packed, size)) & _SUM_MASK

    def _directory(self, mark: bytes) -> None:
        start = self._position
        count = total = 0
        while mark == _CENTRAL_MARK and count < self._count:
            total = (total + self._central()) & _SUM_MASK
            count += 1
            mark = self._next_mark()
        if mark not in (_END_MARK, _END64_MARK):
            raise self._bad(CorruptContent, "neither a member nor the end where one of them should be")
        if count != self._count or total != self._sum:
            raise self._bad(CorruptContent, "the directory differs from the members")
        self._end(count, self._position - start, start, mark == _END64_MARK)
        if self._at < len(self._held) or self._pull_or_end(1):
            raise self._bad(CorruptContent, "something follows the end")

    def _central(self) -> int:
        fields = self._unpack(_CENTRAL)
        flags, method, time, date, crc, packed, size, name_length, extra_length, comment_length = fields[3:13]
        raw_name = self._take(name_length)
        extra = self._take(extra_length)
        self._take(comment_length)
        size, packed, offset = self._wide(extra, size, packed, fields[16])
        label = (offset, struct.pack("<4H", flags & _UTF8, method, time, date) + raw_name)
        return _line_sum(label, crc, packed, size)

    def _end(self, count: int, length: int, start: int, wide: bool) -> None:
        if wide:
            self._end64(count, length, start)
        mark, *_, few, few_total, length_32, start_32, comment_length = self._unpack(_END)
        self._take(comment_length)
        fits = (
            all(one in (count & _MAX16, _MAX16 if wide else -1) for one in (few, few_total))
            and length_32 in (length, _MAX32 if wide else -1)
            and start_32 in (start, _MAX32 if wide else -1)
        )
        if mark != _END_MARK or not fits:
            raise self._bad(CorruptContent, "the end record is wrong")

    def _end64(self, count: int, length: int, start: int) -> None:
        at = self._position
        _, rest, *_, here, everywhere, length_64, start_64 = self._unpack(_END64)
        if not _END64.size - 12 <= rest <= HEAD_PIECE:
            raise self._bad(CorruptContent, "the Zip64 end record is wrong")
        self._take(rest - (_END64.size - 12))
        mark, _, at_64, _ = self._unpack(_LOCATOR64)
        if (mark, at_64) != (_LOCATOR64_MARK, at) or (here, everywhere, length_64, start_64) != (
            count,
            count,
            length,
            start,
        ):
            raise self._bad(CorruptContent, "the Zip64 end record is wrong")

    # --- bytes -------------------------------------------------------------------------------------------------

    def _usable(self) -> None:
        if self._failed:
            raise Unavailable(f"{self._what}: reading it has failed before")

    def _bad(self, kind: type[ArchiveError], reason: str) -> ArchiveError:
        """The error to raise; the stream is of no further use."""
        self._failed = True
        return kind(f"{self._what}: {reason} (byte {self._position})")

    def _pull_or_end(self, size: int) -> bytes:
        try:
            return self._read(size)
        except BaseException:
            self._failed = True
            raise

    def _pull(self, size: int) -> bytes:
        piece = self._pull_or_end(size)
        if not piece:
            raise self._bad(Unavailable, "the stream ended before the zip did")
        return piece

    def _need(self, size: int) -> None:
        """Hold at least ``size`` bytes."""
        have = len(self._held) - self._at
        if have >= size:
            return
        pieces = [self._held[self._at :]]
        while have < size:
            piece = self._pull(HEAD_PIECE)
            pieces.append(piece)
            have += len(piece)
        self._held = b"".join(pieces)
        self._at = 0

    def _take(self, size: int) -> bytes:
        self._need(size)
        start = self._at
        self._at += size
        self._position += size
        return self._held[start : self._at]

    def _unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack(self._take(form.size))

    def _some(self, size: int) -> bytes:
        """At least one byte and at most ``size``."""
        have = len(self._held) - self._at
        if have:
            return self._take(min(have, size))
        piece = self._pull(size)
        self._position += len(piece)
        return piece

    def _copy_into(self, buffer: memoryview) -> int:
        """``_some``, into a buffer: one copy, or none."""
        have = min(len(self._held) - self._at, len(buffer))
        if have:
            buffer[:have] = memoryview(self._held)[self._at : self._at + have]
            self._at += have
        elif self._readinto is not None:
            have = self._pull_into(buffer[:PIECE], self._readinto)
        else:
            piece = self._pull(min(len(buffer), PIECE))
            have = len(piece)
            buffer[:have] = piece
        self._position += have
        return have

    def _pull_into(self, buffer: memoryview, readinto: Callable[[memoryview], int]) -> int:
        try:
            count = readinto(buffer)
        except BaseException:
            self._failed = True
            raise
        if not count:
            raise self._bad(Unavailable, "the stream ended before the zip did")
        return count

    def _discard(self, size: int) -> None:
        have = min(len(self._held) - self._at, size)
        self._at += have
        self._position += size
        size -= have
        while size:
            size -= len(self._pull(min(size, PIECE)))

    def _put_back(self, data: bytes) -> None:
        self._held = data + self._held[self._at :]
        self._at = 0
        self._position -= len(data)


@dataclass(frozen=True, slots=True)
class _Head:
    """What a local header says. ``size`` and ``packed`` (its bytes in the stream) are None while only the end tells."""

    name: str
    size: int | None
    packed: int | None
    crc: int | None
    method: int
    modified: str
    described: bool  # a data descriptor follows the content
    label: tuple[int, bytes]  # offset, and what else the directory has to repeat


class Member:
    """One member, to be read before the next is asked for. This class reads stored ones.

    Attributes:
        name: As the zip has it, a path of any kind: not made safe.
        size: Bytes, or None while only the end of the member will tell.
        crc: CRC-32 of the content, or None while only the end will tell.
        method: ``STORED`` or ``DEFLATED``.
        modified: When the content was last changed, as ``2024-01-15T10:00:02``: local time of the writer, to 2 s.
        is_dir: True for a directory's own entry.
    """

    def __init__(self, stream: ZipStream, head: _Head) -> None:
        self.name = head.name
        self.size = head.size
        self.crc = head.crc
        self.method = head.method
        self.modified = head.modified
        self.is_dir = head.name.endswith("/")
        self._stream = stream
        self._head = head
        self._left = head.packed or 0  # bytes to come in the stream
        self._expected: int | None = None
        self._running = 0  # CRC of what has been given out, and how much that is
        self._given = 0
        self._done = False

    def expect(self, size: int) -> None:
        """Say what the size has to be, so that another one is an error: now, or as soon as it shows.

        Raises:
            StaleContent
        """
        if self.size is not None and self.size != size:
            raise self._stale(size)
        self._expected = size

    def readinto(self, buffer: memoryview) -> int:
        """Fill at least one byte of ``buffer`` (bytes, one dimension) and return how many; 0 at the end only.

        Raises:
            Unavailable, CorruptContent, StaleContent
        """
        if self._done or not len(buffer):
            return 0
        self._stream._usable()
        count = self._fill(buffer)
        self._running = zlib.crc32(buffer[:count], self._running)
        self._given += count
        self._check_length()
        if self._is_at_end():
            self._finish()
        return count

    def skip(self) -> None:
        """Leave out the rest. What nobody reads is not checked, except where only reading finds the end."""
        if self._done:
            return
        self._stream._usable()
        if self._head.described or self.size is None or self.crc is None:
            scratch = memoryview(bytearray(HEAD_PIECE))
            while self.readinto(scratch):
                pass
            return
        self._stream._discard(self._left)
        self._left = 0
        self._close(self.crc, self._packed_size(), self.size)

    # --- how stored and deflated members differ ----------------------------------------------------------------

    def _fill(self, buffer: memoryview) -> int:
        size = min(self._left, len(buffer))
        if not size:
            return 0
        count = self._stream._copy_into(buffer[:size])
        self._left -= count
        return count

    def _is_at_end(self) -> bool:
        return self._left == 0

    def _ahead(self) -> int:
        """Bytes unpacked and not given out."""
        return 0

    def _packed_size(self) -> int:
        return self._head.packed or 0

    # --- checks ------------------------------------------------------------------------------------------------

    def _check_length(self) -> None:
        """Before anything over the length is given out, and before more is unpacked than one buffer."""
        known = self._given + self._ahead()
        if self._expected is not None and known > self._expected:
            raise self._stale(self._expected)
        if self.size is not None and known > self.size:
            raise self._stream._bad(CorruptContent, "a member unpacks to more than its size")

    def _finish(self) -> None:
        stream = self._stream
        packed = self._packed_size()
        if self._head.described:
            stream._descriptor(self._running, packed, self._given)
        if (self.crc is not None and self.crc != self._running) or (self.size is not None and self.size != self._given):
            raise stream._bad(CorruptContent, "a member's CRC or size is wrong")
        if self._expected is not None and self._expected != self._given:
            raise self._stale(self._expected)
        self._close(self._running, packed, self._given)

    def _close(self, crc: int, packed: int, size: int) -> None:
        self.crc, self.size = crc, size
        self._done = True
        self._stream._passed(self._head.label, crc, packed, size)

    def _stale(self, expected: int) -> ArchiveError:
        size = "another size" if self.size is None else f"{self.size} bytes"
        return self._stream._bad(StaleContent, f"a member has {size} in place of {expected} bytes")


class _Deflated(Member):
    def __init__(self, stream: ZipStream, head: _Head) -> None:
        super().__init__(stream, head)
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._tail = b""  # compressed, taken from the stream, not used
        self._pending = b""  # the next byte: only looking ahead tells the end of the data
        self._taken = 0  # compressed bytes used

    def _fill(self, buffer: memoryview) -> int:
        count = len(self._pending)
        buffer[:count] = self._pending
        while count < len(buffer) and (piece := self._inflate(len(buffer) - count)):
            buffer[count : count + len(piece)] = piece
            count += len(piece)
            if count >= HEAD_PIECE:
                break
        self._pending = self._inflate(1) if count else b""
        return count

    def _inflate(self, size: int) -> bytes:
        """At least one and at most ``size`` bytes; none at the end of the data."""
        inflater = self._inflater
        while not inflater.eof:
            data = self._tail or self._compressed()
            try:
                out = inflater.decompress(data, size)
            except zlib.error as error:
                raise self._stream._bad(CorruptContent, f"a member cannot be unpacked ({error})") from error
            self._tail = inflater.unconsumed_tail
            if inflater.eof:
                self._end_of_data(inflater.unused_data)
            if out:
                return out
            if not data and not inflater.eof:
                raise self._stream._bad(CorruptContent, "a member's compressed data stops early")
        return b""

    def _compressed(self) -> bytes:
        if self._head.packed is None:
            data = self._stream._some(HEAD_PIECE)
        elif self._left:
            data = self._stream._some(min(self._left, HEAD_PIECE))
            self._left -= len(data)
        else:
            data = b""  # what zlib still holds comes out
        self._taken += len(data)
        return data

    def _end_of_data(self, unused: bytes) -> None:
        if self._head.packed is None:
            self._stream._put_back(unused)
            self._taken -= len(unused)
        elif unused or self._left:
            raise self._stream._bad(CorruptContent, "a member's compressed data ends before its size says")

    def _is_at_end(self) -> bool:
        return not self._pending and self._inflater.eof

    def _ahead(self) -> int:
        return len(self._pending)

    def _packed_size(self) -> int:
        return self._taken if self._head.packed is None else self._head.packed


def _line_sum(label: tuple[int, bytes], crc: int, packed: int, size: int) -> int:
    """A line of the directory as a number that can be added up: equal sums, equal lines."""
    offset, rest = label
    line = struct.pack("<3QI", offset, packed, size, crc) + rest
    return int.from_bytes(hashlib.blake2b(line, digest_size=16).digest(), "little")


def _extra_field(extra: bytes, wanted: int) -> bytes:
    at = 0
    while at + 4 <= len(extra):
        identifier, length = struct.unpack_from("<2H", extra, at)
        if identifier == wanted:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return b""


def _dos_time(date: int, time: int) -> str:
    day = f"{1980 + (date >> 9)}-{date >> 5 & 15:02}-{date & 31:02}"
    return f"{day}T{time >> 11:02}:{time >> 5 & 63:02}:{(time & 31) * 2:02}"
