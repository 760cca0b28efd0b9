"""The server is driven by xnatpy (the package ``xnat``), unmodified: its classes come from the server's schemas."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.server import DemoServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import xnat


@pytest.fixture
def connection(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("XNATPY_HOST", "XNAT_HOST", "XNAT_DATA", "XNAT_USER", "XNAT_PASS"):
        monkeypatch.delenv(name, raising=False)
    with xnat.connect(server.url, user="demo", password="demo", loglevel="ERROR") as connection:
        yield connection


def test_walk_from_projects_to_files_finds_what_the_archive_holds(server: DemoServer, connection: Any) -> None:
    project = connection.projects["DEMO"]
    assert project.name == "Demo project"
    assert [s.label for s in project.subjects] == ["DEMO_001", "DEMO_002"]
    subject = project.subjects["DEMO_001"]
    session = subject.experiments["DEMO_001_MR1"]
    assert session.modality == "MR"
    assert [(s.id, s.type) for s in session.scans] == [("1", "T1w"), ("2", "T2w"), ("3", "bold/rest (AP)")]
    files = session.scans["1"].resources["DICOM"].files
    truth = [r for r in server.truth("DEMO") if r["experiment"] == "DEMO_001_MR1" and r["item"] == "1"]
    assert [f.path for f in files] == [r["path"] for r in truth if r["resource"] == "DICOM"]


def test_one_file_arrives_as_it_is_and_its_digest_holds(server: DemoServer, connection: Any, tmp_path: Path) -> None:
    row = next(r for r in server.truth("DEMO") if r["name"] == "anatomical.nii")
    chosen = connection.projects["DEMO"].subjects["DEMO_001"].experiments["DEMO_001_MR1"].scans["1"]
    file = chosen.resources["NIFTI"].files["anatomical.nii"]
    assert int(file.size) == row["size"]
    assert file.digest == row["md5"]
    file.download(str(tmp_path / "one.nii"), verbose=False)
    assert hashlib.md5((tmp_path / "one.nii").read_bytes()).hexdigest() == row["md5"]


def test_a_scan_zip_holds_every_file_of_the_scan(server: DemoServer, connection: Any, tmp_path: Path) -> None:
    scan = connection.projects["DEMO"].subjects["DEMO_001"].experiments["DEMO_001_MR1"].scans["2"]
    scan.download(str(tmp_path / "scan.zip"), verbose=False)
    truth = [r for r in server.truth("DEMO") if r["experiment"] == "DEMO_001_MR1" and r["item"] == "2"]
    with zipfile.ZipFile(tmp_path / "scan.zip") as archive:
        digests = {hashlib.md5(archive.read(name)).hexdigest() for name in archive.namelist()}
    assert digests == {r["md5"] for r in truth}
    assert len(digests) == 12


def test_a_session_is_unpacked_into_a_directory(server: DemoServer, connection: Any, tmp_path: Path) -> None:
    session = connection.projects["DEMO"].subjects["DEMO_001"].experiments["DEMO_001_CT1"]
    session.download_dir(str(tmp_path), verbose=False)
    found = sorted(path.name for path in tmp_path.rglob("*.dcm"))
    assert found == [f"{n:04d}.dcm" for n in range(1, 11)]


def test_a_shared_subject_has_its_own_label_in_the_guest_project(connection: Any) -> None:
    assert [s.label for s in connection.projects["HCP_DEMO"].subjects] == ["HCP_100307", "HCP_100408"]


def test_an_experiment_without_images_has_its_fields(connection: Any) -> None:
    scores = connection.projects["DEMO"].experiments["DEMO_001_scores"]
    assert scores.total == "27"
    assert scores.note == "baseline"


def test_an_assessor_and_its_files_are_found(connection: Any) -> None:
    session = connection.projects["DEMO"].experiments["DEMO_001_MR1"]
    assessor = session.assessors["DEMO_001_MR1_QC"]
    assert [r.label for r in assessor.resources] == ["masks"]


def test_guests_are_let_in_where_the_site_is_open(server: DemoServer, tmp_path: Path) -> None:
    server.switch(guests=True)
    empty = tmp_path / "netrc"
    empty.write_text("")
    with xnat.connect(server.url, netrc_file=str(empty), loglevel="CRITICAL") as connection:
        assert sorted(connection.projects.keys()) == ["HCP_DEMO", "PROTECTED"]


def test_a_wrong_password_is_refused(server: DemoServer) -> None:
    with pytest.raises(xnat.exceptions.XNATLoginFailedError):
        xnat.connect(server.url, user="demo", password="wrong", loglevel="CRITICAL")
