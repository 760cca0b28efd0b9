"""What requests, urllib3 and a status code say, as errors of ours: one table, and the one decision what to try again.

No I/O. The cause is kept; messages name the object and the action, and no query.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any, NoReturn

import requests
import urllib3

from xnatfs.archives.http.numbers import whole_number
from xnatfs.errors import (
    AccessDenied,
    ArchiveError,
    NotFound,
    StaleContent,
    TimedOut,
    Unavailable,
    UnexpectedReply,
)

BACKOFF_S = 0.25
"""Seconds before the first retry; doubles each time, with a jitter of half to one and a half."""

TRIES_OF_500 = 3
"""A 500 is more often a fault of what was asked for than of the moment: do not spend all retries on it."""

TEMPORARY_STATUS = frozenset({429, 500, 502, 503, 504})

TRANSPORT_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, UnicodeError)
"""What requests, urllib3, http.client and ssl raise when a request fails."""


class PageReply(UnexpectedReply):
    """A web page in place of data: a login page, terms of use, or "down for maintenance", with status 200."""

    generation = 0  # of the session that got it


class ServerFailed(Unavailable):
    """A status that may be better next time, with the server's own wish for when."""

    def __init__(self, message: str, hint: str = "", status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(message, hint)
        self.status = status
        self.retry_after_s = retry_after_s


class OddStatus(UnexpectedReply):
    """A status that no archive answers in good order, with the headers beside it: some say what to do about it."""

    def __init__(self, message: str, hint: str = "", status: int = 0, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message, hint)
        self.status = status
        self.headers = headers or {}


class Unreachable(Unavailable):
    """Nobody listens there: away for longer than a retry, so the answer is given at once."""


def retry_after_s(error: ArchiveError, attempt: int) -> float | None:
    """Seconds to wait before the next try, or None when another try is of no use. The one place that decides that."""
    if isinstance(error, Unreachable | TimedOut) or not isinstance(error, Unavailable):
        return None
    if isinstance(error, ServerFailed):
        if error.status == 500 and attempt >= TRIES_OF_500:
            return None
        if error.retry_after_s is not None:
            return error.retry_after_s
    return float(BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, not a secret


def raise_for_status(status: int, headers: Mapping[str, str], what: str) -> NoReturn:
    """The error that a status other than 200 and 206 stands for."""
    if status in (404, 410):
        raise NotFound(f"{what}: the archive has no such thing, or this account may not see it")
    if status == 403:
        raise AccessDenied(f"{what}: closed to this account")
    if status in TEMPORARY_STATUS:
        seconds = whole_number(headers.get("Retry-After", ""))
        retry_after_s = None if seconds is None else float(seconds)
        raise ServerFailed(f"{what}: the server answers {status}", status=status, retry_after_s=retry_after_s)
    if status == 416:
        raise StaleContent(f"{what}: the file has become shorter")
    if status == 412:
        raise StaleContent(f"{what}: has changed on the server", "list the directory again")
    raise OddStatus(f"{what}: the server answers {status}", "", status, headers)


def raise_translated(error: Exception, what: str) -> NoReturn:
    """One table from what requests and urllib3 raise to our errors; the cause is kept."""
    if isinstance(error, ArchiveError):
        raise error
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 10:
        chain.append(inner)
    if isinstance(error, requests.exceptions.SSLError | urllib3.exceptions.SSLError):
        why, hint = _tls_words(str(error))
        raise Unreachable(f"{what}: {why}", hint) from error
    timeouts = (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
    if isinstance(error, timeouts) and not isinstance(error, urllib3.exceptions.NewConnectionError):  # which is one too
        raise TimedOut(f"{what}: no answer in time") from error
    if isinstance(error, requests.exceptions.ProxyError):
        raise Unreachable(f"{what}: the proxy failed: {_short(error)}", "check --proxy") from error
    if isinstance(error, requests.exceptions.InvalidSchema) and "SOCKS" in str(error):
        raise Unreachable(f"{what}: a SOCKS proxy needs a package", "run: python -m pip install PySocks") from error
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        raise Unreachable(f"{what}: not an address that can be asked: {_short(error)}") from error
    if any(isinstance(one, urllib3.exceptions.NameResolutionError) for one in chain):
        raise Unreachable(f"{what}: unknown host", "check the spelling, the network, the VPN") from error
    if any(isinstance(one, ConnectionRefusedError | urllib3.exceptions.NewConnectionError) for one in chain):
        raise Unreachable(f"{what}: nobody answers there", "check the address and the port") from error
    raise Unavailable(f"{what}: the connection broke: {_short(error)}") from error


_TLS_WORDS = (
    ("hostname mismatch", "the server's certificate is for another host", "check the address"),
    ("doesn't match", "the server's certificate is for another host", "check the address"),
    ("not valid for", "the server's certificate is for another host", "check the address"),
    (
        "certificate has expired",
        "the server's certificate has expired",
        "tell the site; is this machine's clock right?",
    ),
    ("not yet valid", "the server's certificate is not valid yet", "is this machine's clock right?"),
    ("self-signed", "nobody known has signed the server's certificate", "name its authority: --ca-bundle FILE"),
    ("self signed", "nobody known has signed the server's certificate", "name its authority: --ca-bundle FILE"),
    ("local issuer", "nobody known has signed the server's certificate", "name its authority: --ca-bundle FILE"),
    ("wrong_version_number", "what answers there does not speak TLS", "is it http:// rather than https://?"),
    ("wrong version number", "what answers there does not speak TLS", "is it http:// rather than https://?"),
    ("http_request", "what answers there does not speak TLS", "is it http:// rather than https://?"),
    ("record layer failure", "what answers there does not speak TLS", "is it http:// rather than https://?"),
    ("unsupported_protocol", "the server speaks only an old TLS", "tell the site"),
)
"""What OpenSSL says -> what it means, and what to do."""


def _tls_words(said: str) -> tuple[str, str]:
    for words, why, hint in _TLS_WORDS:
        if words in said.lower():
            return why, hint
    return f"TLS failed: {said.rsplit(': ', 1)[-1].strip('()')[:200]}", "does a browser get through from here?"


def _short(error: Exception) -> str:
    """The innermost reason, in few words: the outer ones repeat the whole URL with its query."""
    reason: Any = error
    while inner := next((each for each in _inner(reason) if isinstance(each, Exception)), None):
        reason = inner
    return re.sub(r"//[^/\s]*@", "//", str(reason).rsplit(": ", 1)[-1])[:200]


def _inner(error: Any) -> tuple[Any, ...]:
    """Where requests and urllib3 put the error that an error is of."""
    return getattr(error, "reason", None), getattr(error, "original_error", None), *getattr(error, "args", ())
