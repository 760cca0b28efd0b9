"""A session of requests that can be interrupted: for ways that a ``Line`` does not know.

Those lead through a proxy, or to the hosts that redirects name. Decides nothing: ``client.py`` follows redirects, tries
again and checks replies. One request at a time, from any thread; ``interrupt`` from any other.
"""

from __future__ import annotations

import functools
import socket
import ssl
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from xnatfs.archives.http.line import shut


class Roamer(requests.Session):
    """Headers, authorities and proxy as given; no cookies or credentials of its own, and no look at the environment.

    Args:
        tls: For https; None where no https is asked for.
        options: Set on each new socket.
        hosts: How many hosts' connections are kept, one each.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None,
        proxy: str | None,
        options: list[tuple[int, int, int]],
        hosts: int,
    ) -> None:
        super().__init__()
        self.trust_env = False  # no ~/.netrc behind our back, no look at the environment for each request
        self.cookies.set_policy(_NoCookies())  # the account keeps them, for all sessions
        self.headers.clear()
        self.headers.update(headers)
        if proxy is not None:
            self.proxies = {"http": proxy, "https": proxy}
        self._connections: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()  # guarded by _connections_lock
        self._connections_lock = threading.Lock()
        self.interrupted = False
        adapter = _Adapter(self, tls, options, pool_connections=hosts, pool_maxsize=1, max_retries=0)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def get_redirect_target(self, resp: object) -> None:
        """None: requests would look at where a redirect leads, and read its body, though it is not to follow."""

    def made(self, connection: HTTPConnection) -> None:
        """A connection of ours, which is not open yet."""
        with self._connections_lock:
            self._connections.add(connection)

    def interrupt(self) -> None:
        """From any thread: the request under way, or else the next, fails soon."""
        self.interrupted = True
        with self._connections_lock:
            connections = list(self._connections)
        for connection in connections:  # one that is merely kept is made anew by the next request
            sock = getattr(connection.sock, "socket", connection.sock)  # of TLS within TLS, the outer
            shut(sock if isinstance(sock, socket.socket) else None)

    def resume(self) -> None:
        """The request that was interrupted has ended; the next one is another's."""
        self.interrupted = False

    def check(self) -> None:
        """
        Raises:
            ConnectionAbortedError: interrupted, maybe while there was no socket to shut.
        """
        if self.interrupted:
            raise ConnectionAbortedError("interrupted")


class _Adapter(HTTPAdapter):
    """One TLS context serves all connections: requests would read its file of authorities again for each."""

    def __init__(
        self,
        owner: Roamer,
        tls: ssl.SSLContext | None,
        options: list[tuple[int, int, int]],
        **kwargs: Any,
    ) -> None:
        tls_options = {"ssl_context": tls} if tls is not None else {}
        self._options: dict[str, Any] = {"socket_options": options, **tls_options}
        self._pools: Any = {  # urllib3 declares classes, and only calls them
            "http": functools.partial(_pool, HTTPConnectionPool, _Connection, owner),
            "https": functools.partial(_pool, HTTPSConnectionPool, _TlsConnection, owner),
        }
        super().__init__(**kwargs)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **{**kwargs, **self._options})
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **self._options, **kwargs)
        if type(manager) is ProxyManager:  # that of a SOCKS proxy has connections of its own
            manager.pool_classes_by_scheme = self._pools
        return manager

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"  # by the context's authorities


class _Connection(HTTPConnection):
    def __init__(self, owner: Roamer, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._owner = owner
        owner.made(self)

    def connect(self) -> None:
        super().connect()
        self._owner.check()


class _TlsConnection(_Connection, HTTPSConnection):
    """The same over TLS: what is made and opened in between is urllib3's."""


def _pool(
    kind: type[HTTPConnectionPool],
    connection: type[_Connection],
    owner: Roamer,
    host: str,
    port: int | None = None,
    **options: Any,
) -> HTTPConnectionPool:
    pool = kind(host, port, **options)
    pool.ConnectionCls = functools.partial(connection, owner)  # type: ignore[assignment]  # urllib3 only calls it
    return pool


class _NoCookies(requests.cookies.cookielib.DefaultCookiePolicy):  # type: ignore[name-defined,misc]  # untyped re-export
    def set_ok(self, cookie: object, request: object) -> bool:
        return False
