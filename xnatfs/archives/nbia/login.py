"""NBIA's login: a password is exchanged for a bearer token that goes along with every request until it ends.

Knows the token's endpoint and nothing else. Safe from any thread: ``Account`` sees to one login for all of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlencode

from xnatfs.archives.http.account import Account
from xnatfs.archives.http.client import HttpClient
from xnatfs.archives.http.errors import OddStatus
from xnatfs.archives.http.session import ServerSession
from xnatfs.config import Credentials
from xnatfs.errors import AccessDenied, LoginFailed, UnexpectedReply
from xnatfs.stats import Stats

TOKEN_PATH = "/nbia-api/oauth/token"  # noqa: S105  # a path, not a secret

CLIENT_ID = "nbia"
"""Sent because older servers want one; the present one puts its own in its place."""

LIFE_S = 7200.0
"""Seconds that a token lives where the answer does not say."""


class TokenAccount(Account):
    """An account whose session is a token, not cookies."""

    def __init__(
        self, credentials: Credentials, login: Callable[[], ServerSession], timeout_s: float, stats: Stats | None
    ) -> None:
        super().__init__(credentials, login, timeout_s, None, stats)

    def _sent(self, session: ServerSession, with_credentials: bool) -> dict[str, str]:
        return {"Authorization": f"Bearer {session.cookies['token']}"}

    def note(self, cookies: Mapping[str, str], generation: int, with_credentials: bool) -> bool:
        return True


def log_in(http: HttpClient, credentials: Credentials) -> ServerSession:
    """A new token.

    Args:
        http: To the server, as nobody.
    Raises:
        LoginFailed: user or password was refused.
        UnexpectedReply, Unavailable, TimedOut
    """
    form = {
        "grant_type": "password",
        "client_id": CLIENT_ID,
        "username": credentials.user or "",
        "password": credentials.secret or "",
    }
    try:
        answer = http.post_search(TOKEN_PATH, {}, urlencode(form).encode(), "application/x-www-form-urlencoded")
    except (AccessDenied, OddStatus) as error:
        if isinstance(error, OddStatus) and error.status not in (400, 401):
            raise
        raise LoginFailed(f"NBIA refused the user {credentials.user}", "check user and password") from None
    try:
        document = json.loads(answer)
        token = str(document["access_token"])
        life_s = float(document.get("expires_in", LIFE_S))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnexpectedReply(f"POST {TOKEN_PATH}: no token in the answer") from None
    now = time.time()
    return ServerSession({"token": token}, life_s=life_s, since_s=now, used_s=now)
