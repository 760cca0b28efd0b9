"""``xnatfs login`` and ``xnatfs logout``: exchange a password for an alias token, keep it, end it. Main thread.

The password is read and forgotten; what is stored is the token.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time

import click

from xnatfs.cli.credentials import environment_login, named_login, token_credentials, warn_if_in_clear
from xnatfs.cli.options import MESSAGES, SERVER, OptionsCommand, Settings, default_token_path, with_options
from xnatfs.cli.sources import is_xnat, parse_source
from xnatfs.cli.tokens import StoredToken, TokenFile
from xnatfs.config import Credentials, Source
from xnatfs.errors import ArchiveError, CredentialsError, LoginFailed, UsageError

log = logging.getLogger(__name__)


@click.command(cls=OptionsCommand)
@click.argument("server")
@with_options(SERVER, MESSAGES)
def login(server: str, settings: Settings) -> None:
    """Exchange a password for a token, and keep that.

    User name and password come from --credentials FILE, or are asked for on the terminal; without one they are read
    from XNAT_USER and XNAT_PASS, or as two lines from standard input. The token serves all later commands; it ends
    after some days, or by `xnatfs logout`.
    """
    from xnatfs.factory import open_server

    source = _server(server)
    tokens = TokenFile(default_token_path())
    with tokens.alone():
        tokens.servers()  # a token that could not be kept would live on at the server, so its place is tried first
    credentials = _asked(source, settings)
    warn_if_in_clear(source, credentials)
    archive = open_server(settings.config(source, credentials))
    issued = archive.login.issue_token()
    token = StoredToken(
        source.url, issued.user or credentials.user or "", issued.alias, issued.secret, time.time(), issued.until_s
    )
    tokens.put(token)
    click.echo(f"Logged in to {source.url} as {token.user}; {lasts(token)}.")


@click.command(cls=OptionsCommand)
@click.argument("server", required=False)
@with_options(SERVER, MESSAGES)
def logout(server: str | None, settings: Settings) -> int:
    """End the token of `xnatfs login`, here and on the server.

    Without SERVER, the tokens of all servers. What is mounted stays so until its session ends.
    """
    file = TokenFile(default_token_path())
    servers = [_server(server).url] if server is not None else file.servers()
    code = 0
    for url in servers:
        token = file.get(url)
        if token is None:
            raise CredentialsError(f"logout: no token for {url}", _known(file))
        code = _ended(token, settings) or code
        file.remove(url)
        click.echo(f"Logged out of {url}.")
    if not servers:
        click.echo("There is no token to end.")
    return code


def lasts(token: StoredToken) -> str:
    """How long a token serves, in words."""
    if not token.until_s:
        return "the server does not say for how long"
    return f"the token serves until {time.strftime('%Y-%m-%d %H:%M', time.localtime(token.until_s))}"


def _ended(token: StoredToken, settings: Settings) -> int:
    """End a token on its server; 1 when that could not be done, and it lives on there."""
    from xnatfs.cli.main import report_error
    from xnatfs.factory import open_server

    try:
        config = settings.config(parse_source(token.server), token_credentials(token))
        open_server(config).login.invalidate_token()
    except LoginFailed:
        log.info("the token for %s had ended already", token.server)
    except ArchiveError as exc:
        report_error(f"logout: the token lives on at the server: {exc}", lasts(token))
        return exc.exit_code
    return 0


def _server(text: str) -> Source:
    source = parse_source(text)
    if not is_xnat(source):
        raise UsageError(f"SERVER {text!r} is no XNAT server: it has no tokens", "write https://host")
    if source.inside != "/":
        raise UsageError(f"SERVER {text!r} names a part of a server", f"write {source.url}")
    return dataclasses.replace(source, inside="/")


def _known(file: TokenFile) -> str:
    return "known: " + (", ".join(file.servers()) or "none")


def _asked(source: Source, settings: Settings) -> Credentials:
    """User and password: of --credentials, or the terminal; without one of the environment, or else standard input."""
    if settings.credentials is not None:
        return named_login(settings.credentials, source, settings.user)
    user = settings.user
    if sys.stdin is not None and sys.stdin.isatty():
        asked = user or click.prompt(f"User at {source.url}", err=True)
        return Credentials(asked, click.prompt(f"Password of {asked}", hide_input=True, err=True), "the terminal")
    name, secret = os.environ.get("XNAT_USER"), os.environ.get("XNAT_PASS")
    if name and secret and user in (None, name):
        return environment_login(name, secret, "XNAT_USER and XNAT_PASS")
    lines = [] if sys.stdin is None else sys.stdin.read(8192).splitlines()
    if user is not None and len(lines) == 1:
        lines = [user, *lines]
    if len(lines) < 2 or not lines[0].strip() or not lines[1] or user not in (None, lines[0].strip()):
        raise CredentialsError(
            f"login: no user name and password for {source.url}",
            "run this on a terminal, set XNAT_USER and XNAT_PASS, or pipe two lines: user name, password",
        )
    return Credentials(lines[0].strip(), lines[1], "standard input")
