"""The fsspec door over a tree in memory: listings, bytes, versions, refusals. What needs a server: tests/archives."""

from __future__ import annotations

import errno
import io
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import entry_points
from pathlib import Path
from random import Random

import fsspec
import pydicom
import pytest
from fsspec.callbacks import Callback
from pydicom.data import get_testdata_file

from tests.helpers.sample_tree import file_system
from tests.helpers.trees import Clock, build_vfs, run_together
from xnatfs.archives.memory import FIRST_MTIME_S, MemoryArchive
from xnatfs.cli.library import config_of
from xnatfs.errors import AccessDenied, StaleContent, Unavailable, UsageError
from xnatfs.frontends.fsspec import ArchiveFileSystem

LARGE = b"".join(number.to_bytes(4, "big") for number in range(800_000))  # 3.2 MB, no two blocks alike
TREE = {
    "P": {
        "subjects.csv": b"label,age\nS1,30\nS2,41\n",
        "S1": {"scans": {"1": {"a.nii": b"first", "a.json": b"{}"}, "2": {"b.nii": b"second"}}},
        "S2": {"scans": {"1": {"c.nii": LARGE}}, "resources": {}},
    },
    "Q": {"closed": {}},
}


class Refusing:
    """For ``MemoryArchive(before=...)``: raises once told to, and counts what was listed."""

    def __init__(self) -> None:
        self.error: OSError | None = None
        self.at = ""
        self.listed: list[str] = []

    def __call__(self, operation: str, key: str) -> None:
        if operation == "children":
            self.listed.append(key)
        if self.error is not None and key.startswith(self.at):
            raise type(self.error)(str(self.error))  # a fresh one: a kept one would keep the frames it went through


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusing() -> Refusing:
    return Refusing()


@pytest.fixture
def archive(refusing: Refusing) -> MemoryArchive:
    return MemoryArchive(TREE, ranged=False, before=refusing)


@pytest.fixture
def fs(archive: MemoryArchive, clock: Clock) -> Iterator[ArchiveFileSystem]:
    with file_system(build_vfs(archive, clock=clock)[0]) as fs:
        yield fs


# --- listings ---------------------------------------------------------------------------------------------------------


def test_ls_gives_full_paths_and_what_is_known(fs: ArchiveFileSystem) -> None:
    assert fs.ls("/", detail=False) == ["/P", "/Q"]
    assert fs.ls("P/S1/scans/1/", detail=False) == ["/P/S1/scans/1/a.nii", "/P/S1/scans/1/a.json"]
    (found,) = [each for each in fs.ls("/P") if each["name"] == "/P/subjects.csv"]
    assert (found["type"], found["size"], found["mtime"]) == ("file", 22, float(FIRST_MTIME_S + 1))
    assert found == fs.info("/P/subjects.csv")
    assert fs.info("/P/S1")["type"] == "directory"


def test_ls_of_a_file_is_the_file(fs: ArchiveFileSystem) -> None:
    assert fs.ls("/P/subjects.csv", detail=False) == ["/P/subjects.csv"]
    assert fs.ls("/P/subjects.csv") == [fs.info("/P/subjects.csv")]


def test_a_size_that_the_listing_does_not_tell_is_none_in_ls_and_asked_for_by_info() -> None:
    with file_system(build_vfs(MemoryArchive(TREE, sizes=False))[0]) as fs:
        (found,) = [each for each in fs.ls("/P") if each["type"] == "file"]
        assert found["size"] is None
        assert fs.size("/P/subjects.csv") == 22
        assert fs.du("/P/S1") == len("first") + len("{}") + len("second")
        with fs.open("/P/subjects.csv") as file:
            assert file.size == 22


