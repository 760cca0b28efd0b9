"""The tree as its front ends use it: paths, nodes, handles, versions."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.trees import BLOCK_SIZE, Clock, build_vfs, read_file, run_together
from xnatfs.archives.memory import FIRST_MTIME_S, MemoryArchive
from xnatfs.blocks.disk import DiskBlocks
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.blocks.tiered import TieredBlocks
from xnatfs.config import ListingConfig, ReadConfig, TreeConfig
from xnatfs.errors import NotFound, StaleContent, Unavailable
from xnatfs.model import Entry
from xnatfs.reading.reader import BlockReader
from xnatfs.tree.listing import ListingCache
from xnatfs.tree.vfs import UNKNOWN_SIZE, ArchiveVFS, Handle

TTL_S = 300.0
TREE = {"P": {"S": {"E": {"1.dcm": b"dicom", "2.dcm": b"DICOM!"}}, "notes.txt": b"n"}, "empty": {}}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def archive() -> MemoryArchive:
    return MemoryArchive(TREE)


@pytest.fixture
def vfs(archive: MemoryArchive, clock: Clock) -> ArchiveVFS:
    return build_vfs(archive, clock=clock)[0]


def names(vfs: ArchiveVFS, path: str) -> list[str]:
    return [node.name for node in vfs.listdir(path)]


# --- paths ------------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_of_the_archive_before_it_is_needed(vfs: ArchiveVFS, archive: MemoryArchive) -> None:
    assert vfs.lookup("/").is_dir
    assert not archive.calls


def test_the_root_lists_the_archive(vfs: ArchiveVFS) -> None:
    assert names(vfs, "/") == ["P", "empty"]
    assert names(vfs, "/empty") == []


def test_a_file_has_its_size_and_time_before_it_is_opened(vfs: ArchiveVFS, archive: MemoryArchive) -> None:
    node = vfs.lookup("/P/S/E/2.dcm")
    assert (node.name, node.size, node.is_dir) == ("2.dcm", 6, False)
    assert node.mtime_ns == (FIRST_MTIME_S + 1) * 10**9
    assert not archive.calls["open_range"]


def test_a_directory_has_size_0_and_the_time_of_its_entry(vfs: ArchiveVFS) -> None:
    node = vfs.lookup("/P/S")
    assert (node.name, node.size, node.is_dir, node.mtime_ns) == ("S", 0, True, FIRST_MTIME_S * 10**9)


def test_lookup_and_listdir_return_the_same_nodes(vfs: ArchiveVFS) -> None:
    assert [vfs.lookup(f"/P/S/E/{node.name}") for node in vfs.listdir("/P/S/E")] == list(vfs.listdir("/P/S/E"))


@pytest.mark.parametrize("path", ["/nothing", "/P/nothing", "/nothing/below", "/P/S/E/3.dcm", "/P/.", "/P/..", "/p"])
def test_a_missing_name_is_not_found(vfs: ArchiveVFS, path: str) -> None:
    for call in (vfs.lookup, vfs.listdir, vfs.open):
        with pytest.raises(NotFound) as caught:
            call(path)
        assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("path", ["/P/notes.txt/x", "/P/notes.txt/x/y"])
def test_a_file_in_the_middle_of_a_path_is_not_a_directory(vfs: ArchiveVFS, path: str) -> None:
    for call in (vfs.lookup, vfs.listdir, vfs.open):
        with pytest.raises(NotADirectoryError) as caught:
            call(path)
        assert caught.value.errno == errno.ENOTDIR


def test_listing_a_file_and_opening_a_directory_are_refused(vfs: ArchiveVFS) -> None:
    with pytest.raises(NotADirectoryError) as not_a_directory:
        vfs.listdir("/P/notes.txt")
    assert not_a_directory.value.errno == errno.ENOTDIR
    for path in ("/", "/P"):
        with pytest.raises(IsADirectoryError) as is_a_directory:
            vfs.open(path)
        assert is_a_directory.value.errno == errno.EISDIR


def test_superfluous_slashes_do_not_matter(vfs: ArchiveVFS) -> None:
    assert vfs.lookup("//P/S//E/1.dcm") == vfs.lookup("P/S/E/1.dcm") == vfs.lookup("/P/S/E/1.dcm")
    assert vfs.lookup("/P/S/") == vfs.lookup("/P/S")
    assert names(vfs, "/P/S/E/") == ["1.dcm", "2.dcm"]


def test_a_path_of_thousands_of_names_is_answered(vfs: ArchiveVFS) -> None:
    with pytest.raises(NotFound):
        vfs.lookup("/P" + "/x" * 2000)


def test_a_repeated_lookup_costs_no_request_while_the_listing_is_fresh(vfs: ArchiveVFS, archive: MemoryArchive) -> None:
    first = vfs.lookup("/P/S/E/1.dcm")
    asked = archive.calls["children"]
    assert asked == 4
    for _ in range(10):
        assert vfs.lookup("/P/S/E/1.dcm") is first
        with pytest.raises(NotFound):
            vfs.lookup("/P/S/E/3.dcm")
    assert archive.calls["children"] == asked


def test_hidden_entries_are_found_but_not_listed() -> None:
    def hide(entry: Entry) -> Entry:
        return replace(entry, hidden=entry.name == ".xnat")

    vfs, _ = build_vfs(MemoryArchive({".xnat": {"item.json": b"{}"}, "shown": b""}, describe=hide))
    assert names(vfs, "/") == ["shown"]
    assert vfs.lookup("/.xnat").is_dir
    assert read_file(vfs, "/.xnat/item.json") == b"{}"


def test_an_alias_is_the_same_directory_with_the_same_inodes() -> None:
    def with_id(entry: Entry) -> Entry:
        return replace(entry, aliases=("XNAT_E1",)) if entry.name == "E" else entry

    vfs, _ = build_vfs(MemoryArchive({"E": {"1.dcm": b"1"}}, describe=with_id))
    assert names(vfs, "/") == ["E"]
    assert vfs.lookup("/XNAT_E1") == vfs.lookup("/E")
    assert vfs.lookup("/XNAT_E1/1.dcm") == vfs.lookup("/E/1.dcm")
    assert read_file(vfs, "/XNAT_E1/1.dcm") == b"1"


def test_equal_names_are_told_apart_by_id_and_each_has_its_own_bytes() -> None:
    vfs, _ = build_vfs(MemoryArchive({"a/b": b"slash", "a_b": b"underscore"}))
    found = {node.entry.name: read_file(vfs, f"/{node.name}") for node in vfs.listdir("/")}
    assert found == {"a/b": b"slash", "a_b": b"underscore"}
    with pytest.raises(NotFound):
        vfs.lookup("/a_b")


def test_a_decomposed_name_finds_the_composed_file() -> None:
    vfs, _ = build_vfs(MemoryArchive({"B\u00e9la": {"Zo\u00eb.txt": b"z"}}))
    assert read_file(vfs, "/Be\u0301la/Zoe\u0308.txt") == b"z"
    assert vfs.lookup("/Be\u0301la").ino == vfs.lookup("/B\u00e9la").ino


# --- inside, inodes ---------------------------------------------------------------------------------------------------


def test_a_directory_of_the_archive_can_be_the_root(archive: MemoryArchive) -> None:
    vfs, _ = build_vfs(archive, inside="/P/S")
    assert vfs.lookup("/").is_dir
    assert names(vfs, "/") == ["E"]
    assert read_file(vfs, "/E/1.dcm") == b"dicom"
    with pytest.raises(NotFound):
        vfs.lookup("/notes.txt")


def test_a_missing_inside_directory_is_not_found_by_name(archive: MemoryArchive) -> None:
    vfs, _ = build_vfs(archive, inside="/P/T/E")
    for call in (vfs.lookup, vfs.listdir):
        with pytest.raises(NotFound, match=r"/P/T/E: the archive has no such directory.*T is not there"):
            call("/")


def test_a_file_cannot_be_the_root(archive: MemoryArchive) -> None:
    vfs, _ = build_vfs(archive, inside="/P/notes.txt")
    with pytest.raises(NotADirectoryError):
        vfs.lookup("/")


def test_inodes_are_the_same_on_every_mount_of_any_part_of_the_archive(archive: MemoryArchive) -> None:
    whole, _ = build_vfs(archive)
    part, _ = build_vfs(archive, inside="/P")
    again, _ = build_vfs(MemoryArchive(TREE, one_listing=True))
    expected = whole.lookup("/P/S/E/1.dcm").ino
    assert part.lookup("/S/E/1.dcm").ino == again.lookup("/P/S/E/1.dcm").ino == expected
    assert part.lookup("/").ino == whole.lookup("/P").ino


def test_inodes_are_distinct_nonzero_and_fit_63_bits(vfs: ArchiveVFS) -> None:
    inodes = [vfs.lookup(path).ino for path in ("/", "/P", "/empty", "/P/S", "/P/S/E", "/P/S/E/1.dcm", "/P/S/E/2.dcm")]
    assert len(set(inodes)) == len(inodes)
    assert all(0 < ino < 1 << 63 for ino in inodes)


def test_the_inode_of_a_path_is_the_same_in_every_release() -> None:
    vfs, _ = build_vfs(MemoryArchive({"P": {"a": b"", "a-7.dcm": b""}}))
    assert vfs.lookup("/P/a").ino == 0x5E37E004D576AF6D
    assert vfs.lookup("/P/a-7.dcm").ino == 0x3BBEBBF313C67


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_listdir_asks_no_file_for_its_size_and_lookup_asks_once() -> None:
    archive = MemoryArchive({"item.xml": b"<item/>", "b": b""}, sizes=False)
    vfs, _ = build_vfs(archive)
    assert [node.size for node in vfs.listdir("/")] == [UNKNOWN_SIZE, UNKNOWN_SIZE]
    assert archive.calls["stat"] == 0
    assert vfs.lookup("/item.xml").size == 7
    assert [node.size for node in vfs.listdir("/")] == [7, UNKNOWN_SIZE]
    assert read_file(vfs, "/item.xml") == b"<item/>"
    assert archive.calls["stat"] == 1


def test_a_size_that_cannot_be_had_is_an_error_and_never_0() -> None:
    archive = MemoryArchive({"gone": b"x"}, sizes=False)
    vfs, _ = build_vfs(archive)
    vfs.listdir("/")
    archive.remove("/gone")
    with pytest.raises(NotFound):
        vfs.lookup("/gone")


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranged", [True, False])
def test_reads_give_exactly_the_bytes_asked_for_up_to_the_end(ranged: bool) -> None:
    content = bytes(range(256)) * 10_000
    vfs, _ = build_vfs(MemoryArchive({"file": content}, ranged=ranged))
    handle = vfs.open("/file")
    assert vfs.pread(handle, 1_000_000, 5000) == content[1_000_000:1_005_000]
    assert vfs.pread(handle, len(content) - 5, 100) == content[-5:]
    assert vfs.pread(handle, len(content), 100) == b""
    buffer = bytearray(10)
    assert vfs.pread_into(handle, 3, memoryview(buffer)) == 10
    assert buffer == content[3:13]
    vfs.release(handle)


def test_reading_moves_no_byte_twice() -> None:
    archive = MemoryArchive({"file": b"x" * 3_000_000}, ranged=False)
    vfs, _ = build_vfs(archive)
    for _ in range(2):
        assert read_file(vfs, "/file") == b"x" * 3_000_000
    assert archive.calls["bytes"] == 3_000_000


def test_an_empty_file_reads_as_nothing(archive: MemoryArchive) -> None:
    vfs, _ = build_vfs(MemoryArchive({"empty": b""}))
    assert read_file(vfs, "/empty") == b""


def test_a_failing_read_raises_and_the_next_one_heals(archive: MemoryArchive) -> None:
    vfs, _ = build_vfs(archive)
    handle = vfs.open("/P/S/E/1.dcm")

    def refuse(operation: str, key: str) -> None:
        raise Unavailable("connection refused")

    archive.before = refuse
    with pytest.raises(Unavailable):
        vfs.pread(handle, 0, 5)
    archive.before = None
    assert vfs.pread(handle, 0, 5) == b"dicom"
    vfs.release(handle)


def test_blocks_that_wait_to_be_written_are_on_disk_after_close(archive: MemoryArchive, tmp_path: Path) -> None:
    def open_on_disk() -> ArchiveVFS:
        cache = TieredBlocks(MemoryBlocks(1 << 20), DiskBlocks(tmp_path, 1 << 30, 0.0), 1 << 25)
        reader = BlockReader(archive, cache, ReadConfig(), BLOCK_SIZE)
        return ArchiveVFS(archive, reader, ListingCache(archive, ListingConfig()), TreeConfig())

    for _ in range(2):
        vfs = open_on_disk()
        assert read_file(vfs, "/P/S/E/1.dcm") == b"dicom"
        vfs.close()
    assert archive.calls["open_range"] == 1


def test_close_can_be_called_twice(vfs: ArchiveVFS) -> None:
    read_file(vfs, "/P/S/E/1.dcm")
    vfs.close()
    vfs.close()


# --- change -----------------------------------------------------------------------------------------------------------


def test_what_appears_and_goes_shows_after_the_ttl(vfs: ArchiveVFS, archive: MemoryArchive, clock: Clock) -> None:
    assert names(vfs, "/P/S/E") == ["1.dcm", "2.dcm"]
    archive.remove("/P/S/E/1.dcm")
    archive.replace("/P/S/E/3.dcm", b"three")
    clock.advance(TTL_S)
    with pytest.raises(NotFound):
        vfs.lookup("/P/S/E/1.dcm")
    assert vfs.lookup("/P/S/E/3.dcm").size == 5
    assert names(vfs, "/P/S/E") == ["2.dcm", "3.dcm"]


def test_a_name_that_comes_to_mean_another_directory_shows_none_of_the_old_files(clock: Clock) -> None:
    """Renaming experiments in XNAT: the label's listing is younger than that of the session it meant before."""
    labels = {"E1": "first", "E2": "second"}

    def label(entry: Entry) -> Entry:
        return replace(entry, name=labels.get(entry.name, entry.name))

    archive = MemoryArchive({"E1": {"DICOM": {"a": b"one"}}, "E2": {"DICOM": {"a": b"two"}}}, describe=label)
    vfs, _ = build_vfs(archive, clock=clock)
    vfs.lookup("/first")
    clock.advance(TTL_S - 1)
    assert read_file(vfs, "/first/DICOM/a") == b"one"
    labels.update(E1="second", E2="first")
    clock.advance(1)
    assert read_file(vfs, "/first/DICOM/a") == b"two"
    assert read_file(vfs, "/second/DICOM/a") == b"one"


