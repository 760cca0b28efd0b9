"""The connections to one origin: lent to one request at a time, kept for the next, never more than there may be.

A ``Line`` where it serves, else a ``Roamer``: behind a proxy, and where redirects may lead to other hosts. Sends
nothing. Safe from any thread.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.connection import HTTPConnection
from urllib3.util.ssl_ import create_urllib3_context

from xnatfs.archives.http.errors import Unreachable
from xnatfs.archives.http.line import Line
from xnatfs.archives.http.roaming import Roamer
from xnatfs.config import HttpConfig
from xnatfs.errors import TimedOut, Unavailable
from xnatfs.turns import Turn

FIRST_BUFFER = 128 * 1024
"""Bytes of a new socket's receive buffer (Linux doubles it). Left to itself the kernel took 0.1 to 2.6 MB of a body
from which 256 KiB were read, measured on loopback; with this, 0.2 MB."""

SOCKET_OPTIONS = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_RCVBUF, FIRST_BUFFER)]

DEFAULT_PORTS = {"http": http.client.HTTP_PORT, "https": http.client.HTTPS_PORT}

SOON_S = 0.2
"""Seconds that a listing waits for a connection until a brief transfer has to let it by. A guess: somebody looks."""

MAX_HOPS = 4
"""Redirects in a row where an archive hands out other hosts' addresses: OSF takes two."""

Lease = Line | Roamer
"""What carries one request at a time, and keeps its connection for the next."""


class Connections:
    """To ``base_url``, at most ``config.max_connections``.

    Args:
        headers: Sent with each request.
        wander: Requests may be led to other origins.

    Attributes:
        root: Scheme, host and port, where requests go by lines; else "": by sessions.
        lent: How many are in use; guarded by _lock, read without.
    """

    def __init__(self, base_url: str, config: HttpConfig, headers: Mapping[str, str], wander: bool) -> None:
        self._base_url = base_url
        self._config = config
        self._headers = headers
        self._wander = wander
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._idle: list[Lease] = []  # guarded by _lock
        self.lent = 0
        self._turns: dict[Lease, Turn | None] = {}  # guarded by _lock: what is lent, oldest first, and in whose turn
        self._listings_wait = 0  # guarded by _lock: for a connection
        self._tls: ssl.SSLContext | None = None  # guarded by _lock; made when first needed: it reads files
        self._closed = False
        self.root = ""
        if config.proxy is None and not wander:
            with contextlib.suppress(requests.RequestException):  # not an address: said when it is asked
                root = prepared(base_url, None)[0]
                self.root = root if root.startswith(("http:", "https:")) else ""

    def close(self) -> None:
        """End all; requests under way fail."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for lease in self._turns:
                lease.interrupt()
        for lease in idle:
            _end_lease(lease)

    def lend(self, turn: Turn | None) -> Lease:
        """A connection for one request, which ``give_back`` ends. Waits for one at most as long as for an answer.

        Args:
            turn: The transfer's that asks; None is a listing, for which one connection is kept.
        Raises:
            TimedOut: none became free.
            Unavailable: the turn is over.
        """
        if turn is not None and turn.over:
            raise Unavailable("interrupted")
        lease = None
        self._wait_for_room(turn)
        try:
            with self._lock:
                if self._idle:
                    lease = self._idle.pop()
            if lease is None:
                lease = self._new_line() if self.root else self.new_session()
        except BaseException:
            with self._lock:
                self.lent -= 1
                self._freed.notify_all()
            raise
        with self._lock:
            self._turns[lease] = turn
        return lease

    def _wait_for_room(self, turn: Turn | None) -> None:
        """Count one more connection as lent, once there is one."""
        with self._lock:
            if self._has_room(turn):
                self.lent += 1
                return
            self._listings_wait += turn is None
        deadline = time.monotonic() + self._config.timeout_s
        try:
            while time.monotonic() < deadline:
                with self._lock:
                    if self._freed.wait_for(lambda: self._has_room(turn), SOON_S):
                        self.lent += 1
                        return
                    brief = [
                        other for other in self._turns.values() if other is not None and other.brief and not other.over
                    ]
                if turn is not None and turn.over:
                    raise Unavailable("interrupted")
                if turn is None and brief:
                    brief[-1].give_way()
        finally:
            with self._lock:
                self._listings_wait -= turn is None
                self._freed.notify_all()
        raise TimedOut(f"all {self._config.max_connections} connections are busy", "raise --connections")

    def _has_room(self, turn: Turn | None) -> bool:
        """Under the lock. A transfer leaves one connection to a listing that waits."""
        kept = 1 if turn is not None and self._listings_wait else 0
        return self.lent + kept < self._config.max_connections

    def give_back(self, lease: Lease) -> None:
        """What ``lend`` gave is free again."""
        with self._lock:
            turn = self._turns.pop(lease, None)
        if turn is not None:
            turn.waits_with(None)  # the next one's request is not this turn's to end
            if isinstance(lease, Roamer):
                lease.resume()
        with self._lock:
            keep = not self._closed
            if keep:
                self._idle.append(lease)
        if not keep:
            _end_lease(lease)
        with self._lock:
            self.lent -= 1
            self._freed.notify_all()

    def _new_line(self) -> Line:
        parts = urlsplit(self.root)
        default = DEFAULT_PORTS[parts.scheme]
        port = parts.port or default
        host = parts.netloc.removesuffix(f":{default}")
        head = "".join(f"{name}: {value}\r\n" for name, value in (("Host", host), *self._headers.items()))
        return Line(parts.hostname or "", port, self._trusted(), SOCKET_OPTIONS, head)

    def _trusted(self) -> ssl.SSLContext | None:
        if not self._base_url.startswith("https:"):
            return None
        with self._lock:
            if self._tls is None:
                self._tls = _tls_context(self._config.ca_bundle)
            return self._tls

    def new_session(self) -> Roamer:
        """A session with our headers, CA and proxy, and no cookies or credentials of its own."""
        hosts = MAX_HOPS if self._wander else 1
        return Roamer(self._headers, self._trusted(), self._config.proxy, SOCKET_OPTIONS, hosts)


def _tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    """Trusts the given authorities alone, or else the system's and certifi's: hospitals have their own."""
    context = create_urllib3_context()
    try:
        if ca_bundle is not None:
            context.load_verify_locations(ca_bundle)
        else:
            context.load_default_certs()
            context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    except OSError as error:  # ssl.SSLError is one
        what = f"{ca_bundle or DEFAULT_CA_BUNDLE_PATH}: not a file of certificates (PEM)"
        raise Unreachable(what, "check --ca-bundle") from error
    return context


def _end_lease(lease: Lease) -> None:
    if isinstance(lease, Line):
        lease.hang_up()
    else:
        lease.close()


def prepared(url: str, params: Mapping[str, str] | None) -> tuple[str, str]:
    """(scheme, host and port; path and query) of an address as requests would send it."""
    request = requests.PreparedRequest()
    request.prepare_url(url, dict(params or {}))
    parts = urlsplit(request.url or "")
    return f"{parts.scheme}://{parts.netloc}", str(request.path_url)
