"""The server is driven by pyxnat, unmodified, as a user of pyxnat would."""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.server import DemoServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pyxnat's own regular expressions warn on import
    import pyxnat


@pytest.fixture
def interface(server: DemoServer) -> Iterator[Any]:
    with pyxnat.Interface(server=server.url, user="demo", password="demo") as interface:
        yield interface


def labels(collection: Any) -> list[str]:
    return [each.label() for each in collection]


def test_walk_from_projects_to_files_finds_what_the_archive_holds(server: DemoServer, interface: Any) -> None:
    assert "DEMO" in interface.select.projects().get()
    project = interface.select.project("DEMO")
    assert labels(project.subjects()) == ["DEMO_001", "DEMO_002"]
    subject = project.subject("DEMO_001")
    assert labels(subject.experiments()) == ["DEMO_001_MR1", "DEMO_001_CT1", "DEMO_001_scores"]
    experiment = subject.experiment("DEMO_001_MR1")
    assert experiment.datatype() == "xnat:mrSessionData"
    assert experiment.scans().get() == ["1", "2", "3"]
    assert labels(experiment.scan("1").resources()) == ["DICOM", "NIFTI"]

    truth = [r for r in server.truth("DEMO") if r["experiment"] == "DEMO_001_MR1" and r["item"] == "1"]
    expected = {r["path"]: str(r["size"]) for r in truth if r["resource"] == "DICOM"}
    files = list(experiment.scan("1").resource("DICOM").files())
    assert {f.id(): f.size() for f in files} == expected


def test_one_file_arrives_as_it_is(server: DemoServer, interface: Any, tmp_path: Path) -> None:
    row = next(r for r in server.truth("DEMO") if r["name"] == "T1w-0007.dcm")
    chosen = interface.select.project("DEMO").subject("DEMO_001").experiment("DEMO_001_MR1").scan("1")
    got = chosen.resource("DICOM").file("T1w-0007.dcm").get(str(tmp_path / "one.dcm"))
    assert hashlib.md5(Path(got).read_bytes()).hexdigest() == row["md5"]


def test_a_scan_zip_holds_every_file_of_the_scan(server: DemoServer, interface: Any, tmp_path: Path) -> None:
    scans = interface.select.project("DEMO").subject("DEMO_001").experiment("DEMO_001_MR1").scans()
    location = scans.download(str(tmp_path), type="1")
    truth = [r for r in server.truth("DEMO") if r["experiment"] == "DEMO_001_MR1" and r["item"] == "1"]
    with zipfile.ZipFile(location) as archive:
        digests = {hashlib.md5(archive.read(name)).hexdigest() for name in archive.namelist()}
    assert digests == {r["md5"] for r in truth}
    assert len(truth) == 25


def test_a_resource_is_fetched_and_unpacked(server: DemoServer, interface: Any, tmp_path: Path) -> None:
    resource = interface.select.project("DEMO").subject("DEMO_001").experiment("DEMO_001_MR1").resource("QC")
    resource.get(str(tmp_path), extract=True)
    assert (tmp_path / "QC" / "report.html").read_bytes().startswith(b"<!DOCTYPE html>")
    assert (tmp_path / "QC" / "figures" / "snr.csv").read_bytes() == b"scan,snr\n1,42\n"


def test_the_document_of_an_experiment_is_xml(interface: Any) -> None:
    experiment = interface.select.project("DEMO").subject("DEMO_001").experiment("DEMO_001_scores")
    assert experiment.xpath("//xnat:total/text()") == ["27"]


def test_an_assessor_and_its_files_are_found(interface: Any) -> None:
    experiment = interface.select.project("DEMO").subject("DEMO_001").experiment("DEMO_001_MR1")
    assert labels(experiment.assessors()) == ["DEMO_001_MR1_QC"]
    assessor = experiment.assessor("DEMO_001_MR1_QC")
    assert labels(assessor.out_resources()) == ["masks"]
    assert labels(assessor.in_resources()) == ["inputs"]
    assert [f.id() for f in assessor.out_resource("masks").files()] == ["resampled_anat_moved.nii"]


def test_a_shared_subject_has_its_own_label_in_the_guest_project(interface: Any) -> None:
    assert labels(interface.select.project("HCP_DEMO").subjects()) == ["HCP_100307", "HCP_100408"]


def test_searchable_types_are_listed(interface: Any) -> None:
    assert "xnat:mrSessionData" in interface.inspect.datatypes("xnat:*")


