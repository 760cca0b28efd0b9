"""TCIA against the demo's NBIA server and buckets: what travels, how often, and what becomes of every fault."""

from __future__ import annotations

import errno
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.server import DemoServer
from tests.helpers.trees import run_together
from xnatfs.archives.nbia.archive import NbiaArchive
from xnatfs.archives.nbia.idc_index import PACKAGE
from xnatfs.archives.nbia.manifest import parse_manifest
from xnatfs.archives.nbia.tree import listing_id
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.config import CacheConfig, Config, Credentials, HttpConfig, Source, TciaConfig, TreeConfig
from xnatfs.errors import (
    AccessDenied,
    ArchiveError,
    CorruptContent,
    LoginFailed,
    NotFound,
    StaleContent,
    TimedOut,
    Unavailable,
    UnexpectedReply,
    UsageError,
)
from xnatfs.factory import open_vfs
from xnatfs.model import Entry, Listing
from xnatfs.reading.keeping import CacheKeeper
from xnatfs.stats import Stats
from xnatfs.tree.vfs import ArchiveVFS

ROOT = "1.2.826.0.1.3680043.8.498.77.9"
SLICES, PLAN, UNNAMED, T1W, LARGE = (f"{ROOT}.{number}" for number in (20001, 20002, 20003, 20004, 20005))
IN_BOTH, GROWN, IN_NBIA, LARGE_IN_BOTH, LIMITED = (f"{ROOT}.{number}" for number in range(20006, 20011))
GET_IMAGE = "/getImage"

Connect = Callable[..., NbiaArchive]


@pytest.fixture
def connect(server: DemoServer) -> Iterator[Connect]:
    opened: list[NbiaArchive] = []

    def build(
        *series: str,
        credentials: Credentials | None = None,
        tree: TreeConfig | None = None,
        tcia: TciaConfig | None = None,
        stats: Stats | None = None,
        **http: Any,
    ) -> NbiaArchive:
        manifest = parse_manifest("ListOfSeriesToDownload=\n" + "\n".join(series), "test") if series else None
        settings = HttpConfig(**{"timeout_s": 5.0, **http})
        tcia = tcia or TciaConfig(prefer="nbia")
        archive = NbiaArchive(
            manifest, server.url, credentials or Credentials(), settings, tree or TreeConfig(), tcia, "test/1", stats
        )
        opened.append(archive)
        return archive

    yield build
    for archive in opened:
        archive.close()


@pytest.fixture
def index(server: DemoServer, tmp_path: Path) -> Path:
    path = tmp_path / "index.csv"
    path.write_bytes(server.fetch("/idc-index.csv"))
    return path


def find_series(archive: NbiaArchive, uid: str) -> Entry:
    """The directory of a series, by listings alone."""
    pending = [archive.root()]
    while pending:
        at = pending.pop()
        if at.id == uid:
            return at
        if not at.listing.startswith(("series", "missing")):
            pending += [entry for entry in archive.children(at).children[at.key] if entry.is_dir]
    raise AssertionError(f"{uid} is not in the tree")


def files_of(archive: NbiaArchive, uid: str) -> tuple[Entry, ...]:
    directory = find_series(archive, uid)
    return archive.children(directory).children[directory.key]


def truth_of(server: DemoServer, uid: str) -> dict[str, tuple[int, str]]:
    rows = [row for row in server.tcia_truth() if row["series"] == uid]
    return {row["name"]: (row["size"], row["md5"]) for row in rows}


def paths(server: DemoServer) -> list[str]:
    return [record["path"].rpartition("/")[2] for record in server.settled_log()["requests"]]


def read(archive: NbiaArchive, entry: Entry) -> bytes:
    assert entry.size is not None
    stream = archive.open_range(entry, 0, entry.size)
    parts = []
    buffer = memoryview(bytearray(100_000))
    with closing(stream):
        while count := stream.readinto(buffer):
            parts.append(bytes(buffer[:count]))
    return b"".join(parts)


