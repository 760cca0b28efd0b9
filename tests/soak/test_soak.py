"""A soak: seconds in the short mode, ten minutes in ``scripts/test --full``. Its figures stand in docs/semantics.md."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.helpers.mounting import why_no_fuse
from tests.soak.soak import CAP, MIB, Figures, soak

pytestmark = pytest.mark.fuse

ALLOWED = {"right", "EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ECONNABORTED", "ENOENT"}
"""The three before the last: a mount that was killed, before and after its end is known; the last: no mount at all."""

LONGEST_S = 60.0  # of one operation, many reads long, with every request of it at its three seconds and its retries
SPARE = 8  # descriptors or threads that may come and go with the moment


def check(figures: Figures) -> None:
    sys.stdout.write(figures.report() + "\n")
    assert figures.wrong == []
    assert set(figures.outcomes) <= ALLOWED
    assert figures.outcomes["right"] > 50
    assert figures.kills >= 1
    assert figures.faults > 0
    assert figures.longest_s < LONGEST_S
    assert figures.cache_peak <= CAP + 64 * MIB
    assert figures.unread == []
    assert {name: gained for name, gained in figures.growth.items() if gained > SPARE} == {}
    assert figures.left == []


@pytest.fixture(autouse=True)
def _fuse() -> None:
    reason = why_no_fuse()
    if reason:
        pytest.skip(reason)


def test_seconds_of_faults_eviction_and_kills_give_no_wrong_byte(tmp_path: Path) -> None:
    check(soak(tmp_path, 14.0, seed=1))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_minutes_of_faults_eviction_and_kills_give_no_wrong_byte(tmp_path: Path) -> None:
    check(soak(tmp_path, float(os.environ.get("XNATFS_SOAK_S", "600")), seed=2))
