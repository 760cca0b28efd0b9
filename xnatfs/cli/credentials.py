"""Finds the user name and password for one server, where other tools keep them.

The first place that answers wins: ``--credentials``, ``XNAT_USER`` + ``XNAT_PASS``, the token of ``xnatfs login``,
``~/.netrc``, ``~/.xnatPass``, ``~/.xnat.cfg``, the keyring, a prompt (only with ``--user``, only on a terminal), else
anonymous. A file that others can read is refused before its password is used. No message, repr or log holds a secret.
Only ``config_for`` sends or stores anything: it renews a token that grows old. Single-threaded.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import click

from xnatfs.cli.object_credentials import find_object_credentials
from xnatfs.cli.options import Invocation, Settings, default_token_path, home_directory
from xnatfs.cli.sources import parse_source
from xnatfs.cli.tokens import StoredToken, TokenFile
from xnatfs.config import Config, Credentials, Source
from xnatfs.errors import ArchiveError, CredentialsError, LoginFailed

Prompt = Callable[[str], str]

_LONGEST_FILE = 1 << 20  # bytes; a guess far above any netrc
_PORTS = {"https": 443, "http": 80}
_TCIA_SERVER = "https://nbia.cancerimagingarchive.net"
_NETRC_KEYWORDS = ("machine", "default", "macdef")


@dataclass(frozen=True, slots=True)
class _Login:
    """One stored password and the server it is for; ``server`` is None for netrc's ``default``."""

    server: str | None
    user: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _SecretsFile:
    path: Path
    text: str = field(repr=False)
    readable_by_others: bool

    def refuse_if_readable_by_others(self) -> None:
        if self.readable_by_others:
            raise CredentialsError(
                f"{self.path} holds a password and other users can read it",
                f"run: chmod 600 {shlex.quote(str(self.path))}",
            )


def config_for(source_text: str, settings: Settings) -> Config:
    """The whole configuration of one SOURCE: address, credentials found, settings. What every command starts with."""
    source = parse_source(source_text)
    prompt = ask_password if sys.stdin is not None and sys.stdin.isatty() else None
    tokens = TokenFile(default_token_path())
    home = home_directory()
    found = find_object_credentials(source, settings, os.environ, home)
    if found is None:
        found = find_credentials(source, settings, os.environ, home, prompt, tokens)
    if found.is_token and not settings.offline:
        found = renewed(tokens, source, settings)
    context = click.get_current_context(silent=True)
    if context is not None:
        context.find_root().ensure_object(Invocation).credentials_origin = found.origin
    warn_if_in_clear(source, found)
    return settings.config(source, found)


def warn_if_in_clear(source: Source, found: Credentials) -> None:
    if found.user is not None and travels_in_clear(source):
        whose = "token" if found.is_token else f"password of {found.user}"
        click.echo(f"xnatfs: warning: {source.url} is not encrypted: the {whose} travels in clear", err=True)


def find_credentials(
    source: Source,
    settings: Settings,
    environ: Mapping[str, str],
    home: Path,
    prompt: Prompt | None,
    tokens: TokenFile | None = None,
) -> Credentials:
    """The first credentials found for ``source``, with their origin; anonymous when there are none.

    Args:
        settings: ``anonymous`` ends the search at once; ``user`` picks among several; ``credentials`` is a file.
        prompt: Asks for a password, or None when nobody can be asked.
        tokens: What `xnatfs login` has stored.
    Raises:
        CredentialsError: a token that has ended, a file that others can read, a malformed one, ``--credentials``
            without a password for this server, or ``--user`` without any password.
    """
    if settings.anonymous:
        return Credentials(origin="--anonymous")
    places = "~/.netrc or XNAT_USER and XNAT_PASS"
    if source.scheme == "tcia":
        places = "~/.netrc"
        if settings.user is None and settings.credentials is None:
            return Credentials()  # its server gives the public what it has; XNAT's passwords are not for it
        source, tokens = Source("https", settings.nbia_url or _TCIA_SERVER), None
        environ = {name: value for name, value in environ.items() if name == "NETRC"}
    if settings.credentials is not None:
        return named_login(settings.credentials, source, settings.user)
    found = _from_environment(source, settings.user, environ, home)
    if found is None and tokens is not None:
        found = _from_tokens(tokens, source, settings.user, ended=settings.offline)
    for place in (_from_files, _from_keyring):
        found = found or place(source, settings.user, environ, home)
    if found is not None:
        return found
    if settings.user is None:
        return Credentials()
    if settings.offline:
        return Credentials(settings.user, origin="--user")  # whose listings to show; nobody is asked for a password
    if prompt is None:
        raise CredentialsError(
            f"no password found for {settings.user} at {source.url}",
            f"put it in {places}, or run this on a terminal to be asked",
        )
    return Credentials(settings.user, prompt(f"Password of {settings.user} at {source.url}"), "prompt")


