"""The token file: private, atomic, doubted when damaged; and the place of a token among the credentials."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from xnatfs.cli.credentials import find_credentials
from xnatfs.cli.options import load_settings
from xnatfs.cli.sources import parse_source
from xnatfs.cli.tokens import StoredToken, TokenFile
from xnatfs.config import Credentials
from xnatfs.errors import CredentialsError

HOST = "https://xnat.example.org/ctx"
DAY_S = 86400.0


@pytest.fixture(autouse=True)
def no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "config" / "xnatfs" / "tokens.json")


def token(server: str = HOST, user: str = "mary", since_d: float = 0.0, until_d: float = 2.0) -> StoredToken:
    now = time.time()
    return StoredToken(server, user, f"alias-{user}", f"s3cret-{user}", now + since_d * DAY_S, now + until_d * DAY_S)


def find(file: TokenFile, source: str = HOST, environ: dict[str, str] | None = None, **flags: object) -> Credentials:
    settings = load_settings(flags, (), {}, Path("/nonexistent/config.toml"))
    home = file.path.parent.parent.parent
    return find_credentials(parse_source(source), settings, environ or {}, home, None, file)


def test_what_is_put_is_got_by_server_and_context_path(file: TokenFile) -> None:
    kept = token()
    file.put(kept)
    file.put(token("https://other.org"))
    assert file.get(HOST) == kept
    assert file.get("https://xnat.example.org") is None
    assert file.get("http://xnat.example.org/ctx") is None
    file.remove(HOST)
    assert file.servers() == ["https://other.org"]


def test_file_and_directories_are_private_whatever_the_umask(file: TokenFile) -> None:
    before = os.umask(0)
    try:
        file.put(token())
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.path.parent.parent.stat().st_mode) == 0o700


def test_a_directory_that_others_can_enter_is_closed(file: TokenFile) -> None:
    file.path.parent.mkdir(parents=True)
    file.path.parent.chmod(0o755)
    file.put(token())
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused_with_the_chmod(file: TokenFile, mode: int) -> None:
    file.put(token())
    file.path.chmod(mode)
    with pytest.raises(CredentialsError, match="other users can read it") as caught:
        find(file)
    assert caught.value.hint == f"run: chmod 600 {file.path}"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2, "tokens": {}}', '{"format": 1, "tokens": {"a": {}}}'])
def test_a_damaged_file_is_named_without_its_words(file: TokenFile, text: str) -> None:
    file.put(token())
    file.path.write_text(text or "s3cret-mary")
    with pytest.raises(CredentialsError, match="is not what `xnatfs login` writes") as caught:
        find(file)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_reader_never_sees_half_a_file(file: TokenFile) -> None:
    file.put(token())
    ended = threading.Event()

    def write() -> None:
        for number in range(50):
            file.put(token(f"https://h{number}.org"))
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not ended.is_set():
        assert file.get(HOST) is not None
    thread.join()
    assert len(file.servers()) == 51
    assert [path.name for path in file.path.parent.iterdir() if path.name.startswith(".tokens")] == []


def test_a_token_comes_after_the_environment_and_before_netrc(file: TokenFile) -> None:
    netrc = file.path.parent.parent.parent / ".netrc"
    netrc.write_text("machine xnat.example.org login net password p\n")
    netrc.chmod(0o600)
    assert find(file).user == "net"
    file.put(token())
    found = find(file)
    assert (found.user, found.secret, found.is_token) == ("alias-mary", "s3cret-mary", True)
    assert found.origin == "the token of mary from `xnatfs login`"
    assert find(file, environ={"XNAT_USER": "env", "XNAT_PASS": "p"}).user == "env"


def test_a_token_of_another_user_or_server_is_not_taken(file: TokenFile) -> None:
    file.put(token())
    assert find(file, "https://xnat.example.org").user is None
    assert find(file, user="mary").is_token
    with pytest.raises(CredentialsError, match="no password found for john"):
        find(file, user="john")


def test_a_token_that_has_ended_says_so_with_the_command(file: TokenFile) -> None:
    file.put(token(since_d=-3, until_d=-1))
    with pytest.raises(CredentialsError, match=f"the token for {HOST} ended on") as caught:
        find(file)
    assert caught.value.hint == f"run: xnatfs login {HOST}"


def test_a_token_is_old_in_the_second_half_of_its_life() -> None:
    assert not token(since_d=-0.9, until_d=1.1).is_old
    assert token(since_d=-1.1, until_d=0.9).is_old
    assert not StoredToken(HOST, "mary", "a", "s", time.time(), 0.0).is_old


def test_no_secret_in_a_repr_and_no_password_in_the_file(file: TokenFile) -> None:
    file.put(token())
    assert "s3cret" not in repr(token())
    assert set(json.loads(file.path.read_text())["tokens"][HOST]) == {"user", "alias", "secret", "since_s", "until_s"}
