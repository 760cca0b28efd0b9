"""The README's commands for open archives: each line is run, against a server of ours in place of the host it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples.test_readme_connect import README, run
from tests.helpers.object_server import ObjectServer, Thing
from tests.helpers.open_science import OsfProject, serve_snapshot

FILES = {"README": b"read me", "sub-01/anat/T1w.nii": b"image"}


def lines() -> list[str]:
    text = README.read_text(encoding="utf-8").split("## Open archives")[1].split("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return str(block).splitlines()


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.fill("fcp-indi", {f"data/Projects/{path}": data for path, data in FILES.items()})
        server.fill("hcp-openaccess", {f"HCP_1200/{path}": data for path, data in FILES.items()})
        server.fill("bucket", {f"prefix/{path}": data for path, data in FILES.items()})
        server.fill("openneuro.org", {f"ds000228/{path}": data for path, data in FILES.items()})
        server.web = {f"/data/{path}": Thing(data) for path, data in FILES.items()}
        serve_snapshot(server, "ds000228", "1.1.0", FILES)
        OsfProject(server, "axz5r", FILES)
        yield server


def here(line: str, server: ObjectServer) -> str:
    """The line with our server in place of the host."""
    line = line.replace("dataset:openneuro-ds000228", "openneuro://ds000228")
    line = line.replace("https://www.example.org", f"{server.url}/web").replace("https://minio.example.org", server.url)
    return re.sub(r"(?<=ls )((?:s3|openneuro|osf)://\S+)", rf"'\1?endpoint={server.url}'", line)


def test_the_lines_are_those_that_are_run() -> None:
    kinds = [re.search(r"xnatfs (\w+) '?([a-z0-9+]*)", line) for line in lines()]
    assert [found[2] for found in kinds if found] == [
        *("newborn", "dataset", "openneuro", "s3", "s3", "s3", "osf", "web+https"),
    ]


@pytest.mark.parametrize("number", range(1, 8))
def test_a_line_lists_what_is_there(number: int, server: ObjectServer, tmp_path: Path) -> None:
    keys = tmp_path / "home" / ".aws" / "credentials"
    keys.parent.mkdir(parents=True)
    keys.write_text("[hcp]\naws_access_key_id = AKIAHCP\naws_secret_access_key = s3cret\n")
    keys.chmod(0o600)
    server.asked.clear()
    done = run(here(lines()[number], server), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["README", "sub-01"]
    signed = [asked for asked in server.asked if "AKIAHCP" in asked.headers.get("Authorization", "")]
    assert bool(signed) == ("AWS_PROFILE=hcp" in lines()[number])


def test_the_table_is_searched(tmp_path: Path) -> None:
    done = run(lines()[0], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "xnatfs mount dataset:dhcp DIR" in done.stdout
