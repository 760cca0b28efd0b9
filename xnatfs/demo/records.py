"""The archive's records: projects, subjects, experiments, scans, resources, files, and who may see what.

Plain data plus look-ups; no HTTP, no rendering. Changed by the server's one event loop only.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from xnatfs.demo.contents import Content

INSERTED = "2024-03-05 10:20:30.123"
EVERYWHERE = "\0everywhere"  # a user whom every project lets in; no account can have this name
MAX_MADE = 64  # sessions of the largest project held at once
MTIME_S = 1_709_634_030  # 2024-03-05 10:20:30 UTC: one fixed day, so that two servers agree on every header


@dataclass(slots=True)
class File:
    """One catalog entry. ``listed_size`` and ``listed_digest`` are what the catalog says, not always the truth."""

    path: str
    content: Content
    mtime_s: int = MTIME_S
    stale_size: int | None = None  # what the catalog says when that is wrong
    stale_digest: str | None = None
    format: str = ""
    label: str = ""
    tags: str = ""
    on_disk: bool = True

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def listed_size(self) -> str:
        return str(self.content.size if self.stale_size is None else self.stale_size)

    @property
    def listed_digest(self) -> str:
        return self.content.md5() if self.stale_digest is None else self.stale_digest


@dataclass(slots=True)
class Resource:
    id: int
    label: str
    files: list[File] = field(default_factory=list)
    side: str = ""  # "in" or "out" below assessors and reconstructions
    format: str = ""
    stale_stats: bool = False  # file_count and file_size are blank, as after an upload without an update


@dataclass(slots=True)
class Scan:
    pk: int
    id: str
    type: str
    xsi: str
    quality: str = "usable"
    note: str = ""
    series_description: str = ""
    frames: str = ""
    uid: str = ""
    resources: list[Resource] = field(default_factory=list)


@dataclass(slots=True)
class Assessor:
    id: str
    label: str
    xsi: str
    date: str
    resources: list[Resource] = field(default_factory=list)


@dataclass(slots=True)
class Reconstruction:
    pk: int
    id: str
    type: str
    base_scan_type: str
    resources: list[Resource] = field(default_factory=list)


@dataclass(slots=True)
class Images:
    """What lies below an experiment; made when first looked at where that is a lot."""

    scans: list[Scan] = field(default_factory=list)
    assessors: list[Assessor] = field(default_factory=list)
    reconstructions: list[Reconstruction] = field(default_factory=list)
    resources: list[Resource] = field(default_factory=list)


class Experiment:
    """An experiment; XNAT's word for an imaging session too."""

    def __init__(
        self,
        id_: str,
        label: str,
        project: str,
        subject: str,
        xsi: str,
        date: str,
        *,
        modality: str = "",
        fields: dict[str, str] | None = None,
        shares: dict[str, str] | None = None,
        make: Callable[[], Images] | None = None,
    ) -> None:
        self.id = id_
        self.label = label
        self.project = project
        self.subject = subject
        self.xsi = xsi
        self.date = date
        self.modality = modality
        self.fields = fields or {}
        self.shares = shares or {}  # guest project -> label there ("" keeps the owner's)
        self.last_modified = INSERTED
        self.keep = True  # False: made anew when it has fallen out of the few most recently used
        self._make = make
        self._images: Images | None = None if make else Images()

    @property
    def images(self) -> Images:
        with _making:  # the event loop and the thread that tells the truth may ask at once
            images = self._images
            if images is None:
                assert self._make is not None
                images = self._images = self._make()
                if not self.keep:
                    self._forget_oldest()
            return images

    def _forget_oldest(self) -> None:
        _made.append(self)
        if len(_made) > MAX_MADE:
            _made.pop(0)._images = None

    def label_in(self, project: str) -> str:
        return self.shares.get(project) or self.label


@dataclass(slots=True)
class Subject:
    id: str
    label: str
    project: str
    gender: str = ""
    yob: str = ""
    age: str = ""
    handedness: str = ""
    group: str = ""
    shares: dict[str, str] = field(default_factory=dict)
    resources: list[Resource] = field(default_factory=list)
    last_modified: str = INSERTED

    def label_in(self, project: str) -> str:
        return self.shares.get(project) or self.label


