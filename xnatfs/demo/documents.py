"""Item documents: what XNAT says about one project, subject or experiment, as JSON or XML, and a resource's catalog.

The element and field names are XNAT's data model; the text around them is ours. No HTTP.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from xml.sax.saxutils import quoteattr

from xnatfs.demo.records import (
    Archive,
    Assessor,
    Experiment,
    File,
    Holder,
    Project,
    Resource,
    Scan,
    Subject,
)
from xnatfs.demo.selection import Selection

Item = dict[str, object]
START_DATE = "Tue Mar 05 10:20:30 UTC 2024"
NAMESPACES = (
    'xmlns:xnat="http://nrg.wustl.edu/xnat" xmlns:nt="http://nrg.wustl.edu/nt" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
)
_DOCUMENT_NAMES = {
    "xnat:projectData": "xnat:Project",
    "xnat:subjectData": "xnat:Subject",
    "xnat:mrSessionData": "xnat:MRSession",
    "xnat:ctSessionData": "xnat:CTSession",
    "xnat:petSessionData": "xnat:PETSession",
    "xnat:subjectVariablesData": "xnat:SubjectVariables",
    "nt:scores": "nt:NTScores",
    "xnat:qcManualAssessorData": "xnat:QCManualAssessment",
    "xnat:qcAssessmentData": "xnat:QCAssessment",
}


def item_of(archive: Archive, selection: Selection) -> Item:
    """The deepest record that a selection names."""
    experiment = selection.experiment
    if experiment is not None:
        if selection.items:
            thing = selection.items[0]
            if isinstance(thing, Scan):
                return _scan(experiment, thing)
            if isinstance(thing, Assessor):
                return _assessor(experiment, thing)
        return _experiment(archive, experiment)
    if selection.subject is not None:
        return _subject(archive, selection.subject)
    assert selection.project is not None
    return _project(selection.project)


def to_json(item: Item) -> bytes:
    return json.dumps({"items": [item]}, ensure_ascii=False, separators=(",", ":")).encode()


def _item(xsi: str, fields: dict[str, str], children: Iterable[tuple[str, list[Item]]] = ()) -> Item:
    return {
        "children": [{"field": name, "items": items} for name, items in children if items],
        "data_fields": {name: value for name, value in fields.items() if value != ""},
        "meta": {"create_event_id": 1, "xsi:type": xsi, "isHistory": False, "start_date": START_DATE},
    }


def _resources(resources: Iterable[Resource]) -> list[Item]:
    return [
        _item(
            "xnat:resourceCatalog",
            {
                "xnat_abstractresource_id": str(r.id),
                "label": r.label,
                "URI": f"/data/sample/archive/{r.id}/catalog.xml",
                "file_count": str(len(r.files)),
                "file_size": str(sum(int(f.listed_size) for f in r.files)),
            },
        )
        for r in resources
    ]


def _shares(shares: dict[str, str]) -> list[Item]:
    return [_item("xnat:projectParticipant", {"project": p, "label": label}) for p, label in shares.items()]


def _project(project: Project) -> Item:
    fields = {
        "ID": project.id,
        "secondary_ID": project.secondary or project.id,
        "name": project.name,
        "description": project.description,
    }
    pi = [_item("xnat:investigatorData", {"firstname": project.pi[0], "lastname": project.pi[1]})]
    return _item(
        "xnat:projectData",
        fields,
        [("PI", pi if any(project.pi) else []), ("resources/resource", _resources(project.resources))],
    )


def _subject(archive: Archive, subject: Subject) -> Item:
    fields = {"ID": subject.id, "project": subject.project, "label": subject.label, "group": subject.group}
    person = {"gender": subject.gender, "yob": subject.yob, "handedness": subject.handedness, "age": subject.age}
    experiments = [_experiment(archive, e) for e in archive.experiments.values() if e.subject == subject.id]
    children = [
        ("experiments/experiment", experiments),
        ("demographics", [_item("xnat:demographicData", person)] if any(person.values()) else []),
        ("sharing/share", _shares(subject.shares)),
        ("resources/resource", _resources(subject.resources)),
    ]
    return _item("xnat:subjectData", fields, children)


def _experiment(archive: Archive, experiment: Experiment) -> Item:
    images = experiment.images
    fields = {
        "ID": experiment.id,
        "project": experiment.project,
        "label": experiment.label,
        "date": experiment.date,
        "subject_ID": experiment.subject,
        "modality": experiment.modality,
        "dcmPatientId": archive.subjects[experiment.subject].label if experiment.modality else "",
        **experiment.fields,
    }
    children = [
        ("scans/scan", [_scan(experiment, s) for s in images.scans]),
        ("assessors/assessor", [_assessor(experiment, a) for a in images.assessors]),
        (
            "reconstructions/reconstructedImage",
            [
                _item("xnat:reconstructedImageData", {"ID": r.id, "type": r.type, "baseScanType": r.base_scan_type})
                for r in images.reconstructions
            ],
        ),
        ("sharing/share", _shares(experiment.shares)),
        ("resources/resource", _resources(images.resources)),
    ]
    return _item(experiment.xsi, fields, children)


def _scan(experiment: Experiment, scan: Scan) -> Item:
    fields = {
        "xnat_imagescandata_id": str(scan.pk),
        "image_session_ID": experiment.id,
        "ID": scan.id,
        "type": scan.type,
        "UID": scan.uid,
        "quality": scan.quality,
        "note": scan.note,
        "series_description": scan.series_description,
        "frames": scan.frames,
    }
    return _item(scan.xsi, fields, [("file", _resources(scan.resources))])


def _assessor(experiment: Experiment, assessor: Assessor) -> Item:
    fields = {
        "ID": assessor.id,
        "project": experiment.project,
        "label": assessor.label,
        "date": assessor.date,
        "imageSession_ID": experiment.id,
    }
    out = [r for r in assessor.resources if r.side != "in"]
    inside = [r for r in assessor.resources if r.side == "in"]
    return _item(assessor.xsi, fields, [("out/file", _resources(out)), ("in/file", _resources(inside))])


def to_xml(item: Item) -> bytes:
    """An item in XNAT's XML shape: attributes for identifiers, elements for the rest."""
    xsi = _meta(item)
    tag = _DOCUMENT_NAMES.get(xsi, xsi)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{_element(item, tag, NAMESPACES)}\n'.encode()