def test_find_walk_and_glob_see_every_file_once(fs: ArchiveFileSystem) -> None:
    images = ["/P/S1/scans/1/a.nii", "/P/S1/scans/2/b.nii", "/P/S2/scans/1/c.nii"]
    assert fs.find("/P") == sorted([*images, "/P/S1/scans/1/a.json", "/P/subjects.csv"])
    assert fs.glob("/P/*/scans/*/*.nii") == images
    assert fs.glob("/P/**/*.nii") == images
    assert fs.glob("/P/S?") == ["/P/S1", "/P/S2"]
    assert fs.glob("/P/*/") == ["/P/S1", "/P/S2"]
    assert fs.glob("/P/S1/**/2/*") == ["/P/S1/scans/2/b.nii"]
    assert fs.glob("/P/subjects.csv") == ["/P/subjects.csv"]
    assert fs.glob("/P/none*") == []
    assert [(path, sorted(files)) for path, _, files in fs.walk("/P/S1") if files] == [
        ("/P/S1/scans/1", ["a.json", "a.nii"]),
        ("/P/S1/scans/2", ["b.nii"]),
    ]
    assert list(fs.walk("/P/S1", maxdepth=1)) == [("/P/S1", ["scans"], [])]
    assert [path for path, _, _ in fs.walk("/P/S2", topdown=False)][-1] == "/P/S2"


def test_walk_goes_only_where_the_caller_leaves_it(fs: ArchiveFileSystem) -> None:
    seen = []
    for path, directories, _ in fs.walk("/"):
        seen.append(path)
        directories[:] = [name for name in directories if name not in ("S1", "scans", "Q")]
    assert seen == ["/", "/P", "/P/S2", "/P/S2/resources"]


def test_glob_lists_no_directory_that_cannot_match(fs: ArchiveFileSystem, refusing: Refusing) -> None:
    assert fs.glob("/P/S1/sc*/2/*.nii") == ["/P/S1/scans/2/b.nii"]
    assert "/P/S1/scans/1" not in refusing.listed
    assert not any(key.startswith(("/Q", "/P/S2")) for key in refusing.listed)


# --- what is not there, what cannot be asked --------------------------------------------------------------------------


def test_what_is_not_there_does_not_exist(fs: ArchiveFileSystem) -> None:
    for path in ("/none", "/P/none", "/P/subjects.csv/below"):
        assert not fs.exists(path)
        assert not fs.isdir(path)
        assert not fs.isfile(path)
    assert fs.find("/none") == []
    with pytest.raises(FileNotFoundError):
        fs.info("/P/none")
    with pytest.raises(FileNotFoundError):
        fs.open("/P/none")
    with pytest.raises(IsADirectoryError):
        fs.open("/P/S1")


@pytest.mark.parametrize("error", [Unavailable("away"), AccessDenied("closed")], ids=["away", "closed"])
def test_an_archive_that_cannot_be_asked_is_an_error_and_not_an_absence(
    fs: ArchiveFileSystem, refusing: Refusing, error: OSError
) -> None:
    refusing.error = error
    for ask in (fs.exists, fs.isdir, fs.isfile, fs.find, fs.ls):
        with pytest.raises(type(error)):
            ask("/P/S1/scans")
    with pytest.raises(type(error)):
        fs.glob("/P/*/scans/*")


def test_find_may_be_told_to_pass_over_what_is_closed(fs: ArchiveFileSystem, refusing: Refusing) -> None:
    refusing.at, refusing.error = "/P/S2", AccessDenied("closed")
    with pytest.raises(PermissionError):
        fs.find("/P")
    met: list[OSError] = []
    assert len(fs.find("/P", on_error=met.append)) == 4
    assert [type(each) for each in met] == [AccessDenied]
    assert len(fs.find("/P", on_error="omit")) == 4


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_reads_of_an_open_file_are_those_of_a_file_on_disk(fs: ArchiveFileSystem) -> None:
    random = Random(7)
    true = io.BytesIO(LARGE)
    with fs.open("/P/S2/scans/1/c.nii") as file:
        for _ in range(60):
            offset, whence = random.choice([(random.randrange(len(LARGE)), 0), (-random.randrange(9999), 2)])
            assert file.seek(offset, whence) == true.seek(offset, whence)
            size = random.choice([0, 1, 352, 4096, 100_000, 2_000_000])
            assert file.read(size) == true.read(size)
            assert file.tell() == true.tell()
        file.seek(0)
        assert file.read() == LARGE
        assert file.read() == b""
        buffer = bytearray(10)
        file.seek(5)
        assert (file.readinto(buffer), bytes(buffer)) == (10, LARGE[5:15])
        with pytest.raises(OSError, match="Invalid argument"):
            file.seek(-1)
    assert file.closed
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_lines_and_text(fs: ArchiveFileSystem) -> None:
    with fs.open("/P/subjects.csv") as file:
        assert list(file) == [b"label,age\n", b"S1,30\n", b"S2,41\n"]
    with fs.open("/P/subjects.csv", "r", encoding="ascii") as text:
        assert text.read().splitlines()[1] == "S1,30"
    assert fs.read_text("/P/subjects.csv").startswith("label")


