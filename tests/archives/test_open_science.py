"""OpenNeuro's data sets and OSF's projects: one request for a snapshot, few for a project, sizes that lie, limits."""

from __future__ import annotations

import errno
import time
from contextlib import closing

import pytest

from tests.helpers.object_server import ObjectServer, Thing
from tests.helpers.open_science import OsfProject, serve_snapshot
from tests.helpers.trees import names, read_file
from xnatfs.archives.http.errors import ServerFailed
from xnatfs.archives.objects.openneuro import open_dataset
from xnatfs.archives.objects.osf import OsfArchive
from xnatfs.config import Config, Credentials, HttpConfig, ReadConfig, Source, TreeConfig
from xnatfs.errors import NotFound, StaleContent, UnexpectedReply, UsageError
from xnatfs.factory import open_vfs
from xnatfs.tree.vfs import ArchiveVFS

QUICK = HttpConfig(timeout_s=5.0, retries=2)
DATA = bytes(range(256)) * 40
FILES = {"README": b"read me", "sub-01/anat/T1w+x.nii": DATA, "sub-01/anat/T1w.json": b"{}", "empty": b""}


@pytest.fixture
def server(objects: ObjectServer) -> ObjectServer:
    return objects


def vfs_of(url: str, server: ObjectServer) -> ArchiveVFS:
    source = Source(url.partition(":")[0], f"{url}?endpoint={server.url}")
    return open_vfs(Config(source, http=QUICK, read=ReadConfig(idle_s=0.2, timeout_s=5.0)))


# --- OpenNeuro --------------------------------------------------------------------------------------------------------


def test_the_newest_snapshot_is_read_from_the_bucket(server: ObjectServer) -> None:
    server.fill("openneuro.org", {f"ds000228/{path}": data for path, data in FILES.items()} | {"ds0002281/x": b""})
    with closing(vfs_of("openneuro://ds000228", server)) as vfs:
        assert names(vfs, "/") == ["README", "empty", "sub-01"]
        assert {path: read_file(vfs, f"/{path}") for path in FILES} == FILES
    assert not any("Authorization" in asked.headers for asked in server.asked)


def test_a_snapshot_is_listed_in_one_request_and_reads_its_versions(server: ObjectServer) -> None:
    serve_snapshot(server, "ds000228", "1.1.0", FILES)
    with closing(vfs_of("openneuro://ds000228/1.1.0", server)) as vfs:
        assert names(vfs, "/") == ["README", "empty", "sub-01"]
        assert names(vfs, "/sub-01/anat") == ["T1w+x.nii", "T1w.json"]
        assert {path: read_file(vfs, f"/{path}") for path in FILES} == FILES
    assert len(server.targets("graphql")) == 1
    assert all("versionId=1" in target for target in server.targets("/versions/"))


def test_a_size_that_the_api_has_wrong_is_found_out_and_right_the_next_time(server: ObjectServer) -> None:
    serve_snapshot(server, "ds000228", "1.1.0", FILES, README=9)
    with closing(vfs_of("openneuro://ds000228/1.1.0", server)) as vfs:
        with pytest.raises(StaleContent):
            read_file(vfs, "/README")
        assert read_file(vfs, "/README") == b"read me"


def test_a_snapshot_that_is_not_there_is_not_found(server: ObjectServer) -> None:
    serve_snapshot(server, "ds000228", "1.1.0", FILES)
    with closing(vfs_of("openneuro://ds000228/9.9.9", server)) as vfs, pytest.raises(NotFound):
        vfs.listdir("/")


@pytest.mark.parametrize(
    "body",
    [
        b'{"errors": [{"message": "Cannot query field urls"}]}',
        b'{"data": {"snapshot": {"files": []}}}',
        b'{"data": {"snapshot": {"files": [{"filename": "x", "directory": false, "urls": []}]}}}',
        b"[]",
        b"<html></html>",
    ],
)
def test_a_doubtful_answer_of_the_api_is_an_error(server: ObjectServer, body: bytes) -> None:
    server.fault("graphql", "raw", times=None, body=body)
    with closing(vfs_of("openneuro://ds000228/1.1.0", server)) as vfs, pytest.raises(UnexpectedReply):
        vfs.listdir("/")


def test_an_address_in_clear_on_another_host_is_not_asked(server: ObjectServer) -> None:
    body = b'{"data": {"snapshot": {"files": [{"filename": "x", "size": 1, "urls": ["http://127.0.0.1:1/x"]}]}}}'
    server.fault("graphql", "raw", body=body)
    with (
        closing(vfs_of("openneuro://ds000228/1.1.0", server)) as vfs,
        pytest.raises(UnexpectedReply, match="not https"),
    ):
        read_file(vfs, "/x")


@pytest.mark.parametrize("text", ["openneuro://x", "openneuro://ds1/sub-01", "openneuro://ds1/1.0?x=1"])
def test_what_is_no_data_set_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        open_dataset(text, Credentials(), QUICK, TreeConfig(), "t")