_ATTRIBUTES = {
    "ID",
    "project",
    "label",
    "secondary_ID",
    "modality",
    "type",
    "UID",
    "group",
    "URI",
    "file_count",
    "file_size",
}
_HIDDEN = {"xnat_abstractresource_id", "xnat_imagescandata_id"}


def _meta(item: Item) -> str:
    meta = item["meta"]
    assert isinstance(meta, dict)
    return str(meta["xsi:type"])


def _element(item: Item, tag: str, extra: str = "") -> str:
    fields, children = item["data_fields"], item["children"]
    assert isinstance(fields, dict)
    assert isinstance(children, list)
    attributes = "".join(f" {k}={quoteattr(v)}" for k, v in fields.items() if k in _ATTRIBUTES)
    hidden = "".join(f"<!--hidden_fields[{k}={quoteattr(v)}]-->" for k, v in fields.items() if k in _HIDDEN)
    inner = "".join(
        f"<xnat:{k}>{_escape(v)}</xnat:{k}>" for k, v in fields.items() if k not in _ATTRIBUTES and k not in _HIDDEN
    )
    for child in children:
        outer, _, name = str(child["field"]).partition("/")
        parts = [_element(c, f"xnat:{name or outer}", f'xsi:type="{_meta(c)}"') for c in child["items"]]
        body = "\n".join(parts)
        inner += f"\n<xnat:{outer}>{body}</xnat:{outer}>" if name else f"\n{body}"
    return f"<{tag} {extra}{attributes}>{hidden}{inner}</{tag}>"


def _escape(value: str) -> str:
    return re.sub("[<>&]", lambda m: {"<": "&lt;", ">": "&gt;", "&": "&amp;"}[m.group()], value)


def catalog_xml(holder: Holder) -> bytes:
    """The catalog of one resource: the only place with a time for each file."""
    entries = "\n".join(_entry(file) for file in holder.resource.files)
    kind = "DCMCatalog" if holder.resource.format == "DICOM" else "Catalog"
    namespaces = 'xmlns:cat="http://nrg.wustl.edu/catalog" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<cat:{kind} ID="{holder.resource.id}" {namespaces}>\n'
        f"<cat:entries>\n{entries}\n</cat:entries>\n</cat:{kind}>\n"
    ).encode()


def _entry(file: File) -> str:
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(file.mtime_s))
    uri, name = quoteattr(file.path), quoteattr(file.name)
    digest = f' digest="{file.listed_digest}"' if file.listed_digest else ""
    times = f'createdTime="{when}" modifiedTime="{when}" createdBy="demo"'
    return (
        f"<cat:entry ID={uri} URI={uri} name={name}{digest} {times}>"
        f'<cat:metaFields><cat:metaField name="SIZE">{file.listed_size}</cat:metaField></cat:metaFields></cat:entry>'
    )
