"""HTTP as an archive needs it: connections, timeouts, retries, redirects, doubtful replies.

Knows nothing of XNAT's paths or documents: the archives bring the meaning, ``account.py`` the session. Safe to call
from any thread; a ``Line``, or where a proxy stands between or redirects may lead elsewhere a ``Roamer``, is
lent to one request at a time: never more connections than leases.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

import requests
import urllib3
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.connection import HTTPConnection
from urllib3.util.ssl_ import create_urllib3_context

from xnatfs import callers, jsontext
from xnatfs.archives.http.account import Account
from xnatfs.archives.http.errors import (
    TRANSPORT_ERRORS,
    OddStatus,
    PageReply,
    Unreachable,
    raise_for_status,
    raise_translated,
    retry_after_s,
)
from xnatfs.archives.http.line import Line, LineResponse, shut
from xnatfs.archives.http.numbers import whole_number
from xnatfs.archives.http.roaming import Roamer
from xnatfs.config import HttpConfig
from xnatfs.errors import (
    AccessDenied,
    ArchiveError,
    LoginFailed,
    NotFound,
    TimedOut,
    Unavailable,
    UnexpectedReply,
)
from xnatfs.stats import Stats
from xnatfs.turns import Turn, current_turn

log = logging.getLogger(__name__)

CONNECT_S = 10.0
"""Seconds for a TCP and TLS handshake: a host that takes longer is as good as away."""

MAX_DOCUMENT = 128 << 20
"""Bytes of one document at most: 400,000 files of one session in JSON, which take 1 GB while they are read."""

PIECE = 256 * 1024
"""Bytes asked of a document's body at once."""

FIRST_BUFFER = 128 * 1024
"""Bytes of a new socket's receive buffer (Linux doubles it). Left to itself the kernel took 0.1 to 2.6 MB of a body
from which 256 KiB were read, measured on loopback; with this, 0.2 MB."""

SOCKET_OPTIONS = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_RCVBUF, FIRST_BUFFER)]

WIDEN_AFTER = 512 * 1024
"""Bytes of one body after which the kernel may tune the buffer again: a fixed one holds a line of 20 ms at 13 MB/s."""

SO_BUF_LOCK = 72
"""asm-generic/socket.h, Linux 5.14 and later: 0 takes back that the buffer size was set by hand. Python has no name."""

DEFAULT_PORTS = {"http": http.client.HTTP_PORT, "https": http.client.HTTPS_PORT}

SOON_S = 0.2
"""Seconds that a listing waits for a connection until a brief transfer has to let it by. A guess: somebody looks."""

REDIRECTS = frozenset({301, 302, 303, 307, 308})

MAX_HOPS = 4
"""Redirects in a row where an archive hands out other hosts' addresses: OSF takes two."""

T = TypeVar("T")

Lease = Line | Roamer
"""What carries one request at a time, and keeps its connection for the next."""

_PLAIN = re.compile(r"(?:/(?!\.)|[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})+(?:\?[A-Za-z0-9._~!$&'()*+,;=:@/-]*)?")
"""A path that requests would send as it stands: quoted, and with no "/../" to resolve."""


