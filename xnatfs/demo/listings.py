"""The rows of every list XNAT answers, with its columns, aliases, filters and omissions. No HTTP, no rendering."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from xnatfs.demo.records import INSERTED, Archive, Experiment, File, Holder, Images, Project, Subject
from xnatfs.demo.tables import Row, Table

FILE_COLUMNS = (
    "Name",
    "Size",
    "URI",
    "collection",
    "file_tags",
    "file_format",
    "file_content",
    "cat_ID",
    "digest",
)
RESOURCE_COLUMNS = (
    "xnat_abstractresource_id",
    "label",
    "element_name",
    "category",
    "cat_id",
    "cat_desc",
    "file_count",
    "file_size",
    "tags",
    "content",
    "format",
)
DEFAULT_PAGE = 100  # rows, once either limit or offset is given


class QueryFailed(Exception):
    """XNAT's query builder gives up on these columns."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a list of one kind of thing shows when not told otherwise, and what it can show."""

    root: str  # the data type all rows have
    defaults: tuple[str, ...]
    aliases: tuple[str, ...]
    key: str  # the primary key's column, which every answer has
    pages: bool = False


PROJECTS = Kind(
    "xnat:projectData",
    ("ID", "secondary_ID", "name", "description", "pi_firstname", "pi_lastname", "URI"),
    ("ID", "secondary_ID", "name", "description", "pi_firstname", "pi_lastname", "insert_date", "last_modified"),
    "ID",
)
SUBJECTS = Kind(
    "xnat:subjectData",
    ("ID", "project", "label", "insert_date", "insert_user", "URI"),
    (
        "ID",
        "project",
        "label",
        "group",
        "dob",
        "yob",
        "age",
        "gender",
        "handedness",
        "insert_date",
        "insert_user",
        "last_modified",
    ),
    "ID",
    pages=True,
)
EXPERIMENTS = Kind(
    "xnat:subjectAssessorData",
    ("ID", "project", "date", "xsiType", "label", "insert_date", "URI", "xnat:subjectassessordata/id"),
    (
        "ID",
        "label",
        "project",
        "date",
        "time",
        "visit",
        "UID",
        "modality",
        "scanner",
        "session_type",
        "subject_ID",
        "subject_label",
        "xsiType",
        "insert_date",
        "insert_user",
        "last_modified",
        "note",
        "age",
    ),
    "xnat:subjectassessordata/id",
    pages=True,
)
SCANS = Kind(
    "xnat:imageScanData",
    ("xnat_imagescandata_id", "ID", "type", "quality", "xsiType", "note", "series_description", "URI"),
    (
        "ID",
        "type",
        "UID",
        "note",
        "quality",
        "condition",
        "series_description",
        "scanner",
        "modality",
        "frames",
        "scanTime",
        "fieldStrength",
        "xsiType",
        "insert_date",
        "last_modified",
    ),
    "xnat_imagescandata_id",
)
ASSESSORS = Kind(
    "xnat:imageAssessorData",
    ("ID", "project", "label", "date", "xsiType", "insert_date", "session_ID", "session_label", "URI"),
    ("ID", "project", "label", "date", "xsiType", "insert_date", "session_ID", "session_label", "last_modified"),
    "xnat:imageassessordata/id",
    pages=True,
)
RECONSTRUCTIONS = Kind(
    "xnat:reconstructedImageData",
    ("xnat_reconstructedimagedata_id", "ID", "type", "baseScanType", "URI"),
    ("ID", "type", "baseScanType", "xsiType"),
    "xnat_reconstructedimagedata_id",
)


def project_rows(projects: Iterable[Project]) -> list[Row]:
    return [
        {
            "ID": p.id,
            "secondary_ID": p.secondary or p.id,
            "name": p.name,
            "description": p.description,
            "pi_firstname": p.pi[0],
            "pi_lastname": p.pi[1],
            "insert_date": INSERTED,
            "last_modified": INSERTED,
            "xsiType": "xnat:projectData",
            "URI": f"/data/projects/{p.id}",
        }
        for p in projects
    ]


def subject_rows(subjects: Iterable[Subject], project: str | None, asked: Sequence[str]) -> list[Row]:
    """One row a subject. The guest project's label is put in only where ID and label are asked for together."""
    relabel = project is not None and (not asked or {"ID", "label"} <= set(asked))
    return [
        {
            "ID": s.id,
            "project": s.project,
            "label": s.label_in(project) if relabel and project is not None else s.label,
            "group": s.group,
            "dob": "",
            "yob": s.yob,
            "age": s.age,
            "gender": s.gender,
            "handedness": s.handedness,
            "insert_date": INSERTED,
            "insert_user": "demo",
            "last_modified": s.last_modified,
            "xsiType": "xnat:subjectData",
            "URI": f"/data/subjects/{s.id}",
        }
        for s in subjects
    ]


def experiment_rows(archive: Archive, experiments: Iterable[Experiment], project: str | None) -> list[Row]:
    """One row an experiment; inside a project its own name, label and subject label replace the owner's."""
    rows = []
    for e in experiments:
        subject = archive.subjects[e.subject]
        shown = project if project is not None else e.project
        rows.append(
            {
                "ID": e.id,
                "label": e.label_in(shown),
                "project": shown,
                "date": e.date,
                "time": "",
                "visit": "",
                "UID": "",
                "modality": e.modality,
                "scanner": "",
                "session_type": "",
                "subject_ID": subject.id,
                "subject_label": subject.label_in(shown),
                "xsiType": e.xsi,
                "insert_date": INSERTED,
                "insert_user": "demo",
                "last_modified": e.last_modified,
                "note": e.fields.get("note", ""),
                "age": "",
                "xnat:subjectassessordata/id": e.id,
                "URI": f"/data/experiments/{e.id}",
            }
        )
    return rows


