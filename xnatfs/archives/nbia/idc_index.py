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

from xnatfs.errors import UnexpectedReply, UsageError

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
            UnexpectedReply: the table cannot be read.
        """
        wanted = frozenset(series)
        path = self._path or _packaged()
        if path is None or not wanted:
            return {}
        try:
            rows = _parquet(path, wanted) if path.suffix == ".parquet" else _csv(path)
            return {uid: Place(bucket, folder) for uid, bucket, folder in rows if uid in wanted and bucket and folder}
        except (OSError, ValueError, KeyError, csv.Error, ImportError) as exc:  # pyarrow's errors are kinds of these
            raise UnexpectedReply(f"IDC index {path}: {_reason(exc)}") from exc

    def is_there(self) -> bool:
        """Whether there is a table at all."""
        return (self._path or _packaged()) is not None

    def check(self) -> None:
        """Look at the table that was named, so that a wrong one is told before a mount.

        Raises:
            UsageError: it cannot be read.
        """
        if self._path is None:
            return
        try:
            if self._path.suffix == ".parquet":
                importlib.import_module("pyarrow.parquet").read_schema(self._path)
            else:
                next(_csv(self._path), None)
        except (OSError, ValueError, KeyError, csv.Error, ImportError) as exc:
            raise UsageError(f"IDC index {self._path}: {_reason(exc)}") from exc


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
        places = _places(header)
        for line in lines:
            if len(line) == len(header):
                yield line[places[0]], line[places[1]], line[places[2]]


def _places(header: list[str]) -> list[int]:
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise ValueError(f"no column {missing[0]}")
    return [header.index(column) for column in COLUMNS]


def _parquet(path: Path, wanted: frozenset[str]) -> Iterator[tuple[str, str, str]]:
    parquet: Any = importlib.import_module("pyarrow.parquet")
    table = parquet.read_table(path, columns=list(COLUMNS), filters=[(COLUMNS[0], "in", list(wanted))])
    columns = [table.column(name).to_pylist() for name in COLUMNS]
    for uid, bucket, folder in zip(*columns, strict=True):
        yield str(uid), str(bucket or ""), str(folder or "")


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "reading Parquet needs the package pyarrow (or --from nbia)"
    return str(getattr(error, "strerror", None) or error)
