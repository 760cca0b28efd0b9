"""Lists and documents: columns, cells, shares, doubtful 200s, as XNAT gives them."""

from __future__ import annotations

import csv
import io
from typing import Any
from xml.etree import ElementTree

import pytest
import requests

from tests.helpers.server import DemoServer

Rows = list[dict[str, str]]


@pytest.fixture
def get(server: DemoServer, http: requests.Session) -> Any:
    def get(path: str, **options: Any) -> requests.Response:
        return http.get(server.url + path, allow_redirects=False, **options)

    return get


def rows(answer: requests.Response) -> Rows:
    assert answer.status_code == 200, answer.text
    found: Rows = answer.json()["ResultSet"]["Result"]
    return found


def test_project_list_has_its_default_columns_and_a_total(get: Any) -> None:
    result = get("/data/projects?format=json").json()["ResultSet"]
    assert list(result["Result"][0]) == [
        "ID",
        "secondary_ID",
        "name",
        "description",
        "pi_firstname",
        "pi_lastname",
        "URI",
    ]
    assert result["totalRecords"] == str(len(result["Result"])) == "6"


def test_file_list_has_no_total_and_a_lower_case_title(get: Any) -> None:
    result = get("/data/experiments/XNAT_E00001/files?all=true").json()["ResultSet"]
    assert "totalRecords" not in result
    assert result["title"] == "Files"
    assert result["Columns"] == [{"key": "URI", "serverRoot": ""}]
    keys = ["Name", "Size", "URI", "collection", "file_tags", "file_format", "file_content", "cat_ID", "digest"]
    assert list(result["Result"][0]) == keys


def test_every_cell_is_a_string(get: Any) -> None:
    for path in (
        "/data/projects",
        "/data/projects/DEMO/subjects",
        "/data/projects/DEMO/experiments",
        "/data/experiments/XNAT_E00001/scans",
        "/data/experiments/XNAT_E00001/resources?all=true",
        "/data/experiments/XNAT_E00020/files?all=true",
    ):
        assert {type(cell) for row in rows(get(path)) for cell in row.values()} == {str}


def test_file_uris_use_numeric_ids_and_are_not_encoded(get: Any) -> None:
    found = rows(get("/data/experiments/XNAT_E00020/resources/names/files"))
    uris = {row["URI"].split("/files/")[1] for row in found}
    assert {"hash#tag.txt", "per%cent.txt", "sub dir/deep+er/#1/x.txt", "caf\u00e9 \u8133.txt"} <= uris
    assert all(row["URI"].startswith(f"/data/experiments/XNAT_E00020/resources/{row['cat_ID']}/") for row in found)


def test_all_true_covers_every_level_of_a_session(get: Any) -> None:
    only_session = rows(get("/data/experiments/XNAT_E00001/files"))
    everything = rows(get("/data/experiments/XNAT_E00001/files?all=true"))
    assert {row["collection"] for row in only_session} == {"QC"}
    assert {row["collection"] for row in everything} == {"QC", "DICOM", "NIFTI", "BIDS", "masks"}
    resources = rows(get("/data/experiments/XNAT_E00001/resources?all=true"))
    assert {row["category"] for row in resources} == {"resources", "scans", "assessors", "reconstructions"}
    counts = {(row["cat_id"], row["label"]): row["file_count"] for row in resources}
    assert counts[("1", "DICOM")] == "24"


def test_a_label_with_all_true_matches_at_every_level(get: Any) -> None:
    found = rows(get("/data/experiments/XNAT_E00001/resources/DICOM/files?all=true"))
    assert {row["URI"].split("/")[5] for row in found} == {"1", "2"}


def test_scans_all_and_lists_of_ids(get: Any) -> None:
    both = rows(get("/data/experiments/XNAT_E00001/scans/1,2/resources/DICOM/files"))
    every = rows(get("/data/experiments/XNAT_E00001/scans/ALL/files"))
    sessions = rows(get("/data/experiments/XNAT_E00001,XNAT_E00002/files?all=true"))
    assert len(both) == 36
    assert len(every) == 24 + 1 + 12 + 2 + 3
    assert {row["URI"].split("/")[3] for row in sessions} == {"XNAT_E00001", "XNAT_E00002"}


