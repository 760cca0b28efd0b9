"""A zip is split as it arrives: what zipfile writes is read, and whatever is wrong is an error, never wrong bytes."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable

import pytest

from xnatfs.archives.zipstream import DEFLATED, STORED, Member, ZipStream
from xnatfs.errors import ArchiveError, CorruptContent, StaleContent, Unavailable, UnexpectedReply

NOISE = random.Random(5).randbytes(300_000)
CONTENTS = {
    "S/resources/R/files/empty": b"",
    "S/resources/R/files/one": b"1",
    "S/resources/R/files/text": b"the same line again\n" * 20_000,
    "S/resources/R/files/noise": NOISE,
    "S/resources/R/files/caf\u00e9 \u8133": b"unicode\n",
}


class Unseekable(io.RawIOBase):
    """A pipe: zipfile writes data descriptors to it, as it cannot go back to a header."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.data += memoryview(data)  # type: ignore[arg-type]
        return len(memoryview(data))  # type: ignore[arg-type]


def zipped(
    contents: dict[str, bytes], method: int = zipfile.ZIP_STORED, streamed: bool = False, **more: object
) -> bytes:
    out: io.RawIOBase | io.BytesIO = Unseekable() if streamed else io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:  # type: ignore[arg-type]
        for name, data in contents.items():
            info = zipfile.ZipInfo(name, (2024, 1, 15, 10, 0, 2))
            info.compress_type = method
            with archive.open(info, "w", **more) as member:  # type: ignore[call-overload]
                member.write(data)
    return bytes(out.data) if isinstance(out, Unseekable) else out.getvalue()  # type: ignore[union-attr]


def source(data: bytes, step: int = 1 << 20) -> Callable[[int], bytes]:
    """``data`` as a socket gives it: up to ``step`` bytes at once."""
    stream = io.BytesIO(data)
    return lambda size: stream.read(min(size, step))


def read_all(member: Member, piece: int = 70_000) -> bytes:
    found = bytearray()
    buffer = bytearray(piece)
    while count := member.readinto(memoryview(buffer)):
        found += buffer[:count]
    return bytes(found)


def split(data: bytes, step: int = 1 << 20, piece: int = 70_000) -> dict[str, bytes]:
    """The members, the same whether bytes come as objects or go to where they belong."""
    body = io.BytesIO(data)
    found = split_by(ZipStream(source(data, step)), piece)
    straight = ZipStream(lambda size: body.read(min(size, step)), "zip", lambda buffer: body.readinto(buffer[:step]))
    assert split_by(straight, piece) == found
    return found


def split_by(stream: ZipStream, piece: int) -> dict[str, bytes]:
    found = {}
    while (member := stream.next_member()) is not None:
        found[member.name] = read_all(member, piece)
    assert stream.next_member() is None
    return found


def header(name: bytes = b"x", flags: int = 0, method: int = 0, crc: int = 0, packed: int = 0, size: int = 0) -> bytes:
    return struct.pack("<4s5H3I2H", b"PK\3\4", 20, flags, method, 0, 33, crc, packed, size, len(name), 0) + name


@pytest.mark.parametrize(("step", "piece"), [(1 << 20, 1 << 20), (1000, 70_000), (7, 1 << 20), (1 << 20, 333)])
@pytest.mark.parametrize(
    ("method", "streamed"),
    [(zipfile.ZIP_STORED, False), (zipfile.ZIP_DEFLATED, False), (zipfile.ZIP_DEFLATED, True)],
)
def test_what_zipfile_writes_is_split_into_the_same_members(method: int, streamed: bool, step: int, piece: int) -> None:
    assert split(zipped(CONTENTS, method, streamed), step, piece) == CONTENTS


@pytest.mark.parametrize(("method", "streamed"), [(zipfile.ZIP_STORED, False), (zipfile.ZIP_DEFLATED, True)])
def test_zip64_sizes_are_read(method: int, streamed: bool) -> None:
    data = zipped(CONTENTS, method, streamed, force_zip64=True)
    assert b"\x01\0\x10\0" in data  # the extra field is there
    assert split(data) == CONTENTS


def test_more_members_than_sixteen_bits_count_are_read() -> None:
    contents = {f"{number}": b"" for number in range(0x10001)}
    data = zipped(contents)
    assert b"PK\6\6" in data
    assert len(split(data)) == 0x10001


