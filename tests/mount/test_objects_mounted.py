"""Buckets and web trees as a user mounts them: the command line, FUSE, cp; a remount asks for no bytes again."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounting import mounted, user_environment, xnatfs
from tests.helpers.object_server import ObjectServer, Thing
from xnatfs.cli.text import size_text

pytestmark = pytest.mark.fuse

LARGE = bytes(range(256)) * 20_000
FILES = {"ds/README": b"read me", "ds/sub-01/anat/T1w.nii": LARGE, "ds/odd name +%/x": b"x", "ds/empty": b""}


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.fill("bucket", FILES)
        server.web = {f"/{path}": Thing(data) for path, data in FILES.items()}
        yield server


def source(server: ObjectServer, kind: str) -> str:
    return f"s3://bucket?endpoint={server.url}" if kind == "s3" else f"web+{server.url}/web"


def tree_of(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["s3", "web"])
def test_a_mounted_tree_is_byte_equal_and_a_remount_asks_for_no_bytes(
    server: ObjectServer, kind: str, tmp_path: Path
) -> None:
    with mounted(source(server, kind), tmp_path) as mount:
        assert tree_of(mount.path) == FILES
        with pytest.raises(OSError) as caught:
            (mount.path / "new").write_bytes(b"")
        assert caught.value.errno == errno.EROFS
    gets = [asked for asked in server.asked if "T1w.nii" in asked.target and asked.method == "GET"]
    assert gets
    with mounted(source(server, kind), tmp_path) as mount:
        assert tree_of(mount.path) == FILES
    again = [asked for asked in server.asked if "T1w.nii" in asked.target and asked.method == "GET"]
    assert again == gets


@pytest.mark.parametrize("offline", [["--offline"], []], ids=["offline", "away"])
@pytest.mark.parametrize("kind", ["s3", "web"])
def test_what_was_read_reads_without_its_server_also_where_listings_tell_no_sizes(
    server: ObjectServer, kind: str, offline: list[str], tmp_path: Path
) -> None:
    with mounted(source(server, kind), tmp_path) as mount:
        assert tree_of(mount.path) == FILES
    asked = len(server.asked)
    if not offline:
        server.fault("/", "status", times=None)
    with mounted(source(server, kind), tmp_path, "--timeout", "3s", *offline) as mount:
        assert tree_of(mount.path) == FILES
    assert len(server.asked) == asked or not offline


def test_an_object_that_is_replaced_under_an_open_file_is_estale_and_then_new(
    server: ObjectServer, tmp_path: Path
) -> None:
    with mounted(source(server, "s3"), tmp_path, "--metadata-ttl", "1s") as mount:
        path = mount.path / "ds/sub-01/anat/T1w.nii"
        fd = os.open(path, os.O_RDONLY)
        assert os.pread(fd, 100, 0) == LARGE[:100]
        server.buckets["bucket"]["ds/sub-01/anat/T1w.nii"] = Thing(LARGE[::-1], time.time())
        with pytest.raises(OSError) as caught:
            os.pread(fd, 100, len(LARGE) - 100)
        assert caught.value.errno == errno.ESTALE
        os.close(fd)
        deadline = time.monotonic() + 10
        while path.read_bytes() != LARGE[::-1]:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("fault", "more", "codes"),
    [
        ("html", {}, {errno.EIO}),
        ("status", {}, {errno.EIO, errno.ETIMEDOUT}),
        ("status", {"status": 403, "code": "AccessDenied"}, {errno.EACCES}),
        ("status", {"status": 416, "code": "InvalidRange"}, {errno.ESTALE}),
        ("wrong_range", {}, {errno.EIO, errno.ESTALE}),
        ("short", {"at": 0}, {errno.EIO, errno.ETIMEDOUT}),
    ],
)
def test_a_doubtful_answer_for_a_file_is_an_errno(
    server: ObjectServer, tmp_path: Path, fault: str, more: dict[str, object], codes: set[int]
) -> None:
    with mounted(source(server, "s3"), tmp_path, "--timeout", "3s") as mount:
        path = mount.path / "ds/sub-01/anat/T1w.nii"
        assert path.stat().st_size == len(LARGE)
        server.fault("T1w.nii", fault, times=None, **more)  # type: ignore[arg-type]
        with pytest.raises(OSError) as caught:
            path.read_bytes()
        assert caught.value.errno in codes
        server.faults.clear()
        assert path.read_bytes() == LARGE


def test_keys_stand_in_no_log_and_no_cache(server: ObjectServer, tmp_path: Path) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "very-s3cret-key"}
    with mounted(source(server, "s3"), tmp_path, environment=keys) as mount:
        assert tree_of(mount.path) == FILES
    assert any("AKIAEXAMPLE" in asked.headers.get("Authorization", "") for asked in server.asked)
    found = [path for path in tmp_path.rglob("*") if path.is_file() and b"very-s3cret-key" in path.read_bytes()]
    assert found == []


def test_the_commands_without_fuse_read_a_bucket(server: ObjectServer, tmp_path: Path) -> None:
    environment = user_environment(tmp_path / "home", None, None)
    done = xnatfs("ls", source(server, "s3") + "#/ds", environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["README", "empty", "odd name +%", "sub-01", ""]
    done = xnatfs("cat", source(server, "web") + "#/ds/README", environment=environment)
    assert (done.returncode, done.stdout) == (0, "read me")
    done = xnatfs("ls", f"s3://missing?endpoint={server.url}", environment=environment)
    assert done.returncode == 1
    assert "missing" in done.stderr


def test_get_copies_a_bucket_and_then_finds_nothing_to_do(server: ObjectServer, tmp_path: Path) -> None:
    environment = user_environment(tmp_path / "home", None, None)
    counts = []
    for _ in range(2):
        done = xnatfs("get", source(server, "s3") + "#/ds", tmp_path / "copy", environment=environment)
        assert done.returncode == 0, done.stderr
        assert {f"ds/{path}": data for path, data in tree_of(tmp_path / "copy").items()} == FILES
        counts.append(len(server.targets("T1w.nii")))
    assert counts[0] == counts[1] > 0


def test_a_file_that_does_not_tell_its_size_hides_no_other_from_a_long_listing(
    server: ObjectServer, tmp_path: Path
) -> None:
    environment = user_environment(tmp_path / "home", None, None)
    server.fault("/empty$", "status", times=None, status=404, code="NoSuchKey")
    done = xnatfs("ls", "-l", source(server, "web") + "#/ds", environment=environment)
    assert done.returncode == 1
    assert re.findall(r"^. +(\S+) .{16} (.*)$", done.stdout, re.MULTILINE) == [
        ("7", "README"),
        ("?", "empty"),
        ("0", "odd name +%"),
        ("0", "sub-01"),
    ]
    assert "/ds/empty" in done.stderr


def test_get_counts_the_bytes_of_files_whose_pages_tell_no_size(server: ObjectServer, tmp_path: Path) -> None:
    environment = user_environment(tmp_path / "home", None, None)
    wanted = f"4 files done ({size_text(sum(map(len, FILES.values())))})"
    planned = xnatfs("get", "--dry-run", source(server, "web"), tmp_path / "copy", environment=environment)
    assert wanted.replace("done", "to do") in planned.stderr
    assert wanted in xnatfs("get", source(server, "web"), tmp_path / "copy", environment=environment).stderr
    assert tree_of(tmp_path / "copy") == FILES
