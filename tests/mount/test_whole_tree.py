"""The whole mounted tree against the server's truth: names, sizes, types, xattrs and bytes, at every level."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.mounting import Mount, mounted
from tests.helpers.server import DemoServer
from xnatfs.tree.names import safe_name

pytestmark = pytest.mark.fuse

LARGE = 64 << 20  # bytes; larger ones are read by tests of their own

Row = dict[str, Any]


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


@pytest.fixture(scope="module")
def mount(server: DemoServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with mounted(server.url, tmp_path_factory.mktemp("whole"), user="demo", password="demo") as mount:
        yield mount


@pytest.fixture(scope="module")
def truth(server: DemoServer) -> dict[str, Row]:
    """The first row of each place in the tree: a GET serves the first of two files of one path."""
    rows: dict[str, Row] = {}
    for row in server.truth():
        if row["project"] != "PRIVATE":
            rows.setdefault(place(row), row)
    return rows


def place(row: Row) -> str:
    """Where a file belongs by the contract's tree, with safe names."""
    parts = [row["project"], row["subject"], row["experiment"]]
    if row["area"] == "scans":
        name = f"{row['item']}-{row['item_type']}" if row["item_type"] else row["item"]
        parts += ["scans", name]
    elif row["area"] in ("assessors", "reconstructions"):
        parts += [row["area"], row["item_label"] or row["item"]]
        parts += ["in"] if row["side"] == "in" else []
    else:
        parts += ["resources"]
    parts += [row["resource"] or f"resource-{row['resource_id']}", *row["path"].split("/")]
    return "/".join(safe_name(part) for part in parts if part)


def files_below(top: Path) -> dict[str, Path]:
    """Every file that comes from the archive's resources; what the tree makes itself has tests of its own."""
    found = {}
    for directory, _, names in os.walk(top):
        for name in names:
            path = Path(directory) / name
            try:
                is_ours = not xattr(path, "uri").startswith("/data/")
            except FileNotFoundError:  # gone from the server's disk, and no listing says how large it was
                is_ours = False
            if not is_ours:
                found[str(path.relative_to(top))] = path
    return found


def xattr(path: Path, name: str) -> str:
    return os.getxattr(path, f"user.xnat.{name}").decode()


def walk_errors(top: Path) -> list[OSError]:
    errors: list[OSError] = []
    for _ in os.walk(top, onerror=errors.append):
        pass
    return errors


def test_every_file_is_in_its_place_and_nothing_else_is(mount: Mount, truth: dict[str, Row]) -> None:
    assert set(files_below(mount.path)) == set(truth)
    assert walk_errors(mount.path) == []


def test_every_size_type_and_xattr_is_the_lists(mount: Mount, truth: dict[str, Row]) -> None:
    for where, row in truth.items():
        path = mount.path / where
        if not row["on_disk"]:
            continue
        found = path.lstat()
        assert stat.S_ISREG(found.st_mode), where
        if row["listed_size"].isdigit():
            assert found.st_size == int(row["listed_size"]), where
        assert xattr(path, "uri") == row["uri"]
        digest = row["listed_digest"]
        if digest is None:  # of a large file, worked out only when it is asked for
            continue
        assert ("user.xnat.digest" in os.listxattr(path)) == bool(digest), where
        if digest:
            assert xattr(path, "digest") == digest


def test_every_byte_is_the_servers_or_an_errno(mount: Mount, truth: dict[str, Row]) -> None:
    outcomes: dict[str, int | str] = {}
    for where, row in truth.items():
        if row["size"] > LARGE:
            continue
        try:
            data = (mount.path / where).read_bytes()
        except OSError as error:
            outcomes[where.rsplit("/", 1)[-1]] = error.errno or 0
        else:
            assert len(data) == row["size"], where
            assert hashlib.md5(data).hexdigest() == row["md5"], where
    assert outcomes == {
        "gone.dcm": errno.ENOENT,
        "grown.txt": errno.ESTALE,
        "shrunk.txt": errno.ESTALE,
        "wrong-digest.bin": errno.EIO,
    } | {name: errno.ENOENT for name in outcomes if name == "gone-unlisted-size.dcm"}