def test_a_member_knows_what_its_header_says() -> None:
    stream = ZipStream(source(zipped({"a/b": b"12345", "a/": b""})))
    member = stream.next_member()
    assert member is not None
    assert (member.name, member.size, member.crc, member.method) == ("a/b", 5, zlib.crc32(b"12345"), STORED)
    assert (member.modified, member.is_dir) == ("2024-01-15T10:00:02", False)
    folder = stream.next_member()
    assert folder is not None
    assert folder.is_dir


def test_a_streamed_member_knows_its_size_at_its_end() -> None:
    member = ZipStream(source(zipped({"a": b"12345"}, zipfile.ZIP_DEFLATED, True))).next_member()
    assert member is not None
    assert (member.size, member.crc, member.method) == (None, None, DEFLATED)
    read_all(member)
    assert (member.size, member.crc) == (5, zlib.crc32(b"12345"))


@pytest.mark.parametrize(
    ("method", "streamed"),
    [(zipfile.ZIP_STORED, False), (zipfile.ZIP_DEFLATED, False), (zipfile.ZIP_DEFLATED, True)],
)
def test_members_are_skipped_whole_or_from_the_middle(method: int, streamed: bool) -> None:
    stream = ZipStream(source(zipped(CONTENTS, method, streamed), 5000))
    names = []
    while (member := stream.next_member()) is not None:
        names.append(member.name)
        if len(names) % 2:
            member.readinto(memoryview(bytearray(100)))
    assert names == list(CONTENTS)


def test_a_member_is_at_its_end_once_the_next_is_asked_for() -> None:
    stream = ZipStream(source(zipped({"a": b"1", "b": b"2"})))
    first = stream.next_member()
    stream.next_member()
    assert first is not None
    assert first.readinto(memoryview(bytearray(1))) == 0


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\\b", "", "a" * 65_000, "x\0y", "CON", "."])
def test_a_name_is_only_a_name(name: str) -> None:
    raw = name.encode()
    body = header(raw, crc=zlib.crc32(b"1"), packed=1, size=1) + b"1"
    member = ZipStream(source(body)).next_member()
    assert member is not None
    assert member.name == name
    assert read_all(member) == b"1"


def test_names_are_utf8_where_flagged_else_cp437() -> None:
    plain = ZipStream(source(header(b"caf\x82"))).next_member()
    flagged = ZipStream(source(header("caf\u00e9".encode(), flags=0x800))).next_member()
    assert plain is not None
    assert flagged is not None
    assert plain.name == flagged.name == "caf\u00e9"


def test_an_empty_zip_has_no_members() -> None:
    assert split(zipped({})) == {}


# --- no zip ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty body"),
        (b"<!DOCTYPE html><html>log in</html>", "HTML page"),
        (b"\n <html>", "HTML page"),
        (b'{"items":[]}', "something else"),
        (b"x", "something else"),
        (b"PK\1\2" + bytes(100), "something else"),
        (header(flags=1), "encrypted"),
        (header(flags=0x2041), "encrypted"),
        (header(method=12), "not understood"),
        (header(flags=8), "without its size"),
        (zipped(CONTENTS, zipfile.ZIP_STORED, True), "without its size"),
        (zipped({"a": b"1"}, zipfile.ZIP_BZIP2), "not understood"),
    ],
)
def test_what_is_no_zip_to_split_is_unexpected(body: bytes, reason: str) -> None:
    with pytest.raises(UnexpectedReply, match=reason):
        split(body)


# --- damage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "streamed"),
    [(zipfile.ZIP_STORED, False), (zipfile.ZIP_DEFLATED, False), (zipfile.ZIP_DEFLATED, True)],
)
def test_a_zip_cut_short_anywhere_is_unavailable(method: int, streamed: bool) -> None:
    whole = zipped({"a": b"first", "b": b"second" * 50}, method, streamed, force_zip64=True)
    for length in range(1, len(whole)):
        with pytest.raises(Unavailable):
            split(whole[:length])


