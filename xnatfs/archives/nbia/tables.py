"""What NBIA says about series, as records, and the names that NBIA Data Retriever gives their directories.

Pure functions; no requests. Server versions call one column by different names, so names are compared without case and
punctuation. A row that cannot be placed in the tree is an error, never left out.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from xnatfs.errors import UnexpectedReply

DESCRIPTION_LENGTH = 53
"""Characters of a description in a directory's name: what the Data Retriever keeps."""

SAME = 4096
"""Texts whose form is remembered: series of a collection share dates and descriptions; reading a date takes 10 us."""

SUFFIX_LENGTH = 5  # of a UID, at the end of a directory's name

_STRIPPED = re.compile(r"[^A-Za-z0-9 .\-]")
_NOTHING = frozenset({"", "null", "none"})

_SEPARATORS = str.maketrans(",\r\n", "   ")

METADATA_COLUMNS = (
    "Series UID",
    "Collection",
    "3rd Party Analysis",
    "Data Description URI",
    "Subject ID",
    "Study UID",
    "Study Description",
    "Study Date",
    "Series Description",
    "Manufacturer",
    "Modality",
    "SOP Class Name",
    "SOP Class UID",
    "Number of Images",
    "File Size",
    "File Location",
    "Download Timestamp",
)
"""The header of the Data Retriever's metadata.csv."""

Row = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Series:
    """One series as its server describes it; texts are "" and numbers 0 where it does not.

    Attributes:
        date: Of the study, as YYYY-MM-DD.
        images: Files that belong to it.
        size: Bytes of those files together.
        stamp: Changes when the series does: when its last image came in.
    """

    uid: str
    collection: str
    patient: str
    study: str
    date: str = ""
    study_id: str = ""
    study_description: str = ""
    number: str = ""
    description: str = ""
    modality: str = ""
    manufacturer: str = ""
    sop_class: str = ""
    sop_class_uid: str = ""
    images: int = 0
    size: int = 0
    stamp: str = ""
    third_party: str = ""
    about: str = ""
    license_name: str = ""
    license_url: str = ""

    @property
    def mtime_ns(self) -> int:
        return time_ns(self.stamp) or time_ns(self.date)


# --- answers ----------------------------------------------------------------------------------------------------------


def parse_rows(data: bytes, what: str) -> list[Row]:
    """The rows of a JSON or CSV answer, with plain lower-case column names. An empty body is an answer without rows.

    Raises:
        UnexpectedReply: anything else.
    """
    text = data.decode("utf-8", "replace").removeprefix("\ufeff").strip()
    if not text:
        return []
    if text[0] in "[{":
        return _json_rows(text, what)
    try:
        lines = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise UnexpectedReply(f"{what}: no table: {error}") from error
    header = [_plain(name) for name in lines[0]]
    if len(header) < 2:
        raise UnexpectedReply(f"{what}: {text[:80]!r} in place of a table")
    if any(len(line) != len(header) for line in lines[1:] if line):
        raise UnexpectedReply(f"{what}: a table whose lines differ in length")
    return [dict(zip(header, map(_text, line), strict=True)) for line in lines[1:] if line]


def _json_rows(text: str, what: str) -> list[Row]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UnexpectedReply(f"{what}: broken JSON") from error
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise UnexpectedReply(f"{what}: another document in place of a list")
    # A null is left out by the server: the first value of some lists is an empty object.
    return [{_plain(name): _text(value) for name, value in row.items()} for row in document if row]


