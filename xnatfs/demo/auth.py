"""Who is asking: Basic credentials, alias tokens, JSESSIONID cookies, guests, and accounts that lock.

Follows XNAT's order of things; knows nothing of records or of rendering. Used from the server's event loop only.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import time
import uuid
from collections import deque
from dataclasses import dataclass, field

GUEST = "guest"
ACCOUNTS = {"demo": "demo", "other": "other"}  # sample accounts of a sample server on loopback
MAX_FAILURES = 20
LOCK_S = 3600.0
ISSUED_KEPT = 10_000
TOKEN_LIFE_S = 2 * 24 * 3600.0
BROWSER = re.compile("MSIE|Mozilla|AppleWebKit|Opera")
# Open to anyone, also where a login is required.
OPEN_PATHS = re.compile(
    r"/data/JSESSION|/data/services/auth|/xapi/siteConfig/(buildInfo|siteId|siteUrl|siteHome)|/app/.*|/login"
)


class Refused(Exception):
    """The request may not go on: 401, or a redirect to the login page for a browser."""

    def __init__(self, reason: str, redirect: bool = False) -> None:
        super().__init__(reason)
        self.redirect = redirect


@dataclass(slots=True)
class Session:
    id: str
    user: str
    expires_s: float  # time.monotonic


@dataclass(slots=True)
class Token:
    alias: str
    secret: str
    user: str
    expires_s: float


@dataclass(slots=True)
class Login:
    """The outcome for one request."""

    user: str
    session: Session
    new: bool = False  # the answer carries a JSESSIONID cookie


@dataclass(slots=True)
class Counters:
    logins: int = 0
    failed_logins: int = 0
    sessions: int = 0


@dataclass(slots=True)
class Gate:
    """Every session, token and failure count of one server."""

    guests: bool = False
    session_timeout_s: float = 900.0
    max_sessions: int = 1000
    token_life_s: float = TOKEN_LIFE_S
    accounts: dict[str, str] = field(default_factory=lambda: dict(ACCOUNTS))
    sessions: dict[str, Session] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    failures: dict[str, tuple[int, float]] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    issued: deque[str] = field(default_factory=lambda: deque(maxlen=ISSUED_KEPT))  # ids and secrets, for leak tests

    def admit(self, path: str, cookie: str | None, authorization: str | None, user_agent: str) -> Login:
        """The user and session for one request, made where XNAT makes one.

        Raises:
            Refused: wrong credentials, or a login is needed and there is none.
        """
        session = self._live(cookie)
        credentials = _basic(authorization)
        if credentials is not None:
            if session is not None and session.user not in (GUEST, "") and self._owner(credentials[0]) == session.user:
                return Login(session.user, session)  # already this user's: not authenticated again
            user = self.check(*credentials)
            return Login(user, self.open(user), new=True)
        if session is not None and (session.user != GUEST or self.guests or OPEN_PATHS.fullmatch(path)):
            return Login(session.user, session)
        if not self.guests and not OPEN_PATHS.fullmatch(path):
            browser = BROWSER.search(user_agent) is not None
            raise Refused("A login is required.", redirect=browser)
        return Login(GUEST, self.open(GUEST), new=True)

    def check(self, user: str, secret: str) -> str:
        """The account that these credentials open; a failure counts against the account."""
        name = user.rsplit("/", 1)[-1]  # "provider/user"
        count, since = self.failures.get(name, (0, 0.0))
        locked = count >= MAX_FAILURES and time.monotonic() - since < LOCK_S
        token = self.tokens.get(name)
        if token is not None and token.expires_s > time.monotonic() and token.secret == secret:
            owner: str | None = token.user
        else:
            owner = name if self.accounts.get(name) == secret else None
        if owner is None or locked:
            self.failures[name] = (count + 1, time.monotonic())
            self.counters.failed_logins += 1
            raise Refused("Login attempt failed.")
        self.failures.pop(name, None)
        return owner

    def open(self, user: str) -> Session:
        if user != GUEST:
            mine = sum(1 for s in self.sessions.values() if s.user == user and s.expires_s > time.monotonic())
            if mine >= self.max_sessions:
                self.counters.failed_logins += 1
                raise Refused("Too many sessions.")
            self.counters.logins += 1
        self.counters.sessions += 1
        session = Session(secrets.token_hex(16).upper(), user, time.monotonic() + self.session_timeout_s)
        self.sessions[session.id] = session
        self.issued.append(session.id)
        return session

    def drop(self, session: Session) -> None:
        self.sessions.pop(session.id, None)

    def expire_all(self) -> None:
        self.sessions.clear()

    def issue(self, user: str) -> Token:
        token = Token(str(uuid.uuid4()), secrets.token_hex(32), user, time.monotonic() + self.token_life_s)
        self.tokens[token.alias] = token
        self.issued.append(token.secret)
        return token

    def _live(self, cookie: str | None) -> Session | None:
        session = self.sessions.get(cookie or "")
        if session is None:
            return None
        now = time.monotonic()
        if session.expires_s <= now:
            del self.sessions[session.id]
            return None
        session.expires_s = now + self.session_timeout_s  # the timeout slides
        return session

    def _owner(self, name: str) -> str:
        token = self.tokens.get(name)
        return token.user if token is not None else name.rsplit("/", 1)[-1]


def _basic(authorization: str | None) -> tuple[str, str] | None:
    if not authorization or not authorization.lower().startswith("basic "):
        return None
    try:
        user, _, secret = base64.b64decode(authorization[6:].strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return ("", "")
    return user, secret
