"""One server session and one set of credentials for every thread of a process, and through a file for a user's others.

Knows no transport: whoever logs in is handed in. Safe to call from any thread; no lock is held across a login.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from xnatfs.archives.http.session import ServerSession, SharedSession
from xnatfs.config import Credentials
from xnatfs.errors import LoginFailed, TimedOut
from xnatfs.stats import Stats

log = logging.getLogger(__name__)

EXPIRY_MARGIN = 0.1
"""Part of a session's life at its end in which it is renewed before use rather than risked."""

Login = Callable[[], ServerSession]
"""Logs in once. Raises LoginFailed when the server says 401."""

LEAVE_S = 1.0
"""Seconds to wait for the session file at unmount, or with an answer in hand. Without it a session ends by itself."""

FINAL = "nothing more is asked of the archive until this is mounted again"

SESSION_COOKIE = "JSESSIONID"
EXPIRY_COOKIE = "SESSION_EXPIRATION_TIME"


class Account:
    """One server session and one set of credentials for every thread, and through ``shared`` for every process.

    The session is renewed once, by one thread, before it is known to have expired or when the server has refused it;
    the others wait for that. A refused password is final: accounts lock after a number of failures.
    """

    def __init__(
        self,
        credentials: Credentials,
        login: Login,
        timeout_s: float,
        shared: SharedSession | None = None,
        stats: Stats | None = None,
    ) -> None:
        self._login = login
        self._timeout_s = timeout_s
        self._shared = shared
        self._stats = stats or Stats()
        self._cond = threading.Condition(threading.Lock())
        self._session: ServerSession | None = None  # guarded by _cond, like all below
        self._dead: Mapping[str, str] = {}  # cookies that the server has refused
        self._generation = 0
        self._expires = 0.0  # monotonic
        self._renewing = False
        self._refused: LoginFailed | None = None
        self._authorization: str | None = None
        self.user = credentials.user
        if credentials.user is not None:
            pair = f"{credentials.user}:{credentials.secret or ''}".encode()
            self._authorization = "Basic " + base64.b64encode(pair).decode("ascii")

    @property
    def named(self) -> bool:
        """False for a guest."""
        return self._authorization is not None

    def headers(self, with_credentials: bool = False) -> tuple[dict[str, str], int]:
        """What to send along, and the generation of the session it belongs to. Logs in first where that is due."""
        deadline = time.monotonic() + 2 * self._timeout_s
        while True:
            with self._cond:
                if self._refused is not None:
                    raise LoginFailed(str(self._refused), self._refused.hint) from self._refused
                if self._session is not None and time.monotonic() < self._expires:
                    return self._sent(self._session, with_credentials), self._generation
                leads = not self._renewing
                if leads:
                    self._renewing = True
                elif not self._cond.wait(deadline - time.monotonic()):
                    raise TimedOut("the login to the archive takes too long")
            if leads:
                self._renew()

    def _sent(self, session: ServerSession, with_credentials: bool) -> dict[str, str]:
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in session.cookies.items())}
        # On a site open to guests a forgotten session is not refused: it silently makes a guest of its owner. With
        # the credentials beside it the server logs in again by itself (XnatBasicAuthenticationFilter). On a closed
        # site they stay at home: there each request under way would log in by itself, where a 401 leads to one login.
        if self._authorization is not None and (with_credentials or session.open_site):
            headers["Authorization"] = self._authorization
        return headers

    def _renew(self) -> None:
        session: ServerSession | None = None
        refused: LoginFailed | None = None
        try:
            session = self._obtain()
        except LoginFailed as error:
            refused = error
            if self._generation:  # at the first login whoever mounts is told
                log.error("%s; %s", error, FINAL)
            raise
        finally:
            with self._cond:
                self._renewing = False
                self._refused = refused
                if session is not None:
                    self._adopt(session)
                self._cond.notify_all()

    def _obtain(self) -> ServerSession:
        """The session that another process has made, or else a new one."""
        if self._shared is None:
            return self._logged_in()
        with self._shared.alone(self._timeout_s) as alone:
            if alone:
                found = self._shared.read()
                if found is not None and found.left_s > found.life_s * EXPIRY_MARGIN and found.cookies != self._dead:
                    return found
            session = self._logged_in()
            if alone:
                self._shared.write(session)
            return session

    def _logged_in(self) -> ServerSession:
        self._stats.logins += 1
        return self._login()

    def _adopt(self, session: ServerSession) -> None:
        """Under the condition."""
        self._session = session
        self._generation += 1
        self._slide(session, session.left_s)
        self._stats.session_since_s = session.since_s

    def _slide(self, session: ServerSession, left_s: float) -> None:
        """Under the condition."""
        self._expires = time.monotonic() + max(0.0, left_s - session.life_s * EXPIRY_MARGIN)
        self._stats.session_until_s = time.time() + left_s if session.life_s else 0.0

    def note(self, cookies: Mapping[str, str], generation: int, with_credentials: bool) -> bool:
        """Take in the cookies of an answer; False when it was given to a guest in our place.

        Another session than the one we sent means that the server has forgotten ours. Where the credentials went
        along it is ours all the same, and is used from here on.
        """
        if not cookies:
            return True
        with self._cond:
            session = self._session
            if session is None or generation != self._generation:
                return not self._is_foreign(cookies, None) or with_credentials or not self.named
            foreign = self._is_foreign(cookies, session)
            if foreign and self.named and not with_credentials:
                return False
            life_s = session_life_s(cookies.get(EXPIRY_COOKIE, "")) or session.life_s
            if not foreign:
                self._slide(session, life_s or float("inf"))
            else:
                now = time.time()
                # A server that answers fresh cookies with others wants the credentials each time.
                session = replace(session, cookies=fresh_cookies(session.cookies, cookies), used_s=now, open_site=True)
                self._adopt(session)
        if self._shared is not None:
            if foreign:
                self._share(session)
            else:
                self._shared.touch(life_s)
        return True

    def _is_foreign(self, cookies: Mapping[str, str], session: ServerSession | None) -> bool:
        """Whether an answer names another session than ours."""
        theirs = cookies.get(SESSION_COOKIE)
        return theirs is not None and (session is None or theirs != session.cookies.get(SESSION_COOKIE))

    def _share(self, session: ServerSession) -> None:
        assert self._shared is not None
        with self._shared.alone(LEAVE_S) as alone:
            if alone:
                self._shared.write(session)

    def expire(self, generation: int) -> None:
        """The server no longer knows the session of that generation: the next request renews it."""
        with self._cond:
            if generation == self._generation and self._session is not None:
                self._dead = self._session.cookies
                self._session = None

    def refuse(self, error: LoginFailed) -> None:
        """A fresh session was refused too: final until the user acts."""
        log.error("%s; %s", error, FINAL)
        with self._cond:
            self._refused = error

    def leave(self) -> Mapping[str, str]:
        """Forget the session; its cookies, when it is ours to end: nobody else uses it."""
        with self._cond:
            session, self._session = self._session, None
        if self._shared is None or not self._shared.joined:
            return session.cookies if session is not None else {}
        with self._shared.alone(LEAVE_S) as alone:
            last = self._shared.leave() if alone else None
        return last.cookies if last is not None and last.left_s > 0 else {}


class Guest(Account):
    """Nobody in particular: no login, no session, no cookies; for archives that know none."""

    def __init__(self) -> None:
        super().__init__(Credentials(), _no_login, 0.0)

    def headers(self, with_credentials: bool = False) -> tuple[dict[str, str], int]:
        return {}, 0

    def note(self, cookies: Mapping[str, str], generation: int, with_credentials: bool) -> bool:
        return True


def _no_login() -> ServerSession:
    raise AssertionError("a guest does not log in")


def fresh_cookies(held: Mapping[str, str], answered: Mapping[str, str]) -> dict[str, str]:
    """The cookies to send from here on. The expiry is for us, and changes with every answer."""
    return {name: value for name, value in {**held, **answered}.items() if name != EXPIRY_COOKIE}


def session_life_s(text: str) -> float:
    """Seconds of life in ``"<now ms>,<timeout ms>"`` as XNAT sends it; 0 when it does not say."""
    parts = text.strip('"').replace("%2C", ",").split(",")
    try:
        return max(0.0, int(parts[1]) / 1000) if len(parts) == 2 else 0.0
    except ValueError:
        return 0.0
