"""What fsspec knows mounts: real files, errors in our words, and no mix of versions."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.helpers.trees import names, read_file
from xnatfs.archives.objects.fsspec import FIRST_RANGE, FsspecArchive, _mtime_ns, _version
from xnatfs.config import CacheConfig, Config, Credentials, HttpConfig, ListingConfig, ReadConfig, Source, TreeConfig
from xnatfs.errors import AccessDenied, ArchiveError, NotFound, StaleContent, TimedOut, Unavailable, UsageError
from xnatfs.factory import open_vfs

LARGE = bytes(range(256)) * 8192  # 2 MiB
QUICK = HttpConfig(timeout_s=2.0, max_connections=2)


class FaultyFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """Fails as libraries do: whatever ``fault`` raises or waits for, in ``cat_file``."""

    protocol = "faulty"
    store: dict[str, Any] = {}  # noqa: RUF012  # as the parent keeps it
    pseudo_dirs = [""]  # noqa: RUF012
    fault: Any = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("faulty://", "memory://")))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        data: bytes = super().cat_file(path, start=start, end=end)
        return data if FaultyFileSystem.fault is None else FaultyFileSystem.fault(data)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


@pytest.fixture
def archive() -> Iterator[FsspecArchive]:
    FaultyFileSystem.store.clear()
    FaultyFileSystem.fault = None
    FaultyFileSystem(skip_instance_cache=True).pipe_file("/top/f", LARGE)
    with closing(FsspecArchive("faulty://top", Credentials(), QUICK, TreeConfig(), "t")) as archive:
        yield archive


def test_a_folder_mounts_and_its_files_read(tmp_path: Path) -> None:
    (tmp_path / "d ü").mkdir()
    (tmp_path / "d ü" / "large").write_bytes(LARGE)
    (tmp_path / "empty").mkdir()
    config = Config(Source("file", f"file://{tmp_path}"), read=ReadConfig(idle_s=0.2))
    with closing(open_vfs(config)) as vfs:
        assert sorted(node.name for node in vfs.listdir("/")) == ["d ü", "empty"]
        assert list(vfs.listdir("/empty")) == []
        assert read_file(vfs, "/d ü/large") == LARGE
        error_ns = vfs.lookup("/d ü/large").mtime_ns - (tmp_path / "d ü" / "large").stat().st_mtime_ns
        assert abs(error_ns) < 1000  # fsspec gives a time as a float


def test_a_zip_mounts_down_to_its_last_directory(tmp_path: Path) -> None:
    files = {"top": b"t", "d ü/large": LARGE, "d ü/deep/er/x": b"x"}
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    config = Config(Source("zip", f"zip://::file://{tmp_path}/z.zip"), read=ReadConfig(idle_s=0.2))
    with closing(open_vfs(config)) as vfs:
        assert names(vfs, "/") == ["d ü", "top"]
        assert names(vfs, "/d ü") == ["deep", "large"]
        assert names(vfs, "/d ü/deep/er") == ["x"]
        assert {name: read_file(vfs, f"/{name}") for name in files} == files


def test_the_time_of_a_file_on_an_ftp_server_is_its_time() -> None:
    assert _mtime_ns({"modify": "20240102030405.678"}) == 1704164645 * 10**9
    assert _mtime_ns({"modify": "20249999999999"}) == _mtime_ns({"modify": "Jan 2 03:04"}) == 0


@pytest.mark.parametrize("key", ["hex", "blob_id", "modificationTime", "modify"])  # git, Hugging Face, WebHDFS, ftp
def test_versions_are_told_apart_by_each_file_systems_own_word_for_them(key: str) -> None:
    same = {"name": "/f", "type": "file", "size": 1}
    assert _version({**same, key: "one"}) != _version({**same, key: "other"})


def test_a_zip_that_was_replaced_by_one_of_the_same_sizes_is_not_read_from_the_cache(tmp_path: Path) -> None:
    cache = CacheConfig(directory=tmp_path / "cache")
    config = Config(
        Source("zip", f"zip://::file://{tmp_path}/z.zip"),
        cache=cache,
        read=ReadConfig(idle_s=0.2),
        listing=ListingConfig(ttl_s=0.0),
    )
    for data in (LARGE, LARGE[::-1]):
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as packed:
            packed.writestr(zipfile.ZipInfo("f"), data)  # of 1980, both
        with closing(open_vfs(config)) as vfs:
            assert read_file(vfs, "/f") == data


def test_a_file_that_is_replaced_under_a_reader_is_stale_and_then_new(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(LARGE)
    with closing(open_vfs(Config(Source("file", f"file://{tmp_path}"), read=ReadConfig(idle_s=0.2)))) as vfs:
        handle = vfs.open("/f")
        assert vfs.pread(handle, 0, 100) == LARGE[:100]
        path.with_name("new").write_bytes(LARGE[::-1])
        os.replace(path.with_name("new"), path)
        with pytest.raises(StaleContent):
            vfs.pread(handle, len(LARGE) - 100, 100)
        vfs.release(handle)
        assert read_file(vfs, "/f") == LARGE[::-1]


def test_links_to_files_are_files_and_what_could_hang_or_lead_in_a_ring_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "annex").mkdir()
    (tmp_path / "annex" / "object").write_bytes(b"content")
    (tmp_path / "file").symlink_to("annex/object")
    (tmp_path / "ring").symlink_to(".")
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    with closing(open_vfs(Config(Source("file", f"file://{tmp_path}"), read=ReadConfig(idle_s=0.2)))) as vfs:
        assert sorted(node.name for node in vfs.listdir("/")) == ["annex", "file"]
        assert vfs.lookup("/file").size == 7
        assert read_file(vfs, "/file") == b"content"


def test_a_stream_is_a_row_of_growing_ranges(archive: FsspecArchive) -> None:
    lengths = []
    FaultyFileSystem.fault = lambda data: (lengths.append(len(data)), data)[1]
    (entry,) = archive.children(archive.root()).children[""]
    stream = archive.open_range(entry, 0, len(LARGE))
    got = bytearray()
    buffer = bytearray(100_000)
    while count := stream.readinto(memoryview(buffer)):
        got += buffer[:count]
    assert got == LARGE
    assert lengths[:3] == [FIRST_RANGE, 2 * FIRST_RANGE, 4 * FIRST_RANGE]


def raises(error: BaseException) -> Any:
    def fault(data: bytes) -> bytes:
        raise error

    return fault


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (raises(FileNotFoundError("x")), NotFound),
        (raises(PermissionError("x")), AccessDenied),
        (raises(TimeoutError()), TimedOut),
        (raises(ConnectionResetError()), Unavailable),
        (raises(RuntimeError("whatever a library thinks of")), Unavailable),
        (lambda data: data[:-1], Unavailable),
        (lambda data: data + b"x", Unavailable),
    ],
)
def test_every_failure_is_one_of_ours(archive: FsspecArchive, fault: Any, error: type[ArchiveError]) -> None:
    (entry,) = archive.children(archive.root()).children[""]
    FaultyFileSystem.fault = fault
    stream = archive.open_range(entry, 0, 100)
    with pytest.raises(error):
        stream.readinto(memoryview(bytearray(100)))


def test_a_library_that_hangs_costs_no_more_than_the_timeout(archive: FsspecArchive) -> None:
    (entry,) = archive.children(archive.root()).children[""]
    go_on = threading.Event()
    FaultyFileSystem.fault = lambda data: (go_on.wait(20), data)[1]
    stream = archive.open_range(entry, 0, 100)
    with pytest.raises(TimedOut):
        stream.readinto(memoryview(bytearray(100)))
    go_on.set()


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    archive = FsspecArchive(f"file://{tmp_path}/f", Credentials(), QUICK, TreeConfig(), "t")
    with closing(archive), pytest.raises(NotFound):
        archive.children(archive.root())


def test_what_fsspec_does_not_know_is_refused() -> None:
    with pytest.raises(UsageError, match="no archive for 'nonsense'"):
        open_vfs(Config(Source("nonsense", "nonsense://x")))
