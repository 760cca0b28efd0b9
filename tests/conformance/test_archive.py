"""What ``archives/base.py`` promises, asked of every archive.

A new archive joins with one fixture that makes a ``Case`` and its name in ``ARCHIVES``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import md5
from pathlib import Path

import fsspec
import pytest

from tests.helpers.moto_server import MotoServer, moto_server
from tests.helpers.object_server import ObjectServer, Thing
from tests.helpers.server import DemoServer
from tests.helpers.trees import run_together
from tests.helpers.truth import project_truth
from xnatfs.archives.base import Archive, BulkMember, RangeStream
from xnatfs.archives.memory import MemoryArchive
from xnatfs.archives.nbia.archive import NbiaArchive
from xnatfs.archives.objects.fsspec import FsspecArchive
from xnatfs.archives.objects.s3 import S3Archive
from xnatfs.archives.objects.webtree import WebTreeArchive
from xnatfs.archives.xnat.archive import XnatArchive
from xnatfs.archives.xnat.tables import listing_id
from xnatfs.config import Credentials, HttpConfig, TciaConfig, TreeConfig
from xnatfs.errors import NotFound, StaleContent
from xnatfs.model import Entry, Listing
from xnatfs.reading.validators import validators_agree
from xnatfs.stats import Stats

ARCHIVES = [
    "memory-ranged",
    "memory-whole-files",
    "memory-one-listing",
    "memory-bulk",
    "xnat",
    "xnat-ranged",
    "s3",
    "s3-in-pages",
    "s3-moto",
    "web",
    "fsspec-memory",
    "fsspec-file",
    "nbia",
    "nbia-v1",
    "tcia-auto",
]

Known = tuple[int, str]  # size, md5


@dataclass(frozen=True)
class Case:
    """One archive and what is known of it from elsewhere.

    Attributes:
        top: A directory of ordinary names; ``files`` has every file below it, by path from there.
        sample: One of ``files`` with some thousand bytes, and below a directory of its own.
        requests: How many requests have been made so far.
        gone: What a directory that is not there any more looks like.
    """

    archive: Archive
    top: str
    files: dict[str, Known]
    sample: str
    requests: Callable[[], int]
    gone: Entry

    def entry(self, path: str) -> Entry:
        """The entry at a path of raw names, by listings alone."""
        at = self.archive.root()
        for name in path.split("/"):
            at = next(entry for entry in self.archive.children(at).children[at.key] if entry.name == name)
        return at


def memory_case(**options: bool) -> Case:
    pattern = bytes(range(256))
    tree = {
        "P": {
            "S": {"scans": {"1": {"a.dcm": pattern * 40, "sub": {"b.dcm": b""}}, "2": {"a.dcm": b"two"}}, "empty": {}},
            "notes.txt": b"notes",
        }
    }
    archive = MemoryArchive(tree, **options)
    contents = {"S/scans/1/a.dcm": pattern * 40, "S/scans/1/sub/b.dcm": b"", "S/scans/2/a.dcm": b"two"}
    files = {path: (len(data), md5(data).hexdigest()) for path, data in (contents | {"notes.txt": b"notes"}).items()}
    gone = Entry("gone", "/gone", True, listing="all" if options.get("one_listing") else "/gone")
    return Case(archive, "P", files, "S/scans/1/a.dcm", archive.calls.total, gone)


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


def xnat_case(server: DemoServer) -> Case:
    archive = XnatArchive(server.url, Credentials("demo", "demo", "the test"), HttpConfig(), TreeConfig(), "tests/1")
    prefix = "DEMO_002/"
    truth = project_truth(server.truth(project="DEMO", md5="all"))
    files = {path.removeprefix(prefix): (f.size, f.md5) for path, f in truth.items() if path.startswith(prefix)}
    sample = max((path for path, (size, _) in files.items() if size < 1 << 20), key=lambda path: files[path][0])
    gone = Entry(
        "GONE",
        "/data/experiments/GONE",
        True,
        listing=listing_id("experiment", id="GONE", project="DEMO", label="GONE"),
    )
    return Case(archive, "DEMO/DEMO_002", files, sample, lambda: len(server.log()["requests"]), gone)


@pytest.fixture(scope="module")
def objects() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        yield server


OBJECTS = {
    "S/scans/1/a.dcm": bytes(range(256)) * 40,
    "S/scans/1/sub/b.dcm": b"",
    "S/scans/2/a.dcm": b"two",
    "notes + more.txt": b"notes",
}
KNOWN = {path: (len(data), md5(data).hexdigest()) for path, data in OBJECTS.items()}


def s3_case(server: ObjectServer, url: str) -> Case:
    archive = S3Archive(url, Credentials(), HttpConfig(), TreeConfig(), "tests/1")
    gone = Entry("gone", "P/gone/", True, listing="/P/gone/")
    return Case(archive, "P", KNOWN, "S/scans/1/a.dcm", lambda: len(server.asked), gone)


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoServer]:
    with moto_server() as server:
        server.fill("bucket", {f"P/{path}": data for path, data in OBJECTS.items()})
        yield server


def moto_case(server: MotoServer) -> Case:
    stats = Stats()
    url = f"s3://bucket?endpoint={server.url}"
    archive = S3Archive(url, Credentials(), HttpConfig(), TreeConfig(), "tests/1", stats)
    gone = Entry("gone", "P/gone/", True, listing="/P/gone/")
    return Case(archive, "P", KNOWN, "S/scans/1/a.dcm", lambda: stats.requests, gone)


def fsspec_case(kind: str, folder: Path) -> Case:
    url = f"memory://{folder.name}-{id(folder)}/top" if kind == "fsspec-memory" else f"file://{folder}"
    fs, path = fsspec.core.url_to_fs(url)
    for name, data in OBJECTS.items():
        fs.pipe_file(f"{path}/P/{name}", data) if kind == "fsspec-memory" else write_file(folder / "P" / name, data)
    stats = Stats()
    archive = FsspecArchive(url, Credentials(), HttpConfig(), TreeConfig(), "tests/1", stats)
    return Case(archive, "P", KNOWN, "S/scans/1/a.dcm", lambda: stats.requests, Entry("g", "/g", True, listing="/g"))


def write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def tcia_case(server: DemoServer, kind: str, index: Path) -> Case:
    """One patient of the demo's NBIA server; for ``tcia-auto`` of series that IDC has, has in part, and has not."""
    index.write_bytes(server.fetch("/idc-index.csv"))
    settings = TciaConfig(prefer="auto" if kind == "tcia-auto" else "nbia", idc_url=server.url, idc_index=index)
    tree = TreeConfig(names="id")
    archive = NbiaArchive(None, server.url, Credentials(), HttpConfig(), tree, settings, "tests/1")
    collection, patient = ("DEMO_IDC", "IDC-0001") if kind == "tcia-auto" else ("Demo Lung", "DL-0001")
    rows = [row for row in server.tcia_truth() if (row["collection"], row["patient"]) == (collection, patient)]
    in_part = {row["series"] for row in rows if not row["object"] or kind != "tcia-auto"}
    files = {}
    for row in rows:
        name = row["name"] if row["series"] in in_part else row["object"].rpartition("/")[2]
        files[f"{row['study']}/{row['series']}/{name}"] = (row["size"], row["md5"])
    sample = next(path for path, (size, _) in files.items() if 30_000 < size < 1 << 20)
    gone = Entry("GONE", "/GONE", True, listing="collection:name=GONE")
    return Case(archive, f"{collection}/{patient}", files, sample, lambda: len(server.log()["requests"]), gone)


