"""Where IDC keeps a series: SeriesInstanceUID -> bucket and folder, from the index that IDC publishes as a table.

The table is a CSV or Parquet file: the one named, or that of the installed package ``idc-index-data``. Asked for many
series at once, since each question reads the whole of it (about a million lines). Makes no request. Any thread.
"""

from __future__ import annotations

import csv
import importlib
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xnatfs.errors import UsageError

log = logging.getLogger(__name__)

COLUMNS = ("SeriesInstanceUID", "aws_bucket", "crdc_series_uuid")

PACKAGE = "idc_index_data"


@dataclass(frozen=True, slots=True)
class Place:
    """A folder of a public bucket that holds one version of one series."""

    bucket: str
    folder: str


class IdcIndex:
    """The table in ``path``; None takes the installed package's, and an empty one where that is not installed."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def find(self, series: Collection[str]) -> dict[str, Place]:
        """Those of ``series`` that IDC has.

        Raises:
            UsageError: the table cannot be read.
        """
        wanted = frozenset(series)
        path = self._path or _packaged()
        if path is None or not wanted:
            return {}
        rows = _parquet(path, wanted) if path.suffix == ".parquet" else _csv(path)
        try:
            return {uid: Place(bucket, folder) for uid, bucket, folder in rows if uid in wanted and bucket and folder}
        except (OSError, UnicodeDecodeError, csv.Error) as exc:
            raise UsageError(f"IDC index {path}: cannot be read: {exc}") from exc


def _packaged() -> Path | None:
    try:
        package = importlib.import_module(PACKAGE)
    except ImportError:
        return None
    found = getattr(package, "IDC_INDEX_PARQUET_FILEPATH", None)
    return Path(found) if found else None


def _csv(path: Path) -> Iterator[tuple[str, str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        places = _places(header, path)
        for line in lines:
            if len(line) == len(header):
                yield line[places[0]], line[places[1]], line[places[2]]


def _places(header: list[str], path: Path) -> list[int]:
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise UsageError(f"IDC index {path}: no column {missing[0]}")
    return [header.index(column) for column in COLUMNS]


def _parquet(path: Path, wanted: frozenset[str]) -> Iterator[tuple[str, str, str]]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UsageError(
            f"IDC index {path}: reading Parquet needs pyarrow", "pip install pyarrow, or --from nbia"
        ) from None
    try:
        table = parquet.read_table(path, columns=list(COLUMNS), filters=[(COLUMNS[0], "in", list(wanted))])
    except (OSError, ValueError, KeyError) as exc:  # pyarrow's own errors are kinds of these
        raise UsageError(f"IDC index {path}: cannot be read: {exc}") from exc
    columns = [table.column(name).to_pylist() for name in COLUMNS]
    for uid, bucket, folder in zip(*columns, strict=True):
        yield str(uid), str(bucket or ""), str(folder or "")
