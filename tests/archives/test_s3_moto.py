"""Buckets of a server that others wrote: odd names, pages, replaced objects, and keys whose signatures it checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.helpers.moto_server import MotoServer, moto_server
from tests.helpers.trees import read_file
from xnatfs.archives.objects.s3 import S3Archive
from xnatfs.config import Config, Credentials, HttpConfig, ReadConfig, Source, TreeConfig
from xnatfs.errors import AccessDenied, StaleContent
from xnatfs.factory import open_vfs
from xnatfs.tree.vfs import ArchiveVFS

QUICK = HttpConfig(timeout_s=10.0)
ODD = ["a b", "a+b", "a%2Fb", "ü字😀", "a&b=c", "'\"", "~", "-rf", "*?[x]", "=", "!", "(x)", "$", "@", ":", ",", ";"]
FILES = {f"odd/{name}/{name}": name.encode() for name in ODD} | {
    "marker/": b"",
    "marker/in": b"inside",
    "both": b"file",
    "both/in": b"inside",
    "large.nii": bytes(range(256)) * 8192,
}


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoServer]:
    with moto_server() as moto:
        moto.fill("bucket", FILES)
        yield moto


def vfs_of(moto: MotoServer, credentials: Credentials | None = None) -> ArchiveVFS:
    source = Source("s3", f"s3://bucket?endpoint={moto.url}")
    return open_vfs(Config(source, credentials or Credentials(), QUICK, read=ReadConfig(idle_s=0.2)))


@pytest.mark.parametrize("page_keys", [1000, 3])
def test_a_bucket_reads_whole_in_any_number_of_pages(
    moto: MotoServer, monkeypatch: pytest.MonkeyPatch, page_keys: int
) -> None:
    monkeypatch.setattr("xnatfs.archives.objects.s3.PAGE_KEYS", page_keys)
    with closing(vfs_of(moto)) as vfs:
        assert sorted(node.name for node in vfs.listdir("/")) == ["both~dir", "both~file", "large.nii", "marker", "odd"]
        assert {name: read_file(vfs, f"/odd/{name}/{name}") for name in ODD} == {name: name.encode() for name in ODD}
        assert read_file(vfs, "/marker/in") == read_file(vfs, "/both~dir/in") == b"inside"
        assert read_file(vfs, "/large.nii") == FILES["large.nii"]


def test_an_object_that_is_replaced_under_a_reader_is_stale_and_then_new(moto: MotoServer) -> None:
    old, new = bytes(range(256)) * 8192, bytes(reversed(range(256))) * 8192
    moto.fill("bucket", {"changing": old})
    with closing(vfs_of(moto)) as vfs:
        handle = vfs.open("/changing")
        assert vfs.pread(handle, 0, 1000) == old[:1000]
        moto.fill("bucket", {"changing": new})
        with pytest.raises(StaleContent):
            vfs.pread(handle, len(old) - 1000, 1000)
        vfs.release(handle)
        assert read_file(vfs, "/changing") == new


def test_keys_open_what_is_closed_and_wrong_ones_do_not(moto: MotoServer) -> None:
    key, secret = moto.issue_keys()
    moto.demand_keys()
    try:
        with closing(vfs_of(moto, Credentials(key, secret, "the test"))) as vfs:
            assert {name: read_file(vfs, f"/odd/{name}/{name}") for name in ODD} == {
                name: name.encode() for name in ODD
            }
            assert vfs.lookup("/large.nii").size == len(FILES["large.nii"])
        wrong = Credentials(key, f"{secret}x", "the test")
        url = f"s3://bucket?endpoint={moto.url}"
        archive = S3Archive(url, wrong, QUICK, TreeConfig(), "t")
        with closing(archive), pytest.raises(AccessDenied) as caught:
            archive.children(archive.root())
        assert "the test" in caught.value.hint
        assert secret not in str(caught.value) + caught.value.hint
    finally:
        moto.demand_keys(False)
