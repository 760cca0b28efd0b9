"""Whether a caller is ending: killed, gone, or asked to end; a signal that it merely handles is none of these."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from xnatfs import callers
from xnatfs.errors import Interrupted

PATIENCE_S = 20.0


@pytest.fixture
def process() -> subprocess.Popen[bytes]:
    """One that lives until it is killed by the test."""
    return subprocess.Popen([sys.executable, "-S", "-E", "-c", "import time; time.sleep(600)"])


def test_a_living_process_is_not_ending_and_a_killed_one_is(process: subprocess.Popen[bytes]) -> None:
    assert not callers.is_ending(process.pid)
    process.kill()
    deadline = time.monotonic() + PATIENCE_S
    while not callers.is_ending(process.pid):  # while it dies and then, as nobody has waited for it, as a zombie
        assert time.monotonic() < deadline
    process.wait(PATIENCE_S)
    assert callers.is_ending(process.pid)


def test_a_caller_that_nobody_knows_is_not_ending() -> None:
    assert not callers.is_ending(0)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_that_a_caller_holds_back_does_not_end_it(number: signal.Signals) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        signal.pthread_kill(threading.get_ident(), number)
        assert not callers.is_ending(threading.get_native_id())
        assert signal.sigtimedwait({number}, PATIENCE_S) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_wait_for_a_caller_that_is_killed_ends(process: subprocess.Popen[bytes]) -> None:
    raised: list[str] = []
    ended = threading.Event()

    def work() -> None:
        callers.works_for(lambda: process.pid)
        with callers.watched(ended.set):
            assert ended.wait(PATIENCE_S)
        try:
            callers.wait(threading.Event().wait)
        except Interrupted as error:
            raised.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    process.kill()
    thread.join(PATIENCE_S)
    process.wait(PATIENCE_S)
    assert raised == ["whoever asked has ended"]


def test_a_wait_for_nobody_in_particular_goes_on_until_its_time_is_over() -> None:
    assert not callers.has_caller()
    callers.check()
    assert not callers.wait(threading.Event().wait, 0.01)
