"""From XNAT's listing rows to directories and files. Pure functions: no I/O, no state.

XNAT's REST calls a session an "experiment"; an image session is one that has scans. Rows are dicts of strings as the
server sent them (facts: every cell is a string, a null is "", column names come in either case).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatchcase

from xnatfs.config import TreeConfig
from xnatfs.model import Entry, Listing

log = logging.getLogger(__name__)

Row = Mapping[str, str]

SITE = "site"


def lower_keys(rows: Iterable[Mapping[str, object]]) -> list[Row]:
    """Rows with lower-case keys and text values: XNAT changes the case of aliases between versions and tables."""
    return [{key.lower(): "" if value is None else str(value) for key, value in row.items()} for row in rows]


def site_listing(projects: Iterable[Row], config: TreeConfig) -> Listing:
    """The projects that the account may see."""
    entries = tuple(
        Entry(
            name=row["id"],
            key=f"/data/projects/{row['id']}",
            is_dir=True,
            id=row["id"],
            listing=f"project:{row['id']}",
            xsi_type="xnat:projectData",
        )
        for row in projects
        if row.get("id") and (not config.projects or row["id"] in config.projects)
    )
    return Listing(SITE, {"/data/projects": entries})


def project_listing(project: str, subjects: Iterable[Row], experiments: Iterable[Row], config: TreeConfig) -> Listing:
    """A project's subjects and, below each, its experiments: shared ones under the label that the project gives them.

    An experiment shared without its subject names a subject that the subject list does not have: it is added, without
    ``resources``, which this project may not see.
    """
    top = f"/data/projects/{project}"
    by_subject: dict[str, list[Entry]] = {}
    labels: dict[str, Row] = {}
    for row in subjects:
        if subject := row.get("id", ""):
            labels[subject] = row
            by_subject[subject] = []
    listed = set(by_subject)
    for row in experiments:
        subject = row.get("subject_id", "")
        if not row.get("id") or not subject:
            continue
        labels.setdefault(subject, {"id": subject, "label": row.get("subject_label", "")})
        by_subject.setdefault(subject, []).append(_experiment(row, config))
    children: dict[str, tuple[Entry, ...]] = {}
    for subject, entries in by_subject.items():
        key = f"{top}/subjects/{subject}"
        own = (_resources_of(key, item_time_ns(labels[subject])),) if subject in listed else ()
        children[key] = (*own, *entries)
    children[top] = (
        _resources_of(top),
        *(
            _labelled(
                labels[subject],
                config,
                key=f"{top}/subjects/{subject}",
                listing=f"project:{project}",
                xsi_type="xnat:subjectData",
            )
            for subject in by_subject
        ),
    )
    return Listing(f"project:{project}", children)


def _experiment(row: Row, config: TreeConfig) -> Entry:
    xsi_type = row.get("xsitype", "")
    # Only a first guess that saves one request: a "/scans/" in its files makes any experiment a session.
    kind = "session" if xsi_type.endswith("SessionData") else "experiment"
    return _labelled(
        row, config, key=f"/data/experiments/{row['id']}", listing=f"{kind}:{row['id']}", xsi_type=xsi_type
    )


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
    return Entry(name="resources", key=key, is_dir=True, mtime_ns=mtime_ns, listing=f"resources:{owner}", reserved=True)


@dataclass(slots=True)
class _Folder:
    """A directory being filled: its own entry's fields and what is inside, keyed by raw name."""

    name: str
    key: str
    id: str = ""
    aliases: tuple[str, ...] = ()
    xsi_type: str = ""
    reserved: bool = False
    folders: dict[str, _Folder] = field(default_factory=dict)
    files: dict[str, Entry] = field(default_factory=dict)

    def folder(self, name: str, reserved: bool = False) -> _Folder:
        found = self.folders.get(name)
        if found is None:
            found = self.folders[name] = _Folder(name, f"{self.key}/{name}", reserved=reserved)
        return found

    def flatten(self, listing: str, mtime_ns: int, into: dict[str, tuple[Entry, ...]]) -> None:
        entries: list[Entry] = []
        for folder in self.folders.values():
            entries.append(
                Entry(
                    name=folder.name,
                    key=folder.key,
                    is_dir=True,
                    mtime_ns=mtime_ns,
                    id=folder.id,
                    listing=listing,
                    aliases=folder.aliases,
                    xsi_type=folder.xsi_type,
                    reserved=folder.reserved,
                )
            )
            folder.flatten(listing, mtime_ns, into)
        entries.extend(self.files.values())
        into[self.key] = tuple(entries)


def experiment_listing(
    listing: str,
    mtime_ns: int,
    scans: Iterable[Row] | None,
    assessors: Iterable[Row],
    resources: Iterable[Row],
    files: Iterable[Row],
    config: TreeConfig,
) -> Listing:
    """Everything below one experiment.

    Args:
        listing: ``session:<ID>`` or ``experiment:<ID>``.
        mtime_ns: The experiment's own time, given to all below it: the file lists carry none.
        scans: Its scans, or None when they were not asked for.
        assessors: Its assessors, ID and label.
        resources: ``resources?all=true``.
        files: ``files?all=true``.
    """
    experiment = listing.split(":", 1)[1]
    top = _Folder(experiment, f"/data/experiments/{experiment}")
    levels = {name: top.folder(name, reserved=True) for name in LEVELS} if scans is not None else {}
    top.folder("resources", reserved=True)
    if scans is not None:
        for row in scans:
            if row.get("id"):
                _scan(levels["scans"], row["id"], row.get("type", ""), row.get("xsitype", ""), config)
    for row in assessors:
        if row.get("id") and levels:
            _assessor(levels["assessors"], row, config)
    owners = _resource_folders(top, resources, config)
    _place_files(top, owners, files, mtime_ns, config)
    children: dict[str, tuple[Entry, ...]] = {}
    top.flatten(listing, mtime_ns, children)
    return Listing(listing, children)