# --- what travels -----------------------------------------------------------------------------------------------------


def test_a_series_is_known_from_one_transfer_and_its_md5_sums_are_the_servers(
    server: DemoServer, connect: Connect
) -> None:
    files = files_of(connect(SLICES), SLICES)
    assert {entry.name: (entry.size, entry.digest) for entry in files} == truth_of(server, SLICES)
    assert paths(server).count("getImage") == 1
    assert set(paths(server)) == {"getSeriesMetadata", "getImage"}


def test_any_number_of_threads_that_list_a_series_share_one_transfer(server: DemoServer, connect: Connect) -> None:
    archive = connect(SLICES)
    directory = find_series(archive, SLICES)
    listings = run_together([lambda: archive.children(directory)] * 16)
    assert isinstance(listings[0], Listing)
    assert all(listing == listings[0] for listing in listings)
    assert paths(server).count("getImage") == 1


def test_a_manifest_is_described_in_one_request_whatever_its_length(server: DemoServer, connect: Connect) -> None:
    archive = connect(SLICES, PLAN, UNNAMED, T1W, LARGE, IN_BOTH, *(f"9.9.{number}" for number in range(4000)))
    archive.children(archive.root())
    assert paths(server) == ["getSeriesMetadata"]


def test_the_file_of_a_series_with_one_is_listed_without_a_transfer_and_its_md5_is_checked_when_read(
    server: DemoServer, connect: Connect
) -> None:
    archive = connect(PLAN)
    [entry] = files_of(archive, PLAN)
    [(name, (size, digest))] = truth_of(server, PLAN).items()
    assert (entry.name, entry.size) == (name, size)
    assert set(paths(server)) == {"getSeriesMetadata"}
    assert md5(read(archive, entry)).hexdigest() == digest
    server.fault(GET_IMAGE, "wrong_md5")
    with pytest.raises(CorruptContent):
        read(archive, entry)


def test_two_collections_are_listed_in_one_request_and_a_collection_in_two(
    server: DemoServer, connect: Connect
) -> None:
    archive = connect()
    root = archive.root()
    entries = archive.children(root).children[root.key]
    assert [entry.name for entry in entries] == ["DEMO_IDC", "Demo Lung"]
    assert paths(server) == ["getCollectionValues"]
    server.clear_log()
    listing = archive.children(entries[1])
    assert sorted(paths(server)) == ["getPatientStudy", "getSeries"]
    assert len(listing.children) > 4


def test_a_manifest_and_its_collection_show_the_same_directories_and_files_share_their_keys(
    server: DemoServer, connect: Connect
) -> None:
    by_manifest, by_collection = connect(SLICES), connect()
    one, other = find_series(by_manifest, SLICES), find_series(by_collection, SLICES)
    assert one == other
    assert {e.key for e in files_of(by_manifest, SLICES)} == {e.key for e in files_of(by_collection, SLICES)}


def test_collections_and_modalities_can_be_chosen(server: DemoServer, connect: Connect) -> None:
    archive = connect(tree=TreeConfig(projects=("Demo Lung",), scan_types=("RT*",)))
    assert [entry.name for entry in archive.children(archive.root()).children["/"]] == ["Demo Lung"]
    assert find_series(archive, PLAN).id == PLAN
    with pytest.raises(AssertionError, match="not in the tree"):
        find_series(archive, SLICES)


# --- IDC --------------------------------------------------------------------------------------------------------------


def test_a_series_that_idc_has_comes_from_there_with_sizes_and_ranges_and_nothing_from_nbia(
    server: DemoServer, connect: Connect, index: Path
) -> None:
    archive = connect(LARGE_IN_BOTH, tcia=TciaConfig("auto", idc_url=server.url, idc_index=index))
    files = files_of(archive, LARGE_IN_BOTH)
    sizes = [size for size, _ in truth_of(server, LARGE_IN_BOTH).values()]
    assert sorted(entry.size or 0 for entry in files) == sorted(sizes)
    server.clear_log()
    stream = archive.open_range(files[0], 1_000_000, 1_000_100)
    buffer = memoryview(bytearray(1000))
    assert (stream.start, stream.ranged, stream.readinto(buffer)) == (1_000_000, True, 100)
    stream.close()
    [record] = server.settled_log()["requests"]
    assert (record["path"].split("/")[1], record["status"], record["sent"]) == ("idc-open-data-two", 206, 100)