def test_an_invalidated_listing_is_not_served_from_resolved_paths(archive: MemoryArchive, clock: Clock) -> None:
    vfs, listings = build_vfs(archive, clock=clock)
    assert vfs.lookup("/P/S/E/1.dcm").size == 5
    archive.replace("/P/S/E/1.dcm", b"longer than before")
    listings.invalidate("/P/S/E")
    assert vfs.lookup("/P/S/E/1.dcm").size == 18


def test_two_opens_of_unchanged_content_keep_the_page_cache(vfs: ArchiveVFS, clock: Clock) -> None:
    path = "/P/S/E/1.dcm"

    def keeps() -> bool:
        handle = vfs.open(path)
        vfs.release(handle)
        return handle.keep_cache

    assert [keeps(), keeps()] == [False, True]
    clock.advance(TTL_S)
    assert keeps()


def test_an_open_after_a_change_drops_the_page_cache(vfs: ArchiveVFS, archive: MemoryArchive, clock: Clock) -> None:
    vfs.release(vfs.open("/P/S/E/1.dcm"))
    archive.replace("/P/S/E/1.dcm", b"other")
    clock.advance(TTL_S)
    handle = vfs.open("/P/S/E/1.dcm")
    assert not handle.keep_cache
    assert vfs.pread(handle, 0, 10) == b"other"
    vfs.release(handle)


