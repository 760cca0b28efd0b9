"""From XNAT's listing rows to directories and files. Pure functions: no I/O, no state.

XNAT's REST calls a session an "experiment"; an image session is one that has scans. Rows are dicts of strings as the
server sent them (facts: every cell is a string, a null is "", column names come in either case).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from urllib.parse import parse_qsl, urlencode
from xml.etree import ElementTree

from xnatfs.archives.documents import (
    document_key,
    made,
    row_json,
    table_csv,
    unmade,
)
from xnatfs.archives.xnat.files import FileRun, Files, file_runs, required
from xnatfs.columns import Children, Columns
from xnatfs.config import TreeConfig
from xnatfs.model import Entry, Listing

log = logging.getLogger(__name__)

MAX_DEPTH = 200
"""Directories that one file may lie in, inside its resource; what is left of its path becomes its name. Paths that the
system takes (4,096 bytes) could hold ten times as many, but no catalog of people does."""

SITE = "site"

RESOURCE_NUMBER = "xnat_abstractresource_id"
"""The column, and the field of documents, that tells resources apart; unique on a site."""

SUBJECT_COLUMNS = (
    "label",
    "ID",
    "project",
    "group",
    "gender",
    "handedness",
    "age",
    "yob",
    "insert_date",
    "last_modified",
)
EXPERIMENT_COLUMNS = (
    "label",
    "ID",
    "project",
    "subject_label",
    "subject_ID",
    "xsiType",
    "date",
    "time",
    "visit",
    "insert_date",
    "last_modified",
)
"""Generic ones only: a column of one data type would drop the rows of all others (QueryOrganizerResource)."""


class Row(dict[str, str]):
    """A row with lower-case keys and text values: XNAT changes the case of aliases between versions and tables.

    Attributes:
        sent: The row as the server sent it.
    """

    __slots__ = ("sent",)

    def __init__(self, sent: Mapping[str, object]) -> None:
        texts = [value if type(value) is str else "" if value is None else str(value) for value in sent.values()]
        super().__init__(zip(_lower(tuple(sent)), texts, strict=True))
        self.sent = sent


@functools.lru_cache(maxsize=256)
def _lower(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Column names in lower case: the rows of a table have the same ones."""
    return tuple(key.lower() for key in keys)


def listing_id(kind: str, **fields: str) -> str:
    """The id of a listing: what it is about, and what must be known to ask for it again."""
    return f"{kind}:{urlencode(fields)}"


def parse_listing_id(text: str) -> tuple[str, dict[str, str]]:
    kind, _, fields = text.partition(":")
    return kind, dict(parse_qsl(fields, keep_blank_values=True))


class _Listing:
    """A listing being made, with the documents that come for free with it."""

    def __init__(self, identifier: str) -> None:
        self.id = identifier
        self.children: dict[str, Columns | tuple[Entry, ...]] = {}
        self.documents: dict[str, bytes] = {}

    def item(self, owner: str, row: Row, mtime_ns: int, xsi_type: str) -> None:
        """Fill the ``.xnat`` of the item ``owner``: its row as JSON, free; its XML document, fetched when wanted."""
        key = document_key(self.id, f"item.json {owner}")
        data = self.documents[key] = row_json(row.sent)
        self.children[f"{owner}/.xnat"] = (
            made("item.json", key, data, mtime_ns, xsi_type),
            unmade("item.xml", document_key(self.id, f"item.xml {owner}"), mtime_ns, xsi_type),
        )

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Row], mtime_ns: int) -> Entry:
        """A csv table of rows that are at hand."""
        key = document_key(self.id, name)
        data = self.documents[key] = table_csv(columns, rows)
        return made(name, key, data, mtime_ns)

    def finished(self) -> tuple[Listing, dict[str, bytes]]:
        return Listing(self.id, Children(self.children)), self.documents


def _xnat_of(owner: str, listing: str) -> Entry:
    """The hidden ``.xnat`` directory of an item, whose content the listing ``listing`` holds."""
    return Entry(name=".xnat", key=f"{owner}/.xnat", is_dir=True, listing=listing, hidden=True, reserved=True)


