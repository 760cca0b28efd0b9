"""Files with names that XNAT refuses by path are the server's truth all the same, or an error: never other bytes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from hashlib import md5

import pytest

from tests.archives.conftest import DEMO
from tests.archives.test_xnat_replies import read_all, walk
from tests.helpers.server import DemoServer
from xnatfs.archives.xnat.archive import XnatArchive
from xnatfs.archives.xnat.zips import needs_zip, path_in_resource
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.config import HttpConfig, ReadConfig, TreeConfig
from xnatfs.errors import ArchiveError, NotFound, StaleContent, TimedOut, UnexpectedReply
from xnatfs.model import Entry
from xnatfs.reading.reader import BlockReader

NAMES = "/data/experiments/XNAT_E00020/resources/{}/files/"
LARGE = bytes(range(256)) * 2_700  # 691,200 bytes, so that it arrives in pieces
ADDED = {
    "big%.bin": LARGE,
    "empty%.bin": b"",
    "sub%dir/a.txt": b"a folder with a per cent\n",
    "plain dir/per%.txt": b"in a plain folder\n",
    "plain dir/other.txt": b"has a path of its own\n",
    "files/per%cent.txt": b"CONTENT OF per%cent.txt\n",  # as long as the file of that name one level up
    "files/files/per%cent.txt": b"Content of Per%cent.txt\n",
    "caf\u00e9/\u8133%.txt": b"unicode in both\n",
    "x.zip/inner.txt": b"a folder called x.zip\n",
    "star*.txt": b"a pattern in its name\n",
    "two..dots/and%": b"no parent\n",
}


@pytest.fixture(scope="module")
def odd_server() -> Iterator[DemoServer]:
    """A server of our own: files are added to it."""
    with DemoServer() as server:
        resource = next(row["resource_id"] for row in server.truth("ODDITIES") if row["resource"] == "names")
        for path, data in ADDED.items():
            server.edit("add", NAMES.format(resource) + path, data)
        yield server


@pytest.fixture
def server(odd_server: DemoServer) -> DemoServer:
    odd_server.reset()
    return odd_server


@pytest.fixture
def archive(server: DemoServer) -> Iterator[XnatArchive]:
    opened = XnatArchive(server.url, DEMO, HttpConfig(timeout_s=2.0, retries=1), TreeConfig(), "xnatfs/test")
    yield opened
    opened.close()


def odd_files(archive: XnatArchive) -> dict[str, Entry]:
    """Every file of the odd session by its listed URI."""
    _, listing = walk(archive, "ODDITIES", "ODD_1", "ODD_1_MR", "resources")
    entries = (entry for children in listing.children.values() for entry in children)
    return {entry.key: entry for entry in entries if not entry.is_dir}


def named(archive: XnatArchive, path: str) -> Entry:
    [entry] = [entry for key, entry in odd_files(archive).items() if key.partition("/files/")[2] == path]
    return entry


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("plain.txt", False),
        ("hash#tag.txt", False),
        ("a+b c?&='\"[1].txt", False),
        (".hidden", False),
        ("a..b/...", False),
        ("trailing ", False),
        ("a.zip", False),
        ("a.zipped/x", False),
        ("per%cent", True),
        ("semi;colon", True),
        ("back\\slash", True),
        ("a//b", True),
        ("/a", True),
        ("./a", True),
        ("a/../b", True),
        ("a/..", True),
        ("a.ZIP/inner", True),
        ("a.jar!inner", True),
        ("a*", True),
        ("nul\0", True),
        ("line\nbreak", True),
    ],
)
def test_the_names_that_a_path_cannot_reach_are_known(path: str, refused: bool) -> None:
    assert needs_zip("/data/experiments/E/scans/1/resources/33/files/" + path) is refused


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("S/scans/4-T1w/resources/DICOM/files/a/b.dcm", "a/b.dcm"),
        ("S/resources/names/files/x", "x"),
        ("S/resources/files/files/x", "x"),
        ("S/resources/files/files/files/resources/files/x", "files/resources/files/x"),
        ("S/resources/R/files/files/x", "files/x"),
        ("S/resources//files/x", "x"),
        ("resources/resources/R/files/x", "x"),
        ("files/x", ""),
        ("../../files/x", "x"),
        ("x", ""),
    ],
)
def test_a_members_path_begins_behind_the_label(name: str, path: str) -> None:
    assert path_in_resource(name) == path


def test_every_odd_name_is_the_servers_truth(archive: XnatArchive, server: DemoServer) -> None:
    truth = {row["uri"]: row for row in server.truth("ODDITIES") if row["resource"] in ("names", "files")}
    entries = odd_files(archive)
    assert {path for path in ADDED if not path.endswith("/")} <= {uri.partition("/files/")[2] for uri in truth}
    assert len(truth) > 25
    for uri, row in truth.items():
        data = read_all(archive, entries[uri])
        assert (uri, len(data), md5(data).hexdigest()) == (uri, row["size"], row["md5"])
    asked = [row for row in server.data_requests() if row["status"] == 500]
    assert asked == []  # the firewall was never met


def test_ordinary_odd_names_go_by_their_path(archive: XnatArchive, server: DemoServer) -> None:
    entry = named(archive, "hash#tag.txt")
    read_all(archive, entry)
    [request] = server.data_requests()
    assert "format=zip" not in request["query"]


@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("per%cent.txt", "/files"),
        ("sub%dir/a.txt", "/files"),
        ("x.zip/inner.txt", "/files"),
        ("plain dir/per%.txt", "/files/plain%20dir/"),
        ("files/per%cent.txt", "/files/files/"),
    ],
)
def test_the_smallest_zip_is_asked_for(archive: XnatArchive, server: DemoServer, path: str, below: str) -> None:
    entry = named(archive, path)
    assert read_all(archive, entry) == ADDED.get(path, f"content of {path}\n".encode())
    [request] = server.data_requests()
    assert request["path"].endswith(below)
    assert "format=zip" in request["query"]


def test_a_folder_that_the_server_does_not_find_is_looked_for_in_the_resource(
    archive: XnatArchive, server: DemoServer
) -> None:
    entry = named(archive, "plain dir/per%.txt")
    server.fault("/files/plain%20dir/", "status", status=404)
    assert read_all(archive, entry) == ADDED["plain dir/per%.txt"]
    assert len(server.data_requests()) == 2


def test_the_stream_says_what_it_is(archive: XnatArchive) -> None:
    entry = named(archive, "big%.bin")
    stream = archive.open_range(entry, 600_000, 600_001)
    assert (stream.start, stream.stop, stream.total, stream.ranged) == (0, len(LARGE), len(LARGE), False)
    assert f"{zlib.crc32(LARGE):08x}" in stream.validator
    stream.close()
    stream.close()


def test_a_changed_file_has_another_validator_or_is_stale(archive: XnatArchive, server: DemoServer) -> None:
    entry = named(archive, "two..dots/and%")
    before = archive.open_range(entry, 0, 1)
    before.close()
    server.edit("replace", entry.key, b"NO PARENT\n")
    after = archive.open_range(entry, 0, 1)
    after.close()
    assert before.validator != after.validator
    server.edit("replace", entry.key, b"longer than it was\n")
    with pytest.raises(StaleContent, match="19 bytes where the listing says 10"):
        archive.open_range(entry, 0, 1)


def test_a_deflated_zip_reads_the_same(archive: XnatArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xnatfs.archives.xnat.zips.QUERY", {"format": "zip", "compression": "8"})
    entry = named(archive, "big%.bin")
    assert read_all(archive, entry) == LARGE
    assert archive.stat(replace(entry, size=None)).size == len(LARGE)
    stream = archive.open_range(replace(entry, size=len(LARGE) - 1), 0, 1)
    with pytest.raises(StaleContent):
        buffer = memoryview(bytearray(70_000))
        while stream.readinto(buffer):
            pass
    stream.close()


@pytest.mark.parametrize("path", ["per%cent.txt", "plain dir/per%.txt", "empty%.bin", "big%.bin"])
def test_a_size_that_the_listing_lacks_comes_from_the_member(archive: XnatArchive, path: str) -> None:
    entry = named(archive, path)
    known = archive.stat(replace(entry, size=None, version=""))
    assert known.size == entry.size
    assert known.version.startswith(f"{entry.size}:{entry.digest}:")


def test_a_file_gone_from_the_servers_disk_is_not_found(archive: XnatArchive, server: DemoServer) -> None:
    entry = named(archive, "per%cent.txt")
    server.edit("remove", entry.key)
    try:
        with pytest.raises(NotFound):
            archive.open_range(entry, 0, 1)
        with pytest.raises(NotFound):
            archive.stat(replace(entry, size=None))
    finally:
        server.edit("restore", entry.key)
    assert read_all(archive, entry) == b"content of per%cent.txt\n"


def test_a_name_that_was_never_there_is_not_found(archive: XnatArchive) -> None:
    entry = named(archive, "per%cent.txt")
    with pytest.raises(NotFound):
        archive.open_range(replace(entry, key=entry.key + "%"), 0, 1)


@pytest.mark.parametrize("kind", ["html", "empty", "parent_item", "garbage", "gzip_encoding"])
def test_what_is_no_zip_is_an_error(archive: XnatArchive, server: DemoServer, kind: str) -> None:
    entry = named(archive, "per%cent.txt")
    server.fault("format=zip", kind, times=None)
    with pytest.raises(UnexpectedReply):
        archive.open_range(entry, 0, 1)
    with pytest.raises(UnexpectedReply):
        archive.stat(replace(entry, size=None))


@pytest.mark.parametrize("kind", ["reset", "close", "chunked_cut"])
@pytest.mark.parametrize("at", [1, 25, 200, 1000, 3000, 300_000, 690_000])
def test_a_zip_that_breaks_before_the_file_is_through_is_an_error(
    archive: XnatArchive, server: DemoServer, kind: str, at: int
) -> None:
    entry = named(archive, "big%.bin")
    server.fault("format=zip", kind, at=at, times=None)
    with pytest.raises(ArchiveError):
        read_all(archive, entry)


def test_a_zip_that_breaks_before_the_member_is_asked_for_again(archive: XnatArchive, server: DemoServer) -> None:
    entry = named(archive, "big%.bin")
    server.fault("format=zip", "reset", at=200)
    assert read_all(archive, entry) == LARGE


def test_a_zip_that_comes_in_drips_is_given_up(archive: XnatArchive, server: DemoServer) -> None:
    entry = named(archive, "big%.bin")
    server.fault("format=zip", "drip", at=100)
    with pytest.raises(TimedOut):
        archive.open_range(entry, 0, 1)


def test_a_zip_that_stalls_times_out(archive: XnatArchive, server: DemoServer) -> None:
    entry = named(archive, "big%.bin")
    server.fault("format=zip", "stall", at=1000, times=None)
    with pytest.raises(TimedOut):
        archive.open_range(entry, 0, 1)


def test_connections_come_back(archive: XnatArchive) -> None:
    small, big = named(archive, "per%cent.txt"), named(archive, "big%.bin")
    for _ in range(10):  # more than there are connections
        assert read_all(archive, small) == b"content of per%cent.txt\n"
        stream = archive.open_range(big, 0, 1)
        stream.close()
        assert archive.stat(replace(small, size=None)).size == small.size


def test_the_block_reader_reads_such_a_file_once(archive: XnatArchive, server: DemoServer) -> None:
    entry = named(archive, "big%.bin")
    reader = BlockReader(archive, MemoryBlocks(16 << 20), ReadConfig(), 1 << 18)
    file = reader.open(entry)
    assert reader.pread(file, 600_000, 1000) == LARGE[600_000:601_000]
    assert reader.pread(file, 0, len(LARGE)) == LARGE
    assert len(server.data_requests()) == 1
    reader.release(file)
    reader.close()
