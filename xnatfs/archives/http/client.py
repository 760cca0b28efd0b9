"""HTTP as an archive needs it: one request with its login, redirects, retries, and what to make of doubtful replies.

Knows nothing of XNAT's paths or documents: the archives bring the meaning, ``account.py`` the session. Safe to call
from any thread.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

import requests

from xnatfs import callers, jsontext
from xnatfs.archives.http.account import Account
from xnatfs.archives.http.connections import DEFAULT_PORTS, MAX_HOPS, Connections, prepared
from xnatfs.archives.http.errors import (
    TRANSPORT_ERRORS,
    OddStatus,
    PageReply,
    raise_for_status,
    raise_translated,
    retry_after_s,
)
from xnatfs.archives.http.line import Line
from xnatfs.archives.http.reply import Reply, content_length, path_of
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

PAGE_HEAD = 4096
"""Bytes of a document that are looked at to tell whether it is a page: templates begin with comments. A guess."""

_PAGE_START = re.compile(rb"<(?:!doctype html|html|head|body|script|meta)[\s/>]", re.IGNORECASE)
_BLANK = b" \t\r\n\xef\xbb\xbf"

REDIRECTS = frozenset({301, 302, 303, 307, 308})

T = TypeVar("T")

_PLAIN = re.compile(r"(?:/(?!\.)|[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})+(?:\?[A-Za-z0-9._~!$&'()*+,;=:@/-]*)?")
"""A path that requests would send as it stands: quoted, and with no "/../" to resolve."""


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
        self._connections = Connections(base_url, config, self._headers, wander)
        self.stats.gauges["in_flight"] = lambda: self._connections.lent
        self._lock = threading.Lock()
        self._resting: set[threading.Event] = set()  # guarded by _lock: what wakes those between two tries
        self._closed = False  # guarded by _lock

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
        self._connections.close()

    def new_session(self) -> requests.Session:
        """A session with our headers, CA and proxy, and no cookies or credentials of its own."""
        return self._connections.new_session()

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
        lease = self._connections.lend(turn)
        give_back = partial(self._connections.give_back, lease)
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
                reply = Reply(
                    self.stats, give_back, raw, raw.status, raw.headers, self._connections.root + target, generation
                )
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
                reply = Reply(self.stats, give_back, response.raw, status, response.headers, address, generation)
        except BaseException as error:
            give_back()
            if isinstance(error, TRANSPORT_ERRORS):
                raise_translated(error, f"{method} {path_of(url)}")
            raise  # a fault of ours is no fault of the connection, and not to be tried again
        return reply, "Authorization" in account_headers

    def _target(self, url: str, params: Mapping[str, str] | None) -> str:
        """What stands in the request line for an address on our origin."""
        root = self._connections.root
        if url.startswith(root) and _PLAIN.fullmatch(url, len(root)):
            target = url[len(root) :]
            if not params:
                return target
            if "?" not in target:
                return f"{target}?{urlencode(params)}"
        return prepared(url, params)[1]

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


def _too_long(what: str) -> UnexpectedReply:
    return UnexpectedReply(
        f"{what}: over {MAX_DOCUMENT >> 20} MiB", "no listing is that long: is this the right server?"
    )


def _is_login_page(location: str) -> bool:
    return "/Login.vm" in location or "/login" in location.lower()


def _origin(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _is_page(data: bytes) -> bool:
    """Whether this is HTML, maybe behind comments. XNAT's own XML has <?xml too, and then an element of its schema."""
    head = data[:PAGE_HEAD].lstrip(_BLANK)
    while head.startswith((b"<!--", b"<?xml")):
        head = head.partition(b"-->" if head.startswith(b"<!--") else b"?>")[2].lstrip(_BLANK)
    return _PAGE_START.match(head) is not None
