"""One demo server for all tests of the XNAT archive and one server of objects for the others, as new before each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.helpers.object_server import ObjectServer
from tests.helpers.server import DemoServer
from xnatfs.archives.xnat.archive import XnatArchive
from xnatfs.config import Credentials, HttpConfig, TreeConfig

DEMO = Credentials("demo", "demo", "the test")


@pytest.fixture(scope="session")
def shared_server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


@pytest.fixture
def server(shared_server: DemoServer) -> DemoServer:
    shared_server.reset()
    return shared_server


@pytest.fixture(scope="session")
def shared_objects() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        yield server


@pytest.fixture
def objects(shared_objects: ObjectServer) -> ObjectServer:
    shared_objects.empty()
    return shared_objects


@pytest.fixture
def connect(server: DemoServer) -> Iterator[Callable[..., XnatArchive]]:
    opened: list[XnatArchive] = []

    def build(credentials: Credentials = DEMO, tree: TreeConfig | None = None, **http: object) -> XnatArchive:
        settings = HttpConfig(**{"timeout_s": 5.0, **http})  # type: ignore[arg-type]
        archive = XnatArchive(server.url, credentials, settings, tree or TreeConfig(), "xnatfs/test")
        opened.append(archive)
        return archive

    yield build
    for archive in opened:
        archive.close()
