"""A peer of the benchmarks that hangs, as httpdirfs does once in a while, never hangs the benchmarks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.mounting import is_mounted

pytestmark = pytest.mark.fuse

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HANGS_IN_READ = """
import errno, sys, time
try:
    import mfusepy as fuse
except ImportError:
    import fuse

class Hangs(fuse.Operations):
    def getattr(self, path, fh=None):
        if path == "/":
            return {"st_mode": 0o40755, "st_nlink": 2}
        if path == "/file":
            return {"st_mode": 0o100444, "st_nlink": 1, "st_size": 1000}
        raise fuse.FuseOSError(errno.ENOENT)

    def readdir(self, path, fh):
        return [".", "..", "file"]

    def read(self, path, size, offset, fh):
        time.sleep(1000)

fuse.FUSE(Hangs(), sys.argv[1], foreground=True)
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules, as scripts/bench imports them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure
    import peers

    yield SimpleNamespace(measure=measure, peers=peers)
    for name in ("measure", "memory", "peers"):
        sys.modules.pop(name, None)


@pytest.fixture
def hangs(bench: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    class Hangs(bench.peers.Peer):  # type: ignore[misc]  # the module is not on mypy's path
        def command(self, point: Path) -> list[str]:
            return [sys.executable, "-c", HANGS_IN_READ, str(point)]

    return Hangs(None, tmp_path)


def test_a_reader_of_a_mount_that_hangs_is_stopped_and_the_mount_goes(
    bench: SimpleNamespace, hangs: SimpleNamespace
) -> None:
    with pytest.raises(subprocess.TimeoutExpired), hangs.mounted() as point:
        bench.measure.run(["cat", point / "file"], 0.5)
    assert not is_mounted(point)
    assert hangs.process.poll() is not None


def test_a_mount_that_hangs_while_the_benchmarks_themselves_read_is_killed(
    bench: SimpleNamespace, hangs: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.peers, "HANG_S", 2.0)
    with hangs.mounted() as point:
        file = os.open(point / "file", os.O_RDONLY)
        with pytest.raises(OSError):
            os.pread(file, 1, 0)
        with contextlib.suppress(OSError):  # the mount is gone
            os.close(file)
    assert not is_mounted(point)
