"""Who one is for a bucket: AWS's variables and file, never XNAT's passwords; open archives are asked as a guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from xnatfs.cli.object_credentials import find_object_credentials
from xnatfs.cli.options import load_settings
from xnatfs.cli.sources import parse_source
from xnatfs.config import Credentials, Source
from xnatfs.errors import CredentialsError, UsageError

KEYS = {"AWS_ACCESS_KEY_ID": "AKIA1", "AWS_SECRET_ACCESS_KEY": "s3cret"}
XNAT = {"XNAT_USER": "mary", "XNAT_PASS": "xnat-s3cret"}
FILE = """[default]
aws_access_key_id = AKIA2
aws_secret_access_key = se%cret2
[hcp]
aws_access_key_id = AKIA3
aws_secret_access_key = secret3
aws_session_token = token3
"""


def found(source: str, environ: dict[str, str], home: Path, **flags: object) -> Credentials | None:
    settings = load_settings(flags, (), {}, Path("/nonexistent/config.toml"))
    return find_object_credentials(parse_source(source), settings, environ, home)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / ".aws" / "credentials"
    path.parent.mkdir()
    path.write_text(FILE)
    path.chmod(0o600)
    return tmp_path


def test_keys_of_the_environment_come_first(home: Path) -> None:
    keys = found("s3://b", {**KEYS, "AWS_SESSION_TOKEN": "t"}, home)
    assert keys is not None
    assert (keys.user, keys.secret, keys.session_token) == ("AKIA1", "s3cret", "t")
    assert "s3cret" not in repr(keys)


def test_keys_of_the_file_of_the_aws_command_line_come_next(home: Path) -> None:
    keys = found("s3://b", {}, home)
    assert keys is not None and (keys.user, keys.secret) == ("AKIA2", "se%cret2")
    keys = found("s3://b", {"AWS_PROFILE": "hcp"}, home)
    assert keys is not None and (keys.user, keys.session_token) == ("AKIA3", "token3")
    with pytest.raises(CredentialsError, match="no profile other"):
        found("s3://b", {"AWS_PROFILE": "other"}, home)


def test_without_keys_one_is_a_guest(tmp_path: Path) -> None:
    assert found("s3://b", {}, tmp_path) == Credentials()


def test_a_file_of_keys_that_others_can_read_is_refused_with_the_chmod(home: Path) -> None:
    (home / ".aws" / "credentials").chmod(0o644)
    with pytest.raises(CredentialsError) as caught:
        found("s3://b", {}, home)
    assert caught.value.hint.startswith("run: chmod 600 ")
    assert "secret" not in str(caught.value)


def test_a_file_that_cannot_be_read_shows_nothing_of_what_is_in_it(home: Path) -> None:
    (home / ".aws" / "credentials").write_text("aws_secret_access_key = s3cret\n")
    with pytest.raises(CredentialsError) as caught:
        found("s3://b", {}, home)
    assert "s3cret" not in f"{caught.value}{caught.value.__cause__}{caught.value.hint}"


def test_a_named_file_holds_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("AKIA4\nsecret4\n")
    path.chmod(0o600)
    keys = found("s3://b", KEYS, tmp_path, credentials=str(path))
    assert keys is not None and (keys.user, keys.secret) == ("AKIA4", "secret4")
    path.write_text("only one\nand more words\n")
    with pytest.raises(CredentialsError, match="not two lines"):
        found("s3://b", KEYS, tmp_path, credentials=str(path))
    with pytest.raises(CredentialsError, match="no such file"):
        found("s3://b", KEYS, tmp_path, credentials=str(tmp_path / "none"))


def test_anonymous_looks_at_nothing(home: Path) -> None:
    assert found("s3://b", KEYS, home, anonymous=True) == Credentials(origin="--anonymous")


@pytest.mark.parametrize("source", ["openneuro://ds000228", "osf://axz5r", "web+https://h/x", "file:///x", "gs://b"])
def test_open_archives_get_no_credentials_at_all(source: str, home: Path) -> None:
    assert found(source, KEYS | XNAT, home) == Credentials()


def test_xnats_passwords_go_to_no_bucket(tmp_path: Path) -> None:
    assert found("s3://b", XNAT, tmp_path) == Credentials()


@pytest.mark.parametrize("source", ["https://h", "http://h", "xnat://h"])
def test_an_xnat_server_is_none_of_its_business(source: str, tmp_path: Path) -> None:
    assert found(source, KEYS, tmp_path) is None


# --- TCIA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("tcia://", "/"),
        ("tcia:", "/"),
        ("tcia://Demo Lung", "/Demo Lung"),
        ("TCIA://CT%20Lymph%20Nodes/P1", "/CT Lymph Nodes/P1"),
        ("tcia://C#/P/S", "/C/P/S"),
        ("tcia://C/P/#S", "/C/P/S"),
    ],
)
def test_a_collection_is_a_source_with_its_case_and_blanks(text: str, inside: str) -> None:
    assert parse_source(text) == Source("tcia", "tcia:", inside)


@pytest.mark.parametrize("name", ["some.tcia", "a b/some.TCIA", "./some.tcia", "~/some.tcia"])
def test_a_manifest_is_a_source_by_its_absolute_path(name: str) -> None:
    source = parse_source(f"{name}#/C/P")
    assert (source.scheme, source.inside) == ("tcia", "/C/P")
    assert Path(source.url) == Path(name).expanduser().absolute()


@pytest.mark.parametrize("url", ["https://host/some.tcia", "file:///some.tcia", "http://u:secret@host/some.tcia"])
def test_the_url_of_a_manifest_is_told_to_be_downloaded_first(url: str) -> None:
    with pytest.raises(UsageError, match="address of a manifest") as caught:
        parse_source(url)
    assert "secret" not in str(caught.value) + caught.value.hint


def test_a_path_within_a_collection_does_not_go_up() -> None:
    with pytest.raises(UsageError, match="goes up"):
        parse_source("tcia://C/../D")
