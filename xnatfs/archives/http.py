"""HTTP as an archive needs it: timeouts, retries, one login for all threads, reply checks, error translation.

Knows nothing of XNAT's paths or documents: ``xnat.py`` brings the login and the meaning. Safe to call from any thread;
a ``requests.Session`` is lent to one request at a time, so there are never more connections than leases.
"""

from __future__ import annotations

import base64
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.cookies import CookieError, SimpleCookie
from typing import Any, NoReturn, TypeVar
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from xnatfs.config import Credentials, HttpConfig
from xnatfs.errors import (
    AccessDenied,
    ArchiveError,
    LoginFailed,
    NotFound,
    StaleContent,
    TimedOut,
    Unavailable,
    UnexpectedReply,
)

log = logging.getLogger(__name__)

CONNECT_S = 10.0
"""Seconds for a TCP and TLS handshake: a host that takes longer is as good as away."""

BACKOFF_S = 0.25
"""Seconds before the first retry; doubles each time, with a jitter of half to one and a half."""

MAX_DOCUMENT = 1 << 30
"""Bytes of one listing at most: a million files take about 300 MB of JSON."""

PIECE = 256 * 1024
"""Bytes asked of a document's body at once."""

EXPIRY_MARGIN = 0.1
"""Part of a session's life at its end in which it is renewed before use rather than risked."""

TEMPORARY_STATUS = frozenset({429, 500, 502, 503, 504})

T = TypeVar("T")

Login = Callable[[], Mapping[str, str]]
"""Logs in once and returns the cookies of the new session. Raises LoginFailed when the server says 401."""


class Account:
    """One server session and one set of credentials for every thread of a process.

    The session is renewed once, by one thread, before it is known to have expired or when the server has refused it;
    the others wait for that. A refused password is final: accounts lock after a number of failures.
    """

    def __init__(self, credentials: Credentials, login: Login, timeout_s: float) -> None:
        self._login = login
        self._timeout_s = timeout_s
        self._cond = threading.Condition(threading.Lock())
        self._cookies: dict[str, str] = {}  # guarded by _cond, like all below
        self._generation = 0
        self._expires = float("inf")  # monotonic
        self._renewing = False
        self._refused: LoginFailed | None = None
        self._authorization: str | None = None
        if credentials.user is not None:
            pair = f"{credentials.user}:{credentials.secret or ''}".encode()
            self._authorization = "Basic " + base64.b64encode(pair).decode("ascii")

    @property
    def named(self) -> bool:
        """False for a guest."""
        return self._authorization is not None

    def headers(self) -> tuple[dict[str, str], int]:
        """What to send along, and the generation of the session it belongs to. Logs in first where that is due."""
        deadline = time.monotonic() + 2 * self._timeout_s
        while True:
            with self._cond:
                if self._refused is not None:
                    raise LoginFailed(str(self._refused), self._refused.hint) from self._refused
                if self._cookies and time.monotonic() < self._expires:
                    return self._sent(), self._generation
                leads = not self._renewing
                if leads:
                    self._renewing = True
                elif not self._cond.wait(deadline - time.monotonic()):
                    raise TimedOut("the login to the archive takes too long")
            if leads:
                self._renew()

    def _sent(self) -> dict[str, str]:
        # Cookie and credentials together: on a site open to guests a stale cookie alone is not refused, it silently
        # makes a guest of its owner; with both the server logs in again by itself (XnatBasicAuthenticationFilter).
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self._cookies.items())}
        if self._authorization is not None:
            headers["Authorization"] = self._authorization
        return headers

    def _renew(self) -> None:
        cookies: Mapping[str, str] = {}
        refused: LoginFailed | None = None
        try:
            cookies = self._login()
        except LoginFailed as error:
            refused = error
            raise
        finally:
            with self._cond:
                self._renewing = False
                self._refused = refused
                if cookies:
                    self._adopt(cookies)
                self._cond.notify_all()

    def _adopt(self, cookies: Mapping[str, str]) -> None:
        """Under the condition."""
        self._cookies.update(cookies)
        expiry = self._cookies.pop("SESSION_EXPIRATION_TIME", "")
        if life_s := _session_life(expiry):
            self._expires = time.monotonic() + life_s * (1 - EXPIRY_MARGIN)
        self._generation += 1

    def note(self, cookies: Mapping[str, str], generation: int) -> None:
        """Take in the cookies of an answer to a request of that generation."""
        if not cookies:
            return
        with self._cond:
            if generation != self._generation:
                return
            if any(self._cookies.get(name) != value for name, value in cookies.items() if name != _EXPIRY):
                self._adopt(cookies)
            elif life_s := _session_life(cookies.get(_EXPIRY, "")):
                self._expires = time.monotonic() + life_s * (1 - EXPIRY_MARGIN)

    def expire(self, generation: int) -> None:
        """The server no longer knows the session of that generation: the next request renews it."""
        with self._cond:
            if generation == self._generation:
                self._cookies = {}
                self._expires = 0.0

    def refuse(self, error: LoginFailed) -> None:
        """A fresh session was refused too: final until the user acts."""
        with self._cond:
            self._refused = error

    def cookies(self) -> dict[str, str]:
        with self._cond:
            return dict(self._cookies)


