"""The README's session with a TCIA manifest: each command is run, against the demo server."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.mounting import detach, is_mounted, mount_points, user_environment
from tests.helpers.server import DemoServer

pytestmark = [pytest.mark.fuse, pytest.mark.tools]

README = Path(__file__).parents[2] / "README.md"


def commands() -> str:
    text = README.read_text(encoding="utf-8")
    (section,) = re.findall(r"^## TCIA: manifests and collections\n(.*?)^## ", text, re.DOTALL | re.M)
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return str(block)


def test_the_example_copies_a_patient_and_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = user_environment(tmp_path / "home", None, None, {"TMPDIR": str(tmp_path)})
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in (("xnatfs", "-m xnatfs"), ("python3", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    done = subprocess.run(
        [str(README.parent / "examples" / "tcia_demo.sh"), str(tmp_path / "patient")],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:4] == ["DEMO_IDC", "Demo Lung", "metadata.csv", "unavailable"]
    assert lines[-1].strip() == "42"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "home", "patient"]
    assert [path for path in mount_points() if path.startswith(str(tmp_path))] == []


def test_the_commands_for_tcia_do_what_the_readme_says(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "xnatfs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m xnatfs "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    environment = user_environment(tmp_path / "home", None, None)
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    with DemoServer() as server:
        script = commands().replace("http://127.0.0.1:8080", server.url)
        done = subprocess.run(
            ["bash", "-ec", script],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        left = is_mounted(tmp_path / "tcia")
        if left:
            detach(tmp_path / "tcia")
        truth = sorted(row["md5"] for row in server.tcia_truth() if row["patient"] == "DL-0001")
    assert (done.returncode, done.stderr, left) == (0, "", False)
    studies = ["01-31-2000-NA-CT CHEST WO  CONTRAST-10001", f"12-05-2001-4711-{'x' * 53}-10002"]
    assert done.stdout.splitlines() == studies * 2
    copied = [path.read_bytes() for path in (tmp_path / "patient").rglob("*.dcm")]
    assert sorted(hashlib.md5(data, usedforsecurity=False).hexdigest() for data in copied) == truth
    assert (tmp_path / "metadata.csv").read_text().startswith("Series UID,Collection,")