def _plain(name: str) -> str:
    """ "Series Instance UID" and "SeriesInstanceUID" are the same column."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _text(value: object) -> str:
    if not isinstance(value, str):
        value = "" if value is None else f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value)
    stripped = value.strip()
    return "" if len(stripped) < 5 and stripped.lower() in _NOTHING else value


def series_of(row: Row, study: Row | None = None, what: str = "series") -> Series:
    """The series that a row describes, with what only its study's row tells.

    Raises:
        UnexpectedReply: a column is missing that a series is placed by.
    """
    rows = (row,) if study is None else (row, study)
    uid = _first(rows, "seriesinstanceuid", "seriesuid")
    placed = {
        "collection": _first(rows, "collection", "project"),
        "patient": _first(rows, "patientid", "subjectid"),
        "study": _first(rows, "studyinstanceuid", "studyuid"),
    }
    missing = [name for name, value in {"uid": uid, **placed}.items() if not value]
    if missing:
        raise UnexpectedReply(f"{what}: no {missing[0]} for series {uid or '?'}")
    return Series(
        uid=uid,
        **placed,
        date=_date(_first(rows, "studydate")),
        study_id=_first(rows, "studyid", "filelocation"),  # v1 says it in a column of another name
        study_description=_first(rows, "studydescription", "studydesc"),
        number=_first(rows, "seriesnumber"),
        description=_first(rows, "seriesdescription", "seriesdesc"),
        modality=_first(rows, "modality"),
        manufacturer=_first(rows, "manufacturer"),
        sop_class=_first(rows, "sopclassname"),
        sop_class_uid=_first(rows, "sopclassuid"),
        images=_number(_first(rows, "imagecount", "numberofimages")),
        size=_number(_first(rows, "filesize", "imagessize")),
        # Told to parts of a second by one call and not by another, and with a T between: the same stamp for all that.
        stamp=_first(rows, "maxsubmissiontimestamp", "timestamp", "datereleased").partition(".")[0].replace("T", " "),
        third_party=_first(rows, "thirdpartyanalysis", "3rdpartyanalysis"),
        about=_first(rows, "datadescriptionuri", "collectionuri"),
        license_name=_first(rows, "licensename"),
        license_url=_first(rows, "licenseuri", "licenseurl"),
    )


def _first(rows: Iterable[Row], *names: str) -> str:
    for row in rows:
        for name in names:
            if value := row.get(name):
                return value
    return ""


def _number(text: str) -> int:
    try:
        return max(0, int(float(text)))
    except (ValueError, OverflowError):
        return 0


@functools.lru_cache(maxsize=SAME)
def _date(text: str) -> str:
    """ISO form of ``2000-01-31 00:00:00.0``, ``01-31-2000`` and ``01/31/2000``; "" for anything else."""
    for form in ("%Y-%m-%d", "%m-%d-%Y", "%m/%d/%Y", "%Y/%m/%d", "%Y%m%d"):
        try:
            return (
                datetime.strptime(text.split(" ")[0].split("T")[0], form)
                .replace(tzinfo=timezone.utc)
                .strftime("%Y-%m-%d")
            )
        except ValueError:
            continue
    return ""


@functools.lru_cache(maxsize=SAME)
def time_ns(text: str) -> int:
    """Nanoseconds since the epoch of an ISO date and time; 0 when it is none. Without a zone it is taken for UTC."""
    try:
        moment = datetime.fromisoformat(text.strip().partition(".")[0].removesuffix("Z"))
    except ValueError:
        return 0
    return max(0, int(moment.replace(tzinfo=timezone.utc).timestamp())) * 1_000_000_000


# --- names ------------------------------------------------------------------------------------------------------------


def study_name(series: Series, classic: bool) -> str:
    """The directory of its study: the UID, or date, ID, description and the UID's end."""
    if classic:
        return series.study
    date = f"{series.date[5:]}-{series.date[:4]}" if series.date else ""
    return _joined(date, _or_na(series.study_id), _shortened(series.study_description), series.study)


def series_name(series: Series, classic: bool) -> str:
    """The directory of a series: the UID, or number, description and the UID's end."""
    return series.uid if classic else _joined(_decimal(series.number), _shortened(series.description), series.uid)


def _joined(*parts: str) -> str:
    return "-".join([*(part for part in parts[:-1] if part), parts[-1][-SUFFIX_LENGTH:]])


@functools.lru_cache(maxsize=SAME)
def _or_na(text: str) -> str:
    """What the download servlet makes of a text: it strips most punctuation, and says NA for nothing."""
    return _STRIPPED.sub("", text) or "NA"


def _shortened(text: str) -> str:
    return _or_na(text)[:DESCRIPTION_LENGTH]


@functools.lru_cache(maxsize=SAME)
def _decimal(number: str) -> str:
    """Six decimals, as the servlet writes a series' number."""
    try:
        return f"{float(number):.6f}"
    except ValueError:
        return number


# --- documents --------------------------------------------------------------------------------------------------------


def metadata_csv(series: Iterable[Series], classic: bool) -> bytes:
    """``metadata.csv`` as the Data Retriever writes it, its time of download left empty: nothing is downloaded yet.

    Values are not quoted there, so a comma in one becomes a blank.
    """
    lines = [",".join(METADATA_COLUMNS)]
    for one in series:
        parts = (one.collection, one.patient, study_name(one, classic), series_name(one, classic))
        place = "/".join((".", *(part.replace("/", "_") for part in parts)))  # as the directories are called here
        values = (
            *(one.uid, one.collection, one.third_party or "null", one.about, one.patient, one.study),
            *(_or_na(one.study_description), f"{one.date[5:]}-{one.date[:4]}" if one.date else ""),
            *(_or_na(one.description), one.manufacturer, one.modality, one.sop_class, one.sop_class_uid),
            *(str(one.images), human_size(one.size), place, ""),
        )
        lines.append(",".join([value.translate(_SEPARATORS) for value in values]))
    return "".join(f"{line}\r\n" for line in lines).encode("utf-8", "surrogatepass")


def human_size(size: int) -> str:
    """``163.31 KB``: powers of 1000, as in metadata.csv."""
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in ("KB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.995 or unit == "TB":
            break
    return f"{value:.2f} {unit}"


def license_text(collection: str, series: Iterable[Series]) -> bytes:
    """Each licence of a collection's series as its server names it."""
    licenses = sorted({(one.license_name, one.license_url) for one in series if one.license_name or one.license_url})
    lines = [f"{name} {url}".strip() for name, url in licenses] or ["The archive names no license for these series."]
    about = sorted({one.about for one in series if one.about})
    return "\n".join([f"Collection: {collection}", *lines, *about, ""]).encode()