_EXPIRY = "SESSION_EXPIRATION_TIME"


def _session_life(text: str) -> float:
    """Seconds of life in ``"<now ms>,<timeout ms>"`` as XNAT sends it; 0 when it does not say."""
    parts = text.strip('"').replace("%2C", ",").split(",")
    try:
        return max(0.0, int(parts[1]) / 1000) if len(parts) == 2 else 0.0
    except ValueError:
        return 0.0


class Reply:
    """An answer whose body has not been read. Give it back with ``close``: until then it holds a connection."""

    def __init__(self, client: HttpClient, session: requests.Session, response: requests.Response) -> None:
        self._client = client
        self._session: requests.Session | None = session
        self._lock = threading.Lock()
        self.raw: urllib3.BaseHTTPResponse = response.raw
        self.status = response.status_code
        self.headers = response.headers
        self.url = response.url

    def read1(self, size: int) -> bytes:
        """At least one byte and at most ``size``; b"" at the end of the body.

        Raises:
            Unavailable, TimedOut
        """
        try:
            return self.raw.read1(size, decode_content=False)
        except Exception as error:  # noqa: BLE001  # urllib3, ssl and http.client raise from many families
            raise_translated(error, f"reading {_path(self.url)}")

    def close(self, reusable: bool = False) -> None:
        """Let the connection go; keep it for the next request when the body was read to its end."""
        with self._lock:
            session, self._session = self._session, None
        if session is None:
            return
        if reusable:
            self.raw.release_conn()
        else:
            self.interrupt()
            self.raw.close()
        self._client._give_back(session)

    def interrupt(self) -> None:
        """Wake a thread that waits in ``read1``; it gets an error."""
        connection = getattr(self.raw, "connection", None)
        sock = getattr(connection, "sock", None)
        if sock is not None:
            try:
                sock.shutdown(2)
            except OSError:
                log.debug("socket was closed already")


