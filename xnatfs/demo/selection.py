"""What a /data path names: XNAT's routes, with its prefix matching, lists of IDs and escapes, turned into records.

No rendering, no headers. Paths come in as they were sent, not percent-decoded (XNAT's server library does not decode
route variables; XNAT itself decodes scan and reconstruction IDs only).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, unquote_plus

from xnatfs.demo.records import (
    Archive,
    Assessor,
    Experiment,
    File,
    Holder,
    Project,
    Reconstruction,
    Resource,
    Scan,
    Subject,
    assessor_holders,
    experiment_holders,
    reconstruction_holders,
    scan_holders,
)

LEAVES = ("resources", "files")
AREAS = ("scans", "assessors", "reconstructions")


class NotFound(Exception):
    """404 with this message."""


class Forbidden(Exception):
    """403 with this message."""


@dataclass(slots=True)
class Selection:
    """One parsed path. ``what`` says how to answer it.

    what: "projects", "subjects", "experiments", "scans", "assessors", "reconstructions", "shares": a list;
    "resources": a list of resources; "resource": one resource's catalog; "files": a list or an archive of files;
    "file": one file; "accessibility"; "item": the document of the deepest record that was named.
    """

    what: str = "item"
    project: Project | None = None
    subject: Subject | None = None
    experiments: list[Experiment] = field(default_factory=list)
    area: str = ""
    items: list[Scan | Assessor | Reconstruction] = field(default_factory=list)
    side: str = ""
    resource_keys: list[str] = field(default_factory=list)
    path: str = ""  # behind /files/, as sent

    @property
    def experiment(self) -> Experiment | None:
        return self.experiments[0] if self.experiments else None

    @property
    def several(self) -> bool:
        """More than one object is named: only GET can answer that."""
        return len(self.experiments) > 1 or len(self.items) > 1 or len(self.resource_keys) > 1


class Router:
    """Parses paths for one user. Cheap: made anew for each request."""

    def __init__(self, archive: Archive, user: str) -> None:
        self._archive = archive
        self._user = user

    def parse(self, path: str) -> Selection:
        """The selection that ``path`` (below /data, as sent) names.

        Raises:
            NotFound, Forbidden
        """
        head, mark, tail = path.partition("/files/")
        parts = [part for part in head.split("/") if part]
        if mark:
            parts.append("files")
        if not parts or parts[0] not in ("projects", "subjects", "experiments"):
            raise NotFound("The server has not found anything matching the request URI.")
        selection = Selection(path=tail)
        steps: dict[str, Callable[[Selection, list[str]], Selection]] = {
            "projects": self._projects,
            "subjects": self._subjects,
            "experiments": self._experiments,
        }
        selection = steps[parts[0]](selection, parts[1:])
        if selection.what == "files" and tail and not tail.endswith("/") and "*" not in tail:
            selection.what = "file"
        return selection

    def _projects(self, selection: Selection, rest: list[str]) -> Selection:
        if not rest:
            selection.what = "projects"
            return selection
        project = self._archive.projects.get(rest[0])
        if project is None or not project.listed_for(self._user):
            raise NotFound(f"Unable to identify project {rest[0]}.")
        selection.project = project
        rest = rest[1:]
        if rest and rest[0] == "accessibility":
            selection.what = "accessibility"
            return selection
        if not project.readable_by(self._user):
            raise Forbidden("The project is closed to this user.")
        if rest and rest[0] == "subjects":
            return self._subjects(selection, rest[1:])
        if rest and rest[0] == "experiments":
            return self._project_experiments(selection, rest[1:])
        return self._leaf(selection, rest)

    def _subjects(self, selection: Selection, rest: list[str]) -> Selection:
        if not rest:
            selection.what = "subjects"
            return selection
        project = selection.project.id if selection.project else None
        subject = self._archive.find_subject(rest[0], project)
        if subject is None or not self._archive.subject_readable(subject, self._user):
            raise NotFound(f"Unable to identify subject {rest[0]}.")
        selection.subject = subject
        rest = rest[1:]
        if rest and rest[0] == "projects":
            selection.what = "shares"
            return selection
        if rest and rest[0] == "experiments" and selection.project is not None:
            return self._experiments(selection, rest[1:])  # /subjects/S/experiments alone is no route
        return self._leaf(selection, rest)

    def _project_experiments(self, selection: Selection, rest: list[str]) -> Selection:
        """/projects/P/experiments: goes down to resources only, not to scans or files."""
        if not rest:
            selection.what = "experiments"
            return selection
        self._take_experiments(selection, rest[0])
        if len(rest) > 1 and rest[1] == "resources":
            return self._leaf(selection, rest[1:])
        return selection  # prefix matching: the parent item

    def _experiments(self, selection: Selection, rest: list[str]) -> Selection:
        if not rest:
            selection.what = "experiments"
            return selection
        if self._take_assessor(selection, rest[0]):
            return self._sided_leaf(selection, rest[1:])
        self._take_experiments(selection, rest[0])
        rest = rest[1:]
        if rest and rest[0] == "projects":
            selection.what = "shares"
            return selection
        if rest and rest[0] in AREAS:
            return self._area(selection, rest[0], rest[1:])
        return self._leaf(selection, rest)

    def _take_assessor(self, selection: Selection, key: str) -> bool:
        """An image assessor is an experiment too: /experiments/ASSESSOR_ID answers."""
        experiment = self._archive.experiments.get(self._archive.assessors.get(key, ""))
        if experiment is None or not self._archive.experiment_readable(experiment, self._user):
            return False
        selection.experiments, selection.area = [experiment], "assessors"
        selection.items = [*(a for a in experiment.images.assessors if a.id == key)]
        return True

    def _take_experiments(self, selection: Selection, keys: str) -> None:
        project = selection.project.id if selection.project else None
        for key in keys.split(","):
            found = self._archive.find_experiment(key, project)
            if found is not None and self._archive.experiment_readable(found, self._user):
                selection.experiments.append(found)
        if not selection.experiments:
            raise NotFound(f"Unable to identify experiment {keys}.")

    def _area(self, selection: Selection, area: str, rest: list[str]) -> Selection:
        selection.area = area
        if not rest:
            selection.what = area
            return selection
        for experiment in selection.experiments:
            selection.items += _pick(experiment, area, rest[0])
        if not selection.items:
            raise NotFound(f"Unable to identify {area} {rest[0]}.")
        return self._sided_leaf(selection, rest[1:])

    def _sided_leaf(self, selection: Selection, rest: list[str]) -> Selection:
        if selection.area != "scans":
            selection.side = "out"
            if rest and rest[0] in ("in", "out"):
                selection.side = rest[0]
                rest = rest[1:]
        return self._leaf(selection, rest)

    def _leaf(self, selection: Selection, rest: list[str]) -> Selection:
        if not rest or rest[0] not in LEAVES:
            return selection  # prefix matching: the item of what was named so far
        selection.what = rest[0]
        if rest[0] == "resources" and len(rest) > 1:
            selection.resource_keys = rest[1].split(",")
            selection.what = "files" if len(rest) > 2 and rest[2] == "files" else "resource"
        return selection


def _pick(experiment: Experiment, area: str, key: str) -> Sequence[Scan | Assessor | Reconstruction]:
    if area == "scans":
        return _pick_scans(experiment, key)
    return _pick_assessors(experiment, key) if area == "assessors" else _pick_reconstructions(experiment, key)


def _pick_scans(experiment: Experiment, key: str) -> list[Scan]:
    scans = experiment.images.scans
    key = unquote(key)
    if key in ("ALL", "*"):
        return list(scans)
    wanted = [k.replace("[SLASH]", "/").replace("[COMMA]", ",") for k in key.split(",")]
    wanted = ["" if k == "NULL" else k for k in wanted]
    return [s for s in scans if s.id in wanted or s.type in wanted]


def _pick_assessors(experiment: Experiment, key: str) -> list[Assessor]:
    if key in ("ALL", "*"):
        return list(experiment.images.assessors)
    wanted = key.split(",")
    return [a for a in experiment.images.assessors if a.id in wanted or (a.label and a.label in wanted)]


def _pick_reconstructions(experiment: Experiment, key: str) -> list[Reconstruction]:
    key = unquote(key)
    if key in ("ALL", "*"):
        return list(experiment.images.reconstructions)
    wanted = key.split(",")
    return [r for r in experiment.images.reconstructions if r.id in wanted or r.type in wanted]


def session_label(selection: Selection, experiment: Experiment) -> str:
    return experiment.label_in(selection.project.id) if selection.project else experiment.label


def holders(selection: Selection, everything: bool) -> Iterator[Holder]:
    """The resources that a selection names, in order; ``everything`` is ``all=true`` on a session."""
    for holder in _candidates(selection, everything):
        if not selection.resource_keys or any(_matches(holder.resource, key) for key in selection.resource_keys):
            yield holder


def _candidates(selection: Selection, everything: bool) -> Iterator[Holder]:
    if selection.area:
        for experiment in selection.experiments:
            for holder in _area_holders(selection, experiment):
                if selection.area == "scans" or holder.resource.side == selection.side:
                    yield holder
    elif selection.experiments:
        for experiment in selection.experiments:
            for holder in experiment_holders(experiment, session_label(selection, experiment)):
                # all=true shows what assessors and reconstructions put out, not what they took in.
                if holder.category == "resources" or (everything and holder.resource.side != "in"):
                    yield holder
    elif selection.subject is not None:
        base = f"/projects/{selection.project.id}" if selection.project else ""
        for resource in selection.subject.resources:
            yield Holder(f"{base}/subjects/{selection.subject.id}", "resources", "", "", resource)
    elif selection.project is not None:
        for resource in selection.project.resources:
            yield Holder(f"/projects/{selection.project.id}", "resources", "", "", resource)


def _area_holders(selection: Selection, experiment: Experiment) -> Iterator[Holder]:
    session = session_label(selection, experiment)
    images = experiment.images
    chosen = {id(item) for item in selection.items}
    if selection.area == "scans":
        for scan in images.scans:
            if id(scan) in chosen:
                yield from scan_holders(experiment, scan, session)
    elif selection.area == "assessors":
        for assessor in images.assessors:
            if id(assessor) in chosen:
                yield from assessor_holders(experiment, assessor, session)
    else:
        for recon in images.reconstructions:
            if id(recon) in chosen:
                yield from reconstruction_holders(experiment, recon, session)


def _matches(resource: Resource, key: str) -> bool:
    """An all-digit segment is read as an id; anything else is a label, compared without decoding."""
    if key.isdigit():
        return resource.id == int(key)
    if key == "NULL":
        return not resource.label
    return resource.label == key


def chosen_files(selection: Selection, everything: bool, query: dict[str, str]) -> list[tuple[Holder, File]]:
    """The entries of a file list: by folder or wildcard behind /files/, ``file_format=`` and ``file_content=``."""
    pairs = [(h, f) for h in holders(selection, everything) for f in h.resource.files]
    if selection.path:
        wanted = unquote(selection.path)
        pattern = wanted if "*" in wanted else wanted.rstrip("/") + "/*"
        pairs = [(h, f) for h, f in pairs if fnmatch.fnmatchcase(f.path, pattern)]
    for option, attribute in (("file_format", "format"), ("file_content", "label")):
        if option in query:
            allowed = ["" if v == "NULL" else v for v in query[option].split(",")]
            pairs = [(h, f) for h, f in pairs if getattr(f, attribute) in allowed]
    return pairs


def find_file(selection: Selection, everything: bool) -> tuple[Holder, File]:
    """The first catalog entry that the path behind /files/ matches, decoded the way XNAT does.

    Raises:
        NotFound: no entry, or the entry's file is gone from the disk.
    """
    raw = selection.path
    tries = [unquote_plus(raw)] if "%20" in raw or "%2B" in raw.upper() else [raw, unquote_plus(raw)]
    entries = [(h, f) for h in holders(selection, everything) for f in h.resource.files]
    for wanted in tries:
        for holder, file in entries:
            if file.path == wanted:
                if not file.on_disk:
                    raise NotFound("Unable to find file.")
                return holder, file
    raise NotFound("Unable to find catalog entry for given uri.")