def stale_after(vfs: ArchiveVFS, handle: Handle, change: Callable[[], None]) -> None:
    change()
    for _ in range(2):
        with pytest.raises(StaleContent) as caught:
            vfs.pread(handle, 0, 10)
        assert caught.value.errno == errno.ESTALE
    vfs.release(handle)


def test_a_handle_is_stale_once_anyone_can_see_the_new_version(
    vfs: ArchiveVFS, archive: MemoryArchive, clock: Clock
) -> None:
    """Its bytes are cached, yet the kernel may know the new size by now and would cut the old bytes to it."""
    handle = vfs.open("/P/S/E/1.dcm")
    assert vfs.pread(handle, 0, 10) == b"dicom"
    archive.replace("/P/S/E/1.dcm", b"dic")
    clock.advance(TTL_S)
    assert vfs.pread(handle, 0, 10) == b"dicom"
    stale_after(vfs, handle, lambda: names(vfs, "/P/S/E") and None)
    assert read_file(vfs, "/P/S/E/1.dcm") == b"dic"


def test_a_handle_on_another_file_of_a_changed_directory_reads_on(
    vfs: ArchiveVFS, archive: MemoryArchive, clock: Clock
) -> None:
    handle = vfs.open("/P/S/E/2.dcm")
    archive.replace("/P/S/E/1.dcm", b"dic")
    clock.advance(TTL_S)
    vfs.lookup("/P/S/E/1.dcm")
    assert vfs.pread(handle, 0, 10) == b"DICOM!"
    vfs.release(handle)