def site_listing(projects: Iterable[Row], config: TreeConfig) -> tuple[Listing, dict[str, bytes]]:
    """The projects that the account may see."""
    listing = _Listing(SITE)
    entries = []
    for row in projects:
        project = required(row, "id")
        if not project or (config.projects and project not in config.projects):
            continue
        key = f"/data/projects/{project}"
        listing.item(key, row, 0, "xnat:projectData")
        entries.append(
            Entry(
                name=project,
                key=key,
                is_dir=True,
                id=project,
                listing=listing_id("project", id=project),
                xsi_type="xnat:projectData",
            )
        )
    listing.children["/data/projects"] = tuple(entries)
    return listing.finished()


def project_listing(
    project: str, subjects: Sequence[Row], experiments: Sequence[Row], config: TreeConfig
) -> tuple[Listing, dict[str, bytes]]:
    """A project's tables, its subjects and, below each, its experiments: shared ones under the project's own label.

    An experiment shared without its subject names a subject that the subject list does not have: it is added, without
    ``resources``, which this project may not see.
    """
    top = f"/data/projects/{project}"
    listing = _Listing(listing_id("project", id=project))
    by_subject: dict[str, list[Entry]] = {}
    labels: dict[str, Row] = {}
    for row in subjects:
        if subject := required(row, "id"):
            labels[subject] = row
            by_subject[subject] = []
    listed = set(by_subject)
    for row in experiments:
        subject = required(row, "subject_id")
        if not required(row, "id") or not subject:
            log.warning("an experiment of %s that names no ID or no subject is left out", project)
            continue
        labels.setdefault(subject, Row({"ID": subject, "label": row.get("subject_label", "")}))
        by_subject.setdefault(subject, []).append(_experiment(listing, project, row, config))
    entries = []
    for subject, inside in by_subject.items():
        key, row = f"{top}/subjects/{subject}", labels[subject]
        mtime_ns = item_time_ns(row)
        own = (_resources_of(key, mtime_ns),) if subject in listed else ()
        listing.children[key] = (_xnat_of(key, listing.id), *own, *inside)
        listing.item(key, row, mtime_ns, "xnat:subjectData")
        entries.append(_labelled(row, config, key=key, listing=listing.id, xsi_type="xnat:subjectData"))
    newest_ns = max((item_time_ns(row) for row in (*subjects, *experiments)), default=0)
    listing.children[top] = (
        _xnat_of(top, SITE),
        listing.table("subjects.csv", SUBJECT_COLUMNS, subjects, newest_ns),
        listing.table("experiments.csv", EXPERIMENT_COLUMNS, experiments, newest_ns),
        Entry("tables", f"{top}/tables", True, mtime_ns=newest_ns, listing=listing.id, reserved=True),
        _resources_of(top, newest_ns),
        *entries,
    )
    types = {row.get("xsitype", "") for row in experiments} | ({"xnat:subjectData"} if subjects else set())
    listing.children[f"{top}/tables"] = tuple(
        unmade(f"{xsi_type}.csv", document_key(listing.id, f"search {xsi_type}"), newest_ns, xsi_type)
        for xsi_type in sorted(types - {""})
    )
    return listing.finished()


def _experiment(listing: _Listing, project: str, row: Row, config: TreeConfig) -> Entry:
    xsi_type = row.get("xsitype", "")
    below = listing_id("experiment", id=row["id"], project=project, label=row.get("label", "") or row["id"])
    listing.item(experiment_in(project, row["id"]), row, item_time_ns(row), xsi_type)
    return _labelled(row, config, key=f"/data/experiments/{row['id']}", listing=below, xsi_type=xsi_type)


def experiment_in(project: str, experiment: str) -> str:
    """Where an experiment's ``.xnat`` hangs: its row has the label of the project that lists it."""
    return f"/data/projects/{project}/experiments/{experiment}"


def item_path(owner: str) -> str:
    """The REST path of the item that a ``.xnat`` hangs below."""
    parts = owner.split("/")
    return f"/data/experiments/{parts[5]}" if parts[2] == "projects" and parts[4:5] == ["experiments"] else owner