class HttpClient:
    """GETs from one origin. Every failure is an ArchiveError that names the object and the action."""

    def __init__(self, base_url: str, config: HttpConfig, account: Account, user_agent: str) -> None:
        self._base_url = base_url
        self._origin = _origin(base_url)
        self._config = config
        self._account = account
        self._user_agent = user_agent
        self._slots = threading.BoundedSemaphore(config.max_connections)
        self._lock = threading.Lock()
        self._idle: list[requests.Session] = []  # guarded by _lock
        self._closed = False

    def get_json(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        """The decoded JSON document at ``path``.

        Raises:
            UnexpectedReply: the body is empty, HTML or otherwise not JSON.
        """
        text = self.get_text(path, params)
        try:
            return json.loads(text)
        except ValueError as error:
            raise UnexpectedReply(
                f"GET {path}: {_what_is(text)} in place of JSON",
                "a login or agreement page? open the address in a browser with the same account",
            ) from error

    def get_text(self, path: str, params: Mapping[str, str] | None = None) -> str:
        """A document as text: UTF-8, or Latin-1 where that fails (XNAT writes in its JVM's default charset)."""
        data = self.get_bytes(path, params)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return data.decode("latin-1")

    def get_bytes(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        """A document as it was sent, whole."""

        def read() -> bytes:
            with self.get(path, params) as reply:
                return self._document(reply, path)

        return self._retrying(read, f"GET {path}")

    def post_search(self, path: str, params: Mapping[str, str], document: bytes) -> bytes:
        """The answer to a search, whole. A POST because the question is a document: it changes nothing."""

        def read() -> bytes:
            reply = self._send("POST", path, params, {"Content-Type": "text/xml"}, document)
            try:
                return self._document(reply, path)
            finally:
                reply.close()

        return self._retrying(read, f"POST {path}")

    def _document(self, reply: Reply, path: str) -> bytes:
        if reply.status != 200:
            raise UnexpectedReply(f"GET {path}: status {reply.status}")
        pieces: list[bytes] = []
        length = 0
        started = time.monotonic()
        while piece := reply.read1(PIECE):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_DOCUMENT:
                raise UnexpectedReply(f"GET {path}: over {MAX_DOCUMENT} bytes")
            if time.monotonic() - started > self._config.timeout_s * (1 + length / PIECE):
                raise TimedOut(f"GET {path}: {length} bytes in {self._config.timeout_s:g} s")
        expected = content_length(reply)
        if expected is not None and length != expected:
            raise Unavailable(f"GET {path}: {length} of {expected} bytes")
        reply.close(reusable=True)
        return b"".join(pieces)

    def head(self, path: str) -> Mapping[str, str]:
        """The headers of a HEAD request."""

        def ask() -> Mapping[str, str]:
            with self.get(path, method="HEAD") as reply:
                while reply.read1(PIECE):
                    pass
                reply.close(reusable=True)
                return reply.headers

        return self._retrying(ask, f"HEAD {path}")

    def open(self, path: str, headers: Mapping[str, str]) -> Reply:
        """A body to be streamed. 200 or 206, anything else has been raised. The caller closes it."""
        return self._retrying(lambda: self._send("GET", path, None, headers), f"GET {path}")

    @contextmanager
    def get(self, path: str, params: Mapping[str, str] | None = None, method: str = "GET") -> Iterator[Reply]:
        reply = self._send(method, path, params, {})
        try:
            yield reply
        finally:
            reply.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    # --- one request -------------------------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        body: bytes | None = None,
    ) -> Reply:
        """Send with the session of the moment; once more with a new one when the server has forgotten it."""
        url = self._base_url + path
        for attempt in (1, 2):
            account_headers, generation = self._account.headers()
            reply = self._exchange(method, url, params, {**account_headers, **headers}, body)
            location = reply.headers.get("Location", "")
            if reply.status in (301, 302, 303, 307, 308) and not _is_login_page(location):
                url = self._redirected(reply, url, location)
                params = None
                reply = self._exchange(method, url, params, {**account_headers, **headers}, body)
            if reply.status == 401 or (
                reply.status in (302, 303) and _is_login_page(reply.headers.get("Location", ""))
            ):
                reply.close()
                if attempt == 1:
                    self._account.expire(generation)
                    continue
                raise self._final_refusal(path)
            self._account.note(_cookies(reply), generation)
            if reply.status not in (200, 206):
                reply.close()
                raise_for_status(reply.status, reply.headers, f"{method} {path}")
            return reply
        raise AssertionError("unreachable")

    def _final_refusal(self, path: str) -> ArchiveError:
        if not self._account.named:
            return AccessDenied(f"{path}: the archive wants a login", "set XNAT_USER and XNAT_PASS, or use ~/.netrc")
        return LoginFailed(f"{path}: the archive refused this account", "check the account in a browser")

    def _exchange(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        body: bytes | None = None,
    ) -> Reply:
        session = self._lend()
        try:
            response = session.request(
                method,
                url,
                params=params,
                data=body,
                headers=dict(headers),
                stream=True,
                allow_redirects=False,
                timeout=(min(CONNECT_S, self._config.timeout_s), self._config.timeout_s),
            )
        except BaseException as error:
            self._give_back(session)
            if isinstance(error, Exception):
                raise_translated(error, f"{method} {_path(url)}")
            raise
        return Reply(self, session, response)

    def _redirected(self, reply: Reply, url: str, location: str) -> str:
        """The address to follow, on the same origin only: credentials go nowhere else."""
        reply.close()
        target = urljoin(url, location)
        if not location or _origin(target) != self._origin:
            raise UnexpectedReply(
                f"{_path(url)}: the server sends us to {_origin(target)}",
                "use that address as the source if you trust it",
            )
        return target

    def _retrying(self, call: Callable[[], T], what: str) -> T:
        """The one retry loop: idempotent requests, temporary failures, capped in number and time."""
        deadline = time.monotonic() + self._config.timeout_s
        attempt = 0
        while True:
            try:
                return call()
            except ArchiveError as error:
                attempt += 1
                wait_s = _retry_after(error, attempt)
                if wait_s is None or attempt > self._config.retries or time.monotonic() + wait_s > deadline:
                    raise
                log.info("%s: %s; trying again in %.1f s", what, error, wait_s)
                time.sleep(wait_s)

    # --- sessions ----------------------------------------------------------------------------------------------

    def _lend(self) -> requests.Session:
        if not self._slots.acquire(timeout=self._config.timeout_s):
            raise TimedOut(f"all {self._config.max_connections} connections are busy", "raise --connections")
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self.new_session()

    def _give_back(self, session: requests.Session) -> None:
        with self._lock:
            keep = not self._closed
            if keep:
                self._idle.append(session)
        if not keep:
            session.close()
        self._slots.release()

    def new_session(self) -> requests.Session:
        """A session with our headers, CA and proxy, and no cookies or credentials of its own."""
        session = requests.Session()
        session.trust_env = False  # no ~/.netrc behind our back, no look at the environment for each request
        session.cookies.set_policy(_NoCookies())  # the account keeps them, for all sessions
        session.headers.clear()
        headers = {
            "User-Agent": self._user_agent,
            "Accept": "*/*",  # XNAT answers 406 to octet-stream and a JPEG to image/*
            "Accept-Encoding": "identity",  # Content-Length must be the file's, and a stored .gz stay as it is
        }
        session.headers.update(headers)
        if self._config.ca_bundle is not None:
            session.verify = str(self._config.ca_bundle)
        if self._config.proxy is not None:
            session.proxies = {"http": self._config.proxy, "https": self._config.proxy}
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=1, max_retries=0)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        return session