def test_a_handle_on_a_file_that_went_reads_on_what_is_cached(
    vfs: ArchiveVFS, archive: MemoryArchive, clock: Clock
) -> None:
    handle = vfs.open("/P/S/E/1.dcm")
    assert vfs.pread(handle, 0, 10) == b"dicom"
    archive.remove("/P/S/E/1.dcm")
    clock.advance(TTL_S)
    assert names(vfs, "/P/S/E") == ["2.dcm"]
    assert vfs.pread(handle, 0, 10) == b"dicom"
    vfs.release(handle)


def test_a_change_found_while_reading_is_estale_and_the_next_open_is_right(
    vfs: ArchiveVFS, archive: MemoryArchive
) -> None:
    handle = vfs.open("/P/S/E/1.dcm")
    stale_after(vfs, handle, lambda: archive.replace("/P/S/E/1.dcm", b"another length"))
    assert vfs.lookup("/P/S/E/1.dcm").size == 14
    assert read_file(vfs, "/P/S/E/1.dcm") == b"another length"


def test_a_listing_that_repeats_a_wrong_size_costs_one_estale_and_one_question(clock: Clock) -> None:
    """XNAT lists the catalog's size, which stays wrong when a file was changed behind its back."""

    def lie(entry: Entry) -> Entry:
        return replace(entry, size=3) if entry.name == "wrong" else entry

    archive = MemoryArchive({"wrong": b"longer"}, describe=lie)
    vfs, _ = build_vfs(archive, clock=clock)
    with pytest.raises(StaleContent):
        read_file(vfs, "/wrong")
    for _ in range(3):
        assert vfs.lookup("/wrong").size == 6
        assert read_file(vfs, "/wrong") == b"longer"
        clock.advance(TTL_S)
    assert archive.calls["stat"] == 1


