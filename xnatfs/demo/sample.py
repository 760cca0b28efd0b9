"""The sample archive: a few small projects of real images, one of odd cases, one of very large files.

Deterministic: two servers hold the same bytes, IDs and dates. Sessions are filled when first looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from xnatfs.demo import series
from xnatfs.demo.contents import BytesContent, Content, nifti1
from xnatfs.demo.numbers import Numbers, numbers_from
from xnatfs.demo.records import (
    Archive,
    Assessor,
    Experiment,
    File,
    Images,
    Project,
    Resource,
    Subject,
)

FIRST_ID = 10_000  # of resources and scans

README = b"Sample archive: real images from the test data of pydicom and nibabel.\n"
REPORT_HTML = (
    b"<!DOCTYPE html>\n<html><head><title>Quality report</title></head><body>\n"
    b"<p>A real page that belongs to the archive: not an error, not a login form.</p>\n</body></html>\n"
)
ODD_NAMES = (
    "caf\u00e9 \u8133.txt",
    "hash#tag.txt",
    "plus+sign.txt",
    "two  spaces.txt",
    "per%cent.txt",
    "semi;colon.txt",
    "back\\slash.txt",
    ".leading-dot",
    "colon:name.txt",
    "quote'\".txt",
    "question?.txt",
    "amper&sand=1.txt",
    "trailing space ",
    "tilde~1.txt",
    "bracket[1].txt",
    "e\u0301-decomposed.txt",
)


def text(path: str, content: str | bytes) -> File:
    return File(path, BytesContent(content.encode() if isinstance(content, str) else content))


def dicoms(contents: Iterable[Content], prefix: str = "") -> list[File]:
    return [File(f"{prefix}{n:04d}.dcm", c, format="DICOM", label="RAW") for n, c in enumerate(contents, 1)]


def nibabels(*names: str) -> list[File]:
    return [File(name, series.nibabel_sample(name), format="NIFTI") for name in names]


def small() -> Archive:
    """The ordinary sample. Nothing in it takes time until it is asked for."""
    archive = Archive()
    ids = itertools.count(101)
    numbers = numbers_from(FIRST_ID)
    _projects(archive, ids)
    _subjects(archive, ids)
    _demo_experiments(archive, numbers)
    _hcp_experiments(archive, numbers)
    _odd_experiments(archive, numbers)
    _closed_experiments(archive, numbers)
    _big_experiments(archive, numbers)
    archive.assessors.update({"XNAT_A00001": "XNAT_E00001", "XNAT_A00020": "XNAT_E00020"})
    return archive


def _projects(archive: Archive, ids: Iterator[int]) -> None:
    demo, other = frozenset({"demo"}), frozenset({"other"})
    projects = [
        Project("DEMO", "Demo project", "MR and CT of two subjects", "demo1", ("Ada", "Sample"), "private", demo),
        Project("HCP_DEMO", "Open project", "Shared with everybody", "hcp", ("Bo", "Open"), "public", demo),
        Project("ODDITIES", "Odd cases", "What real archives hold, too", "odd", access="private", members=demo),
        Project("PROTECTED", "Protected project", "Listed for all, closed to most", access="protected", members=demo),
        Project("PRIVATE", "Private project", "Not for the user demo", access="private", members=other),
        Project("BIG", "Large files", "Up to 1 GiB, made on the fly", access="private", members=demo),
        Project("EMPTY", "Empty project", access="private", members=demo),
    ]
    archive.projects.update((project.id, project) for project in projects)
    archive.projects["DEMO"].resources += [
        Resource(next(ids), "docs", [text("README.txt", README), text("protocol/mr/notes.md", "# Protocol\n")]),
        Resource(next(ids), "tables", [text("scores.csv", "subject,score\nDEMO_001,12\nDEMO_002,15\n")]),
    ]
    archive.projects["HCP_DEMO"].resources.append(Resource(next(ids), "docs", [text("README.txt", README)]))
    archive.projects["PRIVATE"].resources.append(Resource(next(ids), "secret", [text("secret.txt", "closed\n")]))
    archive.projects["PROTECTED"].resources.append(Resource(next(ids), "docs", [text("README.txt", README)]))


def _subjects(archive: Archive, ids: Iterator[int]) -> None:
    subjects = [
        Subject("XNAT_S00001", "DEMO_001", "DEMO", "F", "1980", "44", "right", "control"),
        Subject("XNAT_S00002", "DEMO_002", "DEMO", "M", "1975", "49", "left", "patient", {"HCP_DEMO": "HCP_100307"}),
        Subject("XNAT_S00003", "HCP_100408", "HCP_DEMO", "M", "1990", "34", "right"),
        Subject("XNAT_S00004", "ODD_1", "ODDITIES", "F"),
        Subject("XNAT_S00005", "no_experiments", "ODDITIES"),
        Subject("XNAT_S00006", "PROT_1", "PROTECTED"),
        Subject("XNAT_S00007", "PRIV_1", "PRIVATE"),
        Subject("XNAT_S00008", "BIG_1", "BIG"),
    ]
    archive.subjects.update((subject.id, subject) for subject in subjects)
    archive.subjects["XNAT_S00001"].resources.append(
        Resource(next(ids), "consent", [text("consent.txt", "signed\n"), text("forms/2024/scan form.txt", "ok\n")])
    )


def _add(archive: Archive, experiment: Experiment) -> None:
    archive.experiments[experiment.id] = experiment


def _demo_experiments(archive: Archive, numbers: Iterator[Numbers]) -> None:
    mr, ct, pt, scores = next(numbers), next(numbers), next(numbers), next(numbers)
    _add(
        archive,
        Experiment(
            "XNAT_E00001",
            "DEMO_001_MR1",
            "DEMO",
            "XNAT_S00001",
            "xnat:mrSessionData",
            "2024-02-29",
            modality="MR",
            make=lambda: _mr_session(mr),
        ),
    )
    _add(
        archive,
        Experiment(
            "XNAT_E00002",
            "DEMO_001_CT1",
            "DEMO",
            "XNAT_S00001",
            "xnat:ctSessionData",
            "2024-03-01",
            modality="CT",
            shares={"HCP_DEMO": "OPEN_CT"},  # without its subject
            make=lambda: _ct_session(ct),
        ),
    )
    _add(
        archive,
        Experiment(
            "XNAT_E00003",
            "DEMO_002_MR1",
            "DEMO",
            "XNAT_S00002",
            "xnat:mrSessionData",
            "2024-03-02",
            modality="MR",
            shares={"HCP_DEMO": "HCP_100307_MR"},
            make=lambda: _second_mr_session(pt),
        ),
    )
    fields = {"note": "baseline", "total": "27", "memory": "9", "attention": "8", "language": "10"}
    _add(
        archive,
        Experiment(
            "XNAT_E00004",
            "DEMO_001_scores",
            "DEMO",
            "XNAT_S00001",
            "xnat:subjectVariablesData",
            "2024-02-28",
            fields=fields,
            make=lambda: Images(resources=[scores.resource("forms", [text("answers.csv", "q,a\n1,3\n2,4\n")])]),
        ),
    )


def _mr_session(n: Numbers) -> Images:
    mr = "xnat:mrScanData"
    t1 = series.dicom_series("MR_small.dcm", 24, 1, "T1w MPRAGE")
    t2 = series.dicom_series("MR_small.dcm", 12, 2, "T2w TSE")
    scans = [
        n.scan(
            "1",
            "T1w",
            mr,
            n.resource("DICOM", dicoms(t1, "T1w-"), format="DICOM"),
            n.resource("NIFTI", nibabels("anatomical.nii"), format="NIFTI"),
            series_description="T1w MPRAGE",
            frames="24",
        ),
        n.scan("2", "T2w", mr, n.resource("DICOM", dicoms(t2), format="DICOM"), series_description="T2w TSE"),
        n.scan(
            "3",
            "bold/rest (AP)",
            mr,
            n.resource("NIFTI", nibabels("functional.nii", "example4d.nii.gz"), format="NIFTI"),
            n.resource(
                "BIDS",
                [
                    text("task-rest_bold.json", '{"RepetitionTime": 2.0}\n'),
                    text("events/run-1/events.tsv", "onset\tduration\n0\t10\n"),
                    text("events/run-2/events.tsv", "onset\tduration\n0\t12\n"),
                ],
            ),
            series_description="rs-fMRI",
            frames="20",
        ),
    ]
    assessor = Assessor(
        "XNAT_A00001",
        "DEMO_001_MR1_QC",
        "xnat:qcManualAssessorData",
        "2024-03-03",
        [
            n.resource("masks", nibabels("resampled_anat_moved.nii"), side="out"),
            n.resource("inputs", [text("parameters.json", '{"smooth": 6}\n')], side="in"),
        ],
    )
    recon = n.reconstruction(
        "mean_bold", "mean", "bold/rest (AP)", n.resource("NIFTI", nibabels("reoriented_anat_moved.nii"), side="out")
    )
    resources = [n.resource("QC", [text("report.html", REPORT_HTML), text("figures/snr.csv", "scan,snr\n1,42\n")])]
    return Images(scans, [assessor], [recon], resources)


def _ct_session(n: Numbers) -> Images:
    ct = series.dicom_series("CT_small.dcm", 10, 3, "CT head")
    scan = n.scan("2", "CT head", "xnat:ctScanData", n.resource("DICOM", dicoms(ct)), series_description="CT head")
    return Images([scan])


def _second_mr_session(n: Numbers) -> Images:
    mr = "xnat:mrScanData"
    loc = series.dicom_series("MR_small.dcm", 3, 4, "localizer")
    names = ("JPEG2000.dcm", "MR_small_RLE.dcm", "rtplan.dcm", "test-SR.dcm")
    various = [File(name, series.dicom_sample(name), format="DICOM") for name in names]
    return Images(
        [
            n.scan("1", "localizer", mr, n.resource("DICOM", dicoms(loc))),
            n.scan("2", "T1w", mr, n.resource("NIFTI", nibabels("example_nifti2.nii.gz"))),
            n.scan("3", "various", mr, n.resource("secondary", various), quality="questionable"),
        ]
    )


def _hcp_experiments(archive: Archive, numbers: Iterator[Numbers]) -> None:
    n = next(numbers)

    def make() -> Images:
        scans = [n.scan("1", "T1w", "xnat:mrScanData", n.resource("NIFTI", nibabels("anatomical.nii")))]
        return Images(scans)

    _add(
        archive,
        Experiment(
            "XNAT_E00010",
            "HCP_100408_MR",
            "HCP_DEMO",
            "XNAT_S00003",
            "xnat:mrSessionData",
            "2024-01-15",
            modality="MR",
            make=make,
        ),
    )
    for number, (subject, label, scores) in enumerate(NEO_FFI):
        fields = {f"neo_neofac_{letter}": value for letter, value in zip("aocne", scores, strict=True)}
        _add(
            archive,
            Experiment(f"XNAT_E0001{number + 1}", label, "HCP_DEMO", subject, "nt:scores", "2024-01-16", fields=fields),
        )


NEO_FFI = (
    ("XNAT_S00003", "HCP_100408_scores", ("41", "25", "37", "15", "33")),
    ("XNAT_S00002", "HCP_100307_scores", ("28", "15", "25", "25", "32")),
)
"""Made-up agreeableness, openness, conscientiousness, neuroticism and extraversion: the five NEO-FFI scores that the
ConnectomeDB tutorial asks for."""


def _odd_experiments(archive: Archive, numbers: Iterator[Numbers]) -> None:
    n, plain = next(numbers), next(numbers)
    _add(
        archive,
        Experiment(
            "XNAT_E00020",
            "ODD_1_MR",
            "ODDITIES",
            "XNAT_S00004",
            "xnat:mrSessionData",
            "2023-12-31",
            modality="MR",
            make=lambda: _odd_session(n),
        ),
    )
    _add(
        archive,
        Experiment(
            "XNAT_E00021",
            "ODD_1_empty",
            "ODDITIES",
            "XNAT_S00004",
            "xnat:petSessionData",
            "",
            modality="PT",
            make=lambda: Images([plain.scan("1", "", "xnat:petScanData")]),
        ),
    )


def _odd_session(n: Numbers) -> Images:
    mr = "xnat:mrScanData"
    odd_names = [text(name, f"content of {name}\n") for name in ODD_NAMES]
    odd_names.append(text("sub dir/deep+er/#1/x.txt", "deep\n"))
    twins = [text("same.txt", "first\n"), text("same.txt", "second, never served\n"), text("SAME.txt", "upper\n")]
    missing = [text("here.txt", "here\n"), File("gone.dcm", BytesContent(b"x" * 500), on_disk=False)]
    blank_gone = File("gone-unlisted-size.dcm", BytesContent(b""), on_disk=False, stale_digest="")
    missing.append(blank_gone)
    stale = [
        File("grown.txt", BytesContent(b"y" * 3000), stale_size=1000, stale_digest=""),
        File("shrunk.txt", BytesContent(b"z" * 1000), stale_size=3000, stale_digest=""),
        text("right.txt", "right\n"),
    ]
    blank = [File(f"{i}.dcm", c, stale_digest="") for i, c in enumerate(series.dicom_series("MR_small.dcm", 3, 5, "b"))]
    wrong = [File("wrong-digest.bin", BytesContent(b"w" * 4096), stale_digest="0" * 32)]
    resources = [
        n.resource("names", odd_names),
        n.resource("", [text("unlabelled.txt", "no label\n")]),
        n.resource("empty", []),
        n.resource("twins", twins),
        n.resource("missing", missing),
        n.resource("stale", stale),
        n.resource("blank_digest", blank),
        n.resource("wrong_digest", wrong),
        n.resource("with space & more", [text("a.txt", "label with a space\n")]),
        n.resource("2019", [text("year.txt", "a label that looks like an id\n")]),
        n.resource("zero", [text("zero.bin", b"")]),
        n.resource("files", [text("files/files/resources/x.txt", "a directory called files\n")]),
    ]
    scans = [
        n.scan("4", "T2/FLAIR: 100% \u00fcber", mr, n.resource("NIFTI", nibabels("anatomical.nii"))),
        n.scan("T1", "MPRAGE", mr, n.resource("DICOM", dicoms(series.dicom_series("MR_small.dcm", 2, 6, "T1")))),
        n.scan("6", "T1", mr, n.resource("DICOM", dicoms(series.dicom_series("MR_small.dcm", 2, 7, "type T1")))),
        n.scan("7", "", mr, n.resource("secondary", [text("x.txt", "no type\n")])),
        n.scan("8", "..", mr, n.resource("DICOM", [text("dots.txt", "type is two dots\n")])),
        n.scan("9", "no resources", mr),
    ]
    assessors = [
        Assessor("XNAT_A00020", "", "xnat:qcAssessmentData", "", [n.resource("x", [text("x.txt", "x\n")], "out")])
    ]
    return Images(scans, assessors, [], resources)


def _closed_experiments(archive: Archive, numbers: Iterator[Numbers]) -> None:
    for id_, label, project, subject in (
        ("XNAT_E00030", "PROT_1_MR", "PROTECTED", "XNAT_S00006"),
        ("XNAT_E00031", "PRIV_1_MR", "PRIVATE", "XNAT_S00007"),
    ):
        n = next(numbers)
        experiment = Experiment(id_, label, project, subject, "xnat:mrSessionData", "2024-01-01")
        resource = n.resource("NIFTI", [text("a.nii", b"\0" * 352)])
        experiment.images.scans.append(n.scan("1", "T1w", "xnat:mrScanData", resource))
        _add(archive, experiment)


def _big_experiments(archive: Archive, numbers: Iterator[Numbers]) -> None:
    n = next(numbers)

    def make() -> Images:
        gigabyte = File("bold_1g.nii", nifti1((128, 128, 64, 512), 0), stale_digest="", format="NIFTI")
        half = File("bold_500m.nii", nifti1((128, 128, 61, 250), 4_000_001), stale_digest="", format="NIFTI")
        hundred = File("bold_100m.nii", nifti1((128, 128, 61, 50), 2_000_003), format="NIFTI")
        return Images(
            [
                n.scan("1", "bold1g", "xnat:mrScanData", n.resource("NIFTI", [gigabyte])),
                n.scan("2", "bold500m", "xnat:mrScanData", n.resource("NIFTI", [half])),
                n.scan("3", "bold100m", "xnat:mrScanData", n.resource("NIFTI", [hundred])),
            ]
        )

    _add(
        archive,
        Experiment(
            "XNAT_E00040",
            "BIG_1_MR",
            "BIG",
            "XNAT_S00008",
            "xnat:mrSessionData",
            "2024-03-04",
            modality="MR",
            make=make,
        ),
    )