def test_an_open_file_names_itself(fs: ArchiveFileSystem) -> None:
    with fs.open("/P/subjects.csv") as file:
        assert (file.path, file.size, file.mode) == ("/P/subjects.csv", 22, "rb")
        assert file.info() == file.details == fs.info("/P/subjects.csv")
        assert file.full_name == file.name == fs.unstrip_protocol("/P/subjects.csv")
        assert file.readable() and file.seekable() and not file.writable()


def test_pydicom_reads_an_open_file() -> None:
    """It asks a buffered file for its name, and took ours for a broken one."""
    image = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    with file_system(build_vfs(MemoryArchive({"a.dcm": image}))[0]) as fs, fs.open("/a.dcm") as file:
        read = pydicom.dcmread(file)
        assert (read.filename, read.pixel_array.shape) == (file.full_name, (128, 128))


def test_cat_file_takes_bounds_as_a_slice_does(fs: ArchiveFileSystem) -> None:
    data = TREE["P"]["subjects.csv"]
    for start, end in [(None, None), (3, None), (None, 4), (2, 9), (-5, None), (-5, -2), (9, 2), (50, 60)]:
        assert fs.cat_file("/P/subjects.csv", start, end) == data[start:end]


def test_cat_of_one_is_bytes_and_of_several_a_dict(fs: ArchiveFileSystem) -> None:
    assert fs.cat("/P/S1/scans/1/a.nii") == b"first"
    both = {"/P/S1/scans/1/a.nii": b"first", "/P/S1/scans/2/b.nii": b"second"}
    assert fs.cat("/P/S1/scans/*/*.nii") == both
    assert fs.cat(list(both)) == both
    assert fs.cat("/P/S1", recursive=True) == both | {"/P/S1/scans/1/a.json": b"{}"}
    paths = ["/P/subjects.csv", "/none"]
    with pytest.raises(FileNotFoundError):
        fs.cat(paths)
    assert list(fs.cat(paths, on_error="omit")) == ["/P/subjects.csv"]
    assert isinstance(fs.cat(paths, on_error="return")["/none"], FileNotFoundError)


def test_cat_ranges_reads_each_span_and_opens_each_file_once(fs: ArchiveFileSystem, archive: MemoryArchive) -> None:
    large, small = "/P/S2/scans/1/c.nii", "/P/S1/scans/1/a.nii"
    found = fs.cat_ranges([large, small, large, "/none"], [2_000_000, 0, 10, 0], [2_000_100, 2, 20, 1])
    assert found[:3] == [LARGE[2_000_000:2_000_100], b"fi", LARGE[10:20]]
    assert isinstance(found[3], FileNotFoundError)
    assert archive.calls["open_range"] == 2
    assert fs.cat_ranges([small, small], 1, 3) == [b"ir", b"ir"]
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["/none"], 0, 1, on_error="raise")


def test_sixteen_threads_read_one_file_and_one_request_is_made(fs: ArchiveFileSystem, archive: MemoryArchive) -> None:
    path = "/P/S2/scans/1/c.nii"
    assert run_together([lambda: fs.cat_file(path)] * 16) == [LARGE] * 16
    assert archive.calls["open_range"] == 1


def test_get_says_how_far_it_is(fs: ArchiveFileSystem, tmp_path: Path) -> None:
    steps: list[tuple[int | None, int]] = []

    class Recording(Callback):
        def call(self, hook_name: str | None = None, **kwargs: object) -> None:
            steps.append((self.size, self.value))

    fs.get_file("/P/S2/scans/1/c.nii", tmp_path / "new" / "c.nii", callback=Recording())
    assert (tmp_path / "new" / "c.nii").read_bytes() == LARGE
    assert steps[0] == (len(LARGE), 0)
    assert steps[-1] == (len(LARGE), len(LARGE))
    assert len(steps) >= 4