def test_images_from_idc_have_the_names_that_nbia_gives_them(server: DemoServer, connect: Connect, index: Path) -> None:
    archive = connect(IN_BOTH, tcia=TciaConfig("idc", idc_url=server.url, idc_index=index))
    files = files_of(archive, IN_BOTH)
    truth = truth_of(server, IN_BOTH)
    assert [entry.name for entry in files] == sorted(truth)
    assert {entry.name: md5(read(archive, entry)).hexdigest() for entry in files} == {
        name: digest for name, (_, digest) in truth.items()
    }
    assert all(re.fullmatch(r"[0-9a-f-]{36}\.dcm", alias) for entry in files for alias in entry.aliases)
    assert len({entry.aliases for entry in files}) == len(files)


def test_the_names_cost_one_small_request_an_image_once(server: DemoServer, connect: Connect, index: Path) -> None:
    cache = MemoryBlocks(1 << 24)
    for heads in (2, 0):  # the second archive is another mount with the same cache
        archive = connect(LARGE_IN_BOTH, tcia=TciaConfig("idc", idc_url=server.url, idc_index=index))
        archive.keep_with(CacheKeeper(archive.id, cache, 1 << 20))
        for again in (heads, 0):
            server.clear_log()
            assert {entry.name for entry in files_of(archive, LARGE_IN_BOTH)} == {"1-1.dcm", "1-2.dcm"}
            asked = [r for r in server.settled_log()["requests"] if r["path"].endswith(".dcm")]
            assert [(r["status"], r["sent"] <= 16_384) for r in asked] == [(206, True)] * again


def test_with_names_of_ids_images_from_idc_keep_theirs_and_cost_nothing(
    server: DemoServer, connect: Connect, index: Path
) -> None:
    settings = TciaConfig("idc", idc_url=server.url, idc_index=index)
    archive = connect(IN_BOTH, tree=TreeConfig(names="id"), tcia=settings)
    names = [entry.name for entry in files_of(archive, IN_BOTH)]
    assert all(re.fullmatch(r"[0-9a-f-]{36}\.dcm", name) for name in names)
    assert not [path for path in paths(server) if path.endswith(".dcm")]


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 404}, {"kind": "short", "at": 100}, {"kind": "garbage"}]
)
def test_an_image_that_cannot_be_looked_into_is_no_name_but_an_error_or_nbias(
    server: DemoServer, connect: Connect, index: Path, fault: dict[str, Any]
) -> None:
    settings = TciaConfig("auto", idc_url=server.url, idc_index=index)
    server.fault(r"/idc-open-data/.*\.dcm", times=None, **fault)
    with pytest.raises(ArchiveError):
        files_of(connect(IN_BOTH, tcia=replace(settings, prefer="idc")), IN_BOTH)
    files = files_of(connect(IN_BOTH, tcia=settings), IN_BOTH)
    assert {entry.name: entry.digest for entry in files} == {
        name: digest for name, (_, digest) in truth_of(server, IN_BOTH).items()
    }


def test_a_series_of_which_idc_has_another_version_comes_from_nbia(
    server: DemoServer, connect: Connect, index: Path
) -> None:
    settings = TciaConfig("auto", idc_url=server.url, idc_index=index)
    files = files_of(connect(GROWN, tcia=settings), GROWN)
    assert {entry.name for entry in files} == set(truth_of(server, GROWN))
    with pytest.raises(UnexpectedReply, match="IDC has 3 files"):
        files_of(connect(GROWN, tcia=replace(settings, prefer="idc")), GROWN)