def _labelled(row: Row, config: TreeConfig, *, key: str, listing: str, xsi_type: str) -> Entry:
    """A directory shown by label and found by ID, or the other way round."""
    identifier = row["id"]
    label = row.get("label", "") or identifier
    name, alias = (identifier, label) if config.names == "id" else (label, identifier)
    return Entry(
        name=name,
        key=key,
        is_dir=True,
        mtime_ns=item_time_ns(row),
        id=identifier,
        listing=listing,
        aliases=(alias,) if alias != name else (),
        xsi_type=xsi_type,
    )


def _resources_of(owner: str, mtime_ns: int = 0) -> Entry:
    """The ``resources`` directory of a project or subject: a listing of its own, asked for when it is opened."""
    key = f"{owner}/resources"
    listing = listing_id("resources", owner=owner)
    return Entry(name="resources", key=key, is_dir=True, mtime_ns=mtime_ns, listing=listing, reserved=True)


@dataclass(slots=True)
class _Folder:
    """A directory being filled: its own entry's fields and what is inside, keyed by raw name."""

    name: str
    key: str
    id: str = ""
    aliases: tuple[str, ...] = ()
    xsi_type: str = ""
    reserved: bool = False
    row: Row | None = None
    has_inputs: bool = False
    listing: str = ""  # where its children are asked for, when they are not at hand
    folders: dict[str, _Folder] = field(default_factory=dict)
    files: Files = field(default_factory=Files)

    def folder(self, name: str, reserved: bool = False) -> _Folder:
        found = self.folders.get(name)
        if found is None:
            found = self.folders[name] = _Folder(name, f"{self.key}/{name}", reserved=reserved)
        return found

    def flatten(self, listing: _Listing, mtime_ns: int) -> None:
        entries: list[Entry] = []
        if self.row is not None:
            entries.append(_xnat_of(self.key, listing.id))
            listing.item(self.key, self.row, mtime_ns, self.xsi_type)
        if self.has_inputs:
            inputs = listing_id("inputs", owner=self.key)
            entries.append(Entry("in", f"{self.key}/in", True, mtime_ns=mtime_ns, listing=inputs, reserved=True))
        for folder in self.folders.values():
            entries.append(
                Entry(
                    name=folder.name,
                    key=folder.key,
                    is_dir=True,
                    mtime_ns=mtime_ns,
                    id=folder.id,
                    listing=folder.listing or listing.id,
                    aliases=folder.aliases,
                    xsi_type=folder.xsi_type,
                    reserved=folder.reserved,
                )
            )
            if not folder.listing:
                folder.flatten(listing, mtime_ns)
        if not self.files:
            listing.children[self.key] = tuple(entries)
            return
        files = self.files.columns(mtime_ns)
        listing.children[self.key] = (*entries, *files.entries()) if entries else files


@dataclass(slots=True)
class Item:
    """One item of an item document (facts 7): its fields, and the items below it by field (``scans/scan``, ...)."""

    row: Row
    children: dict[str, list[Item]]

    @staticmethod
    def parsed(document: object) -> Item | None:
        """None when it is no item. The data type, which is not among the fields, comes in as ``xsiType``."""
        if not isinstance(document, dict) or not isinstance(document.get("data_fields"), dict):
            return None
        meta, children = document.get("meta"), document.get("children")
        xsi_type = str(meta.get("xsi:type", "")) if isinstance(meta, dict) else ""
        found: dict[str, list[Item]] = {}
        for child in children if isinstance(children, list) else ():
            if isinstance(child, dict) and isinstance(child.get("items"), list):
                items = [item for one in child["items"] if (item := Item.parsed(one)) is not None]
                found.setdefault(str(child.get("field", "")), []).extend(items)
        return Item(Row({**document["data_fields"], "xsiType": xsi_type}), found)

    def below(self, field: str) -> list[Item]:
        return [item for name, items in self.children.items() if name.partition("/")[0] == field for item in items]

    def resources(self) -> set[str]:
        """The numbers of all resources that the document names, at every level."""
        found: set[str] = set()
        for items in self.children.values():
            for item in items:
                number = item.row.get(RESOURCE_NUMBER, "")
                found |= item.resources() | ({number} if number else set())
        return found


