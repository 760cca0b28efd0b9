"""When a request is tried again: later each time and never at the same moment for all, or as the server wishes."""

from __future__ import annotations

import pytest

from xnatfs.archives.http.errors import BACKOFF_S, TRIES_OF_500, ServerFailed, Unreachable, retry_after_s
from xnatfs.errors import AccessDenied, ArchiveError, NotFound, StaleContent, TimedOut, Unavailable, UnexpectedReply


@pytest.mark.parametrize("error", [Unavailable("cut"), ServerFailed("busy", status=429), ServerFailed("x", status=503)])
def test_waits_double_and_differ(error: ArchiveError) -> None:
    for attempt in (1, 2, 3, 4):
        waits_s = {retry_after_s(error, attempt) for _ in range(200)}
        middle_s = BACKOFF_S * 2 ** (attempt - 1)
        assert len(waits_s) > 100
        assert all(wait_s is not None and 0.5 * middle_s <= wait_s <= 1.5 * middle_s for wait_s in waits_s)


def test_a_servers_own_wish_is_granted() -> None:
    assert retry_after_s(ServerFailed("busy", status=503, retry_after_s=7.0), 1) == 7.0


def test_500_is_given_fewer_tries() -> None:
    error = ServerFailed("broken", status=500)
    assert retry_after_s(error, TRIES_OF_500 - 1) is not None
    assert retry_after_s(error, TRIES_OF_500) is None


@pytest.mark.parametrize("kind", [Unreachable, TimedOut, NotFound, AccessDenied, StaleContent, UnexpectedReply])
def test_what_will_not_be_better_soon_is_not_tried_again(kind: type[ArchiveError]) -> None:
    assert retry_after_s(kind("x"), 1) is None
