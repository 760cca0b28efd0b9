"""What people type: ls, find, cp, tar, rsync, grep, dcmdump, dcm2niix, held to the truth of the server."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.helpers.truth import TrueFile

pytestmark = [pytest.mark.fuse, pytest.mark.tools]

SESSION = "DEMO_001/DEMO_001_MR1"

# What the tree adds to the server's files in this project: its documents.
DOCUMENTS = {
    "subjects.csv",
    "experiments.csv",
    "tables/xnat:ctSessionData.csv",
    "tables/xnat:mrSessionData.csv",
    "tables/xnat:subjectData.csv",
    "tables/xnat:subjectVariablesData.csv",
    "DEMO_001/DEMO_001_scores/DEMO_001_scores.xml",
}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """The output of a command that must succeed and say nothing on stderr."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def digests(folder: Path) -> dict[str, str]:
    """MD5 of every file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_true(found: dict[str, str], truth: dict[str, TrueFile]) -> None:
    """``found`` (path -> MD5) is all that the server holds, byte for byte, and the documents."""
    assert found.keys() == truth.keys() | DOCUMENTS
    assert {path: md5 for path, md5 in found.items() if path in truth} == {
        path: file.md5 for path, file in truth.items()
    }


def test_ls_shows_every_file_with_its_size(project: Path, truth: dict[str, TrueFile]) -> None:
    shown = {}
    folder = ""
    for line in run("ls", "-lR", "--time-style=+%s", project).splitlines():
        if line.endswith(":"):
            folder = line[:-1]
        elif line.startswith("-"):
            _, _, _, _, size, _, name = line.split(maxsplit=6)
            shown[str(Path(folder, name).relative_to(project))] = int(size)
    assert shown.keys() == truth.keys() | DOCUMENTS
    assert {path: shown[path] for path in truth} == {path: file.size for path, file in truth.items()}


def test_find_names_every_file(project: Path, truth: dict[str, TrueFile]) -> None:
    found = run("find", ".", "-type", "f", cwd=project).splitlines()
    assert sorted(found) == sorted(f"./{path}" for path in [*truth, *DOCUMENTS])


def test_cp_copies_every_byte(project: Path, truth: dict[str, TrueFile], tmp_path: Path) -> None:
    run("cp", "-r", project, tmp_path / "copy")
    assert_true(digests(tmp_path / "copy"), truth)


def test_tar_holds_every_byte(project: Path, truth: dict[str, TrueFile], tmp_path: Path) -> None:
    run("tar", "-C", project, "-cf", tmp_path / "project.tar", ".")
    with tarfile.open(tmp_path / "project.tar") as archive:
        held = {}
        for member in archive:
            if member.isfile():
                body = archive.extractfile(member)
                assert body is not None
                held[member.name[2:]] = hashlib.md5(body.read(), usedforsecurity=False).hexdigest()
    assert_true(held, truth)


def test_rsync_copies_every_byte_and_then_finds_nothing_to_do(
    project: Path, truth: dict[str, TrueFile], tmp_path: Path
) -> None:
    run("rsync", "-a", f"{project}/", tmp_path / "copy")
    assert_true(digests(tmp_path / "copy"), truth)
    assert run("rsync", "-a", "--itemize-changes", f"{project}/", tmp_path / "copy") == ""


def test_grep_finds_text_in_a_folder(project: Path) -> None:
    found = run("grep", "-rl", "A real page that belongs to the archive", project / SESSION / "resources")
    assert found.splitlines() == [str(project / SESSION / "resources/QC/report.html")]


def test_dcmdump_reads_one_file(project: Path) -> None:
    first = project / SESSION / "scans/1-T1w/DICOM/T1w-0001.dcm"
    assert "[T1w MPRAGE]" in run("dcmdump", "+P", "SeriesDescription", first)


def test_dcm2niix_converts_a_folder(project: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["dcm2niix", "-b", "y", "-z", "n", "-f", "%p_%s", "-o", tmp_path, project / SESSION / "scans/1-T1w/DICOM"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (image,) = tmp_path.glob("*.nii")
    (sidecar,) = tmp_path.glob("*.json")
    assert image.stat().st_size == 352 + 64 * 64 * 24 * 2  # 24 slices of 64 x 64 pixels of 16 bits
    assert json.loads(sidecar.read_text(encoding="utf-8"))["SeriesDescription"] == "T1w MPRAGE"