@pytest.fixture(params=ARCHIVES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    kind = request.param
    server: DemoServer
    if kind.startswith("memory"):
        case = memory_case(
            ranged=kind != "memory-whole-files", one_listing=kind == "memory-one-listing", bulk=kind == "memory-bulk"
        )
    elif kind == "s3-moto":
        case = moto_case(request.getfixturevalue("moto"))
    elif kind.startswith("s3"):
        objects: ObjectServer = request.getfixturevalue("objects")
        objects.reset()
        objects.page_keys = 2 if kind == "s3-in-pages" else 1000
        objects.fill("bucket", {f"top/P/{path}": data for path, data in OBJECTS.items()})
        case = s3_case(objects, f"s3://bucket?endpoint={objects.url}")
        case = replace(case, top="top/P", gone=Entry("gone", "top/P/gone/", True, listing="/top/P/gone/"))
    elif kind == "web":
        pages: ObjectServer = request.getfixturevalue("objects")
        pages.reset()
        pages.index_style = "nginx"
        pages.web = {f"/top/P/{path}": Thing(data) for path, data in OBJECTS.items()}
        tree = WebTreeArchive(f"web+{pages.url}/web", Credentials(), HttpConfig(), TreeConfig(), "tests/1")
        gone = Entry("gone", "/web/gone/", True, listing="/web/gone/")
        case = Case(tree, "top/P", KNOWN, "S/scans/1/a.dcm", lambda: len(pages.asked), gone)
    elif kind.startswith("fsspec"):
        case = fsspec_case(kind, request.getfixturevalue("tmp_path"))
    elif kind in ("nbia", "nbia-v1", "tcia-auto"):
        server = request.getfixturevalue("server")
        server.reset()
        server.switch(nbia_v4=kind != "nbia-v1")
        case = tcia_case(server, kind, request.getfixturevalue("tmp_path") / "index.csv")
    else:
        server = request.getfixturevalue("server")
        server.reset()
        server.switch(range=kind == "xnat-ranged")
        case = xnat_case(server)
    yield case
    case.archive.close()


def walk(archive: Archive, path: str, directory: Entry) -> Iterator[tuple[str, Entry]]:
    listing = archive.children(directory)
    assert listing.id == directory.listing
    for entry in listing.children[directory.key]:
        if entry.hidden:
            continue
        yield f"{path}{entry.name}", entry
        if entry.is_dir:
            yield from walk(archive, f"{path}{entry.name}/", entry)


def read_all(stream: RangeStream, piece: int = 4096) -> bytes:
    """Everything a stream gives, in bites of at most ``piece`` bytes."""
    parts = []
    buffer = bytearray(piece)
    while count := stream.readinto(memoryview(buffer)):
        parts.append(bytes(buffer[:count]))
    return b"".join(parts)


def bytes_of(archive: Archive, entry: Entry) -> bytes:
    assert entry.size is not None
    stream = archive.open_range(entry, 0, entry.size)
    try:
        return read_all(stream)
    finally:
        stream.close()


# --- listings ---------------------------------------------------------------------------------------------------------


def test_the_root_is_a_directory_and_costs_no_request(case: Case) -> None:
    before = case.requests()
    root = case.archive.root()
    assert root.is_dir
    assert root == case.archive.root()
    assert case.requests() == before


def test_every_file_is_listed_with_its_size(case: Case) -> None:
    found = dict(walk(case.archive, "", case.entry(case.top)))
    sizes = {path: entry.size for path, entry in found.items() if not entry.is_dir and path in case.files}
    assert sizes == {path: size for path, (size, _) in case.files.items()}


def test_a_listing_holds_the_directory_it_was_asked_for_and_says_so_of_its_directories(case: Case) -> None:
    def check(directory: Entry) -> Listing:
        listing = case.archive.children(directory)
        assert listing.id == directory.listing
        assert directory.key in listing.children
        return listing

    at = case.archive.root()
    for name in f"{case.top}/{case.sample}".split("/")[:-1]:
        listing = check(at)
        at = next(entry for entry in listing.children[at.key] if entry.name == name)
    listing = check(at)
    below = [entry for entries in listing.children.values() for entry in entries if entry.is_dir]
    assert all(entry.key in listing.children for entry in below if entry.listing == listing.id)
    assert all(entry.listing for entry in below)


def test_directory_keys_differ_from_each_other(case: Case) -> None:
    keys = [entry.key for _, entry in walk(case.archive, "", case.entry(case.top)) if entry.is_dir]
    assert len(set(keys)) == len(keys)


def test_an_unchanged_directory_is_listed_the_same_again(case: Case) -> None:
    directory = case.entry(f"{case.top}/{case.sample}".rpartition("/")[0])
    assert case.archive.children(directory) == case.archive.children(directory)


def test_a_directory_that_is_gone_is_not_found_and_never_empty(case: Case) -> None:
    with pytest.raises(NotFound):
        case.archive.children(case.gone)


def test_threads_get_the_same_listings_at_once(case: Case) -> None:
    directory = case.entry(case.top)
    listings = run_together([lambda: case.archive.children(directory)] * 8)
    assert isinstance(listings[0], Listing)
    assert all(listing == listings[0] for listing in listings)


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_stat_tells_the_size_of_a_file_and_nothing_else_about_what_it_is(case: Case) -> None:
    entry = case.entry(f"{case.top}/{case.sample}")
    answer = case.archive.stat(replace(entry, size=None))
    assert answer.size == case.files[case.sample][0]
    assert (answer.name, answer.key, answer.is_dir) == (entry.name, entry.key, False)
    assert answer.version


def test_stat_of_a_missing_file_is_not_found(case: Case) -> None:
    entry = case.entry(f"{case.top}/{case.sample}")
    with pytest.raises(NotFound):
        case.archive.stat(replace(entry, key=f"{entry.key}x", size=None))


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_every_file_has_its_own_bytes(case: Case) -> None:
    found = dict(walk(case.archive, "", case.entry(case.top)))
    for path, (size, digest) in case.files.items():
        if size:
            assert md5(bytes_of(case.archive, found[path])).hexdigest() == digest, path


def test_a_stream_contains_what_was_asked_for_and_says_what_it_is(case: Case) -> None:
    entry = case.entry(f"{case.top}/{case.sample}")
    size = case.files[case.sample][0]
    whole = bytes_of(case.archive, entry)
    validators = set()
    for start, stop in [(0, 1), (0, size), (size // 3, size // 2), (size - 1, size)]:
        stream = case.archive.open_range(entry, start, stop)
        assert stream.start <= start < stop <= stream.stop <= stream.total == size
        assert stream.ranged or stream.start == 0
        assert read_all(stream, 1000) == whole[stream.start : stream.stop]
        validators.add(stream.validator)
        stream.close()
    assert len(validators) == 1


def test_a_stream_that_is_at_its_end_stays_there(case: Case) -> None:
    entry = case.entry(f"{case.top}/{case.sample}")
    stream = case.archive.open_range(entry, 0, case.files[case.sample][0])
    read_all(stream)
    assert [stream.readinto(memoryview(bytearray(10))) for _ in range(3)] == [0, 0, 0]
    stream.close()


def test_a_stream_can_be_closed_early_twice_and_from_another_thread(case: Case) -> None:
    entry = case.entry(f"{case.top}/{case.sample}")
    stream = case.archive.open_range(entry, 0, case.files[case.sample][0])
    stream.readinto(memoryview(bytearray(10)))
    closer = threading.Thread(target=stream.close)
    closer.start()
    closer.join(10)
    assert not closer.is_alive()
    stream.close()
    assert len(bytes_of(case.archive, entry)) == entry.size


def test_another_length_than_the_listings_is_stale(case: Case) -> None:
    entry = case.entry(f"{case.top}/{case.sample}")
    assert entry.size is not None
    for size in (entry.size - 1, entry.size + 1):
        with pytest.raises(StaleContent):
            case.archive.open_range(replace(entry, size=size), 0, size).close()


def test_a_missing_file_is_not_found(case: Case) -> None:
    entry = case.entry(f"{case.top}/{case.sample}")
    with pytest.raises(NotFound):
        case.archive.open_range(replace(entry, key=f"{entry.key}x"), 0, 1).close()


# --- many files at once -----------------------------------------------------------------------------------------------


def folder_of_the_sample(case: Case) -> dict[str, Entry]:
    """The files at and below the directory that the sample is in, by path."""
    path = f"{case.top}/{case.sample}".rpartition("/")[0]
    return {name: entry for name, entry in walk(case.archive, f"{path}/", case.entry(path)) if not entry.is_dir}


def known(case: Case, path: str) -> Known:
    return case.files[path.removeprefix(f"{case.top}/")]


def test_a_bulk_stream_gives_files_that_were_asked_for_each_once_and_right(case: Case) -> None:
    files = folder_of_the_sample(case)
    before = case.requests()
    stream = case.archive.open_bulk(list(files.values()))
    if stream is None:
        assert case.requests() == before
        return
    found = []
    while (member := stream.next()) is not None:
        entry, body = member
        data = b"".join(iter(lambda body=body: some_of(body), b""))
        assert body.readinto(memoryview(bytearray(1))) == 0
        [path] = [path for path, one in files.items() if one == entry]
        assert (len(data), md5(data).hexdigest()) == known(case, path)
        found.append(path)
    stream.close()
    assert sorted(found) == sorted(files)


def some_of(body: BulkMember) -> bytes:
    buffer = bytearray(4096)
    return bytes(buffer[: body.readinto(memoryview(buffer))])


def test_a_bulk_streams_validators_agree_with_those_of_single_files(case: Case) -> None:
    stream = case.archive.open_bulk(list(folder_of_the_sample(case).values()))
    while stream is not None and (member := stream.next()) is not None:
        entry, body = member
        if entry.size:
            single = case.archive.open_range(entry, 0, 1)
            single.close()
            assert validators_agree(body.validator, single.validator)
    if stream is not None:
        stream.close()


def test_a_bulk_stream_passes_over_members_that_nobody_reads(case: Case) -> None:
    files = list(folder_of_the_sample(case).values())
    stream = case.archive.open_bulk(files)
    if stream is not None:
        assert len(list(iter(stream.next, None))) == len(files)
        stream.close()


def test_a_bulk_stream_can_be_closed_early_twice_and_from_another_thread(case: Case) -> None:
    for _ in range(10):  # more than there are connections
        stream = case.archive.open_bulk(list(folder_of_the_sample(case).values()))
        if stream is not None:
            stream.next()
            closer = threading.Thread(target=stream.close)
            closer.start()
            closer.join(10)
            assert not closer.is_alive()
            stream.close()


def test_a_bulk_stream_of_files_that_are_gone_is_not_found_or_lacks_them(case: Case) -> None:
    files = [replace(entry, key=f"{entry.key}x") for entry in folder_of_the_sample(case).values()]
    try:
        stream = case.archive.open_bulk(files)
    except NotFound:
        return
    if stream is not None:
        assert stream.next() is None
        stream.close()


def test_threads_read_files_at_once(case: Case) -> None:
    entry = case.entry(f"{case.top}/{case.sample}")
    digests = run_together([lambda: md5(bytes_of(case.archive, entry)).hexdigest()] * 8)
    assert digests == [case.files[case.sample][1]] * 8


def test_an_archive_can_be_closed_twice_and_unused(case: Case) -> None:
    case.archive.close()
    case.archive.close()
