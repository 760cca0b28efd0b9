"""Sessions, cookies, guests, tokens and closed projects, as XNAT handles them."""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests

from tests.helpers.server import DemoServer

BROWSER = {"User-Agent": "Mozilla/5.0 (X11) AppleWebKit/537"}
PLAIN = {"User-Agent": "tests/1"}


def get(server: DemoServer, path: str, **options: Any) -> requests.Response:
    """One request on a connection of its own; no cookie jar."""
    headers = {**PLAIN, **options.pop("headers", {})}
    with requests.Session() as session:
        session.trust_env = False
        return session.get(server.url + path, headers=headers, allow_redirects=False, **options)


def log_in(server: DemoServer) -> str:
    return get(server, "/data/JSESSION", auth=("demo", "demo")).text


def cookie(session_id: str) -> dict[str, str]:
    return {"Cookie": f"JSESSIONID={session_id}"}


def test_a_login_gives_a_session_that_needs_no_password(server: DemoServer) -> None:
    answer = get(server, "/data/JSESSION", auth=("demo", "demo"))
    assert answer.cookies["JSESSIONID"] == answer.text
    again = get(server, "/data/projects", headers=cookie(answer.text))
    assert again.status_code == 200
    assert "JSESSIONID" not in again.cookies
    assert get(server, "/data/auth", headers=cookie(answer.text)).text == "User 'demo' is logged in"
    assert server.log()["logins"] == 1


def test_every_answer_says_when_the_session_ends(server: DemoServer) -> None:
    answer = get(server, "/data/projects", auth=("demo", "demo"))
    now_ms, timeout_ms = answer.cookies["SESSION_EXPIRATION_TIME"].strip('"').split(",")
    assert abs(int(now_ms) / 1000 - time.time()) < 5
    assert timeout_ms == "900000"


def test_basic_with_its_own_cookie_is_not_authenticated_again(server: DemoServer) -> None:
    session = log_in(server)
    for _ in range(3):
        assert get(server, "/data/projects", auth=("demo", "demo"), headers=cookie(session)).status_code == 200
    log = server.settled_log()
    assert (log["logins"], log["sessions"]) == (1, 1)


def test_basic_without_cookie_makes_a_session_each_time(server: DemoServer) -> None:
    for _ in range(3):
        get(server, "/data/projects", auth=("demo", "demo"))
    assert server.settled_log()["sessions"] == 3


def test_basic_for_another_user_changes_the_session(server: DemoServer) -> None:
    session = log_in(server)
    answer = get(server, "/data/auth", auth=("other", "other"), headers=cookie(session))
    assert answer.text == "User 'other' is logged in"
    assert answer.cookies["JSESSIONID"] != session


def test_a_stale_cookie_is_401_or_for_browsers_the_login_page(server: DemoServer) -> None:
    session = log_in(server)
    server.switch(expire_sessions=True)
    refused = get(server, "/data/projects", headers=cookie(session))
    assert (refused.status_code, refused.headers["WWW-Authenticate"][:5]) == (401, "Basic")
    moved = get(server, "/data/projects", headers={**cookie(session), **BROWSER})
    assert (moved.status_code, moved.headers["Location"]) == (302, "/app/template/Login.vm")
    page = get(server, "/app/template/Login.vm", headers=BROWSER)
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html")


def test_a_stale_cookie_is_silently_a_guest_on_an_open_site(server: DemoServer) -> None:
    session = log_in(server)
    server.switch(guests=True, expire_sessions=True)
    listed = get(server, "/data/projects", headers=cookie(session)).json()["ResultSet"]["Result"]
    assert [row["ID"] for row in listed] == ["HCP_DEMO", "PROTECTED"]
    assert get(server, "/data/projects/DEMO/subjects", headers=cookie(session)).status_code == 404
    assert get(server, "/data/auth", headers=cookie(session)).text == "User 'guest' is logged in"
    cured = get(server, "/data/projects/DEMO/subjects", headers=cookie(session), auth=("demo", "demo"))
    assert cured.status_code == 200