def travels_in_clear(source: Source) -> bool:
    """True for http:// to another machine."""
    import ipaddress

    parts = urlsplit(source.url)
    if parts.scheme != "http" or parts.hostname == "localhost":
        return False
    try:
        return not ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return True


# --- the places -------------------------------------------------------------------------------------------------------


def named_login(path: Path, source: Source, user: str | None) -> Credentials:
    """``--credentials FILE``: the first characters tell its form. The user named it, so no match is an error."""
    secrets = _read(path)
    if secrets is None:
        raise CredentialsError(f"--credentials {path}: no such file")
    secrets.refuse_if_readable_by_others()
    first_word = secrets.text.split(None, 1)[:1]
    if secrets.text.lstrip().startswith("{"):
        logins = _parse_json(secrets)
    elif first_word and (first_word[0] in _NETRC_KEYWORDS or first_word[0].startswith("#")):
        logins = list(_parse_netrc(secrets))
    else:
        logins = _parse_two_lines(secrets)
    found = _choose(logins, source, user)
    if found is None:
        wanted = f"{user} at {source.url}" if user else source.url
        raise CredentialsError(f"--credentials {path}: holds no password for {wanted}")
    return Credentials(found.user, found.secret, f"--credentials {path}")


def _from_environment(source: Source, user: str | None, environ: Mapping[str, str], home: Path) -> Credentials | None:
    """XNAT_USER and XNAT_PASS, and the XNATPY_ names of the same that xnatpy prefers."""
    host = environ.get("XNATPY_HOST") or environ.get("XNAT_HOST")
    if host and not _matches(host, source):
        return None
    for prefix in ("XNATPY", "XNAT"):
        name, secret = environ.get(f"{prefix}_USER"), environ.get(f"{prefix}_PASS")
        if name and secret and user in (None, name):
            return environment_login(name, secret, f"{prefix}_USER and {prefix}_PASS")
    return None


def environment_login(name: str, secret: str, origin: str) -> Credentials:
    """What two variables hold, which need not be text.

    Raises:
        CredentialsError: they are not.
    """
    try:
        (name + secret).encode()
    except UnicodeEncodeError:
        raise CredentialsError(f"{origin}: not UTF-8 text") from None
    return Credentials(name, secret, origin)


def _from_tokens(tokens: TokenFile, source: Source, user: str | None, *, ended: bool) -> Credentials | None:
    """The stored token; one that has ended only where ``ended`` will do, since nothing is asked with it."""
    token = tokens.get(source.url)
    if token is None or user not in (None, token.user):
        return None
    if token.left_s <= 0 and not ended:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(token.until_s))
        raise CredentialsError(f"the token for {source.url} ended on {when}", f"run: xnatfs login {source.url}")
    return token_credentials(token)


def token_credentials(token: StoredToken) -> Credentials:
    origin = f"the token of {token.user} from `xnatfs login`"
    return Credentials(token.alias, token.secret, origin, is_token=True, holder=token.user)


def renewed(tokens: TokenFile, source: Source, settings: Settings) -> Credentials:
    """A token's credentials; one that grows old is exchanged for a new one by itself first, where the server allows.

    The old one is left to end by itself: mounts made with it go on.
    """
    token = tokens.get(source.url)
    assert token is not None
    if not token.is_old:
        return token_credentials(token)
    from xnatfs.factory import open_server

    with tokens.alone():
        token = tokens.get(source.url) or token
        if not token.is_old:  # another process has done it meanwhile
            return token_credentials(token)
        try:
            issued = open_server(settings.config(source, token_credentials(token))).login.issue_token()
        except LoginFailed:
            raise  # it is dead, and says so
        except ArchiveError as exc:
            hours = token.left_s / 3600
            click.echo(f"xnatfs: warning: the token for {source.url} ends in {hours:.1f} hours ({exc})", err=True)
            return token_credentials(token)
        token = StoredToken(source.url, token.user, issued.alias, issued.secret, time.time(), issued.until_s)
        tokens.replace(token)
    return token_credentials(token)


