"""XNAT's search: one row for each experiment, subject or project of a data type, with the fields that were asked for.

Takes the stored-search XML that clients post to /data/search; knows which fields each type has. No HTTP.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from xml.etree import ElementTree

from xnatfs.demo.records import INSERTED, Archive, Experiment, Subject
from xnatfs.demo.tables import Row, Table

_SHARES = "/sharing/share/project"
_NS = "{http://nrg.wustl.edu/security}"
_SUBJECT = ("SUBJECT_ID", "SUBJECT_LABEL", "PROJECT", "GENDER_TEXT", "HANDEDNESS_TEXT", "AGE", "GROUP", "INSERT_DATE")
_SESSION = (
    "SESSION_ID",
    "LABEL",
    "PROJECT",
    "SUBJECT_ID",
    "SUBJECT_LABEL",
    "DATE",
    "MODALITY",
    "SCAN_COUNT",
    "INSERT_DATE",
    "INSERT_USER",
    "LAST_MODIFIED",
)
_SCORES = ("EXPT_ID", "LABEL", "PROJECT", "SUBJECT_ID", "SUBJECT_LABEL", "DATE", "INSERT_DATE")
FIELDS: dict[str, tuple[str, ...]] = {
    "xnat:projectData": ("ID", "NAME", "DESCRIPTION", "INSERT_DATE"),
    "xnat:subjectData": _SUBJECT,
    "xnat:mrSessionData": _SESSION,
    "xnat:ctSessionData": _SESSION,
    "xnat:petSessionData": _SESSION,
    "nt:scores": (*_SCORES, *(f"NEO_NEOFAC_{letter}" for letter in "AOCNE")),
    "xnat:subjectVariablesData": (*_SCORES, "NOTE", "TOTAL", "MEMORY", "ATTENTION", "LANGUAGE"),
}
_COMPARE: dict[str, Callable[[str, str], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class BadSearch(ValueError):
    """The posted document is no search."""


def element_table() -> Table:
    columns = ("ELEMENT_NAME", "SINGULAR", "PLURAL", "SECURED", "COUNT")
    rows = [
        {"ELEMENT_NAME": x, "SINGULAR": x[5:], "PLURAL": f"{x[5:]}s", "SECURED": "true", "COUNT": ""} for x in FIELDS
    ]
    return Table(columns, rows)


def field_table(xsi: str) -> Table | None:
    """The search fields of one data type, or None when it cannot be searched."""
    if xsi not in FIELDS:
        return None
    columns = ("FIELD_ID", "HEADER", "SUMMARY", "TYPE", "REQUIRES_VALUE", "DESC", "ELEMENT_NAME", "SRC")
    rows = [
        {
            "FIELD_ID": name,
            "HEADER": name.replace("_", " ").title(),
            "SUMMARY": f"{xsi}.{name}",
            "TYPE": "string",
            "REQUIRES_VALUE": "false",
            "DESC": "",
            "ELEMENT_NAME": xsi,
            "SRC": "0",
        }
        for name in FIELDS[xsi]
    ]
    return Table(columns, rows)


def run(archive: Archive, user: str, document: bytes) -> Table:
    """The table that a search document asks for, of what ``user`` may read.

    Raises:
        BadSearch: no XML, no root type, or a type that cannot be searched.
    """
    try:
        root = ElementTree.fromstring(document)  # noqa: S314 - a server on loopback, no entities are resolved
    except ElementTree.ParseError as exc:
        raise BadSearch(f"not XML: {exc}") from exc
    xsi = root.findtext(f"{_NS}root_element_name", "")
    if xsi not in FIELDS:
        raise BadSearch(f"{xsi or 'nothing'} cannot be searched")
    asked = [
        (field.findtext(f"{_NS}element_name", ""), field.findtext(f"{_NS}field_ID", ""))
        for field in root.findall(f"{_NS}search_field")
    ] or [(xsi, name) for name in FIELDS[xsi]]
    columns = {_key(xsi, element, field): f"{element}/{field}".lower() for element, field in asked}
    where = root.findall(f"{_NS}search_where")
    found = [row for row in _rows(archive, user, xsi) if all(_holds(row, clause) for clause in where)]
    shown = [
        {**{key: row.get(source, "") for key, source in columns.items()}, "quarantine_status": ""} for row in found
    ]
    return Table([*columns, "quarantine_status"], shown)


def _key(xsi: str, element: str, field: str) -> str:
    """The column's name in the answer: the field's alone for the root type, else with its type in front."""
    return field.lower() if element == xsi else re.sub(r"\W", "_", f"{element}_{field}").lower()


def _holds(row: Row, clause: ElementTree.Element) -> bool:
    results = [_holds(row, child) for child in clause.findall(f"{_NS}child_set")]
    for criteria in clause.findall(f"{_NS}criteria"):
        name = criteria.findtext(f"{_NS}schema_field", "")
        value = row.get(name.lower())
        compare = criteria.findtext(f"{_NS}comparison_type", "=").strip().upper()
        wanted = criteria.findtext(f"{_NS}value", "")
        if name.endswith(_SHARES):  # a list: one row for each project that it is shared into
            results.append(value is not None and any(_compare(one, compare, wanted) for one in value.split()))
        else:
            results.append(value is not None and _compare(value, compare, wanted))
    if not results:
        return True
    return any(results) if clause.get("method", "AND").upper() == "OR" else all(results)


def _compare(value: str, how: str, wanted: str) -> bool:
    if how == "LIKE":
        return re.fullmatch(".*".join(map(re.escape, wanted.split("%"))), value, re.IGNORECASE) is not None
    return (_COMPARE.get(how) or _COMPARE["="])(value, wanted)


def _rows(archive: Archive, user: str, xsi: str) -> Iterator[Row]:
    """Every field that a row can be searched by or show, named "type/field" in lower case."""
    if xsi == "xnat:projectData":
        for project in archive.projects.values():
            if project.readable_by(user):
                fields = {"ID": project.id, "NAME": project.name, "DESCRIPTION": project.description}
                yield _named(xsi, {**fields, "INSERT_DATE": INSERTED})
    elif xsi == "xnat:subjectData":
        for subject in archive.subjects.values():
            if archive.subject_readable(subject, user):
                yield {**_subject_row(subject), f"{xsi}{_SHARES}".lower(): " ".join(subject.shares)}
    else:
        for experiment in archive.experiments.values():
            if experiment.xsi == xsi and archive.experiment_readable(experiment, user):
                subject = archive.subjects[experiment.subject]
                row = {**_subject_row(subject), **_named(xsi, _experiment_fields(experiment, subject))}
                yield {**row, f"{xsi}{_SHARES}".lower(): " ".join(experiment.shares)}


def _named(xsi: str, fields: dict[str, str]) -> Row:
    identifier = {"ID": fields.get("SESSION_ID") or fields.get("EXPT_ID") or fields.get("SUBJECT_ID") or ""}
    return {f"{xsi}/{name}".lower(): value for name, value in {**identifier, **fields}.items()}


def _subject_row(subject: Subject) -> Row:
    fields = {
        "SUBJECT_ID": subject.id,
        "SUBJECT_LABEL": subject.label,
        "PROJECT": subject.project,
        "GENDER_TEXT": subject.gender,
        "HANDEDNESS_TEXT": subject.handedness,
        "AGE": subject.age,
        "GROUP": subject.group,
        "INSERT_DATE": INSERTED,
    }
    return _named("xnat:subjectData", fields)


def _experiment_fields(experiment: Experiment, subject: Subject) -> dict[str, str]:
    session = experiment.xsi.endswith("SessionData")
    return {
        "SESSION_ID" if session else "EXPT_ID": experiment.id,
        "LABEL": experiment.label,
        "PROJECT": experiment.project,
        "SUBJECT_ID": subject.id,
        "SUBJECT_LABEL": subject.label,
        "DATE": experiment.date,
        "MODALITY": experiment.modality,
        "SCAN_COUNT": str(len(experiment.images.scans)) if session and experiment.keep else "",
        "INSERT_DATE": INSERTED,
        "INSERT_USER": "demo",
        "LAST_MODIFIED": experiment.last_modified,
        **{name.upper(): value for name, value in experiment.fields.items()},
    }
