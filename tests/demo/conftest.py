"""One demo server for all tests of it, with its switches put back before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from tests.helpers.server import DemoServer


@pytest.fixture(scope="session")
def _server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


@pytest.fixture
def server(_server: DemoServer) -> DemoServer:
    _server.reset()
    return _server


@pytest.fixture
def http() -> Iterator[requests.Session]:
    """An HTTP client that logs in with Basic on each request and asks for bytes as they are."""
    with requests.Session() as session:
        session.trust_env = False
        session.auth = ("demo", "demo")
        session.headers.update({"User-Agent": "tests/1", "Accept-Encoding": "identity"})
        yield session