def test_many_stale_reads_cost_one_new_listing(vfs: ArchiveVFS, archive: MemoryArchive) -> None:
    handle = vfs.open("/P/S/E/1.dcm")
    archive.replace("/P/S/E/1.dcm", b"another length")
    before = archive.calls["children"]
    for _ in range(20):
        with pytest.raises(StaleContent):
            vfs.pread(handle, 0, 5)
        vfs.lookup("/P/S/E/1.dcm")
    vfs.release(handle)
    assert archive.calls["children"] == before + 1


def test_a_server_that_is_away_leaves_known_paths_and_cached_bytes_readable(
    vfs: ArchiveVFS, archive: MemoryArchive, clock: Clock, expected_warnings: list[str]
) -> None:
    expected_warnings.append("does not answer")
    assert read_file(vfs, "/P/S/E/1.dcm") == b"dicom"

    def refuse(operation: str, key: str) -> None:
        raise Unavailable("connection refused")

    archive.before = refuse
    clock.advance(TTL_S)
    assert names(vfs, "/P/S/E") == ["1.dcm", "2.dcm"]
    assert read_file(vfs, "/P/S/E/1.dcm") == b"dicom"
    with pytest.raises(Unavailable):
        vfs.listdir("/empty")


def test_a_crawl_beyond_the_memory_bound_never_asks_again_for_what_is_above_it(clock: Clock) -> None:
    sessions = {f"S{number:02}": {"scans": {f"{scan}": {"a": b""} for scan in range(5)}} for number in range(50)}
    archive = MemoryArchive({"P": sessions})
    reader = BlockReader(archive, MemoryBlocks(1 << 20), ReadConfig(), BLOCK_SIZE)
    vfs = ArchiveVFS(archive, reader, ListingCache(archive, ListingConfig(memory_entries=100), clock), TreeConfig())
    for session in vfs.listdir("/P"):
        for scan in vfs.listdir(f"/P/{session.name}/scans"):
            assert names(vfs, f"/P/{session.name}/scans/{scan.name}") == ["a"]
    assert archive.calls["children"] == 2 + 50 * (2 + 5)


