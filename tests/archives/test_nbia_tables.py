"""Rows that real servers sent, and the directories that a real Data Retriever made of them.

Sources: tests/data/recordings/README.md.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from xnatfs.archives.nbia.idc_index import Place
from xnatfs.archives.nbia.tables import (
    METADATA_COLUMNS,
    Series,
    human_size,
    metadata_csv,
    parse_rows,
    series_name,
    series_of,
    study_name,
)
from xnatfs.archives.nbia.tree import ROOT, Branch, parse_listing_id
from xnatfs.errors import UnexpectedReply
from xnatfs.tree.names import assign_aliases, assign_names

RECORDED = Path(__file__).parent.parent / "data" / "recordings"
RETRIEVED = RECORDED / "nbia-retriever-metadata-csv" / "HNSCC-01-0001_metadata.csv"
V1 = RECORDED / "nbia-v1-api"

with RETRIEVED.open(newline="") as file:
    RETRIEVER_ROWS = list(csv.DictReader(file))


def retrieved(row: dict[str, str]) -> Series:
    """A recorded line as the server's row that it was made from; the number stands in the directory's name only."""
    number = row["File Location"].rsplit("/", 1)[1].partition("-")[0]
    plain = {name.lower().replace(" ", ""): value for name, value in row.items()}
    texts = {name: "" if value == "NA" else value for name, value in plain.items() if name != "filelocation"}
    return series_of({**texts, "seriesnumber": number if "." in number else ""})


@pytest.mark.parametrize("row", RETRIEVER_ROWS, ids=lambda row: row["Series UID"][-5:])
def test_directories_are_called_as_the_data_retriever_called_them(row: dict[str, str]) -> None:
    series = retrieved(row)
    made = f"./{series.collection}/{series.patient}/{study_name(series, False)}/{series_name(series, False)}"
    assert made == row["File Location"]


def test_metadata_csv_names_the_directory_of_a_patient_with_a_slash_in_his_name() -> None:
    series = replace(retrieved(RETRIEVER_ROWS[0]), patient="DL/0002")
    place = metadata_csv([series], classic=True).decode().splitlines()[1].split(",")[-2]
    assert place == f"./{series.collection}/DL_0002/{series.study}/{series.uid}"


def test_metadata_csv_has_the_columns_and_line_ends_of_the_data_retrievers() -> None:
    recorded = RETRIEVED.read_bytes()
    made = metadata_csv([retrieved(row) for row in RETRIEVER_ROWS], classic=False)
    assert made.partition(b"\r\n")[0] == recorded.partition(b"\n")[0].rstrip(b"\r")
    rows = list(csv.DictReader(made.decode().splitlines()))
    same = [name for name in METADATA_COLUMNS if name not in ("File Size", "Download Timestamp")]
    assert [[row[name] for name in same] for row in rows] == [[row[name] for name in same] for row in RETRIEVER_ROWS]


def test_sizes_are_written_in_powers_of_1000() -> None:
    assert [human_size(size) for size in (0, 999, 163_310, 117_840_000, 4_340_000, 999_999, 5 * 10**12)] == [
        "0 B",
        "999 B",
        "163.31 KB",
        "117.84 MB",
        "4.34 MB",
        "1.00 MB",
        "5.00 TB",
    ]


def test_a_recorded_row_of_getseries_is_a_series() -> None:
    path = V1 / "getSeries__Collection_RIDER-Lung-CT__PatientID_RIDER-1129164940.json"
    rows = parse_rows(path.read_bytes(), "getSeries")
    series = [series_of(row) for row in rows]
    assert len(series) == len(json.loads(path.read_text())) == 15
    assert {one.collection for one in series} == {"RIDER Lung CT"}
    first = series[0]
    assert (first.patient, first.images, first.number, first.modality) == ("RIDER-1129164940", 213, "8", "CT")
    assert first.mtime_ns == 1_320_739_681 * 10**9
    assert series_name(first, False) == "8.000000-NA-08100"
    assert series_name(series[2], False) == "1000.000000-QIN CT challenge alg01 run1segmentation result-93766"


def test_a_recorded_row_of_getseriesmetadata_is_a_series_though_its_columns_are_called_otherwise() -> None:
    [row] = parse_rows((V1 / "getSeriesMetaData__one_series.json").read_bytes(), "getSeriesMetaData")
    series = series_of(row)
    assert (series.collection, series.patient) == ("CBIS-DDSM", "Calc-Test_P_00038_LEFT_CC")
    assert (series.images, series.size, series.date) == (1, 27_844_690, "2017-08-29")
    assert study_name(series, False) == "08-29-2017-DDSM-NA-96009"
    assert series_name(series, False) == "1.000000-full mammogram images-63992"


def test_a_list_that_begins_with_an_empty_object_is_read() -> None:
    rows = parse_rows((V1 / "getBodyPartValues.json").read_bytes(), "getBodyPartValues")
    assert len(rows) == 67


def test_an_empty_body_is_an_answer_without_rows() -> None:
    assert parse_rows(b"", "x") == parse_rows(b" \n", "x") == parse_rows(b"[]", "x") == []


@pytest.mark.parametrize("text", ["[1]", "{}", '{"a": 1}', "[{", "error", "a,b\n1\n", "<x/>"])
def test_what_is_no_table_is_an_error_and_not_an_empty_one(text: str) -> None:
    with pytest.raises(UnexpectedReply):
        parse_rows(text.encode(), "x")


@pytest.mark.parametrize("missing", ["Series UID", "Collection", "Subject ID", "Study UID"])
def test_a_row_that_cannot_be_placed_is_an_error(missing: str) -> None:
    row = {"Series UID": "1", "Collection": "C", "Subject ID": "P", "Study UID": "2", missing: None}
    with pytest.raises(UnexpectedReply):
        series_of(parse_rows(json.dumps([row]).encode(), "x")[0])


def test_what_a_description_holds_is_stripped_and_cut_as_the_servlet_and_the_retriever_do() -> None:
    series = Series("1.2.34567", "C", "P", "9.87654", study_description="a/b:c(d)" + "e" * 60, description="x" * 99)
    assert study_name(series, False) == "NA-" + ("abcd" + "e" * 60)[:53] + "-87654"
    assert series_name(series, False) == "x" * 53 + "-34567"


# --- trees ------------------------------------------------------------------------------------------------------------


def branch(*series: Series, classic: bool = False, places: dict[str, Place] | None = None) -> Branch:
    made = Branch("manifest:x", ROOT, classic)
    made.add(series, places or {})
    return made


def test_series_whose_names_end_alike_get_their_uid() -> None:
    one, two = (Series(f"1.{n}.55555", "C", "P", "2", number="1", description="same") for n in (1, 2))
    names = assign_names(branch(one, two).listing().children["/C/P/2"])
    assert sorted(names) == [f"1.000000-same-55555~{one.uid}", f"1.000000-same-55555~{two.uid}"]


def test_uids_resolve_in_a_tree_of_descriptive_names() -> None:
    series = Series("1.2.3", "C", "P", "4.5.6")
    children = branch(series).listing().children
    assert assign_aliases(assign_names(children["/C/P"])) == {"4.5.6": "NA-NA-4.5.6"}
    assert assign_aliases(assign_names(children["/C/P/4.5.6"])) == {"1.2.3": "NA-1.2.3"}


def test_the_id_of_a_series_listing_changes_with_the_series_and_tells_where_it_is() -> None:
    series = Series("1.2.3", "C", "P", "4.5.6", images=2, size=10, stamp="2024")
    grown = Series("1.2.3", "C", "P", "4.5.6", images=3, size=15, stamp="2025")
    place = Place("bucket", "folder")
    ids = [
        branch(one, places=places).listing().children["/C/P/4.5.6"][0].listing
        for one, places in [(series, {}), (grown, {}), (series, {"1.2.3": place})]
    ]
    assert len(set(ids)) == 3
    kind, fields = parse_listing_id(ids[2])
    assert (kind, fields["bucket"], fields["folder"], fields["images"]) == ("series", "bucket", "folder", "2")


def test_a_patient_with_a_slash_is_one_directory_of_its_own() -> None:
    children = branch(Series("1", "C", "a/b", "2"), Series("3", "C", "a", "4")).listing().children
    assert sorted(entry.name for entry in children["/C"] if entry.is_dir) == ["a", "a/b"]
    assert {"/C/a", "/C/a%2Fb"} <= set(children)


def test_series_that_nobody_describes_are_shown_apart_and_the_reserved_name_is_kept() -> None:
    made = branch(Series("1", "unavailable", "P", "2"))
    made.add_missing(["9.9"])
    names = assign_names(made.listing().children[ROOT])
    assert names["unavailable"].reserved
    assert sorted(names) == [
        "metadata.csv",
        "unavailable",
        *(name for name in names if name.startswith("unavailable~")),
    ]


def test_documents_come_with_the_listing() -> None:
    listing = branch(Series("1", "C", "P", "2", license_name="CC BY", license_url="https://l")).listing()
    [license_] = [entry for entry in listing.children["/C"] if entry.name == "LICENSE"]
    assert listing.documents[license_.key].decode() == "Collection: C\nCC BY https://l\n"
    assert (license_.size, license_.listing) == (len(listing.documents[license_.key]), listing.id)