class _NoCookies(requests.cookies.cookielib.DefaultCookiePolicy):  # type: ignore[name-defined,misc]  # untyped re-export
    def set_ok(self, cookie: object, request: object) -> bool:
        return False


class _Temporary(Unavailable):
    """A status that may be better next time, with the server's own wish for when."""

    def __init__(self, message: str, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class _Refused(Unavailable):
    """Nobody listens there: away for longer than a retry, so the answer is given at once."""


def _retry_after(error: ArchiveError, attempt: int) -> float | None:
    """Seconds to wait before the next try, or None when another try is of no use. The one place that decides that."""
    if isinstance(error, _Refused | TimedOut) or not isinstance(error, Unavailable):
        return None
    if isinstance(error, _Temporary) and error.retry_after_s is not None:
        return error.retry_after_s
    return float(BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, not a secret


def raise_for_status(status: int, headers: Mapping[str, str], what: str) -> NoReturn:
    """The error that a status other than 200 and 206 stands for."""
    if status in (404, 410):
        raise NotFound(f"{what}: the archive has no such thing, or this account may not see it")
    if status == 403:
        raise AccessDenied(f"{what}: closed to this account")
    if status in TEMPORARY_STATUS:
        seconds = headers.get("Retry-After", "")
        raise _Temporary(
            f"{what}: the server answers {status}", retry_after_s=float(seconds) if seconds.isdigit() else None
        )
    if status == 416:
        raise StaleContent(f"{what}: the file has become shorter")
    raise UnexpectedReply(f"{what}: the server answers {status}")


def raise_translated(error: Exception, what: str) -> NoReturn:
    """One table from what requests and urllib3 raise to our errors; the cause is kept."""
    if isinstance(error, ArchiveError):
        raise error
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 10:
        chain.append(inner)
    if isinstance(error, requests.exceptions.SSLError | urllib3.exceptions.SSLError):
        raise _Refused(
            f"{what}: the server's certificate is not trusted: {_short(error)}", "name its CA with --ca-bundle FILE"
        ) from error
    if isinstance(error, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError | TimeoutError):
        raise TimedOut(f"{what}: no answer in time") from error
    if isinstance(error, requests.exceptions.ProxyError):
        raise _Refused(f"{what}: the proxy failed: {_short(error)}", "check --proxy") from error
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        raise _Refused(f"{what}: not an address that can be asked: {_short(error)}") from error
    if any(isinstance(one, urllib3.exceptions.NameResolutionError) for one in chain):
        raise _Refused(f"{what}: unknown host", "check the spelling, the network, the VPN") from error
    if any(isinstance(one, ConnectionRefusedError | urllib3.exceptions.NewConnectionError) for one in chain):
        raise _Refused(f"{what}: nobody answers there", "check the address and the port") from error
    raise Unavailable(f"{what}: the connection broke: {_short(error)}") from error


def _short(error: Exception) -> str:
    """The innermost reason, in few words: the outer ones repeat the whole URL with its query."""
    reason: Any = error
    while (inner := getattr(reason, "reason", None) or (reason.args[0] if getattr(reason, "args", ()) else None)) and (
        isinstance(inner, Exception)
    ):
        reason = inner
    return str(reason).rsplit(": ", 1)[-1][:200]


def content_length(reply: Reply) -> int | None:
    text = reply.headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _cookies(reply: Reply) -> dict[str, str]:
    getlist = getattr(reply.raw.headers, "getlist", None)
    cookies: dict[str, str] = {}
    for line in getlist("Set-Cookie") if getlist else ():
        cookies.update(parse_set_cookie(line))
    return cookies


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
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _path(url: str) -> str:
    """A URL for a message: without its query."""
    return url.split("?", 1)[0]


def _what_is(text: str) -> str:
    head = text.lstrip()[:200].lower()
    if not head:
        return "an empty body"
    return "an HTML page" if head.startswith("<") else "something else"