def _from_files(source: Source, user: str | None, environ: Mapping[str, str], home: Path) -> Credentials | None:
    """The files that curl, requests and pyxnat read. One that holds nothing for this server may be as it likes."""
    netrc = Path(environ["NETRC"]).expanduser() if environ.get("NETRC") else home / ".netrc"
    for path, parse in (
        (netrc, _parse_netrc),
        (home / ".xnatPass", _parse_xnat_pass),
        (home / ".xnat.cfg", _parse_json_if_it_is),
    ):
        secrets = _read(path)
        found = _choose(parse(secrets), source, user) if secrets else None
        if secrets and found:
            secrets.refuse_if_readable_by_others()
            return Credentials(found.user, found.secret, str(path))
    return None


def _from_keyring(source: Source, user: str | None, environ: Mapping[str, str], home: Path) -> Credentials | None:
    """The desktop's keyring, when the package is installed; the service is named like the server's host[:port]."""
    import importlib

    try:
        keyring = importlib.import_module("keyring")
    except ImportError:
        return None
    try:
        found = keyring.get_credential(urlsplit(source.url).netloc, user)
    except Exception as exc:  # noqa: BLE001 (each of its backends raises its own errors; none of them ends a mount)
        click.echo(f"xnatfs: warning: the keyring does not answer: {type(exc).__name__}", err=True)
        return None
    if found is None or not found.username or not found.password or user not in (None, found.username):
        return None
    return Credentials(found.username, found.password, "keyring")


def ask_password(text: str) -> str:
    answer: str = click.prompt(text, hide_input=True, err=True)
    return answer


# --- choosing ---------------------------------------------------------------------------------------------------------


def _choose(logins: Iterable[_Login], source: Source, user: str | None) -> _Login | None:
    """The login for this server: one that names its port before one that names its host, before a default."""
    port = _port(source)
    ranked: dict[int, _Login] = {}
    for login in logins:
        if user not in (None, login.user) or (login.server is not None and not _matches(login.server, source)):
            continue
        rank = 2 if login.server is None else 0 if _address(login.server)[1] == port else 1
        ranked.setdefault(rank, login)
    return ranked[min(ranked)] if ranked else None


def _matches(stored: str, source: Source) -> bool:
    """Whether a stored ``host``, ``host:port`` or URL means this server.

    A bare host fits every port, as in curl; a URL without a port fits the default port alone. What was stored for
    https never fits http.
    """
    host, port, scheme, path = _address(stored)
    parts = urlsplit(source.url)
    if not host or host != parts.hostname:
        return False
    if scheme == "https" and parts.scheme == "http":
        return False
    if port is None and scheme:
        port = _PORTS[parts.scheme]
    return port in (None, _port(source)) and path in ("", parts.path)