def test_get_copies_a_tree_and_a_file_object(fs: ArchiveFileSystem, tmp_path: Path) -> None:
    fs.get("/P/S1", str(tmp_path / "copy"), recursive=True)
    files = [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["a.json", "a.nii", "b.nii"]
    kept = io.BytesIO()
    fs.get_file("/P/S1/scans/1/a.nii", kept)
    assert kept.getvalue() == b"first"


def test_get_writes_into_a_pipe_and_does_not_take_its_place(fs: ArchiveFileSystem, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fs.get_file("/P/S1/scans/1/a.nii", pipe)
        assert os.read(reader, 100) == b"first"
    finally:
        os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]
    assert pipe.is_fifo()


def test_a_get_that_fails_leaves_nothing_and_what_was_there(
    fs: ArchiveFileSystem, refusing: Refusing, tmp_path: Path
) -> None:
    (tmp_path / "c.nii").write_bytes(b"older")
    fs.info("/P/S2/scans/1/c.nii")
    refusing.error = Unavailable("away")
    with pytest.raises(Unavailable):
        fs.get("/P/S2/scans/1/c.nii", str(tmp_path / "c.nii"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"c.nii": b"older"}


# --- versions ---------------------------------------------------------------------------------------------------------


def test_ukey_and_checksum_change_with_the_content_only(
    fs: ArchiveFileSystem, archive: MemoryArchive, clock: Clock
) -> None:
    path = "/P/subjects.csv"
    before = fs.ukey(path), fs.checksum(path)
    other = fs.ukey("/P/S1/scans/1/a.nii")
    clock.advance(1000)
    assert (fs.ukey(path), fs.checksum(path)) == before
    archive.replace(path, b"label,age\nS1,31\nS2,41\n")
    clock.advance(1000)
    assert fs.ukey(path) != before[0]
    assert fs.checksum(path) != before[1]
    assert fs.ukey("/P/S1/scans/1/a.nii") == other


def test_modified_is_what_the_archive_says(fs: ArchiveFileSystem) -> None:
    assert fs.modified("/P/subjects.csv") == datetime.fromtimestamp(FIRST_MTIME_S + 1, timezone.utc)
    silent = MemoryArchive({"file": b""}, describe=lambda entry: replace(entry, mtime_ns=0))
    with file_system(build_vfs(silent)[0]) as fs, pytest.raises(OSError) as caught:
        fs.modified("/file")
    assert caught.value.errno == errno.ENODATA


def test_a_file_that_changed_under_a_reader_is_stale_and_opened_again_new(
    fs: ArchiveFileSystem, archive: MemoryArchive, clock: Clock
) -> None:
    path = "/P/S2/scans/1/c.nii"
    with fs.open(path) as file:
        assert file.read(4) == LARGE[:4]
        archive.replace(path, b"new")
        clock.advance(1000)
        assert fs.cat_file(path) == b"new"
        file.seek(2_000_000)
        with pytest.raises(StaleContent):
            file.read(10)


def test_who_wants_the_whole_gets_it_where_the_listing_tells_of_another_version(
    fs: ArchiveFileSystem, archive: MemoryArchive, tmp_path: Path
) -> None:
    one, other = "/P/S1/scans/1/a.nii", "/P/S1/scans/2/b.nii"
    fs.info(one), fs.info(other)
    archive.replace(one, b"longer than it was")
    assert fs.cat_file(one) == b"longer than it was"
    archive.replace(other, b"short")
    fs.get_file(other, tmp_path / "b.nii")
    assert (tmp_path / "b.nii").read_bytes() == b"short"


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("mkdir", ["/P/new"]),
        ("makedirs", ["/P/new/er"]),
        ("rmdir", ["/P/S2/resources"]),
        ("rm", ["/P", True]),
        ("rm_file", ["/P/subjects.csv"]),
        ("delete", ["/P/subjects.csv"]),
        ("touch", ["/P/new"]),
        ("copy", ["/P/subjects.csv", "/P/new"]),
        ("cp_file", ["/P/subjects.csv", "/P/new"]),
        ("mv", ["/P/subjects.csv", "/P/new"]),
        ("rename", ["/P/subjects.csv", "/P/new"]),
        ("put", ["/etc/hostname", "/P/new"]),
        ("put_file", ["/etc/hostname", "/P/new"]),
        ("upload", ["/etc/hostname", "/P/new"]),
        ("pipe", ["/P/new", b"x"]),
        ("pipe", [{"/P/new": b"x"}]),
        ("pipe_file", ["/P/new", b"x"]),
        ("write_text", ["/P/new", "x"]),
        ("write_bytes", ["/P/new", b"x"]),
        ("open", ["/P/subjects.csv", "wb"]),
        ("open", ["/P/subjects.csv", "ab"]),
        ("open", ["/P/subjects.csv", "r+b"]),
        ("open", ["/P/new", "xb"]),
        ("open", ["/P/new", "w"]),
    ],
)
def test_every_write_is_erofs(fs: ArchiveFileSystem, call: str, arguments: list[object]) -> None:
    with pytest.raises(OSError) as caught:
        getattr(fs, call)(*arguments)
    assert caught.value.errno == errno.EROFS


