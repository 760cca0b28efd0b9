"""The large part of the sample (``--sample full``): many files and many sessions, made when looked at.

Costs no time at start and little memory: contents are made for each reader, and sessions of the largest project are
forgotten again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from xnatfs.demo import series
from xnatfs.demo.numbers import Numbers, numbers_from
from xnatfs.demo.records import Archive, Experiment, File, Images, Project, Subject
from xnatfs.demo.sample import small

FIRST_ID = 1_000_000  # of resources and scans; those of the small sample stay below
SMALL_ROWS, LARGE_ROWS = 64, 320  # images of about 9 KB and 200 KB
CRAWL_SESSIONS, CRAWL_SCANS, CRAWL_FILES = 100, 10, 100  # 100,000 files
MILLION_SESSIONS, MILLION_SCANS, MILLION_FILES = 1000, 10, 100  # 1,000,000 files


def full() -> Archive:
    """The ordinary sample and the projects BENCH, CRAWL and MILLION."""
    archive = small()
    numbers = numbers_from(FIRST_ID)
    members = frozenset({"demo"})
    for id_, name in (
        ("BENCH", "Sessions to measure with"),
        ("CRAWL", "100 sessions, 100,000 files"),
        ("MILLION", "1,000 sessions, 1,000,000 files"),
    ):
        archive.projects[id_] = Project(id_, name, access="private", members=members)
    _bench(archive, numbers)
    _many_sessions(archive, numbers, "CRAWL", CRAWL_SESSIONS, CRAWL_SCANS, CRAWL_FILES, keep=True)
    _many_sessions(archive, numbers, "MILLION", MILLION_SESSIONS, MILLION_SCANS, MILLION_FILES, keep=False)
    return archive


def _bench(archive: Archive, numbers: Iterator[Numbers]) -> None:
    subject = Subject("XNAT_S10000", "BENCH_1", "BENCH")
    archive.subjects[subject.id] = subject
    sessions: tuple[tuple[str, str, int, int, int], ...] = (
        ("XNAT_E10000", "BENCH_2000_FILES", 20, 100, SMALL_ROWS),  # 20 scans, 2,000 files
        ("XNAT_E10001", "BENCH_1000_DICOM", 1, 1000, LARGE_ROWS),  # one scan, 1,000 files of 200 KB
        ("XNAT_E10002", "BENCH_400_RESOURCES", 400, 1, LARGE_ROWS),  # 400 files of 200 KB, each on its own
    )
    for place, (id_, label, scans, files, rows) in enumerate(sessions):
        make = _session(next(numbers), place * 400, scans, files, rows, digests=True)
        _add(archive, id_, label, "BENCH", subject, make)


def _many_sessions(
    archive: Archive, numbers: Iterator[Numbers], project: str, sessions: int, scans: int, files: int, *, keep: bool
) -> None:
    start = 2 if project == "CRAWL" else 3
    for place in range(sessions):
        subject = Subject(f"XNAT_S{start}{place:04d}", f"{project}_{place:04d}", project, "F" if place % 2 else "M")
        archive.subjects[subject.id] = subject
        make = _session(next(numbers), 2000 + place * scans, scans, files, SMALL_ROWS, digests=False)
        experiment = _add(archive, f"XNAT_E{start}{place:04d}", f"{project}_{place:04d}_MR", project, subject, make)
        experiment.keep = keep


def _add(
    archive: Archive, id_: str, label: str, project: str, subject: Subject, make: Callable[[], Images]
) -> Experiment:
    experiment = Experiment(
        id_, label, project, subject.id, "xnat:mrSessionData", "2024-03-06", modality="MR", make=make
    )
    archive.experiments[id_] = experiment
    return experiment


def _session(
    n: Numbers, first_series: int, scans: int, files: int, rows: int, *, digests: bool
) -> Callable[[], Images]:
    """A maker of sessions. Without ``digests`` the catalog lists none, as XNAT does when checksums are off."""
    first = n.first

    def make() -> Images:
        numbers = Numbers(first)  # the same ids each time the session is made
        made = []
        for scan in range(1, scans + 1):
            entries = [_file(first_series + scan, number, rows, digests) for number in range(1, files + 1)]
            resource = numbers.resource("DICOM", entries, format="DICOM")
            made.append(numbers.scan(str(scan), f"T1w_{scan}", "xnat:mrScanData", resource, frames=str(files)))
        return Images(made)

    return make


def _file(series_number: int, number: int, rows: int, digests: bool) -> File:
    content = series.dicom_on_the_fly(series_number, number, rows)
    return File(f"{number:04d}.dcm", content, stale_digest=None if digests else "", format="DICOM", label="RAW")
