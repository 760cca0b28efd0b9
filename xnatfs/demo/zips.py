"""Archives of files, streamed: ZIP with stored or deflated members, tar, and the member names XNAT invents.

STORED members carry size and CRC in their local header and no data descriptor, so a reader can split the stream as it
arrives. Runs in a sending thread; holds at most one piece of a file in memory.
"""

from __future__ import annotations

import io
import re
import struct
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence

from xnatfs.demo.contents import Content
from xnatfs.demo.records import File, Holder

UTF8_NAMES = 0x800
DESCRIPTOR = 0x008
ZIP64_FROM = 0xFFFFFFFF

Member = tuple[str, Content, int]  # name, bytes, mtime in seconds


def members(chosen: Sequence[tuple[Holder, File]], structure: str) -> list[Member]:
    """Name and content of each member. A file that is gone from disk is silently left out."""
    return [(member_name(h, f, structure), f.content, f.mtime_s) for h, f in chosen if f.on_disk]


def member_name(holder: Holder, file: File, structure: str) -> str:
    """The name a file gets inside an archive, by ``structure=``; made by plain replacement in the file's URI."""
    resource = holder.resource
    label = resource.label or str(resource.id)
    uri = f"{holder.base}/resources/{label}/files/{file.path}"
    session = holder.session_label
    type_ = re.sub(r"\W", "_", holder.item_type, flags=re.ASCII)
    if structure == "legacy":
        return f"{session}/{holder.category.upper()}/{holder.item_id or label}/{file.path}".lstrip("/")
    if structure == "improved":
        tail = uri.rsplit("/files/", 1)[1]  # cuts at the last one
        item = f"{holder.category}/{holder.item_id}_{type_}/" if holder.item_id else ""
        return f"{item}{label}/{tail}"
    name = re.sub(r"^/experiments/[^/]+|^/projects/[^/]+(/subjects/[^/]+)?|^/subjects/[^/]+", session, uri)
    if structure == "simplified":
        return name.replace("/resources", "").replace("/files", "").lstrip("/")
    if holder.category == "scans":
        name = name.replace(f"/scans/{holder.item_id}", f"/scans/{holder.item_id}-{type_}")
    return name.lstrip("/")


def zip_stream(entries: Sequence[Member], deflate: bool) -> Iterator[bytes | memoryview]:
    """The bytes of one ZIP archive, in order."""
    directory: list[bytes] = []
    offset = 0
    for name, content, mtime_s in entries:
        for piece in _zip_member(name.encode(), content, mtime_s, deflate, offset, directory):
            offset += len(piece)
            yield piece
    central = b"".join(directory)
    yield central
    yield _end_records(len(entries), len(central), offset)


def _zip_member(
    name: bytes, content: Content, mtime_s: int, deflate: bool, offset: int, directory: list[bytes]
) -> Iterator[bytes | memoryview]:
    when = _dos_time(mtime_s)
    size = packed = content.size
    flags = UTF8_NAMES | (DESCRIPTOR if deflate else 0)
    method = 8 if deflate else 0
    crc = content.crc32()  # STORED: the file is read twice, as XNAT does
    big = size >= ZIP64_FROM
    version = 45 if big else 20
    if deflate:
        yield struct.pack("<4s5H3I2H", b"PK\3\4", version, flags, method, *when, 0, 0, 0, len(name), 0) + name
        packer, packed = zlib.compressobj(6, zlib.DEFLATED, -15), 0
        for piece in content.pieces(0, size):
            out = packer.compress(piece)
            packed += len(out)
            if out:
                yield out
        out = packer.flush()
        packed += len(out)
        yield out
        yield struct.pack("<4s3I", b"PK\7\x08", crc, packed, size)
    else:
        extra = struct.pack("<2H2Q", 1, 16, size, size) if big else b""
        shown = ZIP64_FROM if big else size
        lengths = (crc, shown, shown, len(name), len(extra))
        yield struct.pack("<4s5H3I2H", b"PK\3\4", version, flags, method, *when, *lengths) + name + extra
        yield from content.pieces(0, size)
    directory.append(_central(name, version, flags, method, when, crc, packed, size, offset))


def _central(
    name: bytes, version: int, flags: int, method: int, when: tuple[int, int], crc: int, packed: int, size: int, at: int
) -> bytes:
    wide = [value for value in (size, packed, at) if value >= ZIP64_FROM]
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    shown = [min(value, ZIP64_FROM) for value in (packed, size, at)]
    head = struct.pack("<4s6H3I", b"PK\1\2", version, version, flags, method, *when, crc, shown[0], shown[1])
    return head + struct.pack("<5H2I", len(name), len(extra), 0, 0, 0, 0, shown[2]) + name + extra


def _end_records(count: int, length: int, offset: int) -> bytes:
    end = b""
    if count >= 0xFFFF or offset >= ZIP64_FROM:
        end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, offset)
        end += struct.pack("<4sIQI", b"PK\6\7", 0, offset + length, 1)
    few = min(count, 0xFFFF)
    return end + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, few, few, length, min(offset, ZIP64_FROM), 0)


def _dos_time(mtime_s: int) -> tuple[int, int]:
    t = time.gmtime(mtime_s)
    return t.tm_hour << 11 | t.tm_min << 5 | t.tm_sec // 2, (t.tm_year - 1980) << 9 | t.tm_mon << 5 | t.tm_mday


def tar_stream(entries: Sequence[Member], gzipped: bool) -> Iterator[bytes | memoryview]:
    """The bytes of one tar archive with POSIX long names, optionally compressed."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31) if gzipped else None
    for piece in _tar_pieces(entries):
        out = piece if packer is None else packer.compress(piece)
        if len(out):
            yield out
    if packer is not None:
        yield packer.flush()


def _tar_pieces(entries: Sequence[Member]) -> Iterator[bytes | memoryview]:
    for name, content, mtime_s in entries:
        info = tarfile.TarInfo(name)
        info.size, info.mtime = content.size, mtime_s
        yield info.tobuf(tarfile.PAX_FORMAT)
        yield from content.pieces(0, content.size)
        yield bytes(-content.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def zip_listing(content: Content) -> list[tuple[str, int]]:
    """Names and sizes inside a stored zip file (``listContents=true``)."""
    import zipfile

    with zipfile.ZipFile(io.BytesIO(content.read())) as archive:
        return [(info.filename, info.file_size) for info in archive.infolist()]


def zip_member(content: Content, name: str) -> bytes | None:
    """One member of a stored zip file, or None when there is no such member."""
    import zipfile

    with zipfile.ZipFile(io.BytesIO(content.read())) as archive:
        return archive.read(name) if name in archive.namelist() else None