def test_a_flipped_byte_of_content_is_seen_before_the_last_bytes_are_given() -> None:
    whole = bytearray(zipped({"a": NOISE}))
    whole[40] ^= 1
    member = ZipStream(source(bytes(whole), 10_000)).next_member()
    assert member is not None
    given = 0
    with pytest.raises(CorruptContent, match="CRC"):
        while count := member.readinto(memoryview(bytearray(10_000))):
            given += count
    assert 0 < given < len(NOISE)


def test_after_an_error_the_stream_is_of_no_use() -> None:
    whole = bytearray(zipped({"a": b"12345", "b": b"1"}))
    whole[33] ^= 1
    stream = ZipStream(source(bytes(whole)))
    member = stream.next_member()
    assert member is not None
    with pytest.raises(CorruptContent):
        read_all(member)
    with pytest.raises(Unavailable, match="failed before"):
        stream.next_member()


def test_a_failing_source_is_passed_on() -> None:
    def broken(size: int) -> bytes:
        raise Unavailable("reset")

    with pytest.raises(Unavailable, match="reset"):
        ZipStream(broken).next_member()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole + b"\0",
        lambda whole: whole[:-22] + whole[-22:].replace(b"\2\0\2\0", b"\3\0\3\0"),  # another count
        lambda whole: whole.replace(b"PK\1\2", b"PK\1\3", 1),
        lambda whole: whole[: whole.index(b"PK\1\2")] + whole[-22:],  # the directory is missing
        lambda whole: whole[: whole.index(b"PK\1\2")] + whole[whole.rindex(b"PK\1\2") :],  # a line is missing
    ],
)
def test_a_damaged_structure_is_corrupt(damage: Callable[[bytes], bytes]) -> None:
    whole = zipped({"a": b"first", "b": b"second"})
    assert split(whole)
    with pytest.raises((CorruptContent, UnexpectedReply)):
        split(damage(whole))


def test_a_renamed_member_does_not_match_the_directory() -> None:
    whole = zipped({"a1": b"first", "a2": b"second"}).replace(b"a1", b"a3", 1)
    with pytest.raises(CorruptContent, match="directory differs"):
        split(whole)


# --- hostile sizes -----------------------------------------------------------------------------------------------

BOMB = bytes(50_000_000)


def test_a_member_that_unpacks_to_more_than_its_size_stops_there() -> None:
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packed.compress(BOMB) + packed.flush()
    body = header(method=8, crc=0, packed=len(data), size=1000) + data
    member = ZipStream(source(body)).next_member()
    assert member is not None
    given = 0
    with pytest.raises(CorruptContent, match="more than its size"):
        while count := member.readinto(memoryview(bytearray(100))):
            given += count
    assert given <= 1000


@pytest.mark.parametrize("size", [0, 1, 4999, 5001, 1_000_000])
@pytest.mark.parametrize(
    ("method", "streamed"),
    [(zipfile.ZIP_STORED, False), (zipfile.ZIP_DEFLATED, False), (zipfile.ZIP_DEFLATED, True)],
)
def test_another_size_than_expected_is_stale(method: int, streamed: bool, size: int) -> None:
    member = ZipStream(source(zipped({"a": bytes(5000)}, method, streamed))).next_member()
    assert member is not None
    given = bytearray()
    with pytest.raises(StaleContent):
        member.expect(size)
        while count := member.readinto(memoryview(buffer := bytearray(100))):
            given += buffer[:count]
    assert len(given) <= size
    assert len(given) < 5000


def test_a_streamed_bomb_gives_no_more_than_expected() -> None:
    member = ZipStream(source(zipped({"a": BOMB}, zipfile.ZIP_DEFLATED, True))).next_member()
    assert member is not None
    member.expect(70_000)
    given = 0
    with pytest.raises(StaleContent):
        while count := member.readinto(memoryview(bytearray(50_000))):
            given += count
    assert given <= 70_000


@pytest.mark.parametrize("size", [1, 0xFFFFFFFE, 0xFFFFFFFF])
def test_a_size_that_nothing_follows_is_an_error(size: int) -> None:
    with pytest.raises(ArchiveError):
        split(header(packed=size, size=size))


def test_an_endless_directory_is_refused() -> None:
    whole = zipped({"a": b"1"})
    at, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    with pytest.raises(CorruptContent):
        split(whole[:at] + whole[at:end] * 1000 + whole[end:])