def test_head_on_several_objects_is_404(server: DemoServer, http: requests.Session) -> None:
    assert http.head(f"{server.url}/data/experiments/XNAT_E00001/scans/ALL/files").status_code == 404


def test_a_scan_key_matches_ids_and_types(get: Any) -> None:
    found = rows(get("/data/experiments/XNAT_E00020/scans/T1/resources"))
    assert {row["cat_id"] for row in found} == {"T1", "6"}


def test_columns_replace_defaults_and_bring_key_and_uri(get: Any) -> None:
    scans = rows(get("/data/experiments/XNAT_E00001/scans?columns=ID,type,nonsense"))
    assert list(scans[0]) == ["ID", "type", "xnat_imagescandata_id", "URI"]
    subjects = rows(get("/data/projects/DEMO/subjects?columns=ID,label,gender"))
    assert list(subjects[0]) == ["ID", "label", "gender", "URI"]


def test_a_scan_list_without_id_fails(get: Any) -> None:
    assert get("/data/experiments/XNAT_E00001/scans?columns=type").status_code == 500


def test_a_column_of_one_type_drops_the_others(get: Any) -> None:
    found = rows(get("/data/projects/DEMO/experiments?columns=ID,label,xnat:mrSessionData/date"))
    assert [row["label"] for row in found] == ["DEMO_001_MR1", "DEMO_002_MR1"]
    assert found[0]["xnat:mrsessiondata/date"] == "2024-02-29"


def test_filters_and_pages(get: Any) -> None:
    base = "/data/projects/DEMO/experiments"
    assert [r["label"] for r in rows(get(f"{base}?xsiType=xnat:ctSessionData"))] == ["DEMO_001_CT1"]
    assert len(rows(get(f"{base}?label=DEMO_001*"))) == 3
    assert len(rows(get(f"{base}?date=02/28/2024-03/01/2024"))) == 3
    page = get(f"{base}?limit=1&offset=2").json()["ResultSet"]
    assert len(page["Result"]) == 1
    assert "totalRecords" not in page


def test_shared_things_show_the_guest_projects_labels(get: Any) -> None:
    subjects = {r["ID"]: r for r in rows(get("/data/projects/HCP_DEMO/subjects?columns=ID,label,project"))}
    assert (subjects["XNAT_S00002"]["label"], subjects["XNAT_S00002"]["project"]) == ("HCP_100307", "DEMO")
    only_label = rows(get("/data/projects/HCP_DEMO/subjects?columns=label"))
    assert "DEMO_002" in {r["label"] for r in only_label}  # the shared label is not put in
    columns = "ID,label,project,subject_ID,subject_label"
    experiments = {r["ID"]: r for r in rows(get(f"/data/projects/HCP_DEMO/experiments?columns={columns}"))}
    shared = experiments["XNAT_E00003"]
    assert [shared[k] for k in ("label", "project", "subject_label")] == ["HCP_100307_MR", "HCP_DEMO", "HCP_100307"]
    orphan = experiments["XNAT_E00002"]
    assert orphan["label"] == "OPEN_CT"
    assert orphan["subject_ID"] not in subjects
    by_label = get("/data/projects/HCP_DEMO/experiments/OPEN_CT?format=json")
    assert by_label.json()["items"][0]["data_fields"]["ID"] == "XNAT_E00002"


@pytest.mark.parametrize(
    "path",
    [
        "/data/subjects/XNAT_S00001/experiments?format=json",
        "/data/projects/DEMO/experiments/DEMO_001_MR1/scans?format=json",
        "/data/projects/DEMO/experiments/DEMO_001_MR1/files?format=json",
        "/data/experiments/XNAT_E00001/nonsense?format=json",
    ],
)
def test_a_route_that_does_not_exist_answers_with_the_parent_item(get: Any, path: str) -> None:
    answer = get(path)
    assert answer.status_code == 200
    assert list(answer.json()) == ["items"]


