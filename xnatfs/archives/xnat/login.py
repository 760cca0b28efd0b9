"""Logging in to XNAT and out again, and its alias tokens. What a session is then used for is ``http/client.py``'s.

pyxnat's own connection carries the requests. Safe to call from any thread: each call makes a connection and closes it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urljoin

import requests

from xnatfs.archives.http.account import EXPIRY_COOKIE, SESSION_COOKIE, fresh_cookies, session_life_s
from xnatfs.archives.http.client import CONNECT_S, REDIRECTS
from xnatfs.archives.http.errors import raise_for_status, raise_translated
from xnatfs.archives.http.reply import set_cookies
from xnatfs.archives.http.session import ServerSession
from xnatfs.config import Credentials
from xnatfs.errors import AccessDenied, LoginFailed, NotFound, Unavailable, UnexpectedReply
from xnatfs.forks import unforked

log = logging.getLogger(__name__)

LOGOUT_S = 3.0
"""Seconds for ending the server session at unmount; it would end by itself."""

WHO_PATH = "/data/auth"
"""Answers "User 'mary' is logged in"."""


@dataclass(frozen=True, slots=True)
class AliasToken:
    """Serves as user name and password until it ends. ``until_s`` is in seconds since the epoch, 0 when unknown."""

    alias: str
    secret: str = field(repr=False)
    user: str
    until_s: float


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says to anybody.

    Attributes:
        version: Such as "XNAT 1.8.10"; "" when it does not say.
        answer_s: Seconds that its first answer took, connection included.
        skew_s: Its clock minus ours, to a second; None when it does not say.
    """

    version: str
    answer_s: float
    skew_s: float | None


