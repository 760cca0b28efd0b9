"""Trees of index pages: what a page means, sizes, versions, and pages that are no listing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.object_server import ObjectServer, Thing
from tests.helpers.relays import free_port
from tests.helpers.trees import names, read_file
from xnatfs.archives.objects.index_page import entries_of
from xnatfs.archives.objects.webtree import WebTreeArchive
from xnatfs.config import Config, Credentials, HttpConfig, ReadConfig, Source, TreeConfig
from xnatfs.errors import AccessDenied, ArchiveError, NotFound, StaleContent, Unavailable, UnexpectedReply
from xnatfs.factory import open_vfs
from xnatfs.model import Entry
from xnatfs.tree.vfs import ArchiveVFS

QUICK = HttpConfig(timeout_s=5.0, retries=2)
DATA = bytes(range(256)) * 40
ODD = ["a b", "a+b", "a%2Fb", "a&amp;b", "ü字😀", "'q' \"Q\"", "<i>", "#1", "q?x=1", "~", ";x", "[1]", "100%"]


@pytest.fixture(params=["apache", "nginx"])
def server(objects: ObjectServer, request: pytest.FixtureRequest) -> ObjectServer:
    objects.index_style = request.param
    objects.web = {
        "/README": Thing(b"read me"),
        "/d/T1w.nii": Thing(DATA),
        "/d/deep/x": Thing(b"x"),
        "/none/": Thing(b""),
    }
    objects.web |= {f"/odd/{name}": Thing(name.encode()) for name in ODD}
    return objects


def vfs_of(url: str) -> ArchiveVFS:
    source = Source(f"web+{url.partition(':')[0]}", f"web+{url}")
    return open_vfs(Config(source, http=QUICK, read=ReadConfig(idle_s=0.2, timeout_s=5.0)))


@pytest.fixture
def vfs(server: ObjectServer) -> Iterator[ArchiveVFS]:
    with closing(vfs_of(f"{server.url}/web")) as vfs:
        yield vfs


def test_pages_are_directories_and_links_below_them_are_what_is_in_them(vfs: ArchiveVFS) -> None:
    assert names(vfs, "/") == ["README", "d", "none", "odd"]
    assert names(vfs, "/d") == ["T1w.nii", "deep"]
    assert names(vfs, "/none") == []
    assert read_file(vfs, "/d/deep/x") == b"x"


def test_names_with_odd_characters_read_as_their_own_bytes(vfs: ArchiveVFS) -> None:
    for name in ODD:
        assert read_file(vfs, f"/odd/{name}") == name.encode()


def test_sizes_are_exact_and_cost_a_request_only_where_the_page_does_not_tell(
    server: ObjectServer, vfs: ArchiveVFS
) -> None:
    assert vfs.lookup("/d/T1w.nii").size == len(DATA)
    asked = [each.method for each in server.asked]
    assert asked.count("HEAD") == (0 if server.index_style == "nginx" else 1)
    assert read_file(vfs, "/d/T1w.nii") == DATA


def test_a_walk_that_looks_at_sizes_asks_for_each_once_and_several_at_a_time(objects: ObjectServer) -> None:
    objects.web = {f"/d/{i:03}": Thing(b"x" * i) for i in range(100)}
    at_once: list[int] = []
    under_way = 0
    lock = threading.Lock()

    def slow(handler: Any) -> bool:
        nonlocal under_way
        with lock:
            under_way += handler.command == "HEAD"
            at_once.append(under_way)
        time.sleep(0.02 if handler.command == "HEAD" else 0)
        with lock:
            under_way -= handler.command == "HEAD"
        return False

    objects.routes["/web/d/"] = slow
    try:
        with closing(vfs_of(f"{objects.url}/web/d")) as vfs:
            assert [vfs.lookup(f"/{i:03}").size for i in range(100)] == list(range(100))
    finally:
        objects.routes.clear()
    heads = [asked.target for asked in objects.asked if asked.method == "HEAD"]
    assert sorted(heads) == [f"/web/d/{i:03}" for i in range(100)]
    assert 4 < max(at_once) <= QUICK.max_connections


def test_one_file_alone_is_no_walk(objects: ObjectServer) -> None:
    objects.web = {f"/d/{i:03}": Thing(b"x" * i) for i in range(100)}
    with closing(vfs_of(f"{objects.url}/web/d")) as vfs:
        assert vfs.lookup("/050").size == 50
    assert len([asked for asked in objects.asked if asked.method == "HEAD"]) == 1


def test_a_compressed_file_reads_as_it_is_though_the_server_calls_that_an_encoding(
    server: ObjectServer, vfs: ArchiveVFS
) -> None:
    server.web["/d/T1w.nii.gz"] = Thing(DATA, encoding="x-gzip")
    server.web["/d/page.txt"] = Thing(DATA, encoding="gzip")
    assert read_file(vfs, "/d/T1w.nii.gz") == DATA
    with pytest.raises(UnexpectedReply):  # a page's text, packed by the server though nobody asked for that
        read_file(vfs, "/d/page.txt")


def test_links_that_write_the_directory_in_another_way_are_in_it() -> None:
    page = '<title>Index of /d(1)/</title><a href="/d(1)/a">a</a><a href="/d%281%29/b">b</a><a href="/d(2)/c">c</a>'
    assert [entry.key for entry in entries_of(page, "http://host/d%281%29/", "/d/")] == ["/d(1)/a", "/d%281%29/b"]


def test_a_file_that_changes_under_a_reader_is_stale_and_then_new(server: ObjectServer, vfs: ArchiveVFS) -> None:
    large = bytes(range(256)) * 20_000
    server.web["/d/T1w.nii"] = Thing(large)
    handle = vfs.open("/d/T1w.nii")
    assert vfs.pread(handle, 0, 1000) == large[:1000]
    server.web["/d/T1w.nii"] = Thing(large[::-1], time.time())
    with pytest.raises(StaleContent):
        vfs.pread(handle, len(large) - 1000, 1000)
    vfs.release(handle)
    assert read_file(vfs, "/d/T1w.nii") == large[::-1]


def test_a_directory_that_is_not_there_is_not_found(server: ObjectServer) -> None:
    with closing(vfs_of(f"{server.url}/web/gone")) as vfs, pytest.raises(NotFound):
        vfs.listdir("/")


@pytest.mark.parametrize(
    ("kind", "more", "error"),
    [
        ("html", {"times": None}, UnexpectedReply),
        ("empty", {}, UnexpectedReply),
        ("raw", {"body": b"{}"}, UnexpectedReply),
        ("status", {"status": 302, "Location": "/web/d/"}, UnexpectedReply),
        ("status", {"status": 302, "Location": "http://127.0.0.1:1/"}, UnexpectedReply),
        ("status", {"times": None}, Unavailable),
    ],
)
def test_a_page_that_is_no_listing_is_an_error_and_no_empty_directory(
    server: ObjectServer, vfs: ArchiveVFS, kind: str, more: dict[str, object], error: type[ArchiveError]
) -> None:
    server.fault("^/web/$", kind, **more)  # type: ignore[arg-type]
    with pytest.raises(error):
        vfs.listdir("/")


def test_a_server_that_knows_no_head_tells_sizes_all_the_same(objects: ObjectServer) -> None:
    objects.web = {"/f": Thing(DATA)}
    objects.routes["/web/f"] = lambda handler: handler.command == "HEAD" and handler.refuse(405, "MethodNotAllowed")
    with closing(vfs_of(f"{objects.url}/web")) as vfs:
        assert vfs.lookup("/f").size == len(DATA)
        assert read_file(vfs, "/f") == DATA


@pytest.mark.parametrize("status", [401, 403])
def test_a_closed_file_sends_nobody_for_a_password(objects: ObjectServer, status: int) -> None:
    objects.web = {"/f": Thing(DATA)}
    objects.fault("/web/f", "status", status=status, code="AccessDenied", times=None)
    with closing(vfs_of(f"{objects.url}/web")) as vfs, pytest.raises(AccessDenied) as caught:
        vfs.lookup("/f")
    assert "open to everybody" in caught.value.hint


@pytest.mark.parametrize(("kind", "error"), [("html", UnexpectedReply), ("wrong_range", StaleContent)])
def test_a_doubtful_answer_for_a_file_is_an_error(server: ObjectServer, kind: str, error: type[ArchiveError]) -> None:
    url = f"web+{server.url}/web"
    with closing(WebTreeArchive(url, Credentials(), QUICK, TreeConfig(), "xnatfs/test")) as archive:
        entry = archive.stat(Entry("T1w.nii", "/web/d/T1w.nii", False))
        server.fault("T1w.nii", kind)
        with pytest.raises(error):
            archive.open_range(entry, 0, 100)


def test_links_that_lead_elsewhere_are_not_listed() -> None:
    page = """<title>Index of /d/</title><a href="../">up</a><a href="/">top</a><a href="?C=N">sort</a><a href=".">.</a>
        <a href="http://elsewhere/d/x">x</a><a href="a">a</a><a href="./b/">b</a><a href="/d/c">c</a><a href="a#1">a</a>
        <a href="deep/er">d</a><a href="%2e%2e/">up</a><a href="mailto:x@y">m</a><a href="http://[bad">?</a>"""
    found = entries_of(page, "http://host/d/", "/d/")
    assert [(entry.name, entry.key, entry.is_dir) for entry in found] == [
        ("a", "/d/a", False),
        ("b", "/d/b/", True),
        ("c", "/d/c", False),
    ]


# --- other people's servers -------------------------------------------------------------------------------------------


@contextmanager
def served(command: list[str], port: int, cwd: Path) -> Iterator[str]:
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "the server does not start"
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(10)


SERVERS = ["python", pytest.param("rclone", marks=pytest.mark.tools)]


@pytest.mark.parametrize("kind", SERVERS)
def test_trees_of_other_web_servers_read_whole(kind: str, tmp_path: Path) -> None:
    truth = {f"d{i}/{name}": os.urandom(3000 * i) for i in (1, 2) for name in ("a b", "ü.nii", "#x", "t&t.gz")}
    truth["top.txt"] = b"top"
    for path, data in truth.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    port = free_port()
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    if kind == "rclone":
        if shutil.which("rclone") is None:
            pytest.skip("rclone is not installed")
        command = ["rclone", "serve", "http", "--addr", f"127.0.0.1:{port}", str(tmp_path), "-q", "--config", ""]
    with served(command, port, tmp_path) as url, closing(vfs_of(url)) as vfs:
        assert names(vfs, "/") == ["d1", "d2", "top.txt"]
        assert {path: read_file(vfs, f"/{path}") for path in truth} == truth