@pytest.mark.parametrize("name", ["grown.txt", "shrunk.txt"])
def test_after_a_stale_size_the_next_open_reads_the_new_bytes(
    server: DemoServer, tmp_path: Path, truth: dict[str, Row], name: str
) -> None:
    where = f"ODDITIES/ODD_1/ODD_1_MR/resources/stale/{name}"
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        with pytest.raises(OSError, match="Stale"):
            (mount.path / where).read_bytes()
        assert hashlib.md5((mount.path / where).read_bytes()).hexdigest() == truth[where]["md5"]
        assert (mount.path / where).stat().st_size == truth[where]["size"]


def test_ids_resolve_without_being_listed(mount: Mount) -> None:
    session = mount.path / "DEMO/DEMO_001/DEMO_001_MR1"
    by_id = mount.path / "DEMO/XNAT_S00001/XNAT_E00001"
    assert by_id.stat().st_ino == session.stat().st_ino
    assert (by_id / "scans/1").stat().st_ino == (session / "scans/1-T1w").stat().st_ino
    assert (by_id / "assessors/XNAT_A00001/masks").is_dir()
    assert "XNAT_S00001" not in os.listdir(mount.path / "DEMO")
    assert ".xnat" not in os.listdir(session)
    assert xattr(session, "id") == "XNAT_E00001"
    assert xattr(session, "xsitype") == "xnat:mrSessionData"


def test_a_shared_subject_and_an_experiment_without_its_subject(mount: Mount) -> None:
    guest = mount.path / "HCP_DEMO"
    assert {"HCP_100307", "DEMO_001"} <= set(os.listdir(guest))
    assert os.listdir(guest / "DEMO_001") == ["OPEN_CT"]
    assert (guest / "DEMO_001/OPEN_CT/scans/2-CT head/DICOM/0001.dcm").stat().st_size == 39124


def test_documents_have_their_size_before_they_are_opened(mount: Mount) -> None:
    project = mount.path / "DEMO"
    for path in (
        project / "subjects.csv",
        project / "experiments.csv",
        project / "tables/xnat:mrSessionData.csv",
        project / "DEMO_001/DEMO_001_scores/DEMO_001_scores.xml",
        project / ".xnat/item.json",
        project / "DEMO_001/.xnat/item.xml",
        project / "DEMO_001/DEMO_001_MR1/scans/1/.xnat/item.json",
    ):
        size = path.stat().st_size
        assert len(path.read_bytes()) == size > 20, path


def test_the_share_of_a_file_that_is_cached_is_an_xattr(server: DemoServer, tmp_path: Path) -> None:
    scans = "BIG/BIG_1/BIG_1_MR/scans"
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        small = mount.path / "DEMO/DEMO_001/DEMO_001_MR1/scans/1/NIFTI/anatomical.nii"
        large = mount.path / scans / "3-bold100m/NIFTI/bold_100m.nii"
        assert (xattr(small, "cached"), xattr(large, "cached")) == ("0", "0")
        small.read_bytes()
        with large.open("rb") as file:
            file.read(30 << 20)
        assert xattr(small, "cached") == "100"
        assert 30 <= int(xattr(large, "cached")) < 100


def test_a_closed_project_is_listed_and_refused(server: DemoServer, tmp_path: Path) -> None:
    with mounted(server.url, tmp_path, user="other", password="other") as mount:
        assert "PROTECTED" in os.listdir(mount.path)
        assert "PRIVATE" in os.listdir(mount.path)
        with pytest.raises(PermissionError):
            os.listdir(mount.path / "PROTECTED")
        assert "project PROTECTED is listed but closed" in mount.log.read_text()
