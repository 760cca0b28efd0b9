"""Buckets: what is a directory, old version or new, odd names, and doubtful answers."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import closing
from hashlib import md5

import pytest

from tests.helpers.object_server import ObjectServer, Thing
from tests.helpers.trees import names, read_file
from xnatfs.archives.objects.s3 import Bucket, S3Archive
from xnatfs.config import Config, Credentials, HttpConfig, ReadConfig, Source, TreeConfig
from xnatfs.errors import (
    AccessDenied,
    ArchiveError,
    NotFound,
    StaleContent,
    TimedOut,
    Unavailable,
    UnexpectedReply,
    UsageError,
)
from xnatfs.factory import open_vfs
from xnatfs.model import Entry
from xnatfs.tree.vfs import ArchiveVFS

DATA = bytes(range(256)) * 40
QUICK = HttpConfig(timeout_s=5.0, retries=2)


@pytest.fixture
def server(objects: ObjectServer) -> ObjectServer:
    objects.fill("open", {"ds/README": b"read me", "ds/sub-01/anat/T1w.nii": DATA, "ds/sub-01/anat/T1w.json": b"{}"})
    return objects


def source(server: ObjectServer, place: str = "open") -> str:
    return f"s3://{place}?endpoint={server.url}"


def archive_of(server: ObjectServer, place: str = "open", credentials: Credentials | None = None) -> S3Archive:
    return S3Archive(source(server, place), credentials or Credentials(), QUICK, TreeConfig(), "xnatfs/test")


@pytest.fixture
def archive(server: ObjectServer) -> Iterator[S3Archive]:
    with closing(archive_of(server)) as archive:
        yield archive


@pytest.fixture
def vfs(server: ObjectServer) -> Iterator[ArchiveVFS]:
    config = Config(Source("s3", source(server)), http=QUICK, read=ReadConfig(idle_s=0.2, timeout_s=5.0))
    with closing(open_vfs(config)) as vfs:
        yield vfs


def file_in(archive: S3Archive, key: str) -> Entry:
    found = archive.children(archive.root()).children
    return next(entry for entries in found.values() for entry in entries if entry.key == key)


# --- listings ---------------------------------------------------------------------------------------------------------


def test_a_small_bucket_is_listed_in_one_request_to_its_last_directory(server: ObjectServer, vfs: ArchiveVFS) -> None:
    assert names(vfs, "/") == ["ds"]
    assert names(vfs, "/ds/sub-01/anat") == ["T1w.json", "T1w.nii"]
    assert read_file(vfs, "/ds/sub-01/anat/T1w.nii") == DATA
    assert len(server.targets("list-type=2")) == 1


def test_a_large_bucket_is_listed_directory_by_directory_in_pages(server: ObjectServer, vfs: ArchiveVFS) -> None:
    server.fill("open", {f"s{i:04}/f{j}": b"x" for i in range(1500) for j in range(2)} | {"top": b"t"})
    assert len(names(vfs, "/")) == 1501
    assert len(server.asked) == 3  # all that is below would be more than a thousand; two pages of the top
    assert names(vfs, "/s0777") == ["f0", "f1"]
    assert len(server.asked) == 4


def test_a_flat_directory_of_thousands_lists_each_name_once(server: ObjectServer, vfs: ArchiveVFS) -> None:
    server.fill("open", {f"d/{i:05}": b"" for i in range(2500)})
    assert names(vfs, "/d") == [f"{i:05}" for i in range(2500)]


def test_a_listing_that_has_outgrown_one_answer_still_holds_the_directories_in_it(server: ObjectServer) -> None:
    with closing(archive_of(server)) as archive:
        listing = archive.children(archive.root())
        inner = next(entry for entry in listing.children["ds/"] if entry.is_dir)
        server.buckets["open"] |= {f"ds/sub-01/x/{i}": Thing(b"") for i in range(1200)}
        again = archive.children(inner)
    assert again.id == inner.listing
    assert {entry.name for entry in again.children["ds/sub-01/"]} == {"anat", "x"}
    assert len(again.children["ds/sub-01/x/"]) == 1200


def test_only_what_is_below_the_prefix_is_mounted(server: ObjectServer) -> None:
    server.buckets["open"]["ds-other/secret"] = Thing(b"")
    with closing(archive_of(server, "open/ds/")) as archive:
        assert {entry.name for entry in archive.children(archive.root()).children["ds/"]} == {"README", "sub-01"}


def test_a_prefix_that_is_not_there_is_not_found_and_an_empty_bucket_is_empty(server: ObjectServer) -> None:
    server.fill("bare", {})
    with closing(archive_of(server, "open/nothing")) as archive, pytest.raises(NotFound):
        archive.children(archive.root())
    with closing(archive_of(server, "bare")) as archive:
        assert archive.children(archive.root()).children == {"": ()}


def test_a_bucket_that_is_not_there_is_not_found(server: ObjectServer) -> None:
    with closing(archive_of(server, "missing")) as archive, pytest.raises(NotFound):
        archive.children(archive.root())


def test_keys_that_end_in_a_slash_are_directories_and_no_files(server: ObjectServer, vfs: ArchiveVFS) -> None:
    server.fill("open", {"a/": b"", "a/b/": b"", "a/b/c": b"1", "empty/": b""})
    assert names(vfs, "/") == ["a", "empty"]
    assert names(vfs, "/a") == ["b"]
    assert names(vfs, "/empty") == []


@pytest.mark.parametrize("page_keys", [1000, 2])
def test_a_key_that_is_both_file_and_directory_shows_as_both(
    server: ObjectServer, vfs: ArchiveVFS, page_keys: int
) -> None:
    server.page_keys = page_keys
    server.fill("open", {"both": b"file", "both/inner": b"inside", "other": b"", "z": b""})
    assert names(vfs, "/") == ["both~dir", "both~file", "other", "z"]
    assert read_file(vfs, "/both~file") == b"file"
    assert read_file(vfs, "/both~dir/inner") == b"inside"


ODD = [
    "a b",
    "a+b",
    "a%2Fb",
    "a&b=c?d#e",
    "ü字😀",
    "tab\there",
    "new\nline",
    "'\"<>",
    "-rf",
    "*?[x]",
    "\\",
    "~",
    ";",
    ":",
]


def test_names_with_odd_characters_read_as_their_own_bytes(server: ObjectServer, vfs: ArchiveVFS) -> None:
    server.fill("open", {f"odd {name}/{name}": name.encode() for name in ODD})
    for name in ODD:
        assert read_file(vfs, f"/odd {name}/{name}") == name.encode()


def test_empty_segments_of_a_key_are_directories_called_underscore(server: ObjectServer, vfs: ArchiveVFS) -> None:
    server.fill("open", {"a//b": b"two", "/c": b"one"})
    assert read_file(vfs, "/a/_/b") == b"two"
    assert read_file(vfs, "/_/c") == b"one"


def test_a_key_that_http_would_take_for_another_is_listed_and_refused(server: ObjectServer, vfs: ArchiveVFS) -> None:
    server.fill("open", {"a/../b": b"up", "b": b"not up", "a/./c": b"here"})
    with pytest.raises(UnexpectedReply, match=r"with \. or \.\."):
        read_file(vfs, f"/a/{names(vfs, '/a')[0]}/{'b' if names(vfs, '/a/' + names(vfs, '/a')[0]) == ['b'] else 'c'}")
    assert server.targets("open/") == []


DOUBTS = {
    "a page": b"<html><body>hello</body></html>",
    "nothing": b"",
    "another document": b"<Other/>",
    "not whole": b"<ListBucketResult><Contents>",
    "no word about the rest": b"<ListBucketResult></ListBucketResult>",
    "more without a way": b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
    "no size": b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>k</Key></Contents>"
    b"</ListBucketResult>",
    "entities": b"<!DOCTYPE x [<!ENTITY a 'b'>]><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
}


@pytest.mark.parametrize("body", DOUBTS.values(), ids=DOUBTS.keys())
def test_a_doubtful_listing_is_an_error_and_no_empty_directory(
    server: ObjectServer, archive: S3Archive, body: bytes
) -> None:
    server.fault("list-type=2", "raw", times=None, body=body)
    with pytest.raises(UnexpectedReply):
        archive.children(archive.root())


def test_pages_that_do_not_end_are_an_error(server: ObjectServer, archive: S3Archive) -> None:
    more = b"<IsTruncated>true</IsTruncated><NextContinuationToken>00</NextContinuationToken>"
    body = b"<ListBucketResult>" + more + b"</ListBucketResult>"
    server.fault("list-type=2", "raw", times=None, body=body)
    with pytest.raises(UnexpectedReply, match="does not end"):
        archive.children(archive.root())


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_the_version_in_the_listing_is_what_is_asked_for(server: ObjectServer, archive: S3Archive) -> None:
    entry = file_in(archive, "ds/sub-01/anat/T1w.nii")
    archive.open_range(entry, 0, 100).close()
    asked = server.asked[-1].headers
    assert asked["If-Match"] == f'"{server.buckets["open"][entry.key].etag}"'
    assert asked["Range"] == "bytes=0-99"
    assert asked["User-Agent"] == "xnatfs/test"
    assert "Authorization" not in asked
    assert "Cookie" not in asked


@pytest.mark.parametrize("if_match", [True, False])
def test_an_object_that_was_replaced_is_stale_and_then_new(
    server: ObjectServer, vfs: ArchiveVFS, if_match: bool
) -> None:
    path = "/ds/sub-01/anat/T1w.nii"
    handle = vfs.open(path)
    new = bytes(len(DATA))
    server.buckets["open"][path[1:]] = Thing(new, time.time())
    if not if_match:  # a server that does not look at the condition
        thing = server.buckets["open"][path[1:]]
        server.fault("T1w.nii", "raw", body=new)
        assert thing.data == new
    with pytest.raises(OSError) as caught:
        vfs.pread(handle, 0, 100)
    assert caught.value.errno in ((errno.ESTALE,) if if_match else (errno.EIO,))
    vfs.release(handle)
    if if_match:
        assert read_file(vfs, path) == new


def test_an_object_that_changes_under_a_reader_gives_no_mix(server: ObjectServer) -> None:
    large = bytes(range(256)) * 20_000
    server.fill("open", {"f": large})
    with closing(archive_of(server)) as archive:
        entry = file_in(archive, "f")
        first = archive.open_range(entry, 0, 1000)
        assert first.readinto(memoryview(bytearray(1000))) > 0
        first.close()
        server.buckets["open"]["f"] = Thing(large[::-1], time.time())
        with pytest.raises(StaleContent):
            archive.open_range(entry, 1000, 2000)


def test_an_object_that_is_stored_with_an_encoding_reads_as_it_is_stored(server: ObjectServer, vfs: ArchiveVFS) -> None:
    server.buckets["open"]["packed.nii.gz"] = Thing(DATA, encoding="gzip")
    assert read_file(vfs, "/packed.nii.gz") == DATA


def test_an_object_that_went_is_not_found(server: ObjectServer, archive: S3Archive) -> None:
    entry = file_in(archive, "ds/README")
    del server.buckets["open"]["ds/README"]
    with pytest.raises(NotFound):
        archive.open_range(entry, 0, 1)


def test_a_body_that_ends_early_is_asked_for_again(server: ObjectServer, vfs: ArchiveVFS) -> None:
    server.fault("T1w.nii", "short", at=5000)
    assert md5(read_file(vfs, "/ds/sub-01/anat/T1w.nii")).digest() == md5(DATA).digest()


def test_bodies_that_always_end_early_are_an_error(server: ObjectServer, vfs: ArchiveVFS) -> None:
    server.fault("T1w.nii", "short", times=None, at=0)
    with pytest.raises(OSError) as caught:
        read_file(vfs, "/ds/sub-01/anat/T1w.nii")
    assert caught.value.errno in (errno.EIO, errno.ETIMEDOUT)


@pytest.mark.parametrize(
    ("kind", "more", "error"),
    [
        ("html", {}, UnexpectedReply),
        ("empty", {}, UnexpectedReply),
        ("wrong_range", {}, StaleContent),
        ("status", {"status": 416, "code": "InvalidRange"}, StaleContent),
        ("status", {"status": 412, "code": "PreconditionFailed"}, StaleContent),
        ("status", {"status": 403, "code": "AccessDenied"}, AccessDenied),
        ("status", {"status": 400, "code": "Bad"}, UnexpectedReply),
        ("status", {"times": None}, Unavailable),
    ],
)
def test_a_doubtful_answer_for_a_file_is_an_error(
    server: ObjectServer, archive: S3Archive, kind: str, more: dict[str, object], error: type[ArchiveError]
) -> None:
    entry = file_in(archive, "ds/sub-01/anat/T1w.nii")
    server.fault("T1w.nii", kind, **more)  # type: ignore[arg-type]
    with pytest.raises(error):
        archive.open_range(entry, 0, 100)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("bytes 5000-5099/10240", UnexpectedReply),  # begins elsewhere
        ("bytes 0-99/99999", StaleContent),  # of a file of another length
        ("bytes 0-99/*", UnexpectedReply),
        ("pages 0-99/10240", UnexpectedReply),
        ("", UnexpectedReply),
    ],
)
def test_a_content_range_that_is_not_what_was_asked_for_is_an_error(
    server: ObjectServer, archive: S3Archive, said: str, error: type[ArchiveError]
) -> None:
    entry = file_in(archive, "ds/sub-01/anat/T1w.nii")
    server.fault("T1w.nii", "wrong_range", etag=entry.version, said=said)
    with pytest.raises(error):
        archive.open_range(entry, 0, 100)


def test_a_server_without_etags_is_held_to_its_dates(server: ObjectServer, vfs: ArchiveVFS) -> None:
    server.etags = False
    large = bytes(range(256)) * 20_000
    server.fill("open", {"f": large})
    handle = vfs.open("/f")
    assert vfs.pread(handle, 0, 1000) == large[:1000]
    server.buckets["open"]["f"] = Thing(large[::-1], time.time())
    with pytest.raises(StaleContent):
        vfs.pread(handle, len(large) - 1000, 1000)
    vfs.release(handle)
    assert read_file(vfs, "/f") == large[::-1]


def test_slow_down_is_tried_again(server: ObjectServer, archive: S3Archive) -> None:
    server.fault("list-type=2", "status", times=2)
    assert archive.children(archive.root()).children["ds/"]
    assert len(server.asked) == 3


def test_a_closed_bucket_says_what_it_may_want(server: ObjectServer, archive: S3Archive) -> None:
    server.fault("list-type", "status", status=403, code="AccessDenied")
    with pytest.raises(AccessDenied) as caught:
        archive.children(archive.root())
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_a_server_that_ignores_range_is_read_from_the_start(server: ObjectServer, vfs: ArchiveVFS) -> None:
    server.ranges = False
    handle = vfs.open("/ds/sub-01/anat/T1w.nii")
    assert vfs.pread(handle, 9000, 500) == DATA[9000:9500]
    vfs.release(handle)


def test_nobody_there_is_unavailable_at_once() -> None:
    archive = S3Archive("s3://b?endpoint=http://127.0.0.1:1", Credentials(), QUICK, TreeConfig(), "t")
    with closing(archive), pytest.raises(Unavailable) as caught:
        archive.children(archive.root())
    assert not isinstance(caught.value, TimedOut)


# --- addresses and keys -----------------------------------------------------------------------------------------------


def test_what_is_no_bucket_is_refused() -> None:
    for text in ("s3://b?what=1", "s3://b?endpoint=ftp://x", "s3:///b"):
        with pytest.raises(UsageError):
            S3Archive(text, Credentials(), QUICK, TreeConfig(), "t")


def test_the_keys_prove_who_asks_and_show_nowhere(server: ObjectServer) -> None:
    keys = Credentials("AKIAEXAMPLE", "s3cret-key", "the test", session_token="t0ken")
    with closing(archive_of(server, credentials=keys)) as archive:
        archive.children(archive.root())
    headers = server.asked[-1].headers
    assert headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/")
    assert headers["x-amz-security-token"] == "t0ken"
    assert "s3cret-key" not in str(headers) + repr(keys)
    assert "t0ken" not in repr(keys)


@pytest.mark.parametrize("status", [301, 307, 400])
def test_a_bucket_in_another_region_is_asked_there_from_then_on(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    with ObjectServer() as ireland:
        ireland.fill("open", {"f": b"from Ireland"})
        # Only the addresses of AWS are replaced: who is asked first, and who once the region is known.
        place = property(lambda bucket: ireland.url if bucket.region == "eu-west-1" else server.url)
        monkeypatch.setattr(Bucket, "base_url", place)
        elsewhere = {"Location": "http://127.0.0.1:1/"} if status == 307 else {}
        server.fault(
            "/open", "status", None, status=status, code="Redirect", **{"x-amz-bucket-region": "eu-west-1"} | elsewhere
        )
        keys = Credentials("AKIAEXAMPLE", "secret", "the test")
        with closing(S3Archive("s3://open", keys, QUICK, TreeConfig(), "t")) as archive:
            entry = file_in(archive, "f")
            stream = archive.open_range(entry, 0, 12)
            buffer = bytearray(12)
            assert stream.readinto(memoryview(buffer)) == 12
            stream.close()
        assert bytes(buffer) == b"from Ireland"
        assert len(server.asked) == 1
        assert all("/eu-west-1/s3/" in asked.headers["Authorization"] for asked in ireland.asked)


def test_a_redirect_of_another_endpoint_is_not_followed(server: ObjectServer, archive: S3Archive) -> None:
    server.fault("list-type", "status", status=307, code="Redirect", Location="http://127.0.0.1:1/open")
    with pytest.raises(UnexpectedReply, match="sends us to"):
        archive.children(archive.root())
