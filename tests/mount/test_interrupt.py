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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.mounting import Mount, mounted
from tests.helpers.relays import ForwardProxy
from tests.helpers.server import DemoServer

pytestmark = pytest.mark.fuse

SESSION = "DEMO/DEMO_001/DEMO_001_MR1"
KNOWN = f"{SESSION}/resources"
UNKNOWN = "HCP_DEMO"  # a project whose listing nobody has asked for
BIG = "BIG/BIG_1/BIG_1_MR/scans/3-bold100m/NIFTI/bold_100m.nii"
SCAN_OF_1000 = "BENCH/BENCH_1/BENCH_1000_DICOM/scans/1-T1w_1/DICOM"
SLOW = 200_000
"""Bytes a second: a stream so slow is waited for, and takes a quarter of an hour to the last file of that scan."""
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


def test_a_reader_behind_a_proxy_can_be_killed_at_once(server: DemoServer, tmp_path: Path) -> None:
    with ForwardProxy(server.port) as proxy:
        through = ("--timeout", "60s", "--proxy", f"http://127.0.0.1:{proxy.port}")
        with mounted("http://xnat.example.org", tmp_path, *through, user="demo", password="demo") as mount:
            os.stat(mount.path / BIG)
            with stopped(server), reader(READS["direct"], mount.path / BIG) as process:
                process.kill()
                assert process.wait(GONE_S) == -signal.SIGKILL
            with (mount.path / BIG).open("rb") as file:
                assert len(file.read(4096)) == 4096


@pytest.mark.parametrize("how", LOOKS)
def test_who_lists_on_a_silent_server_can_be_killed_at_once(server: DemoServer, mount: Mount, how: str) -> None:
    unknown = mount.path / UNKNOWN / "resources" if how == "stat" else mount.path / UNKNOWN
    with stopped(server), reader(LOOKS[how], unknown) as process:
        process.kill()
        assert process.wait(GONE_S) == -signal.SIGKILL
    assert os.listdir(mount.path / UNKNOWN)


def test_who_asks_a_silent_server_for_a_size_can_be_killed_at_once(server: DemoServer, mount: Mount) -> None:
    unsized = mount.path / SESSION / ".xnat/item.xml"
    with stopped(server), reader(LOOKS["stat"], unsized) as process:
        process.kill()
        assert process.wait(GONE_S) == -signal.SIGKILL
    assert unsized.stat().st_size > 0
    assert sum("xml" in record["query"] for record in server.requests()) == 1  # asked once, for whoever came later


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


# --- who waits for what a stream, or another mount, is to bring -----------------------------------------------------


@pytest.fixture
def full_server() -> Iterator[DemoServer]:
    with DemoServer(sample="full") as server:
        yield server


@contextlib.contextmanager
def mounts_of_one_cache(server: DemoServer, tmp_path: Path) -> Iterator[tuple[Mount, Mount]]:
    arguments = (server.url, "--timeout", "60s", "--cache-dir", f"{tmp_path}/cache")

    def mount(name: str) -> contextlib.AbstractContextManager[Mount]:
        return mounted(arguments[0], tmp_path / name, *arguments[1:], user="demo", password="demo")

    with mount("one") as one, mount("other") as other:
        yield one, other


@contextlib.contextmanager
def slow_walk(server: DemoServer, mount: Mount) -> Iterator[None]:
    """A zip of the scan is on its way, drop by drop, because somebody reads its first files."""
    paths = sorted((mount.path / SCAN_OF_1000).iterdir())
    for path in paths[:2]:
        path.read_bytes()
    server.switch(bandwidth=SLOW)
    with subprocess.Popen(["cat", *paths[2:4]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as walker:
        wait_until(lambda: any("format=zip" in row["query"] and row["sent"] for row in server.log()["requests"]))
        yield
        server.switch(bandwidth=None)
        walker.kill()


def wait_until(happened: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.01)


def test_a_reader_that_waits_for_a_zip_can_be_killed_at_once(full_server: DemoServer, tmp_path: Path) -> None:
    with mounted(full_server.url, tmp_path, "--timeout", "60s", user="demo", password="demo") as mount:
        last = max((mount.path / SCAN_OF_1000).iterdir())
        with slow_walk(full_server, mount), reader(READS["direct"], last) as process:
            process.kill()
            assert process.wait(GONE_S) == -signal.SIGKILL


def test_a_reader_that_waits_for_the_zip_of_another_mount_can_be_killed_at_once(
    full_server: DemoServer, tmp_path: Path
) -> None:
    with mounts_of_one_cache(full_server, tmp_path) as (one, other):
        *_, first, second, last = sorted((other.path / SCAN_OF_1000).iterdir())
        for path in (first, second):
            path.read_bytes()
        with slow_walk(full_server, one), reader(READS["direct"], last) as process:
            process.kill()
            assert process.wait(GONE_S) == -signal.SIGKILL


def test_a_reader_that_waits_for_what_another_mount_fetches_can_be_killed_at_once(
    server: DemoServer, tmp_path: Path
) -> None:
    with mounts_of_one_cache(server, tmp_path) as (one, other):
        for mount in (one, other):
            os.stat(mount.path / BIG)
        with (
            stopped(server),
            reader(READS["direct"], one.path / BIG),
            reader(READS["direct"], other.path / BIG) as second,
        ):
            second.kill()
            assert second.wait(GONE_S) == -signal.SIGKILL
