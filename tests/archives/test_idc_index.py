"""IDC's index: the same lines out of CSV and Parquet, and out of the package that brings it."""

from __future__ import annotations

import csv
import sys
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from xnatfs.archives.nbia import idc_index
from xnatfs.archives.nbia.idc_index import IdcIndex, Place
from xnatfs.errors import UnexpectedReply, UsageError

COLUMNS = ["collection_id", "SeriesInstanceUID", "aws_bucket", "crdc_series_uuid", "instanceCount"]
LINES = [
    ["a", "1.2", "idc-open-data", "folder-1", "5"],
    ["a", "1.3", "idc-open-data-two", "folder-2", "1"],
    ["b", "1.4", "", "", "1"],
]


def written(path: Path) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *LINES])
    else:
        columns = {name: [line[place] or None for line in LINES] for place, name in enumerate(COLUMNS)}
        pyarrow.parquet.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", ["index.csv", "index.parquet"])
def test_the_series_asked_for_are_found_and_no_other(tmp_path: Path, name: str) -> None:
    index = IdcIndex(written(tmp_path / name))
    index.check()
    assert index.find(["1.2", "1.4", "9.9"]) == {"1.2": Place("idc-open-data", "folder-1")}
    assert index.find([]) == {}


@pytest.mark.parametrize("name", ["index.csv", "index.parquet"])
def test_a_file_that_is_no_index_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"no index\n")
    with pytest.raises(UsageError, match="IDC index"):
        IdcIndex(path).check()
    with pytest.raises(UnexpectedReply, match="IDC index"):
        IdcIndex(path).find(["1.2"])


def test_the_installed_package_is_taken_where_no_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType(idc_index.PACKAGE)
    package.IDC_INDEX_PARQUET_FILEPATH = written(tmp_path / "index.parquet")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, idc_index.PACKAGE, package)
    assert IdcIndex(None).find(["1.3"]) == {"1.3": Place("idc-open-data-two", "folder-2")}


def test_without_package_and_file_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, idc_index.PACKAGE, None)
    index = IdcIndex(None)
    index.check()
    assert index.find(["1.2"]) == {}
