"""Servers and mounts that the cases share. Each case takes files that no other has read: caches must not hide faults.

The long mode (``--full``) runs every case and more rounds; without it what is marked ``slow`` is left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.matrix import TIMEOUT_S, Bench
from tests.helpers.mounting import mounted, why_no_fuse
from tests.helpers.server import DemoServer


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("full"):
        return
    here = [item for item in items if "tests/faults/" in item.nodeid]
    left_out = [item for item in here if item.get_closest_marker("slow")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(autouse=True, scope="session")
def _fuse() -> None:
    reason = why_no_fuse()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def rounds(pytestconfig: pytest.Config) -> int:
    """How often what is random is tried, as a multiple of the short mode's number."""
    return 25 if pytestconfig.getoption("full") else 1


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A mounted server with 400 fresh files, with support for ranges ("on") or without ("off"): XNAT has none."""
    yield from make_bench(request.param, tmp_path_factory)


def make_bench(ranges: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    room = tmp_path_factory.mktemp(f"bench-{ranges}")
    arguments = ("--timeout", f"{TIMEOUT_S}s", "--block-size", "128K")
    with (
        DemoServer(sample="full", range=ranges) as server,
        mounted(server.url, room, *arguments, user="demo", password="demo") as mount,
    ):
        yield Bench(server, mount)