# --- OSF --------------------------------------------------------------------------------------------------------------


def test_a_project_with_its_components_reads_whole(server: ObjectServer) -> None:
    project = OsfProject(server, "axz5r", FILES | {f"many/{i:02}": b"%d" % i for i in range(25)})
    project.components = [("bbbbb", "Part two")]
    OsfProject(server, "bbbbb", {"in part two": b"2"})
    with closing(vfs_of("osf://axz5r", server)) as vfs:
        assert names(vfs, "/") == ["Part two", "README", "empty", "many", "sub-01"]
        assert names(vfs, "/many") == [f"{i:02}" for i in range(25)]
        assert {path: read_file(vfs, f"/{path}") for path in FILES} == FILES
        assert read_file(vfs, "/Part two/in part two") == b"2"
        assert vfs.lookup("/README").entry.digest
        assert vfs.lookup("/README").mtime_ns == 1_600_000_000 * 10**9


def test_a_folder_is_not_asked_for_again_within_the_hour_that_osf_counts(server: ObjectServer) -> None:
    OsfProject(server, "axz5r", FILES)
    with closing(OsfArchive(f"osf://axz5r?endpoint={server.url}", Credentials(), QUICK, TreeConfig(), "t")) as archive:
        first = archive.children(archive.root())
        asked = len(server.asked)
        assert archive.children(archive.root()) == first
    assert asked == len(server.asked) == 2


def test_a_file_that_was_replaced_is_stale_and_then_new(server: ObjectServer) -> None:
    project = OsfProject(server, "axz5r", FILES)
    with closing(vfs_of("osf://axz5r", server)) as vfs:
        handle = vfs.open("/README")
        project.files["README"] = Thing(b"another text", time.time())
        with pytest.raises(StaleContent):
            vfs.pread(handle, 0, 5)
        vfs.release(handle)
        assert read_file(vfs, "/README") == b"another text"


def test_bytes_that_differ_from_the_digest_are_an_error(server: ObjectServer) -> None:
    OsfProject(server, "axz5r", FILES)
    server.fault("/signed/", "raw", times=None, body=b"READ ME", content_type="text/plain")
    with closing(vfs_of("osf://axz5r", server)) as vfs, pytest.raises(OSError) as caught:
        read_file(vfs, "/README")
    assert caught.value.errno == errno.EIO


def test_too_many_requests_say_so_at_once(server: ObjectServer) -> None:
    OsfProject(server, "axz5r", FILES)
    server.fault("/v2/", "status", times=None, status=429, code="Throttled", Retry_After="1800")
    archive = OsfArchive(f"osf://axz5r?endpoint={server.url}", Credentials(), QUICK, TreeConfig(), "t")
    with closing(archive), pytest.raises(ServerFailed) as caught:
        archive.children(archive.root())
    assert "100 requests an hour" in caught.value.hint
    assert len(server.asked) == 1


def test_no_signature_of_an_address_reaches_a_message(server: ObjectServer) -> None:
    OsfProject(server, "axz5r", FILES)
    server.fault("/signed/", "short", times=None, at=0)
    with closing(vfs_of("osf://axz5r", server)) as vfs, pytest.raises(OSError) as caught:
        read_file(vfs, "/sub-01/anat/T1w+x.nii")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("body", [b"{}", b'{"data": [{}], "links": {}}', b"[]", b'{"data": {}, "links": {}}'])
def test_a_doubtful_listing_of_a_project_is_an_error(server: ObjectServer, body: bytes) -> None:
    server.fault("/v2/", "raw", times=None, body=body, content_type="application/json")
    with closing(vfs_of("osf://axz5r", server)) as vfs, pytest.raises(UnexpectedReply):
        vfs.listdir("/")


def test_a_listing_with_rows_twice_and_others_missing_is_an_error(server: ObjectServer) -> None:
    body = b'{"data": [{"id": "1"}, {"id": "1"}], "links": {"next": null, "meta": {"total": 2}}}'
    server.fault("/v2/", "raw", body=body, content_type="application/json")
    with closing(vfs_of("osf://axz5r", server)) as vfs, pytest.raises(UnexpectedReply, match="1 of 2 rows"):
        vfs.listdir("/")


def test_a_next_page_on_another_host_is_not_asked(server: ObjectServer) -> None:
    body = b'{"data": [], "links": {"next": "https://elsewhere.invalid/"}}'
    server.fault("/v2/", "raw", body=body, content_type="application/json")
    with closing(vfs_of("osf://axz5r", server)) as vfs, pytest.raises(UnexpectedReply, match="another host"):
        vfs.listdir("/")


@pytest.mark.parametrize("text", ["osf://a", "osf://axz5r/folder", "osf://axz5r?x=1"])
def test_what_is_no_project_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        OsfArchive(text, Credentials(), QUICK, TreeConfig(), "t")
