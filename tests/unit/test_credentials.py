"""Credentials: where they are looked for, which one wins, what is refused, and that no secret is shown."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path

import pytest

from xnatfs.cli.credentials import find_credentials, travels_in_clear
from xnatfs.cli.options import Settings, load_settings
from xnatfs.cli.sources import parse_source
from xnatfs.config import Credentials
from xnatfs.errors import CredentialsError

HOST = "https://xnat.example.org"


def private(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def settings(**flags: object) -> Settings:
    keys = {name.replace("_", "-"): value for name, value in flags.items()}
    return load_settings(keys, (), {}, Path("/nonexistent/config.toml"))


@pytest.fixture(autouse=True)
def no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)  # `import keyring` fails, as where it is not installed


def find(
    home: Path, source: str = HOST, environ: dict[str, str] | None = None, prompt: str | None = None, **flags: object
) -> tuple[str | None, str | None, str]:
    ask = None if prompt is None else lambda text: prompt
    found = find_credentials(parse_source(source), settings(**flags), environ or {}, home, ask)
    return found.user, found.secret, found.origin


def test_nothing_found_is_anonymous(tmp_path: Path) -> None:
    assert find(tmp_path) == (None, None, "anonymous")


def test_the_first_place_wins(tmp_path: Path) -> None:
    """Each step adds a place that comes earlier in the order, and its user is the one found."""
    cfg = {"server": HOST, "user": "cfg", "password": "p"}
    private(tmp_path / ".xnat.cfg", json.dumps(cfg))
    assert find(tmp_path) == ("cfg", "p", str(tmp_path / ".xnat.cfg"))
    private(tmp_path / ".xnatPass", "+pass@xnat.example.org=p\n")
    assert find(tmp_path) == ("pass", "p", str(tmp_path / ".xnatPass"))
    private(tmp_path / ".netrc", "machine xnat.example.org login netrc password p\n")
    assert find(tmp_path) == ("netrc", "p", str(tmp_path / ".netrc"))
    environ = {"XNAT_USER": "env", "XNAT_PASS": "p"}
    assert find(tmp_path, environ=environ) == ("env", "p", "XNAT_USER and XNAT_PASS")
    named = private(tmp_path / "named", "two\nlines p\n")
    assert find(tmp_path, environ=environ, credentials=str(named)) == ("two", "lines p", f"--credentials {named}")
    assert find(tmp_path, environ=environ, credentials=str(named), anonymous=True) == (None, None, "--anonymous")


@pytest.mark.parametrize(
    ("host", "source", "used"),
    [
        ("https://xnat.example.org", HOST, True),
        ("xnat.example.org", HOST, True),
        ("XNAT.example.org", HOST, True),
        ("https://xnat.example.org/", HOST, True),
        ("https://other.example.org", HOST, False),
        ("https://xnat.example.org", "https://xnat.example.org:8443", False),
        ("https://xnat.example.org:8443", "https://xnat.example.org:8443", True),
        ("https://xnat.example.org", "http://xnat.example.org", False),
        ("https://xnat.example.org/one", "https://xnat.example.org/two", False),
        ("https://xnat.example.org/one", "https://xnat.example.org/one", True),
    ],
)
@pytest.mark.parametrize("variable", ["XNAT_HOST", "XNATPY_HOST"])
def test_environment_counts_only_for_its_host(
    tmp_path: Path, variable: str, host: str, source: str, used: bool
) -> None:
    environ = {"XNAT_USER": "mary", "XNAT_PASS": "p", variable: host}
    assert find(tmp_path, source, environ)[0] == ("mary" if used else None)


def test_a_user_without_a_password_in_the_environment_is_not_used(tmp_path: Path) -> None:
    assert find(tmp_path, environ={"XNAT_USER": "mary"})[0] is None


def test_netrc_finds_the_host_among_many_and_prefers_the_one_with_the_port(tmp_path: Path) -> None:
    private(
        tmp_path / ".netrc",
        "# mine\nmachine other.org login other password o\n"
        "machine xnat.example.org\n  login mary\n  account x\n  password any\n"
        "machine xnat.example.org:8443 login port password eight\n"
        "default login fallback password d\n",
    )
    assert find(tmp_path)[:2] == ("mary", "any")
    assert find(tmp_path, "https://xnat.example.org:8443")[:2] == ("port", "eight")
    assert find(tmp_path, "https://elsewhere.org")[:2] == ("fallback", "d")


def test_user_picks_among_several_logins_of_one_host(tmp_path: Path) -> None:
    private(
        tmp_path / ".netrc",
        "machine xnat.example.org login mary password m\nmachine xnat.example.org login john password j\n",
    )
    assert find(tmp_path)[:2] == ("mary", "m")
    assert find(tmp_path, user="john")[:2] == ("john", "j")
    assert find(tmp_path, user="john", environ={"XNAT_USER": "env", "XNAT_PASS": "e"})[:2] == ("john", "j")


def test_netrc_reads_quoted_words_macros_and_hashes_in_passwords(tmp_path: Path) -> None:
    private(
        tmp_path / ".netrc",
        'macdef init\nmachine fake login x password y\n\nmachine xnat.example.org login "m r" password "a \\"b\\" c"\n'
        "machine two.org login u password #hash#\n",
    )
    assert find(tmp_path)[:2] == ("m r", 'a "b" c')
    assert find(tmp_path, "https://two.org")[:2] == ("u", "#hash#")


def test_netrc_default_for_anonymous_ftp_is_no_login(tmp_path: Path) -> None:
    private(tmp_path / ".netrc", "default login anonymous password me@example.org\n")
    assert find(tmp_path) == (None, None, "anonymous")


def test_netrc_variable_names_another_file(tmp_path: Path) -> None:
    other = private(tmp_path / "other", "machine xnat.example.org login n password p\n")
    assert find(tmp_path, environ={"NETRC": str(other)}) == ("n", "p", str(other))


def test_a_malformed_netrc_is_named_with_its_line_and_without_its_words(tmp_path: Path) -> None:
    private(tmp_path / ".netrc", "machine a.org login u password two words\n")
    with pytest.raises(CredentialsError, match=r"\.netrc, line 1: not netrc") as caught:
        find(tmp_path)
    assert "words" not in str(caught.value)


def test_xnat_pass_reads_the_marked_lines_only(tmp_path: Path) -> None:
    private(
        tmp_path / ".xnatPass",
        "mary@xnat.example.org=off\n+other@other.org=o\n+john@https://xnat.example.org=p=w@rd\n",
    )
    assert find(tmp_path)[:2] == ("john", "p=w@rd")


@pytest.mark.parametrize(
    ("text", "login"),
    [
        ("mary\ns3cret word\n", ("mary", "s3cret word")),
        ("mary\r\ns3cret\r\n", ("mary", "s3cret")),
        ("machine xnat.example.org login mary password s3cret\n", ("mary", "s3cret")),
        ('{"server": "https://xnat.example.org", "user": "mary", "password": "s3cret"}', ("mary", "s3cret")),
    ],
)
def test_a_named_file_may_have_any_of_three_forms(tmp_path: Path, text: str, login: tuple[str, str]) -> None:
    named = private(tmp_path / "login", text)
    assert find(tmp_path, credentials=str(named))[:2] == login


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("machine other.org login mary password s3cret\n", "holds no password for https://xnat.example.org"),
        ('{"server": "https://other.org", "user": "m", "password": "s3cret"}', "holds no password for"),
        ('{"server": "https://xnat.example.org", "s3cret": ', "is not pyxnat's JSON"),
        ("s3cret\n", "neither netrc, JSON nor two lines"),
        ("", "neither netrc, JSON nor two lines"),
    ],
)
def test_a_named_file_without_a_password_for_the_server_is_an_error(tmp_path: Path, text: str, why: str) -> None:
    named = private(tmp_path / "login", text)
    with pytest.raises(CredentialsError, match=why) as caught:
        find(tmp_path, credentials=str(named))
    assert "s3cret" not in str(caught.value) + caught.value.hint
    assert caught.value.__cause__ is None


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="no such file"):
        find(tmp_path, credentials=str(tmp_path / "gone"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        (".netrc", "machine xnat.example.org login u password p\n"),
        (".xnatPass", "+u@xnat.example.org=p\n"),
        (".xnat.cfg", '{"server": "https://xnat.example.org", "user": "u", "password": "p"}'),
    ],
)
def test_a_file_that_others_can_read_is_refused_with_the_chmod(tmp_path: Path, name: str, text: str, mode: int) -> None:
    path = private(tmp_path / name, text, mode)
    with pytest.raises(CredentialsError, match="other users can read it") as caught:
        find(tmp_path)
    assert caught.value.hint == f"run: chmod 600 {path}"
    assert caught.value.exit_code == 3


def test_a_named_file_that_others_can_read_is_refused_with_a_chmod_that_can_be_pasted(tmp_path: Path) -> None:
    path = private(tmp_path / "my login", "u\np\n", 0o644)
    with pytest.raises(CredentialsError) as caught:
        find(tmp_path, credentials=str(path))
    assert caught.value.hint == f"run: chmod 600 '{path}'"


def test_an_open_netrc_without_this_host_does_not_stand_in_the_way(tmp_path: Path) -> None:
    private(tmp_path / ".netrc", "machine other.org login u password p\n", 0o644)
    assert find(tmp_path) == (None, None, "anonymous")


def test_what_an_anonymous_connection_of_pyxnat_saved_is_no_password(tmp_path: Path) -> None:
    saved = {"server": HOST, "user": None, "password": None}
    private(tmp_path / ".xnat.cfg", json.dumps(saved))
    assert find(tmp_path) == (None, None, "anonymous")
    with pytest.raises(CredentialsError, match="holds no password"):
        find(tmp_path, credentials=str(tmp_path / ".xnat.cfg"))


@pytest.mark.parametrize("name", ["::1", "[::1]", "[::1]:8080", "http://[::1]:8080/"])
def test_an_ipv6_address_is_found_with_and_without_brackets(tmp_path: Path, name: str) -> None:
    private(tmp_path / ".netrc", f"machine {name} login mary password p\n")
    assert find(tmp_path, "http://[::1]:8080")[0] == "mary"
    assert find(tmp_path, "http://[::2]:8080")[0] is None
    environ = {"XNAT_HOST": name, "XNAT_USER": "env", "XNAT_PASS": "p"}
    assert find(tmp_path, "http://[::1]:8080", environ=environ)[0] == "env"


def test_a_variable_that_is_not_text_is_named_and_not_repeated(tmp_path: Path) -> None:
    environ = {"XNAT_USER": "mary", "XNAT_PASS": "s3cret\udcff"}
    with pytest.raises(CredentialsError, match="XNAT_USER and XNAT_PASS: not UTF-8 text") as caught:
        find(tmp_path, environ=environ)
    assert "s3cret" not in str(caught.value) and caught.value.__cause__ is None and caught.value.__suppress_context__


def test_another_tools_xnat_cfg_does_not_stand_in_the_way(tmp_path: Path) -> None:
    private(tmp_path / ".xnat.cfg", "[xnat]\nserver = https://xnat.example.org\n")
    assert find(tmp_path) == (None, None, "anonymous")


def test_the_prompt_is_used_for_a_named_user_only(tmp_path: Path) -> None:
    assert find(tmp_path, prompt="typed") == (None, None, "anonymous")
    assert find(tmp_path, prompt="typed", user="mary") == ("mary", "typed", "prompt")


def test_a_named_user_without_a_password_and_nobody_to_ask_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match=f"no password found for mary at {HOST}"):
        find(tmp_path, user="mary")


def test_nobody_is_sent_to_xnats_variables_for_a_password_of_tcia(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="no password found for mary") as caught:
        find(tmp_path, "tcia://C", environ={"XNAT_USER": "mary", "XNAT_PASS": "p"}, user="mary")
    assert "netrc" in caught.value.hint and "XNAT_PASS" not in caught.value.hint


def test_the_keyring_is_asked_when_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get_credential(service: str, user: str | None) -> types.SimpleNamespace:
        asked.append((service, user))
        return types.SimpleNamespace(username="ring", password="p")

    monkeypatch.setitem(sys.modules, "keyring", types.SimpleNamespace(get_credential=get_credential))
    assert find(tmp_path, "https://xnat.example.org:8443/ctx") == ("ring", "p", "keyring")
    assert asked == [("xnat.example.org:8443", None)]


def test_a_keyring_that_fails_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def get_credential(service: str, user: str | None) -> None:
        raise RuntimeError("locked")

    monkeypatch.setitem(sys.modules, "keyring", types.SimpleNamespace(get_credential=get_credential))
    assert find(tmp_path) == (None, None, "anonymous")
    assert capsys.readouterr().err == "xnatfs: warning: the keyring does not answer: RuntimeError\n"


def test_no_repr_shows_a_secret(tmp_path: Path) -> None:
    found = Credentials("mary", "s3cret", "prompt")
    assert "s3cret" not in repr(found)
    assert "s3cret" not in repr(dataclasses.replace(settings(), proxy="http://u:s3cret@proxy"))


@pytest.mark.parametrize(
    ("source", "clear"),
    [
        ("http://xnat.example.org", True),
        ("http://10.0.0.1:8080", True),
        ("http://localhost:8080", False),
        ("http://127.0.0.2", False),
        ("http://[::1]:80", False),
        ("https://xnat.example.org", False),
    ],
)
def test_only_http_to_another_machine_travels_in_clear(source: str, clear: bool) -> None:
    assert travels_in_clear(parse_source(source)) is clear