def test_an_unknown_resource_label_is_an_empty_list_but_404_for_a_file(get: Any) -> None:
    base = "/data/experiments/XNAT_E00001/resources/NO_SUCH"
    assert rows(get(f"{base}/files")) == []
    assert get(f"{base}/files/x.txt").status_code == 404


def test_unknown_things_are_404_with_a_page(get: Any) -> None:
    for path in ("/data/projects/NONE/subjects", "/data/experiments/NONE/files", "/data/subjects/NONE"):
        answer = get(path)
        assert (answer.status_code, answer.headers["Content-Type"]) == (404, "text/html")


def test_one_table_in_four_formats(get: Any) -> None:
    path = "/data/experiments/XNAT_E00001/scans"
    expected = rows(get(path))
    answer = get(f"{path}?format=csv")
    assert answer.headers["Content-Type"] == "text/csv"
    assert list(csv.DictReader(io.StringIO(answer.text))) == expected
    xml = ElementTree.fromstring(get(f"{path}?format=xml").content)
    assert len(xml.findall(".//row")) == 3
    assert get(path, headers={"Accept": "text/html"}).text.startswith("<html>")
    assert get(path, headers={"Accept": "image/png"}).status_code == 406


def test_item_documents_hold_children_fields_and_type(get: Any) -> None:
    item = get("/data/experiments/XNAT_E00001?format=json").json()["items"][0]
    assert item["meta"]["xsi:type"] == "xnat:mrSessionData"
    scans = next(c for c in item["children"] if c["field"] == "scans/scan")["items"]
    assert [s["data_fields"]["ID"] for s in scans] == ["1", "2", "3"]
    scores = get("/data/experiments/XNAT_E00004?format=xml")
    assert scores.headers["Content-Type"] == "text/xml"
    document = ElementTree.fromstring(scores.content)
    assert document.find("{http://nrg.wustl.edu/xnat}total").text == "27"  # type: ignore[union-attr]


def test_the_resource_itself_is_its_catalog_with_times(get: Any) -> None:
    answer = get("/data/experiments/XNAT_E00001/scans/1/resources/DICOM")
    catalog = ElementTree.fromstring(answer.content)
    entries = catalog.findall(".//{http://nrg.wustl.edu/catalog}entry")
    assert len(entries) == 24
    assert entries[0].get("URI") == "T1w-0001.dcm"
    assert entries[0].get("modifiedTime") == "2024-03-05T10:20:30"


def test_assessors_and_reconstructions_default_to_out(get: Any) -> None:
    base = "/data/experiments/XNAT_E00001/assessors/XNAT_A00001"
    assert [r["label"] for r in rows(get(f"{base}/resources"))] == ["masks"]
    assert [r["label"] for r in rows(get(f"{base}/in/resources"))] == ["inputs"]
    recon = rows(get("/data/experiments/XNAT_E00001/reconstructions/mean_bold/resources"))
    assert [r["label"] for r in recon] == ["NIFTI"]


def test_resources_at_every_level(get: Any) -> None:
    project = rows(get("/data/projects/DEMO/files"))
    subject = rows(get("/data/projects/DEMO/subjects/DEMO_001/files"))
    assert "/data/projects/DEMO/resources/101/files/README.txt" in {r["URI"] for r in project}
    assert [r["Name"] for r in subject] == ["consent.txt", "scan form.txt"]


def test_the_context_path_comes_before_everything(http: requests.Session) -> None:
    with DemoServer(context="/xnat") as server:
        assert server.url.endswith("/xnat")
        listing = rows(http.get(f"{server.url}/data/experiments/XNAT_E00001/files"))
        assert http.get(server.url + listing[0]["URI"]).status_code == 200
        assert http.get(f"http://127.0.0.1:{server.port}/data/projects").status_code == 404
        assert len(server.data_requests()) == 1