# --- threads and speed ------------------------------------------------------------------------------------------------


def test_threads_that_read_while_files_change_see_one_version_or_estale() -> None:
    """Every version of every file is one letter repeated, so a mix shows."""
    archive = MemoryArchive({"d": {f"f{number}": b"a" * 1000 for number in range(4)}})
    vfs, _ = build_vfs(archive, ttl_s=0.001)
    stop = threading.Event()
    seen: set[bytes] = set()

    def change() -> None:
        for step in range(1, 60):
            letter = b"abcdefghijklmnopqrstuvwxyz"[step % 26 : step % 26 + 1]
            for number in range(4):
                archive.replace(f"/d/f{number}", letter * (1000 + 10 * step))
            time.sleep(0.005)
        stop.set()

    def read() -> int:
        reads = 0
        while not stop.is_set() or reads == 0:
            try:
                data = read_file(vfs, f"/d/f{reads % 4}")
            except StaleContent:
                continue
            assert len(set(data)) == 1
            assert len(data) % 10 == 0
            seen.add(data[:1])
            reads += 1
        return reads

    results = run_together([change, read, read, read])
    assert not [result for result in results if isinstance(result, BaseException)]
    assert len(seen) > 1


def test_sixteen_threads_on_a_cold_path_ask_once_for_each_directory(vfs: ArchiveVFS, archive: MemoryArchive) -> None:
    archive.before = lambda operation, key: time.sleep(0.02)
    nodes = run_together([lambda: vfs.lookup("/P/S/E/1.dcm")] * 16)
    assert {node == nodes[0] for node in nodes} == {True}
    assert archive.calls["children"] == 4


def test_a_known_path_is_answered_in_microseconds(vfs: ArchiveVFS) -> None:
    vfs.lookup("/P/S/E/1.dcm")
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(10_000):
            vfs.lookup("/P/S/E/1.dcm")
        best = min(best, (time.perf_counter() - began) / 10_000)
    assert best < 2e-6