class XnatLogin:
    """One account on one server.

    Args:
        new_session: Makes a connection with headers, authorities and proxy as configured.
    """

    def __init__(
        self, base_url: str, credentials: Credentials, timeout_s: float, new_session: Callable[[], requests.Session]
    ) -> None:
        self._base_url = base_url
        self._credentials = credentials
        self._timeout = (min(CONNECT_S, timeout_s), timeout_s)
        self._new_session = new_session

    def greet(self) -> ServerFacts:
        """Ask the server what it is, without credentials.

        Raises:
            Unavailable, TimedOut
            UnexpectedReply: a redirect to another address.
        """
        what = f"asking {self._base_url} for its version"
        began_s = time.time()
        with self._connection() as connection:
            response = self._get(connection, Credentials(), "/xapi/siteConfig/buildInfo", what)
        ended_s = time.time()
        self.log_out(fresh_cookies({}, _cookies(response)))
        if response.status_code in REDIRECTS:
            self._refuse(response, what)
        try:
            sent_s: float | None = parsedate_to_datetime(response.headers.get("Date", "")).timestamp()
        except (TypeError, ValueError):
            sent_s = None
        skew_s = None if sent_s is None else sent_s + 0.5 - (began_s + ended_s) / 2
        return ServerFacts(_version(response), ended_s - began_s, skew_s)

    def log_in(self) -> ServerSession:
        """One login: a new server session.

        Raises:
            LoginFailed, Unavailable, TimedOut, UnexpectedReply
        """
        what = f"logging in to {self._base_url}"
        with self._connection() as connection:
            cookies: dict[str, str] = {}
            open_site = True
            if self._credentials.user is not None:
                # Asked without credentials: a site that serves guests forgets a session without a word.
                greeting = self._get(connection, Credentials(), WHO_PATH, what)
                if greeting.status_code in REDIRECTS and _location(greeting).endswith(WHO_PATH):
                    self._refuse(
                        greeting, what
                    )  # the whole site is elsewhere, as with http to https: before they go out
                open_site = greeting.status_code not in (401, 403, *REDIRECTS)
                cookies = _cookies(greeting) if greeting.status_code == 200 else {}
            # A 200 alone proves nothing, this path is open to anyone; but wrong credentials sent along are a 401.
            held = fresh_cookies(cookies, {})
            response = self._get(
                connection, self._credentials, "/data/JSESSION", what, held, kept=self._credentials.user is not None
            )
        return self._session_of(response, what, open_site)

    def log_out(self, cookies: Mapping[str, str]) -> None:
        """End a session. Best effort: it ends by itself."""
        if not cookies:
            return
        with self._connection() as connection:
            interface = _interface(self._base_url, Credentials(), connection)
            headers = {"Cookie": _cookie_header(cookies)}
            try:
                interface.delete("/data/JSESSION", headers=headers, allow_redirects=False, timeout=LOGOUT_S)
            except requests.RequestException:
                log.info("could not end the session on %s; it ends by itself", self._base_url)

    def issue_token(self) -> AliasToken:
        """A new alias token for these credentials, which may be a token's own.

        Raises:
            LoginFailed, Unavailable, TimedOut, UnexpectedReply
        """
        what = f"asking {self._base_url} for a token"
        with self._connection() as connection:
            response = self._get(connection, self._credentials, "/data/services/tokens/issue", what)
        self.log_out(fresh_cookies({}, _cookies(response)))
        self._refuse(response, what)
        try:
            document = response.json()
            alias, secret = str(document["alias"]), str(document["secret"])
        except (ValueError, KeyError, TypeError):
            raise UnexpectedReply(f"{what}: no token came back", "does this server issue alias tokens?") from None
        return AliasToken(alias, secret, str(document.get("xdatUserId") or ""), _epoch_s(document))

    def invalidate_token(self) -> None:
        """End the alias token that these credentials are.

        Raises:
            LoginFailed: it has ended already.
            Unavailable, TimedOut, UnexpectedReply
        """
        what = f"ending a token at {self._base_url}"
        alias, secret = (quote(part or "", safe="") for part in (self._credentials.user, self._credentials.secret))
        with self._connection() as connection:
            path = f"/data/services/tokens/invalidate/{alias}/{secret}"
            response = self._get(connection, self._credentials, path, what)
        self.log_out(fresh_cookies({}, _cookies(response)))
        self._refuse(response, what)

    # --- inside ------------------------------------------------------------------------------------------------

    @contextmanager
    def _connection(self) -> Iterator[requests.Session]:
        connection = self._new_session()
        try:
            yield connection
        finally:
            connection.auth = None
            connection.close()

    def _get(
        self,
        connection: requests.Session,
        credentials: Credentials,
        path: str,
        what: str,
        cookies: Mapping[str, str] | None = None,
        kept: bool = False,
    ) -> requests.Response:
        """One answer.

        Args:
            kept: The connection has carried a request, so that the server may be closing it: then once more on another.
        """
        interface = _interface(self._base_url, credentials, connection)
        headers = {"Cookie": _cookie_header(cookies)} if cookies else {}
        try:
            response: requests.Response = interface.get(
                path, headers=headers, allow_redirects=False, timeout=self._timeout
            )
        except requests.RequestException as error:
            if kept and isinstance(error, requests.ConnectionError) and not isinstance(error, requests.Timeout):
                return self._get(connection, credentials, path, what, cookies)
            raise_translated(error, what)
        return response

    def _session_of(self, response: requests.Response, what: str, open_site: bool) -> ServerSession:
        self._refuse(response, what)
        text = response.text.strip()
        if not text or len(text) > 256 or "<" in text:
            raise UnexpectedReply(
                f"{what}: a page in place of a session: not an XNAT server, or one that wants its terms accepted",
                f"check the address and its path; open {self._base_url} in a browser",
            )
        cookies = _cookies(response)
        now = time.time()
        life_s = session_life_s(cookies.get(EXPIRY_COOKIE, ""))
        return ServerSession(fresh_cookies({SESSION_COOKIE: text}, cookies), life_s, now, now, open_site)

    def _refuse(self, response: requests.Response, what: str) -> None:
        """Raise what a status other than 200 means at a login."""
        status = response.status_code
        if status == 200:
            return
        if status == 401 or (status == 403 and self._credentials.is_token):
            raise self._refusal(what)
        if status in REDIRECTS:
            asked = str(response.url).split("?", 1)[0].removeprefix(self._base_url)
            target = _location(response)
            if not target.endswith(asked):
                raise UnexpectedReply(f"{what}: the server sends us to {target}", "check the address and its path")
            target = target.removesuffix(asked)
            raise UnexpectedReply(f"{what}: the server sends us to {target}", "use that as the source if you trust it")
        if status == 403:
            raise LoginFailed(
                f"{what}: user {self._credentials.user!r} may not log in (403)",
                "an expired password? log in once in a browser",
            )
        try:
            raise_for_status(status, response.headers, what)
        except (NotFound, AccessDenied, UnexpectedReply) as error:
            hint = "check the address and its path; what lies in the archive follows a #, as in https://host#/PROJECT"
            raise UnexpectedReply(f"{what}: status {status}: not an XNAT server?", hint) from error
        except Unavailable:
            raise

    def _refusal(self, what: str) -> LoginFailed:
        user = self._credentials.user
        if user is None:
            return LoginFailed(f"{what}: this site has no guests", "set XNAT_USER and XNAT_PASS, or use ~/.netrc")
        if self._credentials.is_token:
            return LoginFailed(f"{what}: the stored token is no longer accepted", f"run: xnatfs login {self._base_url}")
        return LoginFailed(
            f"{what}: user {user!r} was refused (credentials from {self._credentials.origin})",
            "check user and password in a browser; accounts lock after repeated failures",
        )


def _interface(server: str, credentials: Credentials, session: requests.Session) -> Any:
    """pyxnat is imported by who logs in: it takes 0.1 s, and a mount that finds its listings stored logs in later."""
    with unforked():
        from xnatfs.archives.xnat.interface import Interface

    return Interface(server, credentials, session)


def _location(response: requests.Response) -> str:
    """Where a redirect leads, without its query; "" when it does not say or that is no address."""
    try:
        return urljoin(str(response.url), response.headers.get("Location", "")).split("?", 1)[0]
    except ValueError:
        return ""


def _cookie_header(cookies: Mapping[str, str]) -> str:
    return "; ".join(f"{name}={value}" for name, value in cookies.items())


def _cookies(response: requests.Response) -> dict[str, str]:
    return set_cookies(response.raw.headers.getlist("Set-Cookie"), str(response.url))


def _version(response: requests.Response) -> str:
    try:
        return f"XNAT {response.json()['version']}" if response.status_code == 200 else ""
    except (ValueError, KeyError, TypeError):
        return ""


def _epoch_s(document: Mapping[str, Any]) -> float:
    """When a token ends: XNAT says it in milliseconds since the epoch; 0 when it says it in another way."""
    try:
        number = float(document.get("estimatedExpirationTime") or 0)
    except (TypeError, ValueError):
        return 0.0
    return number / 1000 if number > 1e11 else number