def experiment_listing(
    identifier: str,
    mtime_ns: int,
    item: Item,
    resources: Iterable[Row],
    files: Iterable[FileRun] | None,
    config: TreeConfig,
) -> tuple[Listing, dict[str, bytes]]:
    """Everything below one experiment.

    Args:
        identifier: The listing's id, with the ID, the project and the project's label.
        mtime_ns: The experiment's own time, given to all below it: the file lists carry none.
        item: Its document.
        resources: ``resources?all=true``.
        files: ``files?all=true``; None when the server could not tell: each resource is then asked when it is opened.
    """
    fields = parse_listing_id(identifier)[1]
    experiment, project = fields["id"], fields["project"]
    listing = _Listing(identifier)
    top = _Folder(experiment, f"/data/experiments/{experiment}")
    if item.row["xsitype"].endswith("SessionData") or item.below("scans"):
        for name in LEVELS:
            top.folder(name, reserved=True)
    top.folder("resources", reserved=True)
    _items_below(top, item, config)
    owners = _resource_folders(top, resources, config)
    if files is None:
        for folder in owners.values():
            if folder is not None:
                folder.listing = listing_id("files", owner=folder.key)
    else:
        _place_files(top, owners, files, config)
    top.flatten(listing, mtime_ns)
    inside = experiment_in(project, experiment)
    own: tuple[Entry, ...] = (_xnat_of(inside, listing_id("project", id=project)),)
    if "scans" not in top.folders:
        key = document_key(identifier, f"item.xml {inside}")
        own = (*own, unmade(f"{fields['label']}.xml", key, mtime_ns, item.row["xsitype"]))
    inside_top = listing.children[top.key]
    listing.children[top.key] = (*own, *(inside_top.entries() if isinstance(inside_top, Columns) else inside_top))
    return listing.finished()


def rows_by_experiment(
    experiments: Mapping[str, Collection[str]], files: Iterable[FileRun], resources: Iterable[Row]
) -> dict[str, tuple[list[FileRun], list[Row]]] | None:
    """The rows of several experiments, taken apart: ID -> (files, resources). None when a row is not surely of one.

    A resource's row names its scan, not its experiment; its files' URIs do, and so does the experiment's document. An
    experiment without files is among them only when its document has no resource either, and those of the others do
    name theirs: a server that left it out would look the same.

    Args:
        experiments: ID -> the numbers of the resources in its document.
    """
    told: dict[str, tuple[list[FileRun], list[Row]]] = {}
    owners: dict[str, str] = {}
    for run in files:
        parts = run.prefix.split("/")
        if not any(run.paths) or parts[:3] != ["", "data", "experiments"] or len(parts) < 4:
            return None
        if parts[3] not in experiments:
            return None
        told.setdefault(parts[3], ([], []))[0].append(run)
        owners[run.resource or parts[-1]] = parts[3]
    named = {resource: experiment for experiment, held in experiments.items() for resource in held}
    if told and all(named.get(resource) == owner for resource, owner in owners.items()):
        told.update(
            {experiment: ([], []) for experiment, held in experiments.items() if not held and experiment not in told}
        )
    for row in resources:
        identifier = row.get(RESOURCE_NUMBER, "")
        owner = owners.get(identifier) or named.get(identifier)
        if owner is None:
            return None
        if owner in told:
            told[owner][1].append(row)
    return told


def _items_below(top: _Folder, item: Item, config: TreeConfig) -> None:
    """Folders for scans, assessors and reconstructions, whether they have files or not."""
    for one in item.below("scans"):
        if one.row.get("id"):
            _scan(top.folder("scans", reserved=True), one.row["id"], one.row, config)
    for one in item.below("assessors"):
        if one.row.get("id"):
            found = _assessor(top.folder("assessors", reserved=True), one.row["id"], one.row, config)
            found.has_inputs = bool(one.below("in"))
    for one in item.below("reconstructions"):
        if one.row.get("id"):
            found = _reconstruction(top.folder("reconstructions", reserved=True), one.row["id"], one.row)
            found.has_inputs = bool(one.below("in"))


LEVELS = ("scans", "resources", "assessors", "reconstructions")


