"""One zip as many files: the right bytes for each file that it gives, however odd or broken the zip is."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterator

import pytest

from tests.archives.conftest import DEMO
from tests.archives.test_xnat_replies import walk
from tests.helpers.server import DemoServer
from xnatfs.archives.xnat.archive import XnatArchive
from xnatfs.archives.xnat.bulk import XnatBulk, common_place
from xnatfs.archives.zipstream import ZipStream
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.config import KIB, MIB, HttpConfig, ReadConfig, TreeConfig
from xnatfs.errors import ArchiveError, CorruptContent, Unavailable
from xnatfs.model import Entry
from xnatfs.reading import bulk_transfer
from xnatfs.reading.reader import BlockReader
from xnatfs.stats import Stats

Members = list[tuple[str, bytes]]

TOP = "/data/experiments/E/scans/1/resources/7"
INSIDE = "S/scans/1-T1w/resources/DICOM/files/"


# --- what is asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "folder"),
    [
        (["a.dcm", "b.dcm"], ""),
        (["x/a.dcm", "x/b.dcm"], "x"),
        (["x/a.dcm", "x/y/b.dcm"], "x"),
        (["x/y/a.dcm", "x/yy/b.dcm"], "x"),
        (["x/a.dcm", "b.dcm"], ""),
        (["files/a", "files/files/b"], "files"),
    ],
)
def test_the_smallest_folder_with_all_files_is_asked_for(paths: list[str], folder: str) -> None:
    assert common_place([f"{TOP}/files/{path}" for path in paths]) == (TOP, folder)


def test_files_of_several_resources_and_documents_come_one_by_one() -> None:
    assert common_place([f"{TOP}/files/a", f"{TOP}8/files/a"]) is None
    assert common_place([f"{TOP}/files/a", "/data/projects/P"]) is None
    assert common_place([]) is None


# --- zips of any kind ---------------------------------------------------------------------------------------------


class Body:
    """The reply of a zip that is in memory."""

    def __init__(self, data: bytes, piece: int = 1000) -> None:
        self._file = io.BytesIO(data)
        self._piece = piece
        self.closed: list[bool] = []

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._piece))

    def close(self, reusable: bool = False) -> None:
        self.closed.append(reusable)


def zipped(members: Members, method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name, (2024, 1, 15, 10, 0, 2)), data, method)
    return file.getvalue()


def split(data: bytes, sizes: dict[str, int]) -> tuple[dict[str, bytes], ArchiveError | None, Body]:
    """What a reader of the zip gets for the files with these paths and sizes, and how it ended."""
    wanted = {path: Entry(path, f"{TOP}/files/{path}", False, size=size) for path, size in sizes.items()}
    body = Body(data)
    got: dict[str, bytes] = {}
    try:
        members = ZipStream(body.read)
        bulk = XnatBulk(body, members, members.next_member(), wanted)  # type: ignore[arg-type]
        while (found := bulk.next()) is not None:
            entry, member = found
            buffer = bytearray(100_000)
            filled = 0
            while count := member.readinto(memoryview(buffer)[filled:]):
                filled += count
            got[entry.key.partition("/files/")[2]] = bytes(buffer[:filled])
    except ArchiveError as error:
        return got, error, body
    return got, None, body


A, B, C = b"a" * 5000, bytes(range(256)) * 9, b"third"
WHOLE: Members = [(f"{INSIDE}a", A), (f"{INSIDE}sub/b", B), (f"{INSIDE}c", C)]
SIZES = {"a": 5000, "sub/b": 2304, "c": 5}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_member_is_its_file_and_the_connection_is_kept(method: int) -> None:
    got, error, body = split(zipped(WHOLE, method), SIZES)
    assert (got, error, body.closed) == ({"a": A, "sub/b": B, "c": C}, None, [True])


def test_extra_members_are_passed_over() -> None:
    extra = [(f"{INSIDE}x", b"extra"), *WHOLE, ("README", b"a"), ("catalog.xml", b"b"), (f"{INSIDE}c", b"again")]
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = zipped(extra)
    got, error, _ = split(data, SIZES)
    assert (got, error) == ({"a": A, "sub/b": B, "c": C}, None)


def test_a_missing_member_is_missing_and_the_others_are_there() -> None:
    got, error, _ = split(zipped(WHOLE[:1] + WHOLE[2:]), SIZES)
    assert (got, error) == ({"a": A, "c": C}, None)


def test_a_renamed_member_is_nobodys() -> None:
    renamed = [(name.replace("sub/b", "sub-b"), data) for name, data in WHOLE]
    got, error, _ = split(zipped(renamed), SIZES)
    assert (got, error) == ({"a": A, "c": C}, None)


def test_a_member_of_another_size_is_left_out_and_the_next_is_right() -> None:
    got, error, _ = split(zipped([WHOLE[0], (WHOLE[1][0], B + b"!"), WHOLE[2]]), SIZES)
    assert (got, error) == ({"a": A, "c": C}, None)


@pytest.mark.parametrize("at", ["content", "crc"])
def test_a_member_that_does_not_fit_its_crc_ends_the_stream(at: str) -> None:
    data = bytearray(zipped(WHOLE))
    second = data.index(WHOLE[1][0].encode())
    where = second + len(WHOLE[1][0]) + 100 if at == "content" else second - struct.calcsize("<3I2H")
    data[where] ^= 1
    got, error, _ = split(bytes(data), SIZES)
    assert got == {"a": A}
    assert isinstance(error, CorruptContent)


@pytest.mark.parametrize("cut", [10, 100, 3000, 6000, 7500, -200, -1])
def test_a_zip_that_ends_early_gives_whole_members_and_an_error(cut: int) -> None:
    got, error, _ = split(zipped(WHOLE)[:cut], SIZES)
    assert got.items() <= {"a": A, "sub/b": B, "c": C}.items()
    assert isinstance(error, Unavailable)


@pytest.mark.parametrize("data", [b"", b"<html>log in</html>", b"garbage" * 100])
def test_what_is_no_zip_is_an_error(data: bytes) -> None:
    got, error, _ = split(data, SIZES)
    assert got == {}
    assert error is not None


def test_an_empty_zip_is_no_file() -> None:
    assert split(zipped([]), SIZES)[:2] == ({}, None)


# --- the reader on a server ---------------------------------------------------------------------------------------

COUNT = 40
FILES = {f"series/im%{number:03d};1.dcm": b"%d " % number * 700 for number in range(COUNT)} | {
    f"plain/im{number:03d}.dcm": bytes([number]) * 2500 for number in range(COUNT)
}


@pytest.fixture(scope="module")
def full_server() -> Iterator[DemoServer]:
    """A server of our own: two folders of small files are added to it, one with names that the firewall refuses."""
    with DemoServer() as server:
        resource = next(row["resource_id"] for row in server.truth("ODDITIES") if row["resource"] == "names")
        for path, data in FILES.items():
            server.edit("add", f"/data/experiments/XNAT_E00020/resources/{resource}/files/{path}", data)
        yield server


@pytest.fixture
def server(full_server: DemoServer) -> DemoServer:
    full_server.reset()
    return full_server


class Folder:
    def __init__(self, key: str, own: list[Entry]) -> None:
        self.key = key
        self._own = own

    def files(self) -> tuple[list[Entry], list[Entry]]:
        return self._own, []


Read = Callable[[str], dict[str, bytes]]


@pytest.fixture
def stats() -> Stats:
    return Stats()


@pytest.fixture
def archive(server: DemoServer) -> Iterator[XnatArchive]:
    opened = XnatArchive(server.url, DEMO, HttpConfig(timeout_s=2.0, retries=1), TreeConfig(), "xnatfs/test")
    yield opened
    opened.close()


@pytest.fixture
def reader(archive: XnatArchive, stats: Stats) -> Iterator[BlockReader]:
    made = BlockReader(archive, MemoryBlocks(16 * MIB), ReadConfig(idle_s=0.2, timeout_s=2.0), 128 * KIB, stats)
    yield made
    made.close()


def files_of(archive: XnatArchive, folder: str) -> list[Entry]:
    _, listing = walk(archive, "ODDITIES", "ODD_1", "ODD_1_MR", "resources")
    entries = (entry for children in listing.children.values() for entry in children if not entry.is_dir)
    return [entry for entry in entries if entry.key.partition("/files/")[2].startswith(f"{folder}/")]


def read_folder(reader: BlockReader, entries: list[Entry], folder: str) -> dict[str, bytes]:
    shown = Folder(folder, entries)
    found = {}
    for entry in entries:
        file = reader.open(entry, shown)
        found[entry.key.partition("/files/")[2]] = reader.pread(file, 0, entry.size or 0)
        reader.release(file)
    return found


def truth(folder: str) -> dict[str, bytes]:
    return {path: data for path, data in FILES.items() if path.startswith(f"{folder}/")}


def test_a_folder_is_read_by_one_zip_of_that_folder(
    archive: XnatArchive, reader: BlockReader, server: DemoServer, stats: Stats
) -> None:
    assert read_folder(reader, files_of(archive, "plain"), "plain") == truth("plain")
    [zip_request] = [row for row in server.data_requests() if "format=zip" in row["query"]]
    assert zip_request["path"].endswith("/files/plain/")
    assert len(server.data_requests()) == 3
    assert stats.bulk_streams == 1


def test_one_zip_serves_many_files_that_the_firewall_refuses(
    archive: XnatArchive, reader: BlockReader, server: DemoServer
) -> None:
    assert read_folder(reader, files_of(archive, "series"), "series") == truth("series")
    assert [row for row in server.data_requests() if row["status"] >= 400] == []
    assert len(server.data_requests()) == 3  # zips for two files, each read up to its file, and one for all the others


@pytest.mark.parametrize(
    "kind",
    ["html", "empty", "parent_item", "garbage", "gzip_encoding", "status", "reset", "close", "chunked_cut", "drip"],
)
@pytest.mark.parametrize("at", [None, 60_000])
def test_a_zip_that_goes_wrong_costs_a_fallback_and_no_byte(
    archive: XnatArchive,
    reader: BlockReader,
    server: DemoServer,
    kind: str,
    at: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bulk_transfer, "SILENCE_S", 0.3)
    entries = files_of(archive, "plain")
    server.fault("format=zip", kind, at=at, times=None)
    assert read_folder(reader, entries, "plain") == truth("plain")
    zips = [row for row in server.data_requests() if "format=zip" in row["query"]]
    assert 1 <= len(zips) <= 4


def test_a_zip_that_stalls_is_not_waited_for(
    archive: XnatArchive, reader: BlockReader, server: DemoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_transfer, "SILENCE_S", 0.3)
    entries = files_of(archive, "plain")
    server.fault("format=zip", "stall", at=60_000, times=None)
    assert read_folder(reader, entries, "plain") == truth("plain")


def test_a_file_that_is_gone_from_the_servers_disk_is_its_own_error(
    archive: XnatArchive, reader: BlockReader, server: DemoServer
) -> None:
    entries = files_of(archive, "plain")
    server.edit("remove", entries[20].key)
    try:
        rest = entries[:20] + entries[21:]
        found = read_folder(reader, rest, "plain")
        assert found == {path: data for path, data in truth("plain").items() if "im020" not in path}
        with pytest.raises(ArchiveError):
            read_folder(reader, entries[20:21], "plain")
    finally:
        server.edit("restore", entries[20].key)


def test_a_file_read_from_a_zip_and_forgotten_is_fetched_by_itself_as_the_same_version(
    archive: XnatArchive, server: DemoServer
) -> None:
    entries = files_of(archive, "plain")
    cache = MemoryBlocks(16 * MIB)
    reader = BlockReader(archive, cache, ReadConfig(idle_s=0.2, timeout_s=2.0), 128 * KIB)
    read_folder(reader, entries, "plain")
    file = reader.open(entries[30])
    assert file.flight.content is not None
    cache.discard(file.flight.content)
    server.clear_log()
    assert reader.pread(file, 0, 2500) == truth("plain")["plain/im030.dcm"]
    assert [row["query"] for row in server.data_requests()] == [""]
    reader.release(file)
    reader.close()


def test_a_file_that_changed_between_a_zip_and_a_fetch_is_never_mixed(archive: XnatArchive, server: DemoServer) -> None:
    entries = files_of(archive, "plain")
    cache = MemoryBlocks(16 * MIB)
    reader = BlockReader(archive, cache, ReadConfig(idle_s=0.2, timeout_s=2.0), 128 * KIB)
    read_folder(reader, entries, "plain")
    file = reader.open(entries[30])
    old = truth("plain")["plain/im030.dcm"]
    assert reader.pread(file, 0, 100) == old[:100]
    assert file.flight.content is not None
    cache.discard(file.flight.content)
    server.edit("replace", entries[30].key, b"N" * 2500, keep_digest=True)
    try:
        with pytest.raises(ArchiveError):
            reader.pread(file, 100, 100)
    finally:
        server.edit("replace", entries[30].key, old)
    reader.release(file)
    reader.close()
