"""An unwell server: failing statuses through whole runs of tools, an outage, a restart, pages where data belong."""

from __future__ import annotations

import errno
import hashlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.matrix import BOUND_S, FAILED, HEAL_S, TIMEOUT_S, sampled
from tests.helpers.mounting import Mount, mounted
from tests.helpers.outcomes import Handle, Outcome, cat, ls, run_tool
from tests.helpers.server import DemoServer
from tests.helpers.truth import TrueFile, project_truth, tree_path

pytestmark = [pytest.mark.fuse, pytest.mark.tools]

MIB = 1024 * 1024
SESSION = "DEMO_001/DEMO_001_MR1"
SERIES = f"{SESSION}/scans/2-T2w/DICOM"
PATIENT_S = 10.0  # --timeout where all retries are to have their time
COPY_S = 110.0
SLICES = 12
ANY_STATUS = (500, 502, 503, 504)
ODD = "ODDITIES/ODD_1/ODD_1_MR/resources/names"


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _well(server: DemoServer) -> Iterator[None]:
    yield
    server.reset()


@pytest.fixture
def mount(server: DemoServer, tmp_path: Path) -> Iterator[Mount]:
    """A mount with nothing cached, patient enough for every retry."""
    with mounted(server.url, tmp_path, "--timeout", f"{PATIENT_S}s", user="demo", password="demo") as mount:
        yield mount


@pytest.fixture
def hasty(server: DemoServer, tmp_path: Path) -> Iterator[Mount]:
    """A mount with nothing cached and a short timeout."""
    with mounted(server.url, tmp_path, "--timeout", f"{TIMEOUT_S}s", user="demo", password="demo") as mount:
        yield mount


@pytest.fixture(scope="module")
def truth(server: DemoServer) -> dict[str, TrueFile]:
    return project_truth(server.truth("DEMO", md5="all"))


def storm(server: DemoServer, share: float, statuses: tuple[int, ...], **more: Any) -> None:
    """Let this share of all requests fail, with each status as often as the others."""
    for place, status in enumerate(statuses):
        probability = (share / len(statuses)) / (1 - share * place / len(statuses))
        server.fault("/data/", "status", status=status, times=None, probability=probability, **more)


def below(truth: dict[str, TrueFile], folder: str) -> dict[str, TrueFile]:
    return {path.removeprefix(f"{folder}/"): file for path, file in truth.items() if path.startswith(f"{folder}/")}


def assert_right_or_named(copy: Path, truth: dict[str, TrueFile], outcome: Outcome) -> int:
    """Each file is right in the copy, or cp has named it or a directory above it; returns how many are right."""
    right = 0
    for name, file in truth.items():
        path = copy / name
        if path.is_file() and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == file.md5:
            right += 1
            continue
        above = [str(place) for place in Path(name).parents if str(place) != "."]
        assert outcome.code, f"{name} is wrong and cp has not said so"
        named = name in outcome.said or any(f"{place}'" in outcome.said for place in above) or not copy.is_dir()
        assert named, f"{name} is wrong and only these were named: {outcome.said}"
    return right


@pytest.mark.parametrize(
    ("share", "statuses", "more"),
    [
        pytest.param(0.1, ANY_STATUS, {}, id="10 % of all"),
        pytest.param(0.1, (429,), {"retry_after": "0"}, id="10 % of 429"),
        pytest.param(0.1, (503,), {"retry_after": "1"}, id="10 % with Retry-After", marks=pytest.mark.slow),
        *(
            pytest.param(0.1, (status,), {}, id=f"10 % of {status}", marks=pytest.mark.slow)
            for status in ANY_STATUS[1:]
        ),
    ],
)
def test_cp_copies_everything_through_a_tenth_of_failures(
    server: DemoServer,
    mount: Mount,
    truth: dict[str, TrueFile],
    tmp_path: Path,
    share: float,
    statuses: tuple[int, ...],
    more: dict[str, Any],
) -> None:
    storm(server, share, statuses, **more)
    outcome = run_tool(["cp", "-r", mount.path / "DEMO" / SESSION, tmp_path / "copy"], COPY_S)
    files = below(truth, SESSION)
    right = assert_right_or_named(tmp_path / "copy", files, outcome)
    if 500 not in statuses:  # after which fewer tries are made: one in a thousand requests fails for good
        assert (right, outcome.code) == (len(files), 0), outcome.said