class Reply:
    """An answer whose body has not been read. Give it back with ``close``: until then it holds a connection."""

    def __init__(
        self,
        client: HttpClient,
        lease: Lease,
        raw: LineResponse | urllib3.BaseHTTPResponse,
        status: int,
        headers: Mapping[str, str],
        url: str,
        generation: int,
    ) -> None:
        self.generation = generation
        self._client = client
        self._lease: Lease | None = lease
        self._lock = threading.Lock()
        self._raw = raw
        self.status = status
        self.headers = headers
        self.url = url
        self._until_wide = WIDEN_AFTER
        self._plain = _plain_body(raw)

    @property
    def cookies(self) -> dict[str, str]:
        """Names and values that the answer sets."""
        cookies: dict[str, str] = {}
        for line in self._raw.headers.getlist("Set-Cookie"):
            cookies.update(parse_set_cookie(line))
        return cookies

    def read1(self, size: int) -> bytes:
        """At least one byte and at most ``size``; b"" at the end of the body.

        Raises:
            Unavailable, TimedOut
        """
        raw = self._raw
        try:
            piece = raw.read1(size) if isinstance(raw, LineResponse) else raw.read1(size, decode_content=False)
        except Exception as error:  # noqa: BLE001  # urllib3, ssl and http.client raise from many families
            raise_translated(error, f"reading {path_of(self.url)}")
        self._count(len(piece))
        return piece

    def readinto(self, buffer: memoryview) -> int:
        """``read1`` into the caller's memory; 0 at the end of the body.

        A plain body goes there straight from the socket, past urllib3, which makes a bytes object of each piece: two
        thirds of the CPU time of receiving (measured, 256 KiB at once).

        Raises:
            Unavailable, TimedOut
        """
        body = self._plain
        # fp is looked at once: ``close`` in another thread takes it away.
        fp = None if body is None else body.fp
        if body is None or not body.length or fp is None:
            return self._piece_into(buffer)
        try:
            count: int = fp.readinto1(buffer[: body.length])
        except Exception as error:  # noqa: BLE001  # as above
            raise_translated(error, f"reading {path_of(self.url)}")
        self._count(count)
        if count:
            body.length -= count
            if not isinstance(self._raw, LineResponse):
                self._raw.length_remaining = body.length
                if not body.length:
                    self._end(self._raw)
        return count

    def _piece_into(self, buffer: memoryview) -> int:
        """``readinto`` of a body in chunks, or of one whose bytes are not the body as they come."""
        raw = self._raw
        if not (isinstance(raw, LineResponse) and raw.chunked and len(buffer)):
            piece = self.read1(len(buffer))
            buffer[: len(piece)] = piece
            return len(piece)
        try:
            count = raw.chunk_into(buffer)
        except Exception as error:  # noqa: BLE001  # as above
            raise_translated(error, f"reading {path_of(self.url)}")
        self._count(count)
        return count

    def _end(self, raw: urllib3.BaseHTTPResponse) -> None:
        """Let urllib3 find that nothing is left, and take its connection back."""
        if raw.read1(1, decode_content=False):
            raise UnexpectedReply(f"reading {path_of(self.url)}: longer than its own length")

    def _count(self, count: int) -> None:
        self._client.stats.received_bytes += count
        if self._until_wide > 0:
            self._until_wide -= count
            if self._until_wide <= 0:
                self._widen()

    def _widen(self) -> None:
        sock = self._socket()
        if sock is not None:
            with contextlib.suppress(OSError):  # an older kernel: the buffer stays small
                sock.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, 0)

    def _socket(self) -> socket.socket | None:
        raw = self._raw
        if isinstance(raw, LineResponse):
            return raw.line.sock
        sock = getattr(getattr(raw, "connection", None), "sock", None)
        return sock if isinstance(sock, socket.socket) else None

    def close(self, reusable: bool = False) -> None:
        """Let the connection go; keep it for the next request when the body was read to its end."""
        with self._lock:
            lease, self._lease = self._lease, None
        if lease is None:
            return
        raw = self._raw
        if isinstance(raw, LineResponse):
            if not (reusable and raw.is_read):
                self.interrupt()
                raw.line.hang_up()
            raw.close()
        elif reusable:
            raw.release_conn()
        else:
            self.interrupt()
            raw.close()
        self._client._give_back(lease)

    def interrupt(self) -> None:
        """Wake a thread that waits in ``read1``; it gets an error."""
        shut(self._socket())


