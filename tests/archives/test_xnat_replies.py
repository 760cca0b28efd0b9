"""Every 200 is doubted: no page, empty body, parent item or foreign length ever becomes a listing or a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from tests.helpers.server import DemoServer
from xnatfs.archives.xnat.archive import XnatArchive
from xnatfs.config import Credentials, TreeConfig
from xnatfs.errors import (
    AccessDenied,
    ArchiveError,
    NotFound,
    StaleContent,
    Unavailable,
    UnexpectedReply,
)
from xnatfs.model import Entry, Listing

Connect = Callable[..., XnatArchive]


def walk(archive: XnatArchive, *names: str) -> tuple[Entry, Listing]:
    """The entry at a path of raw names, and the listing that holds its children."""
    entry = archive.root()
    listing = archive.children(entry)
    for name in names:
        if entry.key not in listing.children:
            listing = archive.children(entry)
        [entry] = [one for one in listing.children[entry.key] if name == one.name or name in one.aliases]
    return entry, listing


def file_of(archive: XnatArchive, *names: str) -> Entry:
    return walk(archive, *names)[0]


SCAN = ("DEMO", "DEMO_001", "DEMO_001_MR1", "scans", "1")
NIFTI = (*SCAN, "NIFTI", "anatomical.nii")


def read_all(archive: XnatArchive, entry: Entry, start: int = 0, stop: int | None = None) -> bytes:
    assert entry.size is not None
    with contextlib.closing(archive.open_range(entry, start, entry.size if stop is None else stop)) as stream:
        buffer = bytearray(stream.stop - stream.start)
        at = 0
        while at < len(buffer):
            at += stream.readinto(memoryview(buffer)[at:])
        assert stream.readinto(memoryview(bytearray(1))) == 0
    return bytes(buffer)


def test_a_file_is_the_servers_truth(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    entry = file_of(archive, *NIFTI)
    [truth] = [row for row in server.truth("DEMO") if row["uri"] == entry.key]
    data = read_all(archive, entry)
    assert len(data) == truth["size"] == entry.size
    assert truth["md5"] == entry.digest
    assert server.data_requests()[-1]["range"] == f"bytes=0-{entry.size - 1}"


def test_a_range_is_honoured_where_the_server_does(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    entry = file_of(archive, *NIFTI)
    whole = read_all(archive, entry)
    server.switch(range=True)
    stream = archive.open_range(entry, 1000, 3000)
    assert (stream.start, stream.stop, stream.total, stream.ranged) == (1000, 3000, entry.size, True)
    stream.close()
    assert read_all(archive, entry, 1000, 3000) == whole[1000:3000]


@pytest.mark.parametrize("kind", ["html", "empty", "parent_item", "garbage"])
@pytest.mark.parametrize(
    "path", ["/data/projects\\?", "/experiments\\?", "/files\\?", "/experiments/\\w+\\?", "/resources\\?"]
)
def test_a_doubtful_listing_is_an_error(connect: Connect, server: DemoServer, kind: str, path: str) -> None:
    archive = connect()
    server.fault(path, kind, times=None)
    with pytest.raises(UnexpectedReply):
        walk(archive, "DEMO", "DEMO_002", "DEMO_002_MR1", "scans")


@pytest.mark.parametrize(
    ("path", "column"),
    [
        ("/data/projects\\?", "ID"),
        ("/subjects\\?", "ID"),
        ("/experiments\\?", "subject_ID"),
        ("/files\\?", "URI"),
        ("/resources\\?", "xnat_abstractresource_id"),
    ],
)
def test_a_listing_that_lacks_a_column_is_an_error_not_an_empty_directory(
    connect: Connect, server: DemoServer, path: str, column: str
) -> None:
    archive = connect()
    server.fault(path, "without_column", times=None, value=column)
    with pytest.raises(UnexpectedReply, match=column.lower()):
        walk(archive, "DEMO", "DEMO_002", "DEMO_002_MR1", "scans")


def test_a_listing_cut_short_is_an_error_then_heals(connect: Connect, server: DemoServer) -> None:
    archive = connect(retries=0)
    server.fault("/data/projects\\?", "short", at=100, times=1)
    with pytest.raises(Unavailable):
        walk(archive)
    assert walk(archive)[1].children["/data/projects"]


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_a_temporary_status_is_tried_again(connect: Connect, server: DemoServer, status: int) -> None:
    archive = connect()
    server.fault("/data/projects\\?", "status", status=status, times=2)
    assert walk(archive)[1].children["/data/projects"]


def test_a_status_that_stays_is_an_error(connect: Connect, server: DemoServer) -> None:
    archive = connect(retries=1)
    server.fault("/data/projects\\?", "status", status=503, times=None)
    with pytest.raises(Unavailable, match="503"):
        walk(archive)


@pytest.mark.parametrize("kind", ["html", "empty", "gzip_encoding", "wrong_range", "multipart", "parent_item"])
def test_a_doubtful_body_is_never_a_file(connect: Connect, server: DemoServer, kind: str) -> None:
    archive = connect()
    entry = file_of(archive, *NIFTI)
    server.fault("anatomical.nii", kind, times=None)
    with pytest.raises(ArchiveError):
        read_all(archive, entry)


@pytest.mark.parametrize("kind", ["reset", "close", "short", "length_plus_one", "chunked_cut"])
@pytest.mark.parametrize("at", [0, 1, 4096, 60000])
def test_a_body_that_breaks_is_an_error(connect: Connect, server: DemoServer, kind: str, at: int) -> None:
    archive = connect(retries=0)
    entry = file_of(archive, *NIFTI)
    server.fault("anatomical.nii", kind, at=at, times=None)
    with pytest.raises(ArchiveError):
        read_all(archive, entry)


def test_a_real_html_resource_is_a_file(connect: Connect) -> None:
    archive = connect()
    entry = file_of(archive, "DEMO", "DEMO_001", "DEMO_001_MR1", "resources", "QC", "report.html")
    assert b"<html" in read_all(archive, entry).lower()


def test_a_listed_size_that_is_wrong_is_stale(connect: Connect) -> None:
    archive = connect()
    entry = file_of(archive, "ODDITIES", "ODD_1", "ODD_1_MR", "resources", "stale", "grown.txt")
    with pytest.raises(StaleContent):
        read_all(archive, entry)


def test_a_file_gone_from_the_servers_disk_is_not_found(connect: Connect) -> None:
    archive = connect()
    entry = file_of(archive, "ODDITIES", "ODD_1", "ODD_1_MR", "resources", "missing", "gone.dcm")
    with pytest.raises(NotFound):
        read_all(archive, entry)


def test_a_size_that_the_listing_lacks_is_asked_for_once(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    entry = file_of(archive, *NIFTI)
    from dataclasses import replace

    unsized = replace(entry, size=None, version="")
    known = archive.stat(unsized)
    assert known.size == entry.size
    assert known.mtime_ns > 0
    assert [r["method"] for r in server.data_requests()] == ["HEAD"]


def test_a_protected_project_is_listed_and_closed(connect: Connect, expected_warnings: list[str]) -> None:
    expected_warnings.append("project PROTECTED is listed but closed")
    archive = connect(Credentials("other", "other", "the test"))
    listing = archive.children(archive.root())
    [protected] = [one for one in listing.children["/data/projects"] if one.name == "PROTECTED"]
    with pytest.raises(AccessDenied):
        archive.children(protected)


def test_one_session_takes_three_requests_for_everything_below_it(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    session, _ = walk(archive, "DEMO", "DEMO_001", "DEMO_001_MR1")
    server.clear_log()
    listing = archive.children(session)
    assert len(server.requests()) == 3
    assert len(listing.children) > 10


def test_ids_are_aliases_and_scans_are_named_by_id_and_type(connect: Connect) -> None:
    archive = connect()
    scans, listing = walk(archive, "DEMO", "DEMO_001", "DEMO_001_MR1", "scans")
    assert [(one.name, one.aliases) for one in listing.children[scans.key]] == [
        ("1-T1w", ("1",)),
        ("2-T2w", ("2",)),
        ("3-bold/rest (AP)", ("3",)),
    ]


def test_filters_leave_out_what_does_not_match(connect: Connect) -> None:
    archive = connect(tree=TreeConfig(projects=("DEMO",), scan_types=("T1*",), resources=("NIFTI",)))
    root, listing = archive.root(), archive.children(archive.root())
    assert [one.name for one in listing.children[root.key]] == ["DEMO"]
    scans, listing = walk(archive, "DEMO", "DEMO_001", "DEMO_001_MR1", "scans")
    [scan] = listing.children[scans.key]
    assert scan.name == "1-T1w"
    assert [one.name for one in listing.children[scan.key] if not one.hidden] == ["NIFTI"]


def test_a_project_that_is_not_there_is_told_once(
    connect: Connect, expected_warnings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected_warnings.append("shows no project 'demo' to this account")
    archive = connect(tree=TreeConfig(projects=("DEMO", "demo")))
    for _ in range(2):
        assert [one.name for one in archive.children(archive.root()).children["/data/projects"]] == ["DEMO"]
    assert caplog.text.count("shows no project 'demo'") == 1


def test_names_by_id_show_ids_and_find_labels(connect: Connect) -> None:
    archive = connect(tree=TreeConfig(names="id"))
    subject, _ = walk(archive, "DEMO", "DEMO_001")
    assert subject.name.startswith("XNAT_S")
    assert subject.aliases == ("DEMO_001",)


def test_both_sides_of_an_assessor_are_there(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    inside = {row["uri"]: row for row in server.truth() if row.get("side") == "in"}
    assert inside
    found = set()
    for row in inside.values():
        place = (row["project"], row["subject"], row["experiment"], row["area"], row["item"], "in")
        entry, _ = walk(archive, *place)
        for entries in archive.children(entry).children.values():
            found |= {one.key for one in entries if not one.is_dir}
    assert found == set(inside)


def test_a_shared_subject_has_the_label_of_the_project(connect: Connect) -> None:
    archive = connect()
    subject, _ = walk(archive, "HCP_DEMO", "HCP_100307")
    owner, _ = walk(archive, "DEMO", "DEMO_002")
    assert subject.id == owner.id


def test_a_server_that_fails_over_one_missing_file_still_lists_the_others(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    whole = {one.key for one in everything_below(archive, "ODDITIES", "ODD_1", "ODD_1_MR")}
    server.switch(old_listings=True)
    archive = connect()
    found = everything_below(archive, "ODDITIES", "ODD_1", "ODD_1_MR")
    assert {one.key for one in found} == whole
    missing = [one for one in found if "/files/gone.dcm" in one.key or "/files/here.txt" in one.key]
    assert {one.size for one in missing} == {5, 500}


def everything_below(archive: XnatArchive, *names: str) -> list[Entry]:
    """The resource files below a directory, through as many listings as it takes."""
    found: list[Entry] = []
    pending = [walk(archive, *names)[0]]
    while pending:
        directory = pending.pop()
        for one in archive.children(directory).children[directory.key]:
            if one.is_dir and not one.hidden:
                pending.append(one)
            elif not one.is_dir and not one.key.startswith("document:"):
                found.append(one)
    return found


def test_terms_of_use_are_an_error_that_says_where_to_accept_them(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    entry = file_of(archive, *NIFTI)
    server.switch(agreement=True)
    for ask in (lambda: archive.children(archive.root()), lambda: read_all(archive, entry)):
        with pytest.raises(UnexpectedReply, match="web page") as caught:
            ask()
        assert server.url in f"{caught.value} {caught.value.hint}"
    server.switch(agreement=False)
    assert read_all(archive, entry)