def test_a_series_that_idc_has_not_is_an_error_where_only_idc_is_wanted(
    server: DemoServer, connect: Connect, index: Path
) -> None:
    settings = TciaConfig("idc", idc_url=server.url, idc_index=index)
    with pytest.raises(NotFound, match="not in IDC's index"):
        files_of(connect(IN_NBIA, tcia=settings), IN_NBIA)


@pytest.mark.parametrize("fault", [{"kind": "status", "status": 404}, {"kind": "html"}, {"kind": "garbage"}])
def test_a_store_that_fails_leads_to_nbia_or_with_idc_alone_to_an_error(
    server: DemoServer, connect: Connect, index: Path, fault: dict[str, Any]
) -> None:
    settings = TciaConfig("auto", idc_url=server.url, idc_index=index)
    server.fault("/idc-open-data/", times=None, **fault)
    files = files_of(connect(IN_BOTH, tcia=settings), IN_BOTH)
    assert {entry.name for entry in files} == set(truth_of(server, IN_BOTH))
    with pytest.raises(ArchiveError):
        files_of(connect(IN_BOTH, tcia=replace(settings, prefer="idc")), IN_BOTH)


@pytest.mark.parametrize("content", [None, b"", b"a,b\n1,2\n", b"\xff\xfe\0"])
def test_an_index_that_cannot_be_read_is_told_before_a_mount_and_an_errno_after(
    server: DemoServer, connect: Connect, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "index.csv"
    if content is not None:
        path.write_bytes(content)
    settings = TciaConfig("auto", server.url, server.url, path)
    with pytest.raises(UsageError, match="IDC index"):
        NbiaArchive.from_config(Config(Source("tcia", "tcia:"), tcia=settings), "test/1", None)
    archive = connect(IN_BOTH, tcia=settings)
    with pytest.raises(UnexpectedReply, match="IDC index"):
        archive.children(archive.root())


# --- faults of a transfer ---------------------------------------------------------------------------------------------

PASSING = [
    {"kind": "status", "status": 503},
    {"kind": "status", "status": 429, "retry_after": "0"},
    {"kind": "reset"},
    {"kind": "reset", "at": 50_000},
    {"kind": "close", "at": 50_000},
    {"kind": "chunked_cut", "at": 100_000},
    {"kind": "missing_member"},
    {"kind": "wrong_md5"},
]
FOR_EVER = [
    ({"kind": "close", "at": 50_000}, Unavailable),
    ({"kind": "missing_member"}, CorruptContent),
    ({"kind": "wrong_md5"}, CorruptContent),
    ({"kind": "html"}, UnexpectedReply),
    ({"kind": "garbage"}, UnexpectedReply),
    ({"kind": "empty"}, UnexpectedReply),
    ({"kind": "status", "status": 500}, Unavailable),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: "-".join(str(part) for part in fault.values()))
def test_a_fault_that_passes_costs_another_try_and_nothing_else(
    server: DemoServer, connect: Connect, fault: dict[str, Any]
) -> None:
    archive = connect(SLICES)
    find_series(archive, SLICES)
    server.fault(GET_IMAGE, **fault)
    files = files_of(archive, SLICES)
    assert {entry.name: (entry.size, entry.digest) for entry in files} == truth_of(server, SLICES)
    assert paths(server).count("getImage") == 2


@pytest.mark.parametrize(("fault", "error"), FOR_EVER, ids=lambda part: str(part))
def test_a_fault_that_stays_is_an_error_with_a_report_and_never_a_short_directory(
    server: DemoServer,
    connect: Connect,
    fault: dict[str, Any],
    error: type[ArchiveError],
    expected_warnings: list[str],
) -> None:
    stats = Stats()
    archive = connect(SLICES, stats=stats, retries=1)
    server.fault(GET_IMAGE, times=None, **fault)
    again = fault["kind"] in ("close", "missing_member", "wrong_md5")
    expected_warnings.append(f"series {SLICES}.*{'after 2 tries' if again else ''}; its directory cannot be listed")
    with pytest.raises(error, match=re.escape(SLICES)):
        files_of(archive, SLICES)
    assert any(SLICES in message for _, message in stats.errors)


def test_four_further_tries_are_made_by_default(
    server: DemoServer, connect: Connect, expected_warnings: list[str]
) -> None:
    expected_warnings.append("11 of 12 files came after 5 tries")
    server.fault(GET_IMAGE, "missing_member", times=None)
    with pytest.raises(CorruptContent):
        files_of(connect(SLICES), SLICES)
    assert paths(server).count("getImage") == 5


def test_a_manifest_may_ask_for_other_tries(server: DemoServer, expected_warnings: list[str]) -> None:
    expected_warnings.append("after 2 tries")
    manifest = parse_manifest(f"noOfrRetry=1\nListOfSeriesToDownload=\n{SLICES}", "m")
    tcia = TciaConfig(prefer="nbia")
    server.fault(GET_IMAGE, "missing_member", times=None)
    with (
        closing(
            NbiaArchive(manifest, server.url, Credentials(), HttpConfig(), TreeConfig(), tcia, "test/1")
        ) as archive,
        pytest.raises(CorruptContent),
    ):
        files_of(archive, SLICES)
    assert paths(server).count("getImage") == 2


def test_a_server_that_stalls_is_given_up_after_the_timeout(
    server: DemoServer, connect: Connect, expected_warnings: list[str]
) -> None:
    expected_warnings.append("its directory cannot be listed")
    archive = connect(SLICES, timeout_s=1.0)
    server.fault(GET_IMAGE, "stall", at=50_000, times=None)
    with pytest.raises(TimedOut):
        files_of(archive, SLICES)
    assert paths(server).count("getImage") == 1


def test_closing_ends_a_transfer_at_once(server: DemoServer, connect: Connect, expected_warnings: list[str]) -> None:
    import threading
    import time

    expected_warnings.append("its directory cannot be listed")
    archive = connect(SLICES, timeout_s=30.0)
    directory = find_series(archive, SLICES)
    server.fault(GET_IMAGE, "stall", at=50_000, times=None)
    failed: list[ArchiveError] = []

    def list_it() -> None:
        try:
            archive.children(directory)
        except ArchiveError as error:
            failed.append(error)

    thread = threading.Thread(target=list_it)
    thread.start()
    while not server.log()["in_flight"]:
        time.sleep(0.01)
    time.sleep(0.2)
    archive.close()
    thread.join(5)
    assert not thread.is_alive()
    assert [type(error) for error in failed] == [Unavailable]


@pytest.mark.parametrize("kind", ["html", "parent_item"])
def test_a_page_or_another_document_is_never_an_empty_tree(server: DemoServer, connect: Connect, kind: str) -> None:
    for archive in (connect(SLICES), connect()):
        server.fault("/services/", kind, times=None)
        with pytest.raises(UnexpectedReply):
            archive.children(archive.root())
        server.clear_faults()


def test_an_empty_answer_is_a_server_without_collections_and_an_error(server: DemoServer, connect: Connect) -> None:
    server.fault("/getCollectionValues", "empty")
    archive = connect()
    with pytest.raises(UnexpectedReply, match="names no collection"):
        archive.children(archive.root())


# --- single images ----------------------------------------------------------------------------------------------------


def test_a_file_that_the_cache_has_lost_is_asked_for_alone(server: DemoServer, connect: Connect) -> None:
    archive = connect(SLICES)
    entry = files_of(archive, SLICES)[3]
    server.clear_log()
    assert md5(read(archive, entry)).hexdigest() == entry.digest
    assert paths(server) == ["getSingleImage"]


def test_an_image_that_is_gone_is_not_found_though_the_server_says_500(server: DemoServer, connect: Connect) -> None:
    archive = connect(SLICES)
    entry = files_of(archive, SLICES)[0]
    with pytest.raises(NotFound, match="no longer in the series"):
        read(archive, replace(entry, key=entry.key + "99"))


def test_a_fault_over_an_image_that_is_there_is_no_not_found(server: DemoServer, connect: Connect) -> None:
    archive = connect(SLICES)
    entry = files_of(archive, SLICES)[0]
    server.fault("/getSingleImage", "status", status=500, times=None)
    with pytest.raises(Unavailable):
        read(archive, entry)


def test_a_file_that_has_changed_is_stale_and_its_series_is_asked_for_anew(
    server: DemoServer, connect: Connect
) -> None:
    archive = connect(SLICES)
    entry = files_of(archive, SLICES)[0]
    assert entry.size is not None
    with pytest.raises(StaleContent):
        read(archive, replace(entry, size=entry.size + 1))
    server.clear_log()
    digests = {digest for _, digest in truth_of(server, SLICES).values()}
    assert {one.digest for one in files_of(archive, SLICES)} == digests
    assert paths(server).count("getImage") == 1


def test_what_an_earlier_mount_has_learnt_is_not_believed_once_it_proved_wrong(
    server: DemoServer, connect: Connect
) -> None:
    cache = MemoryBlocks(64 << 20)
    for archive in (first := connect(SLICES), second := connect(SLICES)):
        archive.keep_with(CacheKeeper(archive.id, cache, 1 << 20))
    files = files_of(first, SLICES)
    server.clear_log()
    assert files_of(second, SLICES) == files
    assert "getImage" not in paths(server)
    with pytest.raises(StaleContent):
        read(second, replace(files[0], size=1))
    assert files_of(second, SLICES) != files  # another transfer, another version
    assert {entry.digest for entry in files_of(second, SLICES)} == {entry.digest for entry in files}
    assert paths(server).count("getImage") == 1


# --- access -----------------------------------------------------------------------------------------------------------


def test_a_series_that_is_not_described_is_eacces_with_a_hint(server: DemoServer, connect: Connect) -> None:
    archive = connect(SLICES, LIMITED)
    directory = find_series(archive, LIMITED)
    with pytest.raises(AccessDenied, match="does not describe it") as caught:
        archive.children(directory)
    assert caught.value.errno == errno.EACCES
    assert "--user" in caught.value.hint


def test_a_series_that_is_listed_and_refused_is_eacces_with_a_hint(server: DemoServer, connect: Connect) -> None:
    archive = connect(SLICES)
    for status in (400, 401, 403):
        server.fault(GET_IMAGE, "status", status=status, times=None)
        with pytest.raises(AccessDenied) as caught:
            files_of(archive, SLICES)
        assert "XNAT" not in caught.value.hint
        assert "--user" in caught.value.hint
        server.clear_faults()


def test_a_login_shows_what_is_limited_with_one_token_for_all_threads(server: DemoServer, connect: Connect) -> None:
    archive = connect(LIMITED, credentials=Credentials("demo", "demo", "the test"))
    directory = find_series(archive, LIMITED)
    run_together([lambda: archive.children(directory)] * 8)
    assert {entry.name for entry in files_of(archive, LIMITED)} == set(truth_of(server, LIMITED))
    assert paths(server).count("token") == 1


def test_a_token_that_the_server_has_forgotten_is_renewed_once(server: DemoServer, connect: Connect) -> None:
    archive = connect(credentials=Credentials("demo", "demo", "the test"))
    root = archive.root()
    assert len(archive.children(root).children[root.key]) == 3
    server.restart()
    listings = run_together([lambda: archive.children(root)] * 8)
    assert all(isinstance(listing, Listing) and len(listing.children[root.key]) == 3 for listing in listings)
    assert paths(server).count("token") == 1


def test_a_server_without_v4_describes_a_manifest_and_gives_series_too(server: DemoServer, connect: Connect) -> None:
    server.switch(nbia_v4=False)
    archive = connect(SLICES, PLAN, "9.9.9")
    files = files_of(archive, SLICES)
    assert {entry.name: (entry.size, entry.digest) for entry in files} == truth_of(server, SLICES)
    assert md5(read(archive, files[0])).hexdigest() == files[0].digest
    assert [entry.name for entry in archive.children(archive.root()).children["/?unavailable"]] == ["9.9.9"]


def test_a_wrong_password_is_tried_once_and_shows_nowhere(
    server: DemoServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    archive = connect(LIMITED, credentials=Credentials("demo", "wrong-secret", "the test"))
    for _ in range(3):
        with pytest.raises(LoginFailed) as caught:
            archive.children(archive.root())
        assert "wrong-secret" not in str(caught.value)
    assert paths(server) == ["token"]
    assert "wrong-secret" not in caplog.text


def test_no_password_goes_to_a_server_that_only_the_manifest_names(tmp_path: Path) -> None:
    path = tmp_path / "m.tcia"
    path.write_text("downloadServerUrl=https://h.example/nbia-download/servlet/D\nListOfSeriesToDownload=\n1.2.3\n")
    config = Config(Source("tcia", str(path)), Credentials("demo", "demo", "the test"))
    with pytest.raises(UsageError, match=r"names the server https://h\.example"):
        NbiaArchive.from_config(config, "test/1", None)


def test_a_manifest_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        NbiaArchive.from_config(Config(Source("tcia", str(tmp_path / "no.tcia"))), "test/1", None)


class TestLinesThatAreNoUid:
    @pytest.fixture
    def expected_warnings(self) -> list[str]:
        return [r"2 lines of its list are no UIDs, such as '1\.2\.\.3'"]

    def test_they_are_told(self, tmp_path: Path) -> None:
        path = tmp_path / "m.tcia"
        path.write_text("ListOfSeriesToDownload=\nSeries ID\n1.2.3\n1.2..3\nhello\n")
        NbiaArchive.from_config(Config(Source("tcia", str(path))), "test/1", None).close()


def test_a_manifest_too_large_to_be_one_is_refused_and_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xnatfs.archives.nbia.archive.MAX_MANIFEST", 1000)
    path = tmp_path / "m.tcia"
    path.write_text("ListOfSeriesToDownload=\n" + "1.2.3.4.5\n" * 100)
    with pytest.raises(UsageError, match="larger than"):
        NbiaArchive.from_config(Config(Source("tcia", str(path))), "test/1", None)


def test_from_idc_alone_without_an_index_is_told_before_a_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    config = Config(Source("tcia", "tcia:"), tcia=TciaConfig("idc"))
    with pytest.raises(UsageError, match="no index of IDC"):
        NbiaArchive.from_config(config, "test/1", None)


def test_an_archive_of_another_listing_is_not_found(connect: Connect) -> None:
    with pytest.raises(NotFound):
        connect().children(Entry("x", "/x", True, listing=listing_id("nonsense")))


# --- with the cache above it ------------------------------------------------------------------------------------------


def mounted(server: DemoServer, cache: Path, *series: str, limit_bytes: int = 1 << 30) -> ArchiveVFS:
    path = cache.parent / "some.tcia"
    address = f"{server.url}/nbia-download/servlet/DownloadServlet"
    path.write_text(f"downloadServerUrl={address}\nListOfSeriesToDownload=\n" + "\n".join(series))
    config = Config(
        Source("tcia", str(path)),
        tree=TreeConfig(names="id"),
        tcia=TciaConfig(prefer="nbia"),
        cache=CacheConfig(cache, limit_bytes=limit_bytes, min_free=0.0, memory_bytes=8 << 20),
    )
    return open_vfs(config)


def walk(vfs: ArchiveVFS, path: str = "") -> Iterator[str]:
    for node in vfs.listdir(path or "/"):
        below = f"{path}/{node.name}"
        if node.is_dir:
            yield from walk(vfs, below)
        else:
            yield below


def content(vfs: ArchiveVFS, path: str) -> bytes:
    handle = vfs.open(path)
    try:
        return vfs.pread(handle, 0, handle.node.size)
    finally:
        vfs.release(handle)


def md5_of_all(vfs: ArchiveVFS, uid: str) -> dict[str, str]:
    found = [path for path in walk(vfs) if f"/{uid}/" in path]
    return {path.rpartition("/")[2]: md5(content(vfs, path)).hexdigest() for path in found}


@pytest.mark.parametrize("uid", [SLICES, LARGE])
def test_every_byte_of_a_series_travels_once_also_after_a_remount(server: DemoServer, tmp_path: Path, uid: str) -> None:
    truth = {name: digest for name, (_, digest) in truth_of(server, uid).items()}
    server.clear_log()
    for requests in (["getSeriesMetadata", "getImage"], []):
        with closing(mounted(server, tmp_path / "cache", uid)) as vfs:
            assert md5_of_all(vfs, uid) == truth
        assert paths(server) == requests
        server.clear_log()


def test_a_listing_that_has_grown_old_costs_no_second_transfer(server: DemoServer, tmp_path: Path) -> None:
    path = tmp_path / "some.tcia"
    with closing(mounted(server, tmp_path / "cache", SLICES)) as vfs:
        first = md5_of_all(vfs, SLICES)
    for stored in (tmp_path / "cache" / "listings").rglob("*"):
        if stored.is_file():
            stored.unlink()
    server.clear_log()
    with closing(mounted(server, tmp_path / "cache", SLICES)) as vfs:
        assert md5_of_all(vfs, SLICES) == first
    assert path.exists()
    assert paths(server) == ["getSeriesMetadata"]


def test_a_walk_through_series_fetches_none_that_it_has_not_come_to(server: DemoServer, tmp_path: Path) -> None:
    with closing(mounted(server, tmp_path / "cache", SLICES, UNNAMED, T1W, LARGE, IN_BOTH, GROWN)) as vfs:
        entered = list(directories_of_series(vfs))[:4]
        for path in entered:
            vfs.listdir(path)
        assert paths(server).count("getImage") == 4
    assert paths(server).count("getImage") == 4


def directories_of_series(vfs: ArchiveVFS, path: str = "") -> Iterator[str]:
    for node in vfs.listdir(path or "/"):
        if node.is_dir and node.entry.listing.startswith("series:"):
            yield f"{path}/{node.name}"
        elif node.is_dir:
            yield from directories_of_series(vfs, f"{path}/{node.name}")


def test_a_walk_that_reads_a_series_the_cache_has_lost_is_served_by_one_zip(server: DemoServer, tmp_path: Path) -> None:
    with closing(mounted(server, tmp_path / "cache", SLICES)) as vfs:
        truth = md5_of_all(vfs, SLICES)
    keep = tmp_path / "cache" / "listings"
    for lost in (tmp_path / "cache").iterdir():
        if lost != keep:
            shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    server.clear_log()
    with closing(mounted(server, tmp_path / "cache", SLICES)) as vfs:
        assert md5_of_all(vfs, SLICES) == truth
    requests = paths(server)
    assert requests.count("getImage") == 1
    assert requests.count("getSingleImage") < 6


def test_a_cache_too_small_for_a_series_still_gives_right_bytes(server: DemoServer, tmp_path: Path) -> None:
    truth = {name: digest for name, (_, digest) in truth_of(server, LARGE).items()}
    with closing(mounted(server, tmp_path / "cache", LARGE, limit_bytes=3 << 20)) as vfs:
        assert md5_of_all(vfs, LARGE) == truth


def test_documents_are_read(server: DemoServer, tmp_path: Path) -> None:
    with closing(mounted(server, tmp_path / "cache", SLICES, T1W)) as vfs:
        lines = content(vfs, "/metadata.csv").decode().split("\r\n")
        assert [line.partition(",")[0] for line in lines] == ["Series UID", SLICES, T1W, ""]
        assert b"Creative Commons" in content(vfs, "/Demo Lung/LICENSE")