def resources_listing(
    identifier: str, mtime_ns: int, resources: Iterable[Row], files: Iterable[FileRun], config: TreeConfig
) -> Listing:
    """The resources of a project or subject."""
    owner = parse_listing_id(identifier)[1]["owner"]
    listing = _Listing(identifier)
    top = _Folder("", owner)
    top.folder("resources", reserved=True)
    owners = _resource_folders(top, resources, config)
    _place_files(top, owners, files, config)
    top.flatten(listing, mtime_ns)
    del listing.children[owner]  # belongs to the project's own listing
    return listing.finished()[0]


def files_listing(identifier: str, mtime_ns: int, files: Iterable[FileRun]) -> Listing:
    """The files of one resource, asked for by itself."""
    owner = parse_listing_id(identifier)[1]["owner"]
    listing = _Listing(identifier)
    top = _Folder("", owner)
    for run in files:
        _place(top, run)
    top.flatten(listing, mtime_ns)
    return listing.finished()[0]


def catalog_files(resource: str, document: bytes) -> list[FileRun]:
    """The entries of a resource's catalog XML as those of a file list. ``resource`` is its REST path.

    Raises:
        ValueError: not a catalog.
    """
    if b"<!DOCTYPE" in document or b"<!ENTITY" in document:
        raise ValueError("a document type or entities")  # no catalog has them, and they are how XML bombs are made
    try:
        root = ElementTree.fromstring(document)  # noqa: S314  # without entities there is nothing to expand
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    if not root.tag.endswith("Catalog"):
        raise ValueError(f"a {root.tag} document")
    rows: list[Mapping[str, object]] = []
    for node in root.iter():
        uri = node.get("URI")
        if node.tag.endswith("}entry") and uri:
            sizes = [field.text for field in node.iter() if field.get("name") in ("SIZE", "size_in_bytes")]
            rows.append(
                {"URI": f"{resource}/files/{uri}", "Size": sizes[0] if sizes else "", "digest": node.get("digest")}
            )
    return file_runs(rows)


def inputs_listing(identifier: str, mtime_ns: int, files: Iterable[FileRun], config: TreeConfig) -> Listing:
    """What went into an assessor or reconstruction: the ``in`` side of its resources."""
    owner = parse_listing_id(identifier)[1]["owner"]
    listing = _Listing(identifier)
    top = _Folder("in", f"{owner}/in")
    runs = list(files)
    folders: dict[str, _Folder | None] = {}
    for run in runs:
        resource = run.resource or run.prefix.rsplit("/", 1)[-1]
        folders[resource] = _resource(top, resource, run.label, config)
    _place_files(top, folders, runs, config)
    top.flatten(listing, mtime_ns)
    return listing.finished()[0]


def _scan(scans: _Folder, identifier: str, row: Row, config: TreeConfig) -> _Folder | None:
    """The folder of a scan; None for one whose type the user filtered out."""
    scan_type = row.get("type", "")
    if config.scan_types and not any(fnmatchcase(scan_type, pattern) for pattern in config.scan_types):
        return None
    found = scans.folders.get(identifier)
    if found is None:
        name = f"{identifier}-{scan_type}" if scan_type and config.names != "id" else identifier
        found = scans.folders[identifier] = _Folder(
            name,
            f"{scans.key}/{identifier}",
            id=identifier,
            aliases=(identifier,) if identifier != name else (),
            xsi_type=row.get("xsitype", "") or "xnat:imageScanData",
            row=row,
        )
    return found


def _assessor(assessors: _Folder, identifier: str, row: Row, config: TreeConfig) -> _Folder:
    found = assessors.folders.get(identifier)
    if found is None:
        label = row.get("label", "") or identifier
        name, alias = (identifier, label) if config.names == "id" else (label, identifier)
        found = assessors.folders[identifier] = _Folder(
            name,
            f"{assessors.key}/{identifier}",
            id=identifier,
            aliases=(alias,) if alias != name else (),
            xsi_type=row.get("xsitype", ""),
            row=row,
        )
    return found


def _reconstruction(reconstructions: _Folder, identifier: str, row: Row) -> _Folder:
    found = reconstructions.folder(identifier)
    if not found.id:
        found.id = identifier
        found.xsi_type = "xnat:reconstructedImageData"
        found.row = row
    return found


