"""Who waits for a server that does not answer can be killed at once, and what does not need it goes on.

Real mounts, readers in processes of their own, a demo server that is stopped (SIGSTOP): it accepts and never answers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounting import Mount, mounted
from tests.helpers.server import DemoServer

pytestmark = pytest.mark.fuse

SESSION = "DEMO/DEMO_001/DEMO_001_MR1"
KNOWN = f"{SESSION}/resources"
UNKNOWN = "HCP_DEMO"  # a project whose listing nobody has asked for
BIG = "BIG/BIG_1/BIG_1_MR/scans/3-bold100m/NIFTI/bold_100m.nii"
STUCK_S = 1.5  # for a reader to have sent its request and to wait
GONE_S = 5.0  # far below the timeout of 60 s; a killed reader is gone within half a second on a quiet machine

READS = {
    "buffered": "open(path, 'rb').read(4096)",
    "whole": "open(path, 'rb').read()",
    "direct": "os.preadv(os.open(path, os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 4096)], 0)",
    "mmap": "mmap.mmap(os.open(path, os.O_RDONLY), 0, prot=mmap.PROT_READ)[0]",
}
LOOKS = {"stat": "os.stat(path)", "ls": "os.listdir(path)"}


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


@pytest.fixture
def mount(server: DemoServer, tmp_path: Path) -> Iterator[Mount]:
    with mounted(server.url, tmp_path, "--timeout", "60s", user="demo", password="demo") as mount:
        os.listdir(mount.path / KNOWN)
        os.stat(mount.path / BIG)
        yield mount


@contextlib.contextmanager
def stopped(server: DemoServer) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextlib.contextmanager
def reader(code: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs ``code`` on ``path``, stuck in it by the time it is given."""
    process = subprocess.Popen([sys.executable, "-c", f"import mmap, os, sys; path = sys.argv[1]; {code}", path])
    try:
        time.sleep(STUCK_S)
        assert process.poll() is None, "it did not wait at all"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("how", READS)
def test_a_reader_of_a_silent_server_can_be_killed_at_once(
    server: DemoServer, mount: Mount, how: str, number: signal.Signals
) -> None:
    with stopped(server), reader(READS[how], mount.path / BIG) as process:
        process.send_signal(number)
        assert process.wait(GONE_S) == -number
    with (mount.path / BIG).open("rb") as file:
        assert len(file.read(4096)) == 4096


@pytest.mark.parametrize("how", LOOKS)
def test_who_lists_on_a_silent_server_can_be_killed_at_once(server: DemoServer, mount: Mount, how: str) -> None:
    unknown = mount.path / UNKNOWN / "resources" if how == "stat" else mount.path / UNKNOWN
    with stopped(server), reader(LOOKS[how], unknown) as process:
        process.kill()
        assert process.wait(GONE_S) == -signal.SIGKILL
    assert os.listdir(mount.path / UNKNOWN)


def test_other_folders_answer_while_a_reader_is_stuck(server: DemoServer, mount: Mount) -> None:
    with stopped(server), reader(READS["direct"], mount.path / BIG):
        done = subprocess.run(["ls", "-l", mount.path / KNOWN], capture_output=True, timeout=GONE_S, check=True)
        assert b"QC" in done.stdout


def test_another_reader_of_the_same_bytes_gets_them_when_the_first_is_killed(server: DemoServer, mount: Mount) -> None:
    code = "sys.exit(len(os.preadv and os.pread(os.open(path, os.O_RDONLY), 4096, 0)) != 4096)"
    with stopped(server), reader(READS["direct"], mount.path / BIG) as first, reader(code, mount.path / BIG) as second:
        first.kill()
        first.wait(GONE_S)
        os.kill(server.pid, signal.SIGCONT)
        assert second.wait(30) == 0


def test_a_signal_that_ends_nobody_interrupts_no_read(server: DemoServer, mount: Mount) -> None:
    code = "import signal; signal.signal(signal.SIGUSR1, lambda *_: None); signal.siginterrupt(signal.SIGUSR1, True); "
    code += "fd = os.open(path, os.O_RDONLY | os.O_DIRECT); sys.exit(os.preadv(fd, [mmap.mmap(-1, 4096)], 0) != 4096)"
    with stopped(server), reader(code, mount.path / BIG) as process:
        process.send_signal(signal.SIGUSR1)
        time.sleep(STUCK_S)
        assert process.poll() is None
        os.kill(server.pid, signal.SIGCONT)
        assert process.wait(30) == 0