LEVELS = ("scans", "resources", "assessors", "reconstructions")


def resources_listing(
    owner: str, mtime_ns: int, resources: Iterable[Row], files: Iterable[Row], config: TreeConfig
) -> Listing:
    """The resources of a project or subject. ``owner`` is its REST path."""
    top = _Folder("", owner)
    top.folder("resources", reserved=True)
    owners = _resource_folders(top, resources, config)
    _place_files(top, owners, files, mtime_ns, config)
    children: dict[str, tuple[Entry, ...]] = {}
    top.flatten(f"resources:{owner}", mtime_ns, children)
    del children[owner]  # belongs to the project's own listing
    return Listing(f"resources:{owner}", children)


def _scan(scans: _Folder, identifier: str, scan_type: str, xsi_type: str, config: TreeConfig) -> _Folder | None:
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
            xsi_type=xsi_type or "xnat:imageScanData",
        )
    return found


def _assessor(assessors: _Folder, row: Row, config: TreeConfig) -> _Folder:
    identifier = row["id"]
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
        )
    return found


def _resource_folders(top: _Folder, resources: Iterable[Row], config: TreeConfig) -> dict[str, _Folder | None]:
    """Make a folder for each resource, empty ones too; by numeric id, None for those that the user filtered out."""
    folders: dict[str, _Folder | None] = {}
    for row in resources:
        identifier = row.get("xnat_abstractresource_id", "")
        if not identifier:
            continue
        owner = _owner(top, row.get("category", ""), row.get("cat_id", ""), row.get("cat_desc", ""), config)
        folders[identifier] = None if owner is None else _resource(owner, identifier, row.get("label", ""), config)
    return folders


def _owner(top: _Folder, category: str, identifier: str, description: str, config: TreeConfig) -> _Folder | None:
    """What a resource belongs to, made if the lists of scans and assessors did not have it."""
    if category == "scans" and identifier:
        return _scan(top.folder("scans", reserved=True), identifier, description, "", config)
    if category == "assessors" and identifier:
        return _assessor(top.folder("assessors", reserved=True), {"id": identifier, "xsitype": description}, config)
    if category == "reconstructions" and identifier:
        found = top.folder("reconstructions", reserved=True).folder(identifier)
        found.id = identifier
        return found
    return top.folder("resources", reserved=True)


def _resource(owner: _Folder, identifier: str, label: str, config: TreeConfig) -> _Folder | None:
    if config.resources and not any(fnmatchcase(label, pattern) for pattern in config.resources):
        return None
    found = owner.folders.get(f"resource {identifier}")
    if found is None:
        found = owner.folders[f"resource {identifier}"] = _Folder(
            label or f"resource-{identifier}", f"{owner.key}/{identifier}", id=identifier
        )
    return found


def _place_files(
    top: _Folder,
    folders: dict[str, _Folder | None],
    files: Iterable[Row],
    mtime_ns: int,
    config: TreeConfig,
) -> None:
    for row in files:
        uri = row.get("uri", "")
        prefix, found, path = uri.partition("/files/")
        if not found or not path:
            log.warning("a file without a path in the listing of %s is left out", top.key)
            continue
        identifier = row.get("cat_id") or prefix.rsplit("/", 1)[-1]
        if identifier not in folders:
            category, owner = _owner_of_uri(prefix)
            folder = _owner(top, category, owner, "", config)
            folders[identifier] = (
                None if folder is None else _resource(folder, identifier, row.get("collection", ""), config)
            )
        target = folders[identifier]
        if target is not None:
            _place(target, path, _file(uri, path, row, mtime_ns))


def _owner_of_uri(prefix: str) -> tuple[str, str]:
    """(category, ID) in ``/data/experiments/E/scans/4/resources/33``; ("", "") at the session's own level."""
    parts = prefix.split("/")
    for category in ("scans", "assessors", "reconstructions"):
        if category in parts[4:]:
            at = parts.index(category, 4)
            if at + 1 < len(parts):
                return category, parts[at + 1]
    return "", ""


def _place(folder: _Folder, path: str, entry: Entry) -> None:
    *directories, name = path.split("/")
    for directory in directories:
        folder = folder.folder(directory)
    if name in folder.files:
        # A GET serves the first entry of a path that stands twice in a catalog (facts 3.2): show that one.
        log.debug("%s stands twice in its catalog", entry.key)
        return
    folder.files[name] = entry


def _file(uri: str, path: str, row: Row, mtime_ns: int) -> Entry:
    size = parse_size(row.get("size", ""))
    digest = row.get("digest", "").lower()
    if len(digest) != 32 or not all(letter in "0123456789abcdef" for letter in digest):
        digest = ""
    return Entry(
        name=path.rsplit("/", 1)[-1],
        key=uri,
        is_dir=False,
        size=size,
        mtime_ns=mtime_ns,
        version=f"{'' if size is None else size}:{digest}",
        digest=digest,
    )


def parse_size(text: str) -> int | None:
    """A size cell in bytes, or None when it is blank, negative or no number: then the file itself is asked."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


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