@pytest.mark.parametrize(
    ("statuses", "more"),
    [
        pytest.param(ANY_STATUS, {}, id="50 % of all"),
        pytest.param((503,), {"retry_after": "1"}, id="50 % with Retry-After", marks=pytest.mark.slow),
        pytest.param((429,), {}, id="50 % of 429", marks=pytest.mark.slow),
        *(pytest.param((status,), {}, id=f"50 % of {status}", marks=pytest.mark.slow) for status in ANY_STATUS),
    ],
)
def test_cp_copies_or_names_each_file_while_half_of_all_requests_fail(
    server: DemoServer,
    mount: Mount,
    truth: dict[str, TrueFile],
    tmp_path: Path,
    statuses: tuple[int, ...],
    more: dict[str, Any],
) -> None:
    storm(server, 0.5, statuses, **more)
    outcome = run_tool(["cp", "-r", mount.path / "DEMO" / SERIES, tmp_path / "copy"], COPY_S)
    files = below(truth, SERIES)
    assert_right_or_named(tmp_path / "copy", files, outcome)
    server.clear_faults()
    time.sleep(1.1)  # a failed listing is not asked for again within a second
    again = run_tool(["cp", "-r", mount.path / "DEMO" / SERIES, tmp_path / "again"], COPY_S)
    assert (assert_right_or_named(tmp_path / "again", files, again), again.code) == (len(files), 0), again.said