def _address(stored: str) -> tuple[str, int | None, str, str]:
    """(host, port or None, scheme or "", path) of what a file calls a server; host "" when it makes no sense."""
    text = stored.strip()
    if re.fullmatch(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", text):  # an IPv6 address as curl's netrc has it
        return text.lower(), None, "", ""
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    try:
        parts = urlsplit(text if scheme else f"//{text}")
        return parts.hostname or "", parts.port, scheme, parts.path.rstrip("/")
    except ValueError:
        return "", None, "", ""


def _port(source: Source) -> int:
    parts = urlsplit(source.url)
    return parts.port or _PORTS[parts.scheme]


# --- the formats ------------------------------------------------------------------------------------------------------


def _read(path: Path) -> _SecretsFile | None:
    """A secrets file, or None when there is none. Mode and text are of the same open file."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            text = file.read(_LONGEST_FILE).decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise CredentialsError(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError:
        raise CredentialsError(f"{path}: is not UTF-8 text") from None
    # A pipe (`--credentials <(secret-tool …)`) is nobody else's to open.
    loose = stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o077)
    return _SecretsFile(path, text, loose)


def _parse_netrc(secrets: _SecretsFile) -> Iterator[_Login]:
    """The logins of a netrc file, in its order; one host may stand there several times with other users.

    ``default`` with the user ``anonymous`` is what ftp sent to strangers, not a login here.
    """
    words = _NetrcWords(secrets)
    server: str | None = None
    fields: dict[str, str] = {}
    known = False
    while True:
        word = words.next()
        if word in ("", "machine", "default"):
            user, secret = fields.get("login", ""), fields.get("password", "")
            if known and user and secret and not (server is None and user in ("anonymous", "ftp")):
                yield _Login(server, user, secret)
            if not word:
                return
            server, fields, known = words.value() if word == "machine" else None, {}, True
        elif word in ("login", "user", "password", "account"):
            fields["login" if word == "user" else word] = words.value()
        elif word == "macdef":
            words.skip_macro()
        else:
            raise words.malformed()


class _NetrcWords:
    """Splits a netrc file into words: blanks separate, double quotes hold together, ``#`` opens a comment."""

    _WORD = re.compile(r'"((?:[^"\\]|\\.)*)"(?=\s|$)|([^\s"]\S*)', re.DOTALL)

    def __init__(self, secrets: _SecretsFile) -> None:
        self._path = secrets.path
        self._text = secrets.text
        self._at = 0

    def next(self) -> str:
        """The next keyword, comments skipped; "" at the end."""
        while True:
            self._skip_blanks()
            if self._at >= len(self._text):
                return ""
            if self._text[self._at] != "#":
                return self.value()
            end = self._text.find("\n", self._at)
            self._at = end if end >= 0 else len(self._text)

    def value(self) -> str:
        self._skip_blanks()
        match = self._WORD.match(self._text, self._at)
        if match is None:
            raise self.malformed()
        self._at = match.end()
        return re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL) if match[1] is not None else match[2]

    def skip_macro(self) -> None:
        end = self._text.find("\n\n", self._at)
        self._at = end if end >= 0 else len(self._text)

    def malformed(self) -> CredentialsError:
        # The word itself is not shown: it may be part of a password.
        line = self._text.count("\n", 0, self._at) + 1
        return CredentialsError(f"{self._path}, line {line}: not netrc", "write: machine HOST login USER password …")

    def _skip_blanks(self) -> None:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1


def _parse_xnat_pass(secrets: _SecretsFile) -> Iterator[_Login]:
    """pyxnat's ``+user@server=password`` lines; those without the ``+`` are switched off."""
    for line in secrets.text.splitlines():
        user, at, rest = line.removeprefix("+").partition("@")
        server, equals, secret = rest.partition("=")
        if line.startswith("+") and at and equals and user.strip() and secret.strip():
            yield _Login(server.strip(), user.strip(), secret.strip())


def _parse_json(secrets: _SecretsFile) -> list[_Login]:
    """pyxnat's ``save_config``: one object with server, user and password."""
    import json

    try:
        document = json.loads(secrets.text)
        server, user, secret = (document[key] for key in ("server", "user", "password"))
    except (ValueError, KeyError, TypeError):
        # Not chained: a JSON error carries the whole document.
        raise CredentialsError(
            f"{secrets.path}: is not pyxnat's JSON", 'write: {"server": "https://…", "user": "…", "password": "…"}'
        ) from None
    # What an anonymous connection of pyxnat saves has null for both.
    return [_Login(str(server), str(user), str(secret))] if server and user and secret else []


def _parse_json_if_it_is(secrets: _SecretsFile) -> list[_Login]:
    """As ``_parse_json``, but the file was not named by the user and may be another tool's."""
    return _parse_json(secrets) if secrets.text.lstrip().startswith("{") else []


def _parse_two_lines(secrets: _SecretsFile) -> list[_Login]:
    lines = secrets.text.splitlines()
    if len(lines) < 2 or not lines[0].strip() or not lines[1]:
        raise CredentialsError(
            f"{secrets.path}: neither netrc, JSON nor two lines", "write the user name, and below it the password"
        )
    return [_Login(None, lines[0].strip(), lines[1])]
