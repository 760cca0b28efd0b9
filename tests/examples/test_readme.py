"""The session in the README is true: its commands are typed, and what they print is compared."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.mounting import detach, is_mounted, user_environment
from tests.helpers.server import DemoServer

pytestmark = [pytest.mark.fuse, pytest.mark.tools]

README = Path(__file__).parents[2] / "README.md"


def transcript() -> list[tuple[str, str]]:
    """(command, what it printed) of the README's session."""
    (block,) = re.findall(r"```console\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    steps = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(command, printed) for command, _, printed in (step.partition("\n") for step in steps)]


def test_the_session_in_the_readme_is_what_a_user_sees(tmp_path: Path) -> None:
    environment = user_environment(tmp_path, None, None, {"TZ": "UTC", "LC_ALL": "C.UTF-8"})
    program = tmp_path / "bin" / "xnatfs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m xnatfs "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    steps = transcript()
    with DemoServer() as server:
        script = "".join(
            f"{command.replace('127.0.0.1:8080', f'127.0.0.1:{server.port}')}\necho '--next--'\n"
            for command, _ in steps
        )
        done = subprocess.run(
            ["bash", "-c", f"exec 2>&1\n{script}"],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=90,
            check=False,
        )
    left = is_mounted(tmp_path / "xnat")
    if left:
        detach(tmp_path / "xnat")
    assert not left, done.stdout
    printed = done.stdout.split("--next--\n")
    assert list(zip([command for command, _ in steps], printed, strict=False)) == steps