@dataclass(slots=True)
class Project:
    id: str
    name: str
    description: str = ""
    secondary: str = ""
    pi: tuple[str, str] = ("", "")
    access: str = "private"  # or "protected", "public"
    members: frozenset[str] = frozenset()
    resources: list[Resource] = field(default_factory=list)

    def listed_for(self, user: str) -> bool:
        return self.access == "protected" or self.readable_by(user)

    def readable_by(self, user: str) -> bool:
        return self.access == "public" or user in self.members or user == EVERYWHERE


_making = threading.Lock()
_made: list[Experiment] = []  # guarded by _making: sessions that may be forgotten, oldest first


class Archive:
    """Every record, with XNAT's ways of finding one."""

    def __init__(self) -> None:
        self.projects: dict[str, Project] = {}
        self.subjects: dict[str, Subject] = {}
        self.experiments: dict[str, Experiment] = {}
        self.assessors: dict[str, str] = {}  # image assessor ID -> its session's ID
        self.resource_ids = itertools.count(101)
        self.scan_pks = itertools.count(9001)

    def subjects_of(self, project: str) -> list[Subject]:
        return [s for s in self.subjects.values() if s.project == project or project in s.shares]

    def experiments_of(self, project: str) -> list[Experiment]:
        return [e for e in self.experiments.values() if e.project == project or project in e.shares]

    def find_subject(self, key: str, project: str | None = None) -> Subject | None:
        """By ID anywhere; by the label that ``project`` gives it when one is named."""
        found = self.subjects.get(key)
        if project is None:
            return found
        if found is not None and (found.project == project or project in found.shares):
            return found
        return next((s for s in self.subjects_of(project) if s.label_in(project) == key), None)

    def find_experiment(self, key: str, project: str | None = None) -> Experiment | None:
        found = self.experiments.get(key)
        if project is None:
            return found
        if found is not None and (found.project == project or project in found.shares):
            return found
        return next((e for e in self.experiments_of(project) if e.label_in(project) == key), None)

    def experiment_readable(self, experiment: Experiment, user: str) -> bool:
        places = [experiment.project, *experiment.shares]
        return any(self.projects[place].readable_by(user) for place in places)

    def subject_readable(self, subject: Subject, user: str) -> bool:
        return any(self.projects[place].readable_by(user) for place in [subject.project, *subject.shares])


@dataclass(frozen=True, slots=True)
class Holder:
    """A resource together with where it hangs: what listings, URIs and zip names are made from."""

    base: str  # "/experiments/E1/scans/4": the URI of what holds it, below /data
    category: str  # "resources", "scans", "assessors", "reconstructions"
    item_id: str  # scan, assessor or reconstruction ID, or ""
    item_type: str
    resource: Resource
    session_label: str = ""

    @property
    def uri(self) -> str:
        side = f"/{self.resource.side}" if self.resource.side else ""
        return f"{self.base}{side}/resources/{self.resource.id}"


def experiment_holders(experiment: Experiment, label: str = "") -> Iterator[Holder]:
    """Every resource of an experiment: its own, then those of scans, reconstructions and assessors."""
    base = f"/experiments/{experiment.id}"
    session = label or experiment.label
    images = experiment.images
    for resource in images.resources:
        yield Holder(base, "resources", "", "", resource, session)
    for scan in images.scans:
        yield from scan_holders(experiment, scan, session)
    for recon in images.reconstructions:
        yield from reconstruction_holders(experiment, recon, session)
    for assessor in images.assessors:
        yield from assessor_holders(experiment, assessor, session)


def scan_holders(experiment: Experiment, scan: Scan, session: str) -> Iterator[Holder]:
    for resource in scan.resources:
        yield Holder(f"/experiments/{experiment.id}/scans/{scan.id}", "scans", scan.id, scan.type, resource, session)


def reconstruction_holders(experiment: Experiment, recon: Reconstruction, session: str) -> Iterator[Holder]:
    base = f"/experiments/{experiment.id}/reconstructions/{recon.id}"
    for resource in recon.resources:
        yield Holder(base, "reconstructions", recon.id, recon.type, resource, session)


def assessor_holders(experiment: Experiment, assessor: Assessor, session: str) -> Iterator[Holder]:
    base = f"/experiments/{experiment.id}/assessors/{assessor.id}"
    for resource in assessor.resources:
        yield Holder(base, "assessors", assessor.id, assessor.xsi, resource, session)