# --- options and URLs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "source", "path"),
    [
        ("xnat://host/P/S/file name.nii", "https://host", "/P/S/file name.nii"),
        ("xnat://host:8443/P/", "https://host:8443", "/P"),
        ("xnat://host", "https://host", "/"),
        ("xnat+http://127.0.0.1:80/P/a%2Fb", "http://127.0.0.1", "/P/a%2Fb"),
        ("xnat://www.nitrc.org/ir#/ixi/S1", "https://www.nitrc.org/ir", "/ixi/S1"),
        ("xnat://host#/P/dir#/file", "https://host", "/P/dir#/file"),
        ("openneuro://ds000228/sub-01/anat", "openneuro://ds000228", "/sub-01/anat"),
        ("openneuro://ds000228/1.1.0#/sub-01", "openneuro://ds000228/1.1.0", "/sub-01"),
        ("osf://axz5r/data", "osf://axz5r", "/data"),
    ],
)
def test_a_url_names_its_archive_and_its_path_and_comes_back(url: str, source: str, path: str) -> None:
    fs, found = fsspec.url_to_fs(url)
    assert isinstance(fs, ArchiveFileSystem)
    assert (fs._source.url, found) == (source, path)
    again, back = fsspec.url_to_fs(fs.unstrip_protocol(found))
    assert (again._source.url, back) == (source, path)


def test_a_collection_of_tcia_comes_back_as_its_url() -> None:
    fs, path = fsspec.url_to_fs("tcia://Demo Lung/DL-0001")
    assert (fs._source.inside, path) == ("/Demo Lung", "/DL-0001")
    assert fs.unstrip_protocol(path) == "tcia://Demo Lung/DL-0001"


def test_every_protocol_has_its_entry_point() -> None:
    found = {point.name for point in entry_points(group="fsspec.specs") if "xnatfs" in point.value}
    assert found == set(ArchiveFileSystem.protocol)


def test_a_source_may_be_given_by_itself() -> None:
    fs = fsspec.filesystem("xnat", source="https://host/ir#/P")
    assert fs.unstrip_protocol("/S1/file") == "xnat://host/ir#/P/S1/file"
    same, path = fsspec.url_to_fs("xnat:///S1", source="https://host/ir#/P")
    assert same is fs
    assert path == "/S1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": None}, "archive is missing"),
        ({"password": "secret"}, "unknown option"),
        ({"cache_siez": "1G"}, "unknown option"),
        ({"cache_size": "much"}, "not a size"),
        ({"allow_other": True}, "only a mount"),
        ({"source": "https://mary:secret@host"}, "user name or password"),
        ({"proxy": "http://mary:secret@proxy:1"}, "password"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_and_no_secret_repeated(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        fsspec.filesystem("xnat", **({"source": "https://host"} | options))
    assert "secret" not in str(caught.value)


def test_the_options_of_tcia_are_taken_as_the_commands_take_them() -> None:
    config = config_of("tcia://C", {"nbia_url": "http://127.0.0.1:1", "idc_url": "http://127.0.0.1:2", "from": "nbia"})
    assert (config.tcia.nbia_url, config.tcia.idc_url) == ("http://127.0.0.1:1", "http://127.0.0.1:2")
    assert config.tcia.prefer == "nbia"


def test_options_are_those_of_the_command_line_and_travel_in_a_pickle(tmp_path: Path) -> None:
    fs = fsspec.filesystem("xnat", source="https://host", cache_dir=tmp_path, cache_size="1G", connections=3)
    again = pickle.loads(pickle.dumps(fs))
    assert again is fs
    assert again.storage_options == {
        "source": "https://host",
        "cache_dir": tmp_path,
        "cache_size": "1G",
        "connections": 3,
    }
    assert ArchiveFileSystem.from_json(fs.to_json())._source == fs._source
