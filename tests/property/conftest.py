"""``scripts/test --full`` makes up ten times as many cases (``pytest_configure`` in tests/conftest.py)."""

from __future__ import annotations

import pytest

LONG_S = 900


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("full"):
        for item in items:
            if "tests/property/" in item.nodeid:
                item.add_marker(pytest.mark.timeout(LONG_S))
