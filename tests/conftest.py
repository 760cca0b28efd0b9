"""Holds for every test: no warning goes unnoticed, no thread of ours outlives its test.

A test that provokes a warning says so: ``expected_warnings.append("regular expression")``; one that then does not come
fails the test as well.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests.helpers.server import DemoServer

SETTLE_S = 8.0
"""Threads get this long to end after a test: an idle transfer lets go after ``ReadConfig.idle_s``, 5 s by default."""


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started as a background job of a shell: programs under test would inherit that, and ignore Ctrl-C too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the long mode: every case and many rounds (tests/faults)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("full"):
        from hypothesis import settings

        settings.register_profile("full", max_examples=1000, deadline=None)
        settings.load_profile("full")


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.levelname} {record.name}: {record.getMessage()}")


@pytest.fixture
def expected_warnings() -> list[str]:
    """Regular expressions for the warnings and errors that the test is about; each must be logged at least once."""
    return []


@pytest.fixture(autouse=True)
def _logs_are_checked(expected_warnings: list[str]) -> Iterator[None]:
    records = _Records()
    logger = logging.getLogger("xnatfs")
    logger.addHandler(records)
    yield
    logger.removeHandler(records)
    unexpected = [text for text in records.messages if not any(re.search(each, text) for each in expected_warnings)]
    missing = [each for each in expected_warnings if not any(re.search(each, text) for text in records.messages)]
    assert not unexpected, f"logged without being expected: {unexpected}"
    assert not missing, f"expected but not logged: {missing}"


@pytest.fixture(autouse=True)
def _threads_end() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + SETTLE_S
    while leaked := [each for each in threading.enumerate() if each not in before and each.name.startswith("xnatfs")]:
        assert time.monotonic() < until, f"threads still run {SETTLE_S} s after the test: {leaked}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def _own_server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


@pytest.fixture
def own_server(_own_server: DemoServer) -> DemoServer:
    """A demo server for one file of tests, whose edits reach no other; with its switches put back before each test."""
    _own_server.reset()
    return _own_server