def test_sessions_end_after_their_timeout_and_slide_until_then(server: DemoServer) -> None:
    server.switch(session_timeout_s=4.0)
    session = log_in(server)
    for _ in range(4):
        time.sleep(1.1)
        assert get(server, "/data/auth", headers=cookie(session)).status_code == 200
    time.sleep(4.2)
    assert get(server, "/data/auth", headers=cookie(session)).status_code == 401


def test_jsession_is_open_to_anyone_and_proves_nothing(server: DemoServer) -> None:
    answer = get(server, "/data/JSESSION")
    assert answer.status_code == 200
    assert get(server, "/data/projects", headers=cookie(answer.text)).status_code == 401
    assert get(server, "/xapi/siteConfig/buildInfo").json()["version"].startswith("1.8")


def test_logging_out_ends_the_session(server: DemoServer) -> None:
    session = log_in(server)
    with requests.Session() as client:
        client.delete(f"{server.url}/data/JSESSION", headers={**PLAIN, **cookie(session)})
    assert get(server, "/data/auth", headers=cookie(session)).status_code == 401


def test_the_login_form_service_takes_a_body(server: DemoServer) -> None:
    with requests.Session() as client:
        good = client.put(f"{server.url}/data/services/auth", data={"username": "demo", "password": "demo"})
        bad = client.put(f"{server.url}/data/services/auth", data={"username": "demo", "password": "x"})
    assert get(server, "/data/auth", headers=cookie(good.text)).text == "User 'demo' is logged in"
    assert bad.status_code == 401


def test_failures_are_counted_and_lock_the_account(server: DemoServer) -> None:
    for _ in range(20):
        assert get(server, "/data/auth", auth=("other", "wrong")).status_code == 401
    assert server.log()["failed_logins"] == 20
    assert get(server, "/data/auth", auth=("other", "other")).status_code == 401
    server.switch(unlock=True)
    assert get(server, "/data/auth", auth=("other", "other")).status_code == 200


def test_too_many_sessions_of_one_user_are_refused(server: DemoServer) -> None:
    server.switch(max_sessions=2, expire_sessions=True)
    statuses = [get(server, "/data/auth", auth=("demo", "demo")).status_code for _ in range(3)]
    assert statuses == [200, 200, 401]


def test_an_alias_token_serves_as_user_and_password(server: DemoServer) -> None:
    token = get(server, "/data/services/tokens/issue", auth=("demo", "demo")).json()
    pair = (token["alias"], token["secret"])
    assert get(server, "/data/auth", auth=pair).text == "User 'demo' is logged in"
    query = f"alias={pair[0]}&secret={pair[1]}"
    assert get(server, f"/data/services/tokens/validate?{query}", auth=pair).json() == {"valid": "demo"}
    get(server, f"/data/services/tokens/invalidate?{query}", auth=pair)
    assert get(server, "/data/auth", auth=pair).status_code == 401


@pytest.mark.parametrize(
    ("user", "path", "status"),
    [
        ("demo", "/data/projects/PRIVATE/subjects", 404),
        ("demo", "/data/experiments/XNAT_E00031/files", 404),
        ("other", "/data/projects/PRIVATE/subjects", 200),
        ("other", "/data/projects/PROTECTED/subjects", 403),
        ("other", "/data/projects/PROTECTED/accessibility", 200),
        ("other", "/data/experiments/XNAT_E00030", 404),
        ("other", "/data/projects/DEMO", 404),
        ("other", "/data/projects/HCP_DEMO/subjects", 200),
        ("demo", "/data/projects/PROTECTED/subjects", 200),
    ],
)
def test_closed_things_are_404_and_protected_ones_403(server: DemoServer, user: str, path: str, status: int) -> None:
    assert get(server, path, auth=(user, user)).status_code == status


def test_accessibility_is_plain_text(server: DemoServer) -> None:
    texts = [get(server, f"/data/projects/{p}/accessibility", auth=("demo", "demo")).text for p in ("DEMO", "HCP_DEMO")]
    assert texts == ["private", "public"]