def test_one_login_serves_the_whole_visit(server: DemoServer) -> None:
    with pyxnat.Interface(server=server.url, user="demo", password="demo") as interface:
        interface.select.projects().get()
        interface.select.project("DEMO").subjects().get()
    log = server.settled_log()
    assert (log["logins"], log["sessions"], log["failed_logins"]) == (1, 1, 0)


def test_a_wrong_password_is_refused(server: DemoServer) -> None:
    with pytest.raises(pyxnat.core.errors.DatabaseError):
        pyxnat.Interface(server=server.url, user="demo", password="wrong").select.project("DEMO").accessibility()
    assert server.log()["failed_logins"] >= 1


def test_a_search_gives_one_row_an_experiment(interface: Any) -> None:
    fields = ["xnat:mrSessionData/LABEL", "xnat:mrSessionData/PROJECT", "xnat:mrSessionData/DATE"]
    found = interface.select("xnat:mrSessionData", fields).where([("xnat:mrSessionData/PROJECT", "=", "DEMO"), "AND"])
    assert [(r["label"], r["date"]) for r in found] == [("DEMO_001_MR1", "2024-02-29"), ("DEMO_002_MR1", "2024-03-02")]


def test_a_search_by_the_subject_of_an_experiment(interface: Any) -> None:
    fields = ["xnat:subjectVariablesData/LABEL", "xnat:subjectVariablesData/TOTAL"]
    women = [("xnat:subjectData/GENDER_TEXT", "=", "F"), "AND"]
    found = interface.select("xnat:subjectVariablesData", fields).where(women)
    assert [(r["label"], r["total"]) for r in found] == [("DEMO_001_scores", "27")]
    men = [("xnat:subjectData/GENDER_TEXT", "=", "M"), "AND"]
    assert len(interface.select("xnat:subjectVariablesData", fields).where(men)) == 0


def test_the_tutorials_neo_ffi_query_is_answered(interface: Any) -> None:
    fields = ["nt:scores/SUBJECT_ID", *(f"nt:scores/NEO_NEOFAC_{letter}" for letter in "AOCNE")]
    found = interface.select("nt:scores", fields).where([("nt:scores/PROJECT", "=", "HCP_DEMO"), "AND"])
    assert {r["subject_id"]: r["neo_neofac_a"] for r in found} == {"XNAT_S00002": "28", "XNAT_S00003": "41"}


def test_an_alias_token_logs_in(server: DemoServer, interface: Any) -> None:
    token = json.loads(interface.get("/data/services/tokens/issue").text)
    with pyxnat.Interface(server=server.url, user=token["alias"], password=token["secret"]) as by_token:
        assert "DEMO_001" in labels(by_token.select.project("DEMO").subjects())


def test_a_site_below_a_path_is_walked(tmp_path: Path) -> None:
    with (
        DemoServer(context="/xnat") as server,
        pyxnat.Interface(server=server.url, user="demo", password="demo") as interface,
    ):
        assert server.url.endswith("/xnat")
        assert "DEMO_001" in labels(interface.select.project("DEMO").subjects())


def test_a_closed_project_is_listed_and_refused(server: DemoServer) -> None:
    with pyxnat.Interface(server=server.url, user="other", password="other") as interface:
        assert "PROTECTED" in interface.select.projects().get()
        assert interface.get("/data/projects/PROTECTED/subjects?format=json").status_code == 403
        assert interface.select.project("PROTECTED").subjects().get() == []  # pyxnat takes the refusal for emptiness


def test_both_sides_of_an_assessor_and_a_reconstruction_are_found(interface: Any) -> None:
    session = interface.select.project("DEMO").subject("DEMO_001").experiment("DEMO_001_MR1")
    assessor = session.assessor("DEMO_001_MR1_QC")
    assert labels(assessor.out_resources()) == ["masks"]
    assert labels(assessor.in_resources()) == ["inputs"]
    assert labels(session.reconstruction("mean_bold").out_resources()) == ["NIFTI"]


def test_an_old_server_fails_over_a_file_that_is_gone(server: DemoServer, interface: Any) -> None:
    missing = interface.select("/project/ODDITIES/subject/ODD_1/experiment/ODD_1_MR/resource/missing")
    assert "gone.dcm" in labels(missing.files())
    server.switch(old_listings=True)
    assert interface.get(f"{missing._uri}/files?format=json").status_code == 500
    assert missing.files().get() == []  # pyxnat takes the failure for emptiness


def test_terms_of_use_stand_before_everything_until_they_are_accepted(server: DemoServer, interface: Any) -> None:
    server.switch(agreement=True)
    assert "Data Use Terms" in interface.get("/data/projects?format=json").text
    server.switch(agreement=False)
    assert "DEMO" in interface.select.projects().get()