@pytest.fixture(scope="module")
def calm_image(server: DemoServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What dcm2niix makes of the series as it is on the server."""
    source, made = tmp_path_factory.mktemp("calm source"), tmp_path_factory.mktemp("calm")
    for row in server.truth("DEMO"):
        if row["experiment"] == "DEMO_001_MR1" and row["item"] == "2":
            (source / row["name"]).write_bytes(server.content(row["uri"]))
    assert convert(source, made) == SLICES
    assert len(images(made)) == 1
    return images(made)


@pytest.mark.parametrize(
    ("statuses", "more"),
    [
        pytest.param((502, 503, 504), {}, id="10 %"),
        pytest.param((503,), {"retry_after": "1"}, id="10 % with Retry-After", marks=pytest.mark.slow),
        pytest.param((429,), {}, id="10 % of 429", marks=pytest.mark.slow),
    ],
)
def test_dcm2niix_makes_the_same_image_through_a_tenth_of_failures(
    server: DemoServer,
    mount: Mount,
    calm_image: dict[str, str],
    tmp_path: Path,
    statuses: tuple[int, ...],
    more: dict[str, Any],
) -> None:
    storm(server, 0.1, statuses, **more)
    assert convert(mount.path / "DEMO" / SERIES, tmp_path) == SLICES
    assert images(tmp_path) == calm_image


@pytest.mark.parametrize(
    ("share", "statuses", "more"),
    [
        pytest.param(0.5, ANY_STATUS, {}, id="50 % of all"),
        pytest.param(0.1, (500,), {}, id="10 % of 500", marks=pytest.mark.slow),
        pytest.param(0.5, (503,), {"retry_after": "1"}, id="50 % with Retry-After", marks=pytest.mark.slow),
        *(pytest.param(0.5, (status,), {}, id=f"50 % of {status}", marks=pytest.mark.slow) for status in ANY_STATUS),
    ],
)
def test_dcm2niix_makes_the_same_image_or_misses_slices_and_says_so_while_half_of_all_requests_fail(
    server: DemoServer,
    mount: Mount,
    calm_image: dict[str, str],
    tmp_path: Path,
    share: float,
    statuses: tuple[int, ...],
    more: dict[str, Any],
) -> None:
    """dcm2niix leaves out a file whose read fails, and says how many it has: all of them make the right image."""
    stormy, again = tmp_path / "stormy", tmp_path / "again"
    stormy.mkdir()
    again.mkdir()
    storm(server, share, statuses, **more)
    if convert(mount.path / "DEMO" / SERIES, stormy, whole=False) == SLICES:
        assert images(stormy) == calm_image
    else:
        assert images(stormy) != calm_image
    server.clear_faults()
    time.sleep(1.1)  # a failed listing is not asked for again within a second
    assert convert(mount.path / "DEMO" / SERIES, again) == SLICES
    assert images(again) == calm_image


NIBABEL = "import nibabel, sys; print(nibabel.load(sys.argv[1]).get_fdata().tobytes().hex()[:100000])"
PYDICOM = """
import pathlib, pydicom, sys
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    dataset = pydicom.dcmread(path)
    print(path.name, dataset.SOPInstanceUID, hash(dataset.pixel_array.tobytes()))
"""


def test_rsync_tar_nibabel_and_pydicom_read_the_truth_through_a_tenth_of_failures(
    server: DemoServer, mount: Mount, truth: dict[str, TrueFile], tmp_path: Path
) -> None:
    calm = tmp_path / "calm"
    for row in server.truth("DEMO"):
        if row["experiment"] == "DEMO_001_MR1" and row["area"] == "scans":
            place = calm / tree_path(row)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(server.content(row["uri"]))
    storm(server, 0.1, (502, 503, 504))
    source = mount.path / "DEMO"
    scan = f"{SESSION}/scans/1-T1w"
    rsync = run_tool(["rsync", "-a", f"{source / scan}/", tmp_path / "rsync"], COPY_S)
    assert (assert_right_or_named(tmp_path / "rsync", below(truth, scan), rsync), rsync.code) == (25, 0), rsync.said
    tar = run_tool(["tar", "-C", source / SERIES, "-cf", tmp_path / "series.tar", "."], COPY_S)
    (tmp_path / "tar").mkdir()
    run_tool(["tar", "-C", tmp_path / "tar", "-xf", tmp_path / "series.tar"], COPY_S)
    assert (assert_right_or_named(tmp_path / "tar", below(truth, SERIES), tar), tar.code) == (12, 0), tar.said
    for program, path in ((NIBABEL, f"{SESSION}/scans/3-bold_rest (AP)/NIFTI/example4d.nii.gz"), (PYDICOM, SERIES)):
        seen = [
            run_tool(["env", "PYTHONHASHSEED=0", sys.executable, "-c", program, top / path], COPY_S)
            for top in (source, calm)
        ]
        assert [outcome.code for outcome in seen] == [0, 0], seen[0].said
        assert seen[0].output == seen[1].output != b""


def convert(source: Path, to: Path, whole: bool = True) -> int:
    """How many files dcm2niix has found; with ``whole`` it must have ended well."""
    outcome = run_tool(["dcm2niix", "-b", "n", "-z", "n", "-f", "%p_%s", "-o", to, source], COPY_S)
    assert outcome.code == 0 or not whole, outcome.output.decode() + outcome.said
    found = re.search(rb"Found (\d+) DICOM", outcome.output)
    return int(found.group(1)) if found else 0


def images(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.glob("*.nii")}


def test_in_an_outage_what_is_known_stays_and_the_rest_fails_and_heals(server: DemoServer, hasty: Mount) -> None:
    known, unknown = hasty.path / "DEMO" / SERIES / "0001.dcm", hasty.path / "DEMO" / SERIES / "0012.dcm"
    data = known.read_bytes()
    server.switch(outage=True)
    assert cat(known, BOUND_S).output == data
    assert ls(known.parent, BOUND_S).output.count(b".dcm") == 12
    assert cat(unknown, BOUND_S).errno in FAILED
    assert ls(hasty.path / "HCP_DEMO", BOUND_S).errno in FAILED
    server.switch(outage=False)
    soon(lambda: cat(unknown, BOUND_S))
    assert b"subjects.csv" in soon(lambda: ls(hasty.path / "HCP_DEMO", BOUND_S)).output


def soon(run: Any) -> Outcome:
    """The outcome of a tool once it ends well, which must be soon."""
    deadline = time.monotonic() + HEAL_S
    while (outcome := run()).code:
        assert time.monotonic() < deadline, outcome.said
        time.sleep(0.1)
    assert isinstance(outcome, Outcome)
    return outcome


@pytest.mark.parametrize("ranges", [False, True], ids=["without Range", "with Range"])
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_restart_in_mid_read_gives_right_bytes_or_an_errno_and_heals(
    server: DemoServer, hasty: Mount, ranges: bool, end: str
) -> None:
    server.switch(range=ranges)
    row = next(row for row in server.truth("BIG") if row["name"] == "bold_100m.nii")
    true = server.content(row["uri"])
    path = hasty.path / "BIG/BIG_1/BIG_1_MR/scans/3-bold100m/NIFTI/bold_100m.nii"
    with Handle(path, BOUND_S) as handle:
        assert handle.pread(MIB, 0).data == true[:MIB]
        getattr(server, end)()
        server.start()
        server.switch(range=ranges)
        for at in (MIB, 40 * MIB, 2 * MIB, 41 * MIB):
            part = handle.pread(MIB, at)
            assert part.data == true[at : at + MIB] if not part.errno else part.errno in FAILED
        deadline = time.monotonic() + HEAL_S
        while (part := handle.pread(MIB, 60 * MIB)).errno and time.monotonic() < deadline:
            time.sleep(0.1)
        assert part.data == true[60 * MIB : 61 * MIB]


def test_a_server_that_ceases_to_honour_ranges_in_mid_read_gives_right_bytes(server: DemoServer, hasty: Mount) -> None:
    """As when requests come to lie with another proxy."""
    row = next(row for row in server.truth("BIG") if row["name"] == "bold_100m.nii")
    true = server.content(row["uri"])
    path = hasty.path / "BIG/BIG_1/BIG_1_MR/scans/3-bold100m/NIFTI/bold_100m.nii"
    with Handle(path, BOUND_S) as handle:
        for ranges, at in ((True, 20 * MIB), (False, 21 * MIB), (False, 0), (True, 70 * MIB), (False, 30 * MIB)):
            server.switch(range=ranges)
            assert handle.pread(MIB, at).data == true[at : at + MIB]


LISTING_FAULTS: list[tuple[str, dict[str, Any], frozenset[int]]] = [
    (kind, {"kind": kind}, FAILED)
    for kind in (
        "close", "garbage", "gzip_encoding", "chunked_cut", "length_minus_one", "length_plus_one", "length_doubled",
        "stall", "drip", "multipart", "bare_206", "html", "empty", "parent_item",
    )
]  # fmt: skip
LISTING_FAULTS += [
    ("reset at 100", {"kind": "reset", "at": 100}, FAILED),
    ("ended by a close too early", {"kind": "unframed", "at": 200}, FAILED),
    ("chunked", {"kind": "chunked"}, frozenset({0})),
    ("ended by the close", {"kind": "unframed"}, frozenset({0})),
    ("a byte too many", {"kind": "chunked_longer"}, FAILED),
    ("404", {"kind": "status", "status": 404}, frozenset({errno.ENOENT})),
    ("403", {"kind": "status", "status": 403}, frozenset({errno.EACCES})),
    ("416", {"kind": "status", "status": 416}, FAILED),
    ("204", {"kind": "status", "status": 204}, FAILED),
    ("304", {"kind": "status", "status": 304}, FAILED),
]


@pytest.mark.parametrize("row", sampled({row[0]: row[1:] for row in LISTING_FAULTS}, 3))
def test_a_listing_is_right_or_an_errno_and_never_an_empty_folder(
    server: DemoServer, hasty: Mount, row: tuple[dict[str, Any], frozenset[int]]
) -> None:
    fault, outcomes = row
    folder = hasty.path / "DEMO" / SESSION
    ls(folder.parent, BOUND_S)
    server.fault("/experiments/XNAT_E00001", times=None, **fault)
    outcome = ls(folder, BOUND_S)
    server.clear_faults()
    assert outcome.errno in outcomes, outcome.said
    assert bool(outcome.errno) == (outcome.output == b"")
    assert soon(lambda: ls(folder, BOUND_S)).output == b"assessors\nreconstructions\nresources\nscans\n"


ZIP_FAULT_LIST: list[dict[str, Any]] = [
    *({"kind": kind} for kind in ("html", "empty", "parent_item", "garbage", "chunked_cut", "stall", "drip")),
    {"kind": "reset", "at": 100},
    {"kind": "close", "at": 0},
    *({"kind": "status", "status": status} for status in (403, 404, 500, 503)),
]
ZIP_FAULTS = {" ".join(str(word) for word in fault.values()): fault for fault in ZIP_FAULT_LIST}


@pytest.mark.parametrize("fault", sampled(ZIP_FAULTS, 3))
def test_a_bad_zip_of_a_folder_costs_nothing_but_single_requests(
    server: DemoServer, hasty: Mount, truth: dict[str, TrueFile], tmp_path: Path, fault: dict[str, Any]
) -> None:
    server.fault("format=zip", times=None, **fault)
    outcome = run_tool(["cp", "-r", hasty.path / "DEMO" / SERIES, tmp_path / "copy"], 6 * BOUND_S)
    files = below(truth, SERIES)
    assert (assert_right_or_named(tmp_path / "copy", files, outcome), outcome.code) == (len(files), 0), outcome.said


@pytest.mark.parametrize("fault", sampled(ZIP_FAULTS, 3))
def test_a_file_that_comes_only_in_a_zip_is_right_or_an_errno(
    server: DemoServer, hasty: Mount, fault: dict[str, Any]
) -> None:
    path = hasty.path / ODD / "per%cent.txt"
    path.stat()
    server.fault("format=zip", times=None, **fault)
    outcome = cat(path, BOUND_S)
    server.clear_faults()
    assert outcome.errno in FAILED | {errno.ENOENT, errno.EACCES}, outcome.said
    assert outcome.output == b""
    assert soon(lambda: cat(path, BOUND_S)).output == b"content of per%cent.txt\n"
