"""One mount of the sample archive for all examples."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.mounting import Mount, mounted, why_no_fuse
from tests.helpers.server import DemoServer


@pytest.fixture(scope="session")
def demo_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    reason = why_no_fuse()
    if reason:
        pytest.skip(reason)
    with (
        DemoServer() as server,
        mounted(server.url, tmp_path_factory.mktemp("examples"), user="demo", password="demo") as mount,
    ):
        yield mount