def _resource_folders(top: _Folder, resources: Iterable[Row], config: TreeConfig) -> dict[str, _Folder | None]:
    """Make a folder for each resource, empty ones too; by numeric id, None for those that the user filtered out."""
    folders: dict[str, _Folder | None] = {}
    for row in resources:
        identifier = required(row, RESOURCE_NUMBER)
        if not identifier:
            continue
        owner = _owner(top, row.get("category", ""), row.get("cat_id", ""), row.get("cat_desc", ""), config)
        folders[identifier] = None if owner is None else _resource(owner, identifier, row.get("label", ""), config)
    return folders


def _owner(top: _Folder, category: str, identifier: str, description: str, config: TreeConfig) -> _Folder | None:
    """What a resource belongs to, made if the experiment's document did not have it."""
    if not identifier:
        return top.folder("resources", reserved=True)
    row = Row({"ID": identifier, "type": description})
    if category == "scans":
        return _scan(top.folder("scans", reserved=True), identifier, row, config)
    if category == "assessors":
        return _assessor(top.folder("assessors", reserved=True), identifier, row, config)
    if category == "reconstructions":
        return _reconstruction(top.folder("reconstructions", reserved=True), identifier, row)
    return top.folder("resources", reserved=True)


def _resource(owner: _Folder, identifier: str, label: str, config: TreeConfig) -> _Folder | None:
    if config.resources and not any(fnmatchcase(label, pattern) for pattern in config.resources):
        return None
    found = owner.folders.get(f"resource {identifier}")
    if found is None:
        above = owner.key if owner.key.endswith("/resources") else f"{owner.key}/resources"
        name = label or f"resource-{identifier}"
        found = owner.folders[f"resource {identifier}"] = _Folder(name, f"{above}/{identifier}", id=identifier)
    return found


def _place_files(
    top: _Folder, folders: dict[str, _Folder | None], files: Iterable[FileRun], config: TreeConfig
) -> None:
    for run in files:
        if not any(run.paths):
            log.warning("a file without a path in the listing of %s is left out", top.key)
        elif (target := _target(top, folders, run, config)) is not None:
            _place(target, run)


def _target(top: _Folder, folders: dict[str, _Folder | None], run: FileRun, config: TreeConfig) -> _Folder | None:
    """The folder of the resource that files are in; None for one that the user filtered out."""
    identifier = run.resource or run.prefix.rsplit("/", 1)[-1]
    if identifier not in folders:
        category, owner = _owner_of_uri(run.prefix)
        folder = _owner(top, category, owner, "", config)
        folders[identifier] = None if folder is None else _resource(folder, identifier, run.label, config)
    return folders[identifier]


def _owner_of_uri(prefix: str) -> tuple[str, str]:
    """(category, ID) in ``/data/experiments/E/scans/4/resources/33``; ("", "") at the session's own level."""
    parts = prefix.split("/")
    for category in ("scans", "assessors", "reconstructions"):
        if category in parts[4:]:
            at = parts.index(category, 4)
            if at + 1 < len(parts):
                return category, parts[at + 1]
    return "", ""


def _place(folder: _Folder, run: FileRun) -> None:
    """Put files into a resource's folder and those below it."""
    if folder.files.add_all(run):
        return
    for path, uri, size, digest in zip(run.paths, run.uris, run.sizes, run.digests, strict=True):
        if not path:
            log.warning("a file without a path in the listing of %s is left out", folder.key)
            continue
        *directories, name = path.split("/", MAX_DEPTH)
        into = folder
        for directory in directories:
            into = into.folder(directory)
        into.files.add(name, uri, size, digest)


def item_time_ns(row: Row) -> int:
    """When an item was entered, else its date; 0 when neither says. The server's local time, taken as UTC.

    Not ``last_modified``: that moves with every edit of a field, and a file's time must not move while its bytes stay.
    """
    for column in ("insert_date", "date"):
        text = row.get(column, "")
        for form in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d"):
            try:
                moment = datetime.strptime(text.split(".", 1)[0], form).replace(tzinfo=timezone.utc)
            except ValueError:
                continue
            return int(moment.timestamp()) * 1_000_000_000
    return 0
