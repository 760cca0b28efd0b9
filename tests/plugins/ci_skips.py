"""Makes a skip of a `fuse` or `tools` test a failure in CI: there the machine must have what they need."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

REQUIRED_IN_CI = ("fuse", "tools")


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    required = any(item.get_closest_marker(name) for name in REQUIRED_IN_CI)
    if report.skipped and required and not hasattr(report, "wasxfail") and in_ci():
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow for a test of FUSE or of tools: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and in_ci():  # a whole module or package skipped itself before its marks could be read
        report.outcome = "failed"
        report.longrepr = f"skipped as a whole, which CI does not allow: {report.longrepr}"
    return report
