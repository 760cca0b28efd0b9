"""One demo server and one mount of it for all tests of tools: they only read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounting import Mount, mounted, why_no_fuse
from tests.helpers.server import DemoServer
from tests.helpers.truth import TrueFile, project_truth


@pytest.fixture(scope="session")
def demo_server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


@pytest.fixture(scope="session")
def demo_mount(demo_server: DemoServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    reason = why_no_fuse()
    if reason:
        pytest.skip(reason)
    with mounted(demo_server.url, tmp_path_factory.mktemp("tools"), user="demo", password="demo") as mount:
        yield mount


@pytest.fixture(scope="session")
def project(demo_mount: Mount) -> Path:
    return demo_mount.path / "DEMO"


@pytest.fixture(scope="session")
def truth(demo_server: DemoServer) -> dict[str, TrueFile]:
    """Every file of the project DEMO, by its path below the project."""
    return project_truth(demo_server.truth("DEMO", md5="all"))
