"""Every example runs as a researcher would run it, on a mount of the sample archive."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers.mounting import Mount, mount_points, user_environment

pytestmark = [pytest.mark.fuse, pytest.mark.tools]

EXAMPLES = Path(__file__).parents[2] / "examples"
SESSION = "DEMO/DEMO_001/DEMO_001_MR1"


def run(*command: str | Path, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=None if environment is None else dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_shell_session_lists_copies_and_unmounts(demo_mount: Mount, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "xnatfs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m xnatfs "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    environment = user_environment(tmp_path / "home", demo_mount.user, demo_mount.password)
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    environment["TMPDIR"] = str(tmp_path)  # the mount point is made there
    work = tmp_path / "work"
    work.mkdir()
    shown = run(EXAMPLES / "shell_session.sh", f"{demo_mount.source}#/DEMO", cwd=work, environment=environment)
    truth = (demo_mount.path / SESSION / "scans/3-bold_rest (AP)/NIFTI/example4d.nii.gz").read_bytes()
    assert "DEMO_001" in shown
    assert "0000000 1f 8b" in shown  # the first bytes of any gzip file
    assert (work / "example4d.nii.gz").read_bytes() == truth
    assert [path for path in mount_points() if path.startswith(str(tmp_path))] == []


def test_nibabel_mean_of_both_kinds_of_image(demo_mount: Mount, tmp_path: Path) -> None:
    scans = demo_mount.path / SESSION / "scans"
    compressed = scans / "3-bold_rest (AP)/NIFTI/example4d.nii.gz"
    plain = scans / "1-T1w/NIFTI/anatomical.nii"
    shown = run(sys.executable, EXAMPLES / "nibabel_mean.py", compressed, plain, cwd=tmp_path)
    assert "shape (128, 96, 24, 2), int16" in shown
    assert "shape (33, 41, 25)" in shown
    assert shown.count("mean of the image") == 2


def test_pydicom_series_becomes_a_volume(demo_mount: Mount, tmp_path: Path) -> None:
    shown = run(
        sys.executable, EXAMPLES / "pydicom_series.py", demo_mount.path / SESSION / "scans/1-T1w/DICOM", cwd=tmp_path
    )
    assert "24 files, MR, series T1w MPRAGE" in shown
    assert "volume of shape (24, 64, 64)" in shown


def test_dcm2niix_converts_from_the_mount(demo_mount: Mount, tmp_path: Path) -> None:
    run(
        EXAMPLES / "dcm2niix_convert.sh",
        demo_mount.path / SESSION / "scans/1-T1w/DICOM",
        tmp_path / "nifti",
        cwd=tmp_path,
    )
    assert sorted(path.suffix for path in (tmp_path / "nifti").iterdir()) == [".json", ".nii"]


def test_the_tutorials_questions_are_answered_with_pandas(demo_mount: Mount, tmp_path: Path) -> None:
    shown = run(sys.executable, EXAMPLES / "neo_ffi_scores.py", demo_mount.path / "HCP_DEMO", cwd=tmp_path)
    assert "agreeableness above 40: HCP_100408" in shown
    shown = run(sys.executable, EXAMPLES / "neo_ffi_scores.py", demo_mount.path / "HCP_DEMO", "20", cwd=tmp_path)
    assert "HCP_100307" in shown.splitlines()[-1]


def test_a_session_is_opened_by_scan_type(demo_mount: Mount, tmp_path: Path) -> None:
    session = demo_mount.path / SESSION
    shown = run(sys.executable, EXAMPLES / "dhcp_session.py", session, "T1w", cwd=tmp_path)
    assert shown == "scans/1-T1w/NIFTI/anatomical.nii: (33, 41, 25) >i2\n"
    shown = run(sys.executable, EXAMPLES / "dhcp_session.py", session, "bold", cwd=tmp_path)
    assert "(128, 96, 24, 2) int16" in shown
