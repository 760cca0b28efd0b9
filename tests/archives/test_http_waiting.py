"""Between two tries nobody holds a connection, and whoever no longer wants the answer waits no longer."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from tests.helpers.object_server import ObjectServer, Thing
from xnatfs import callers
from xnatfs.archives.http.account import Guest
from xnatfs.archives.http.client import HttpClient
from xnatfs.config import HttpConfig
from xnatfs.errors import Interrupted, Unavailable
from xnatfs.turns import Turn

LONG = "40"  # seconds that the server wants to be left alone
SOON_S = 10.0


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.web["/file"] = Thing(b"content")
        server.routes["/busy"] = lambda handler: handler.say(503, **{"Retry-After": LONG})
        yield server


@pytest.fixture
def http(server: ObjectServer) -> Iterator[HttpClient]:
    config = HttpConfig(timeout_s=60.0, retries=3, max_connections=1)
    with closing(HttpClient(server.url, config, Guest(), "t")) as client:
        yield client


class Asking(threading.Thread):
    """Asks for what is busy, in a thread of its own, and keeps the error that comes of it."""

    def __init__(self, http: HttpClient, server: ObjectServer, before: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.error: BaseException | None = None
        self._http, self._before = http, before
        self.start()
        deadline_s = time.monotonic() + SOON_S
        while not any(asked.target.startswith("/busy") for asked in server.asked) and time.monotonic() < deadline_s:
            time.sleep(0.01)

    def run(self) -> None:
        self._before()
        try:
            self._http.get_bytes("/busy")
        except BaseException as error:  # noqa: BLE001  # looked at by the test
            self.error = error

    def ended(self) -> BaseException | None:
        self.join(SOON_S)
        assert not self.is_alive(), "it still waits"
        return self.error


def test_who_waits_to_try_again_leaves_the_connection_to_others(server: ObjectServer, http: HttpClient) -> None:
    asking = Asking(http, server)
    assert http.get_bytes("/web/file") == b"content"  # by the one connection that there is
    assert asking.is_alive()
    http.close()
    assert isinstance(asking.ended(), Unavailable)


def test_a_turn_that_is_interrupted_waits_no_longer(server: ObjectServer, http: HttpClient) -> None:
    turn = Turn(False, lambda: None)
    asking = Asking(http, server, lambda: turn.__enter__() and None)
    turn.interrupt()
    assert isinstance(asking.ended(), Unavailable)
    assert len(server.asked) == 1


def test_a_caller_that_is_killed_waits_no_longer(server: ObjectServer, http: HttpClient) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        asking = Asking(http, server, lambda: callers.works_for(lambda: process.pid))
        assert asking.is_alive()
        process.kill()
        assert isinstance(asking.ended(), Interrupted)
    finally:
        process.kill()
        process.wait()
    assert len(server.asked) == 1