def scan_rows(experiment: Experiment, images: Images) -> list[Row]:
    return [
        {
            "xnat_imagescandata_id": str(s.pk),
            "ID": s.id,
            "type": s.type,
            "UID": s.uid,
            "note": s.note,
            "quality": s.quality,
            "condition": "",
            "series_description": s.series_description,
            "scanner": "",
            "modality": experiment.modality,
            "frames": s.frames,
            "scanTime": "",
            "fieldStrength": "",
            "xsiType": s.xsi,
            "insert_date": INSERTED,
            "last_modified": experiment.last_modified,
            "URI": f"/data/experiments/{experiment.id}/scans/{s.id}",
        }
        for s in images.scans
    ]


def assessor_rows(experiment: Experiment, images: Images, label: str) -> list[Row]:
    return [
        {
            "ID": a.id,
            "project": experiment.project,
            "label": a.label,
            "date": a.date,
            "xsiType": a.xsi,
            "insert_date": INSERTED,
            "session_ID": experiment.id,
            "session_label": label,
            "last_modified": experiment.last_modified,
            "xnat:imageassessordata/id": a.id,
            "URI": f"/data/experiments/{a.id}",
        }
        for a in images.assessors
    ]


def reconstruction_rows(experiment: Experiment, images: Images) -> list[Row]:
    return [
        {
            "xnat_reconstructedimagedata_id": str(r.pk),
            "ID": r.id,
            "type": r.type,
            "baseScanType": r.base_scan_type,
            "xsiType": "xnat:reconstructedImageData",
            "URI": f"/data/experiments/{experiment.id}/reconstructions/{r.id}",
        }
        for r in images.reconstructions
    ]


def arrange(kind: Kind, rows: list[Row], query: Mapping[str, str]) -> Table:
    """Choose columns, filter and cut as the query says.

    Raises:
        QueryFailed: columns that XNAT's own query builder cannot serve.
    """
    asked = [name for name in query.get("columns", "").split(",") if name]
    if asked == ["DEFAULT"]:
        asked = []
    if asked and kind is SCANS and "ID" not in asked:
        raise QueryFailed("a scan list needs ID among its columns")
    rows = [row for row in rows if _passes(kind, row, query)]
    columns, rows = _columns(kind, rows, asked)
    total = True
    if kind.pages and ("limit" in query or "offset" in query):
        start = _number(query.get("offset"), 0)
        rows, total = rows[start : start + _number(query.get("limit"), DEFAULT_PAGE)], False
    return Table(list(columns), [{c: row.get(source, "") for c, source in columns.items()} for row in rows], "", total)


def _columns(kind: Kind, rows: list[Row], asked: list[str]) -> tuple[dict[str, str], list[Row]]:
    """Column name in the answer -> name in the rows; rows of other types go when a column names a type."""
    if not asked:
        return {name: name for name in kind.defaults}, rows
    known = {alias.lower(): alias for alias in kind.aliases}
    columns: dict[str, str] = {}
    for name in asked:
        type_, slash, rest = name.partition("/")
        if not slash and name in kind.aliases:
            columns[name] = name
        elif slash and rest.lower() in known and ":" in type_:
            columns[name.lower()] = known[rest.lower()]
            if type_.lower() != kind.root.lower():
                rows = [row for row in rows if row.get("xsiType", "").lower() == type_.lower()]
    columns.setdefault(kind.key, kind.key)
    columns.setdefault("URI", "URI")
    return columns, rows


def _passes(kind: Kind, row: Row, query: Mapping[str, str]) -> bool:
    for name, wanted in query.items():
        alias = name.split("/")[-1] if name.startswith("xnat:") else name
        if alias not in kind.aliases or not wanted:
            continue
        value = row.get(alias, "")
        if alias == "date" and "-" in wanted and "/" in wanted:
            if not _within(value, wanted):
                return False
        elif not any(fnmatch.fnmatchcase(value, part.replace("%", "*")) for part in wanted.split(",")):
            return False
    return True


def _within(value: str, span: str) -> bool:
    first, _, last = span.partition("-")
    bounds = []
    for american in (first, last):
        month, day, year = [*american.split("/"), "", ""][:3]
        bounds.append(f"{year}-{month}-{day}")
    return bool(value) and bounds[0] <= value <= bounds[1]


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isdigit() else default


def resource_table(holders: Iterable[Holder]) -> Table:
    rows = []
    for holder in holders:
        r = holder.resource
        count = "" if r.stale_stats else str(len(r.files))
        size = "" if r.stale_stats else str(sum(int(f.listed_size) for f in r.files))
        rows.append(
            {
                "xnat_abstractresource_id": str(r.id),
                "label": r.label,
                "element_name": "xnat:resourceCatalog",
                "category": holder.category,
                "cat_id": holder.item_id,
                "cat_desc": holder.item_type,
                "file_count": count,
                "file_size": size,
                "tags": "",
                "content": "RAW" if r.label == "DICOM" else "",
                "format": r.format,
            }
        )
    return Table(RESOURCE_COLUMNS, rows)


def file_row(holder: Holder, file: File) -> Row:
    r = holder.resource
    size = file.listed_size if file.on_disk or file.content.size else ""
    return {
        "Name": file.name,
        "Size": size,
        "URI": f"/data{holder.uri}/files/{file.path}",
        "collection": r.label,
        "file_tags": file.tags,
        "file_format": file.format,
        "file_content": file.label,
        "cat_ID": str(r.id),
        "digest": file.listed_digest,
    }


def file_table(chosen: Iterable[tuple[Holder, File]]) -> Table:
    rows = [file_row(holder, file) for holder, file in chosen]
    return Table(FILE_COLUMNS, rows, "Files", total=False, uri_column=True)
