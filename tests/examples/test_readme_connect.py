"""The README's ways to connect: each command is run, against the demo server in place of the site it names."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounting import user_environment
from tests.helpers.server import DemoServer

README = Path(__file__).parents[2] / "README.md"
SITES = ("https://www.nitrc.org/ir", "https://db.humanconnectome.org", "https://data.developingconnectome.org")


def section() -> str:
    (text,) = re.findall(r"^## Connect to your XNAT\n(.*?)^## ", README.read_text(encoding="utf-8"), re.DOTALL | re.M)
    return str(text)


def blocks() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", section(), re.DOTALL)


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with DemoServer() as running:
        yield running


def run(
    script: str, room: Path, user: str | None = None, password: str | None = None, text: str = ""
) -> subprocess.CompletedProcess[str]:
    program = room / "bin" / "xnatfs"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m xnatfs "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    environment = user_environment(room / "home", user, password)
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    command = ["bash", "-ec", script]
    return subprocess.run(command, env=environment, input=text, capture_output=True, text=True, check=False)


def here(script: str, server: DemoServer) -> str:
    return script.replace("https://xnat.example.org", server.url).replace("mary", "demo").replace("PASSWORD", "demo")


def test_every_block_is_one_of_those_that_are_run() -> None:
    assert [block.split()[1] for block in blocks()] == ["doctor", "login", "XNAT_USER=mary", "ls", "ls"]


def test_doctor(server: DemoServer, tmp_path: Path) -> None:
    done = run(here(blocks()[0], server), tmp_path, "demo", "demo")
    assert "logged in as demo" in done.stdout


def test_a_token(server: DemoServer, tmp_path: Path) -> None:
    done = run(here(blocks()[1], server), tmp_path, text="demo\ndemo\n")
    assert done.returncode == 0, done.stderr
    assert "Logged in" in done.stdout and "DEMO" in done.stdout.split() and "Logged out" in done.stdout


def test_a_password_from_the_environment(server: DemoServer, tmp_path: Path) -> None:
    done = run(here(blocks()[2], server), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "DEMO" in done.stdout.split()


def test_netrc(server: DemoServer, tmp_path: Path) -> None:
    (line,) = re.findall(r"^machine .*$", section(), re.M)
    netrc = tmp_path / "home" / ".netrc"
    netrc.parent.mkdir()
    netrc.write_text(here(line, server).replace("xnat.example.org", "127.0.0.1"))
    netrc.chmod(0o600)
    done = run(f"xnatfs ls {server.url}", tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_guest(server: DemoServer, tmp_path: Path) -> None:
    server.switch(guests=True)
    done = run(here(blocks()[3], server), tmp_path)
    server.switch(guests=False)
    assert done.returncode == 0, done.stderr


def test_public_archives_where_the_terms_are_accepted_and_where_not(tmp_path: Path) -> None:
    lines = blocks()[4].splitlines()
    assert [any(site in line for line in lines) for site in SITES] == [True] * 3
    with DemoServer(context="/ir") as server:
        for line, site in zip(lines, SITES, strict=True):
            command = line.replace(site, server.url).replace("#/ixi", "#/DEMO")
            done = run(command, tmp_path, "demo", "demo")
            assert done.returncode == 0, done.stderr
        server.fault("/data/projects", "html", times=None)
        stranger = tmp_path / "stranger"  # whose cache holds no listing
        stranger.mkdir()
        done = run(command, stranger, "demo", "demo")
    assert done.returncode == 4
    assert "the server answers with a web page" in done.stderr
    assert f"open {server.url} in a browser" in done.stderr