class HttpClient:
    """GETs from one origin. Every failure is an ArchiveError that names the object and the action.

    Args:
        who_path: What answers a GET with the name of who is logged in; "" when nothing does.
        data_paths: Beginnings of the paths that a redirect may lead to; others are pages for people.
        wander: Follow redirects to other origins, a few in a row and never from https to http: for archives that
            hand out signed addresses of a store. Only for guests, who have nothing to lose on the way.
    """

    def __init__(
        self,
        base_url: str,
        config: HttpConfig,
        account: Account,
        user_agent: str,
        stats: Stats | None = None,
        who_path: str = "",
        data_paths: tuple[str, ...] = ("/",),
        wander: bool = False,
    ) -> None:
        assert not (wander and account.named)
        self._wander = wander
        self.stats = stats or Stats()
        self.stats.gauges["in_flight"] = lambda: self._lent
        self._who_path = who_path
        self._data_paths = data_paths
        self._base_url = base_url
        self._origin = _origin(base_url)
        self._config = config
        self._account = account
        self._headers = {
            "User-Agent": user_agent,
            "Accept": "*/*",  # XNAT answers 406 to octet-stream and a JPEG to image/*
            "Accept-Encoding": "identity",  # Content-Length must be the file's, and a stored .gz stay as it is
        }
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._idle: list[Lease] = []  # guarded by _lock
        self._lent = 0  # guarded by _lock
        self._turns: dict[Lease, Turn | None] = {}  # guarded by _lock: what is lent, oldest first, and in whose turn
        self._listings_wait = 0  # guarded by _lock: for a connection
        self._resting: set[threading.Event] = set()  # guarded by _lock: what wakes those between two tries
        self._tls: ssl.SSLContext | None = None  # guarded by _lock; made when first needed: it reads files
        self._closed = False
        self._root = ""  # scheme, host and port, where requests go by lines; else "": by sessions
        if config.proxy is None and not wander:
            with contextlib.suppress(requests.RequestException):  # not an address: said when it is asked
                root = _prepared(base_url, None)[0]
                self._root = root if root.startswith(("http:", "https:")) else ""

    @property
    def origin(self) -> str:
        """Scheme, host and port, for messages."""
        return self._origin

    def get_json(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        """The decoded JSON document at ``path``.

        Raises:
            UnexpectedReply: the body is empty, HTML or otherwise not JSON.
        """
        data = self.get_bytes(path, params)
        try:
            try:
                return jsontext.received(data)
            except UnicodeDecodeError:
                return jsontext.received(data.decode("latin-1").encode())
        except (ValueError, RecursionError) as error:  # the latter: arrays within arrays within arrays
            what = "something else" if data.strip() else "an empty body"
            raise UnexpectedReply(f"GET {path}: {what} in place of JSON") from error

    def get_text(self, path: str, params: Mapping[str, str] | None = None) -> str:
        """A document as text: UTF-8, or Latin-1 where that fails (XNAT writes in its JVM's default charset)."""
        data = self.get_bytes(path, params)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return data.decode("latin-1")

    def get_bytes(
        self, path: str, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """A document as it was sent, whole; never an HTML page."""
        return self._whole(f"GET {path_of(path)}", lambda: self._send("GET", path, params, headers or {}))

    def get_page(self, path: str) -> tuple[str, str]:
        """A document that is meant to be HTML, and the address it came from, behind redirects."""

        def read() -> tuple[str, str]:
            reply = self._send("GET", path, None, {})
            try:
                return self._document(reply, f"GET {path}", page=True).decode("utf-8", "replace"), reply.url
            finally:
                reply.close()

        return self._retrying(read, f"GET {path}")

    def post_search(
        self, path: str, params: Mapping[str, str], document: bytes, content_type: str = "text/xml"
    ) -> bytes:
        """The answer to a search, whole. A POST because the question is a document: it changes nothing."""
        headers = {"Content-Type": content_type}
        return self._whole(f"POST {path}", lambda: self._send("POST", path, params, headers, document))

    def _whole(self, what: str, send: Callable[[], Reply]) -> bytes:
        """The body of an answer that is a document for programs; where a page comes, once more with a sure login."""

        def read() -> bytes:
            reply = send()
            try:
                return self._document(reply, what)
            finally:
                reply.close()

        try:
            return self._retrying(read, what)
        except PageReply as page:
            self.doubt(page.generation)
            return self._retrying(read, what)

    def doubt(self, generation: int) -> None:
        """A page for people came in place of data: renew the session of that generation unless it is still ours."""
        if self._account.named and not self._is_logged_in():
            self._account.expire(generation)

    def page_reply(self, what: str, generation: int = 0, target: str = "") -> PageReply:
        """The error for a page in place of data, saying where to look at it."""
        page = PageReply(
            f"{what}: the server answers with a web page" + (f" ({target})" if target else ""),
            f"it may want its terms of use accepted: open {target or self._base_url} in a browser, "
            + ("logged in as the same user" if self._account.named else "or log in: this was asked as a guest"),
        )
        page.generation = generation
        return page

    def _is_logged_in(self) -> bool:
        """Whether the server still takes our session for ours."""
        if not self._who_path:
            return False
        reply, _ = self._ask("GET", self._base_url + self._who_path, None, {}, None, with_credentials=False)
        try:
            return reply.status == 200 and not _is_page(said := reply.read1(PIECE)) and b"'guest'" not in said
        finally:
            reply.close()

    def _document(self, reply: Reply, what: str, page: bool = False) -> bytes:
        if reply.status != 200:
            raise UnexpectedReply(f"{what}: status {reply.status}")
        pieces: list[bytes] = []
        length = 0
        expected = content_length(reply)
        if expected is not None and expected > MAX_DOCUMENT:
            raise _too_long(what)
        started = time.monotonic()
        while piece := reply.read1(PIECE):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_DOCUMENT:
                raise _too_long(what)
            if time.monotonic() - started > self._config.timeout_s * (1 + length / PIECE):
                raise TimedOut(f"{what}: {length} bytes in {self._config.timeout_s:g} s")
        if expected is not None and length != expected:
            raise Unavailable(f"{what}: {length} of {expected} bytes")
        reply.close(reusable=True)
        data = b"".join(pieces)
        if not page and _is_page(data):
            raise self.page_reply(what, reply.generation)
        return data

    def head(self, path: str, headers: Mapping[str, str] | None = None) -> Mapping[str, str]:
        """The headers of a HEAD request."""

        def ask() -> Mapping[str, str]:
            reply = self._send("HEAD", path, None, headers or {})
            try:
                while reply.read1(PIECE):
                    pass
                reply.close(reusable=True)
                return reply.headers
            finally:
                reply.close()

        return self._retrying(ask, f"HEAD {path_of(path)}")

    def open(self, path: str, headers: Mapping[str, str]) -> Reply:
        """A body to be streamed. 200 or 206, anything else has been raised. The caller closes it."""
        return self._retrying(lambda: self._send("GET", path, None, headers), f"GET {path_of(path)}")

    def open_with(self, path: str, params: Mapping[str, str], begin: Callable[[Reply], T]) -> T:
        """A body that ``begin`` reads into first: what fails there is tried again like the request itself.

        The reply belongs to ``begin`` and to what it returns; it is closed here only when ``begin`` raises.
        """

        def attempt() -> T:
            reply = self._send("GET", path, params, {})
            try:
                return begin(reply)
            except BaseException:
                reply.close()
                raise

        return self._retrying(attempt, f"GET {path}")

    def close(self) -> None:
        """Close connections; requests under way fail."""
        with self._lock:
            self._closed = True
            for resting in self._resting:
                resting.set()
            idle, self._idle = self._idle, []
            for lease in self._turns:
                lease.interrupt()
        for lease in idle:
            _end_lease(lease)

    # --- one request -------------------------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        body: bytes | None = None,
    ) -> Reply:
        """Send with the session of the moment; once more, with a new one, when the server has forgotten it."""
        url = self._base_url + path
        what = f"{method} {path_of(path)}"
        for attempt in (1, 2):
            reply, with_credentials = self._ask(method, url, params, headers, body, with_credentials=attempt > 1)
            location = reply.headers.get("Location", "")
            hops = MAX_HOPS if self._wander else 1
            while reply.status in REDIRECTS and hops and not _is_login_page(location):
                hops -= 1
                url, params = self._redirected(reply, what, url, location), None
                reply, with_credentials = self._ask(method, url, params, headers, body, with_credentials)
                location = reply.headers.get("Location", "")
            # Noted first: the session that a 401 opens is nobody's.
            refused = reply.status == 401 or (reply.status in REDIRECTS and _is_login_page(location))
            if refused or not self._account.note(reply.cookies, reply.generation, with_credentials):
                reply.close()
                if attempt == 1 and self._account.named:
                    self._account.expire(reply.generation)
                    continue
                raise self._refusal(what)
            if reply.status not in (200, 206):
                reply.close()
                raise_for_status(reply.status, reply.headers, what)
            return reply
        raise AssertionError("unreachable")

    def _refusal(self, what: str) -> ArchiveError:
        """The error for a 401 that a new login has not cured."""
        if not self._account.named:
            return AccessDenied(f"{what}: the archive wants a login", "set XNAT_USER and XNAT_PASS, or use ~/.netrc")
        if self._is_logged_in():
            return AccessDenied(f"{what}: closed to this account (401)")
        error = LoginFailed(f"{what}: the archive refused this account", "check the account in a browser")
        self._account.refuse(error)
        return error

    def _ask(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        body: bytes | None,
        with_credentials: bool,
    ) -> tuple[Reply, bool]:
        """One request, and whether the credentials went along.

        The connection is taken first and the session after it: a request that had to wait for its turn then knows of
        a renewal in the meantime, and a login counts as one of the connections.
        """
        turn = current_turn()
        lease = self._lend(turn)
        timeouts_s = min(CONNECT_S, self._config.timeout_s), self._config.timeout_s
        try:
            account_headers, generation = self._account.headers(with_credentials)
            sent = {**account_headers, **headers}
            self.stats.requests += 1
            if turn is not None:
                turn.waits_with(lease.interrupt)
            if isinstance(lease, Line):
                target = self._target(url, params)
                raw = lease.ask(method, target, sent, body, timeouts_s)
                reply = Reply(self, lease, raw, raw.status, raw.headers, self._root + target, generation)
            else:
                response = lease.request(
                    method,
                    url,
                    params=params,
                    data=body,
                    headers=sent,
                    stream=True,
                    allow_redirects=False,
                    timeout=timeouts_s,
                )
                status, address = response.status_code, str(response.url)
                reply = Reply(self, lease, response.raw, status, response.headers, address, generation)
        except BaseException as error:
            self._give_back(lease)
            if isinstance(error, TRANSPORT_ERRORS):
                raise_translated(error, f"{method} {path_of(url)}")
            raise  # a fault of ours is no fault of the connection, and not to be tried again
        return reply, "Authorization" in account_headers

    def _target(self, url: str, params: Mapping[str, str] | None) -> str:
        """What stands in the request line for an address on our origin."""
        root = self._root
        if url.startswith(root) and _PLAIN.fullmatch(url, len(root)):
            target = url[len(root) :]
            if not params:
                return target
            if "?" not in target:
                return f"{target}?{urlencode(params)}"
        return _prepared(url, params)[1]

    def _redirected(self, reply: Reply, what: str, url: str, location: str) -> str:
        """The address to follow, to data on the same origin only: credentials go nowhere else."""
        reply.close()
        try:
            target = urljoin(url, location)
            origin = _origin(target)
        except ValueError as error:
            raise UnexpectedReply(f"{what}: the server sends us to what is no address") from error
        if self._wander and location:
            if urlsplit(target).scheme not in ("https", urlsplit(url).scheme):
                raise UnexpectedReply(f"{what}: the server sends us from https to {origin}")
            return target
        if not location or origin != self._origin:
            raise OddStatus(
                f"{what}: the server sends us to {origin if location else 'another place'}",
                "use that address as the source if you trust it",
                reply.status,
                reply.headers,
            )
        if not target.startswith(tuple(self._base_url + beginning for beginning in self._data_paths)):
            raise self.page_reply(what, reply.generation, path_of(target))
        return target

    def _retrying(self, call: Callable[[], T], what: str) -> T:
        """The one retry loop: idempotent requests, temporary failures, capped in number and time."""
        deadline = time.monotonic() + self._config.timeout_s
        attempt = 0
        while True:
            try:
                return call()
            except ArchiveError as error:
                turn = current_turn()
                if self._closed or (turn is not None and turn.over):
                    raise
                attempt += 1
                wait_s = retry_after_s(error, attempt)
                if wait_s is None or attempt > self._config.retries or time.monotonic() + wait_s > deadline:
                    if not isinstance(error, NotFound):
                        self.stats.failed(f"{error}")
                    raise
                self.stats.retries += 1
                log.info("%s: %s; trying again in %.1f s", what, error, wait_s)
                if self._rests(wait_s, turn):
                    raise

    def _rests(self, wait_s: float, turn: Turn | None) -> bool:
        """Wait before another try, without a connection; True at once when it is not to be made.

        Raises:
            Interrupted: whoever asked is ending. What is asked in a turn is others' as well: its owner interrupts it.
        """
        wake = threading.Event()
        with self._lock:
            if self._closed:
                return True
            self._resting.add(wake)
        try:
            if turn is None:
                return callers.wait(wake.wait, wait_s)
            turn.waits_with(wake.set)
            try:
                return wake.wait(wait_s)
            finally:
                turn.waits_with(None)
        finally:
            with self._lock:
                self._resting.discard(wake)

    # --- sessions ----------------------------------------------------------------------------------------------

    def _lend(self, turn: Turn | None) -> Lease:
        if turn is not None and turn.over:
            raise Unavailable("interrupted")
        lease = None
        self._wait_for_room(turn)
        try:
            with self._lock:
                if self._idle:
                    lease = self._idle.pop()
            if lease is None:
                lease = self._new_line() if self._root else self.new_session()
        except BaseException:
            with self._lock:
                self._lent -= 1
                self._freed.notify_all()
            raise
        with self._lock:
            self._turns[lease] = turn
        return lease

    def _wait_for_room(self, turn: Turn | None) -> None:
        """Count one more connection as lent, once there is one."""
        with self._lock:
            if self._has_room(turn):
                self._lent += 1
                return
            self._listings_wait += turn is None
        deadline = time.monotonic() + self._config.timeout_s
        try:
            while time.monotonic() < deadline:
                with self._lock:
                    if self._freed.wait_for(lambda: self._has_room(turn), SOON_S):
                        self._lent += 1
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
        return self._lent + kept < self._config.max_connections

    def _give_back(self, lease: Lease) -> None:
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
            self._lent -= 1
            self._freed.notify_all()

    def _new_line(self) -> Line:
        parts = urlsplit(self._root)
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


def _plain_body(raw: Any) -> Any:
    """The standard library's response under urllib3's, when its bytes are the body as they come; else None."""
    body = raw if isinstance(raw, LineResponse) else getattr(raw, "_original_response", None)
    if not isinstance(body, http.client.HTTPResponse) or body.chunked or body.length is None:
        return None
    return body if isinstance(body.fp, io.BufferedReader) else None


def content_length(reply: Reply) -> int | None:
    return whole_number(reply.headers.get("Content-Length", ""))


def _too_long(what: str) -> UnexpectedReply:
    return UnexpectedReply(
        f"{what}: over {MAX_DOCUMENT >> 20} MiB", "no listing is that long: is this the right server?"
    )


def _end_lease(lease: Lease) -> None:
    if isinstance(lease, Line):
        lease.hang_up()
    else:
        lease.close()


def _prepared(url: str, params: Mapping[str, str] | None) -> tuple[str, str]:
    """(scheme, host and port; path and query) of an address as requests would send it."""
    request = requests.PreparedRequest()
    request.prepare_url(url, dict(params or {}))
    parts = urlsplit(request.url or "")
    return f"{parts.scheme}://{parts.netloc}", str(request.path_url)


def parse_set_cookie(line: str) -> dict[str, str]:
    """Name and value of one Set-Cookie header; {} when it cannot be read."""
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load(line)
    except CookieError:
        return {}
    return {name: morsel.value for name, morsel in jar.items()}


def _is_login_page(location: str) -> bool:
    return "/Login.vm" in location or "/login" in location.lower()


def _origin(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def path_of(url: str) -> str:
    """A URL for a message: without its query."""
    return url.split("?", 1)[0]


def _is_page(data: bytes) -> bool:
    """Whether this is HTML. XNAT's own XML begins with < as well: with <?xml, or an element of its schema."""
    return data[:1024].lstrip(b" \t\r\n\xef\xbb\xbf").lower().startswith((b"<!doctype html", b"<html"))
