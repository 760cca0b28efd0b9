"""Tables, items and score documents: announced with their exact size, made when wanted, the server's own data."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

import pytest

from tests.archives.test_xnat_replies import read_all, walk
from tests.helpers.server import DemoServer
from xnatfs.archives.xnat.archive import XnatArchive
from xnatfs.errors import UnexpectedReply
from xnatfs.model import Entry

Connect = Callable[..., XnatArchive]


def document(archive: XnatArchive, *names: str) -> tuple[Entry, bytes]:
    entry, _ = walk(archive, *names)
    if entry.size is None:
        entry = archive.stat(entry)
    return entry, read_all(archive, entry)


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode())))


def test_subjects_and_experiments_are_tables_made_without_a_request(connect: Connect, server: DemoServer) -> None:
    archive = connect()
    walk(archive, "DEMO", "subjects.csv")
    server.clear_log()
    entry, data = document(archive, "DEMO", "subjects.csv")
    assert entry.size == len(data)
    assert {row["label"] for row in rows(data)} >= {"DEMO_001", "DEMO_002"}
    assert set(rows(data)[0]) >= {"ID", "label", "gender", "age", "insert_date"}
    _, data = document(archive, "DEMO", "experiments.csv")
    assert {row["xsiType"] for row in rows(data)} >= {"xnat:mrSessionData", "xnat:ctSessionData"}
    assert all("/files/" not in r["path"] and "search" not in r["path"] for r in server.requests())


def test_a_search_table_has_a_row_an_experiment_and_is_made_when_asked_for(
    connect: Connect, server: DemoServer
) -> None:
    archive = connect()
    _, listing = walk(archive, "DEMO", "tables")
    names = {one.name: one for one in listing.children["/data/projects/DEMO/tables"]}
    assert names["xnat:mrSessionData.csv"].size is None
    assert not [r for r in server.requests() if "search" in r["path"]]
    entry, data = document(archive, "DEMO", "tables", "xnat:mrSessionData.csv")
    assert entry.size == len(data)
    found = rows(data)
    assert {row["label"] for row in found} == {"DEMO_001_MR1", "DEMO_002_MR1"}
    assert {row["project"] for row in found} == {"DEMO"}


def test_scores_are_found_in_a_table_and_in_the_experiments_xml(connect: Connect) -> None:
    archive = connect()
    _, data = document(archive, "DEMO", "tables", "xnat:subjectVariablesData.csv")
    [scores] = rows(data)
    assert int(scores["total"]) > 0
    _, xml = document(archive, "DEMO", "DEMO_001", "DEMO_001_scores", "DEMO_001_scores.xml")
    assert xml.lstrip().startswith(b"<?xml")
    assert scores["total"].encode() in xml


@pytest.mark.parametrize(
    "place",
    [
        ("DEMO",),
        ("DEMO", "DEMO_001"),
        ("DEMO", "DEMO_001", "DEMO_001_MR1"),
        ("DEMO", "DEMO_001", "DEMO_001_scores"),
        ("DEMO", "DEMO_001", "DEMO_001_MR1", "scans", "1"),
        ("DEMO", "DEMO_001", "DEMO_001_MR1", "assessors", "DEMO_001_MR1_QC"),
    ],
)
def test_every_item_has_its_row_and_its_xml(connect: Connect, server: DemoServer, place: tuple[str, ...]) -> None:
    archive = connect()
    owner, _ = walk(archive, *place)
    hidden, _ = walk(archive, *place, ".xnat")
    assert hidden.hidden
    entry, data = document(archive, *place, ".xnat", "item.json")
    row = {key.lower(): value for key, value in json.loads(data).items()}
    assert row["id"] == owner.id
    assert entry.size == len(data)
    assert not [r for r in server.requests() if "format=xml" in r["query"]]
    entry, xml = document(archive, *place, ".xnat", "item.xml")
    assert xml.lstrip().startswith(b"<?xml")
    assert len([r for r in server.requests() if "format=xml" in r["query"]]) == 1


def test_a_document_that_was_forgotten_is_made_again(connect: Connect) -> None:
    archive = connect()
    entry, data = document(archive, "DEMO", "subjects.csv")
    again = connect()  # another process, say: nothing is in its memory
    assert read_all(again, entry) == data


@pytest.mark.parametrize("kind", ["html", "empty", "garbage"])
def test_a_page_is_never_an_item_or_a_table(connect: Connect, server: DemoServer, kind: str) -> None:
    archive = connect(retries=0)
    xml, _ = walk(archive, "DEMO", "DEMO_001", ".xnat", "item.xml")
    table, _ = walk(archive, "DEMO", "tables", "xnat:mrSessionData.csv")
    server.fault("format=xml", kind, times=None)
    server.fault("/data/search\\?", kind, times=None)
    with pytest.raises(UnexpectedReply):
        archive.stat(xml)
    with pytest.raises(UnexpectedReply):
        archive.stat(table)
