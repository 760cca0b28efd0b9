"""The README's ways to copy: each command is run, against the demo server in place of the site it names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.mounting import mounted, user_environment
from tests.helpers.server import DemoServer

README = Path(__file__).parents[2] / "README.md"


def commands() -> list[str]:
    text = README.read_text(encoding="utf-8")
    (section,) = re.findall(r"^## Copy, or fill the cache beforehand\n(.*?)^## ", text, re.DOTALL | re.M)
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return [re.sub(r"\s+# .*", "", line) for line in block.splitlines()]


@pytest.mark.fuse
def test_each_command_of_the_section_does_what_it_says(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "xnatfs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m xnatfs "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    environment = user_environment(tmp_path / "home", "demo", "demo")
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    with DemoServer() as server, mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        (subject, *_) = [path for path in sorted((mount.path / "HCP_DEMO").iterdir()) if (path / "resources").is_dir()]
        said = []
        for command in commands():
            here = command.replace("https://xnat.example.org", server.url).replace("~/xnat", str(mount.path))
            here = here.replace("PROJECT/SUBJECT", f"HCP_DEMO/{subject.name}").replace("PROJECT", "HCP_DEMO")
            done = subprocess.run(
                ["bash", "-ec", here], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (here, done.stderr)
            said.append(done.stderr)
        assert [line.split(":")[0] for line in said] == ["get", "get", "get", "prefetch"]
        assert "files to do" in said[1]
    report = json.loads((tmp_path / "report.json").read_text())
    copied = [path for path in (tmp_path / "home" / "data" / "project").rglob("*") if path.is_file()]
    assert report["failures"] == []
    assert report["done"] == len(copied) > 10
