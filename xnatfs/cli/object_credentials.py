"""Finds the keys for a SOURCE that is no XNAT server: a bucket, or what fsspec opens. Never looks at XNAT passwords.

Asks nobody; ``cli/credentials.py`` calls it first. Single-threaded.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from pathlib import Path

from xnatfs.cli.options import Settings
from xnatfs.config import Credentials, Source
from xnatfs.errors import CredentialsError

GUESTS_ONLY = ("openneuro", "osf", "web+http", "web+https")
"""Schemes of archives that are open: no credential is looked for, and none could leak."""


def find_object_credentials(
    source: Source, settings: Settings, environ: Mapping[str, str], home: Path
) -> Credentials | None:
    """Who to be for a source that is no XNAT server; None when it is one. XNAT's passwords are never looked at.

    Raises:
        CredentialsError: a file of keys that others can read, or one without keys.
    """
    if source.scheme in ("http", "https", "tcia"):
        return None
    if settings.anonymous:
        return Credentials(origin="--anonymous")
    if source.scheme in GUESTS_ONLY:
        return Credentials()
    if settings.credentials is not None:
        return _from_lines(settings.credentials)
    return _from_environment(environ) or _from_aws_file(environ, home) if source.scheme == "s3" else Credentials()


def _from_environment(environ: Mapping[str, str]) -> Credentials | None:
    name, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if not name or not secret:
        return None
    token = environ.get("AWS_SESSION_TOKEN") or None
    return Credentials(name, secret, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", session_token=token)


def _from_aws_file(environ: Mapping[str, str], home: Path) -> Credentials:
    """``~/.aws/credentials`` as the AWS command line keeps it; a guest when there is nothing in it for us."""
    named = environ.get("AWS_SHARED_CREDENTIALS_FILE")
    path = Path(named).expanduser() if named else home / ".aws" / "credentials"
    text = _private_text(path, missing_is_fine=True)
    profile = environ.get("AWS_PROFILE") or "default"
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
    except configparser.Error:
        raise CredentialsError(f"{path}: cannot be read as the AWS command line writes it") from None
    if not parser.has_section(profile):
        if environ.get("AWS_PROFILE"):
            raise CredentialsError(f"{path}: has no profile {profile}")
        return Credentials()
    keys = parser[profile]
    name, secret = keys.get("aws_access_key_id"), keys.get("aws_secret_access_key")
    if not name or not secret:
        return Credentials()
    token = keys.get("aws_session_token") or None
    return Credentials(name, secret, f"{path}, profile {profile}", session_token=token)


def _from_lines(path: Path) -> Credentials:
    """``--credentials FILE``: the name or key id in the first line, the secret in the second."""
    lines = _private_text(path, missing_is_fine=False).split()
    if len(lines) != 2:
        raise CredentialsError(f"--credentials {path}: not two lines", "write the key id, and below it the secret")
    return Credentials(lines[0], lines[1], f"--credentials {path}")


def _private_text(path: Path, missing_is_fine: bool) -> str:
    import shlex

    try:
        with path.open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise CredentialsError(
                    f"{path} holds a password and other users can read it", f"run: chmod 600 {shlex.quote(str(path))}"
                )
            return file.read(1 << 20)
    except (FileNotFoundError, NotADirectoryError):
        if missing_is_fine:
            return ""
        raise CredentialsError(f"--credentials {path}: no such file") from None
    except OSError as exc:
        raise CredentialsError(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError:
        raise CredentialsError(f"{path}: is not UTF-8 text") from None
