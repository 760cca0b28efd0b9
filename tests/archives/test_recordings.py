"""Listings that real servers sent, made into trees: nothing that they name is lost on the way.

Sources: tests/data/recordings/README.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from xnatfs.archives.xnat.files import file_runs
from xnatfs.archives.xnat.tables import (
    Item,
    Row,
    experiment_listing,
    listing_id,
    project_listing,
    site_listing,
)
from xnatfs.config import TreeConfig
from xnatfs.errors import UnexpectedReply
from xnatfs.model import Entry, Listing
from xnatfs.tree.names import assign_aliases, assign_names

RECORDINGS = Path(__file__).parent.parent / "data" / "recordings"
OHIF = RECORDINGS / "xnat-ohif-viewer"
TREE = TreeConfig()
EVERYTHING = Item(Row({"ID": "E1", "xsiType": "xnat:mrSessionData"}), {})


def table(path: Path) -> list[Row]:
    document: Any = json.loads(path.read_text())
    return [Row(row) for row in (document["ResultSet"]["Result"] if isinstance(document, dict) else document)]


def session(item: Item, resources: list[Row], files: list[Row]) -> Listing:
    identifier = listing_id("experiment", id=item.row["id"], project="P", label="session")
    return experiment_listing(identifier, 0, item, resources, file_runs(files), TREE)[0]


def files_of(listing: Listing) -> list[Entry]:
    return [entry for entries in listing.children.values() for entry in entries if "/files/" in entry.key]


def shown(listing: Listing, key: str) -> dict[str, Entry]:
    """The names that ``ls`` would print."""
    return {name: entry for name, entry in assign_names(listing.children[key]).items() if not entry.hidden}


@pytest.mark.parametrize(
    "path", [OHIF / "projects.json", RECORDINGS / "xnat-pixi/data_projects__ResultSet_Result.json"]
)
def test_every_project_of_a_site_is_a_directory(path: Path) -> None:
    rows = table(path)
    listing, documents = site_listing(rows, TREE)
    assert list(shown(listing, "/data/projects")) == [row["id"] for row in rows]
    assert [json.loads(documents[key]) for key in documents] == [row.sent for row in rows]


@pytest.mark.parametrize("project", ["ITCRdemo", "TEST_Viewer"])
def test_every_subject_and_experiment_is_found_by_label_and_by_id(project: str) -> None:
    subjects = table(OHIF / f"projects_{project}_subjects.json")
    experiments: list[Row] = []
    for subject in subjects:
        path = OHIF / f"projects_{project}_subjects_{subject['id']}_experiments.json"
        rows = table(path) if path.exists() else []
        experiments += [Row({**row.sent, "subject_ID": subject["id"]}) for row in rows]
    assert experiments
    listing, _ = project_listing(project, subjects, experiments, TREE)
    top = assign_names(listing.children[f"/data/projects/{project}"])
    for row in subjects:
        assert top[row["label"]].id == row["id"]
        assert assign_aliases(top)[row["id"]] == row["label"]
    for row in experiments:
        below = assign_names(listing.children[f"/data/projects/{project}/subjects/{row['subject_id']}"])
        found = [entry for entry in below.values() if entry.id == row["id"]]
        assert [(entry.xsi_type, entry.name) for entry in found] == [(row["xsitype"], row["label"])]
        assert found[0].mtime_ns > 0


def test_a_subject_that_another_project_owns_is_listed_here() -> None:
    rows = table(OHIF / "projects_ITCRdemo_subjects.json")
    [guest] = [row for row in rows if row["project"] != "ITCRdemo"]
    listing, _ = project_listing("ITCRdemo", rows, [], TREE)
    assert guest["label"] in shown(listing, "/data/projects/ITCRdemo")


def test_a_table_without_a_needed_column_is_an_error_and_not_an_empty_project() -> None:
    rows = table(OHIF / "projects_TEST_Viewer_subjects_XNAT_JPETTS_S00032_experiments.json")
    assert rows
    with pytest.raises(UnexpectedReply, match="subject_id"):
        project_listing("TEST_Viewer", [], rows, TREE)
    with pytest.raises(UnexpectedReply, match="'id'"):
        site_listing([Row({"name": "a project of another table"})], TREE)


def test_assessors_are_found_by_label_and_id() -> None:
    path = OHIF / "projects_ITCRdemo_subjects_XNAT_JPETTS_S00011_experiments_XNAT_JPETTS_E00014_assessors.json"
    rows = table(path)
    item = Item(EVERYTHING.row, {"assessors/assessor": [Item(row, {}) for row in rows]})
    names = shown(session(item, [], []), "/data/experiments/E1/assessors")
    assert {name: entry.id for name, entry in names.items()} == {row["label"]: row["id"] for row in rows}


@pytest.mark.parametrize("path", sorted(OHIF.glob("*assessors_RoiCollection*.json")), ids=lambda path: path.stem[-8:])
def test_an_item_document_keeps_every_field(path: Path) -> None:
    document = json.loads(path.read_text())["items"][0]
    item = Item.parsed(document)
    assert item is not None
    assert {key: value for key, value in item.row.sent.items() if key != "xsiType"} == document["data_fields"]


def test_a_scan_is_known_from_its_resource_alone() -> None:
    [resource] = table(RECORDINGS / "xnat-brown-bnc/scan_resources__Result.json")
    listing = session(EVERYTHING, [resource], [])
    assert list(shown(listing, "/data/experiments/E1/scans")) == ["7-anat-t1w_acq-memprage RMS"]
    assert list(shown(listing, "/data/experiments/E1/scans/7")) == ["DICOM"]


@pytest.mark.parametrize("path", sorted((RECORDINGS / "xnat-catalogs").glob("*.xml")), ids=lambda path: path.stem)
def test_every_file_of_a_catalog_is_a_file(path: Path) -> None:
    entries = [node for node in ElementTree.parse(path).getroot().iter() if node.tag.endswith("entry")]
    rows = [
        Row(
            {
                "Name": node.get("name") or "",
                "Size": next((field.text for field in node.iter() if field.get("name") == "size_in_bytes"), ""),
                "URI": f"/data/experiments/E1/scans/4/resources/33/files/{node.get('URI')}",
                "collection": "DICOM",
                "cat_ID": "33",
                "digest": node.get("digest"),
            }
        )
        for node in entries
    ]
    resources = [Row({"xnat_abstractresource_id": "33", "label": "DICOM", "category": "scans", "cat_id": "4"})]
    found = files_of(session(EVERYTHING, resources, rows))
    assert {one.key for one in found} == {row["uri"] for row in rows}
    assert {one.digest for one in found} <= {row["digest"] for row in rows}
    assert all(one.size == (int(row["size"]) if row["size"] else None) for one, row in zip(found, rows, strict=False))


def test_real_dicom_names_stay_as_they_are() -> None:
    lines = (RECORDINGS / "xnat-pixi/jupyterhub_mount_file_listing.txt").read_text().split()
    names = [line.rsplit("/", 1)[-1] for line in lines if line.endswith(".dcm")]
    assert len(names) > 50
    rows = [
        Row({"URI": f"/data/experiments/E1/scans/4/resources/33/files/{name}", "Size": "1", "cat_ID": "33"})
        for name in names
    ]
    listing = session(EVERYTHING, [], rows)
    assert list(shown(listing, "/data/experiments/E1/scans/4/resources/33")) == list(dict.fromkeys(names))
