"""``xnatfs doctor [SOURCE]``: looks at everything that a first mount needs, and says what is wrong and what to do.

Each check is one line and goes on where it can, so that one run tells all. Changes nothing, mounts nothing, shows no
secret; at most one login is tried. Main thread.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from xnatfs.cli.credentials import ask_password, find_credentials, travels_in_clear
from xnatfs.cli.object_credentials import find_object_credentials
from xnatfs.cli.options import (
    CACHE,
    MESSAGES,
    SERVER,
    OptionsCommand,
    Settings,
    default_config_path,
    default_session_dir,
    default_token_path,
    home_directory,
    with_options,
)
from xnatfs.cli.sources import is_xnat, parse_source
from xnatfs.cli.text import one_line
from xnatfs.cli.tokens import TokenFile
from xnatfs.config import GIB, Credentials, Source
from xnatfs.errors import (
    AccessDenied,
    ArchiveError,
    CredentialsError,
    FuseError,
    LoginFailed,
    NotFound,
    XnatfsError,
)

if TYPE_CHECKING:
    from xnatfs.factory import XnatArchive
    from xnatfs.model import Entry

OK, WARN, FAIL = "ok", "warn", "fail"

SKEW_S = 120.0  # seconds that clocks may differ: certificates and tokens care about minutes
SLOW_S = 2.0  # for a first answer; a guess
LISTINGS = 12  # asked for at most, to find a file
LITTLE_BYTES = 1 * GIB  # of free space: below, hardly a session fits


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One line. ``exit_code`` is the contract's, for a failure."""

    name: str
    level: str
    says: str
    hint: str = ""
    exit_code: int = 0


@click.command(cls=OptionsCommand)
@click.argument("source", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@with_options(SERVER, CACHE, MESSAGES)
def doctor(source: str | None, as_json: bool, settings: Settings) -> int:
    """Check what a mount needs: FUSE, cache, credentials, server.

    With SOURCE the server is asked too: does it answer, does the login work, what is visible, does it honour Range.
    """
    findings = []
    for finding in _findings(None if source is None else parse_source(source), settings):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        import json

        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    return next((finding.exit_code for finding in findings if finding.level == FAIL), 0)


def _findings(source: Source | None, settings: Settings) -> Iterator[Finding]:
    from xnatfs import __version__

    yield Finding("xnatfs", OK, f"{__version__} on Python {sys.version.split()[0]}, {os.uname().sysname}")
    yield _config_file(settings)
    yield from _fuse()
    yield _cache(settings)
    yield _runtime()
    if source is None:
        yield _tokens()
        return
    found = _credentials(source, settings)
    yield found[0]
    if found[1] is not None:
        yield from _server(source, settings, found[1])


def _show(finding: Finding) -> None:
    colour = {OK: "green", WARN: "yellow", FAIL: "red"}[finding.level]
    click.echo(f"{click.style(f'{finding.level:<4}', fg=colour)}  {finding.name:<12} {one_line(finding.says)}")
    if finding.hint:
        click.echo(f"{'':<19}hint: {one_line(finding.hint)}")


# --- this machine -----------------------------------------------------------------------------------------------------


def _config_file(settings: Settings) -> Finding:
    path = default_config_path()
    if not path.exists():
        return Finding("config", OK, f"there is no {path}, and none is needed")
    keys = sorted(key for key, origin in settings.origins.items() if origin == str(path))
    return Finding("config", OK, f"{path} sets {', '.join(keys) or 'nothing that is in force'}")


def _fuse() -> Iterator[Finding]:
    yield _device()
    yield _library()
    yield _fusermount()


def _device() -> Finding:
    from xnatfs.frontends.mountpoint import DEVICE

    code = FuseError.exit_code
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        hint = "load the module (sudo modprobe fuse); in a container, start it with --device /dev/fuse"
        return Finding("FUSE", FAIL, f"there is no {DEVICE}", hint, code)
    except OSError as exc:
        hint = f"let users open it: sudo chmod 0666 {DEVICE}"
        return Finding("FUSE", FAIL, f"{DEVICE} cannot be opened: {exc.strerror}", hint, code)
    return Finding("FUSE", OK, f"{DEVICE} can be opened")


def _library() -> Finding:
    from xnatfs.frontends.fuse_binding import MODULES, load

    found = []
    failure: FuseError | None = None
    for choice in ("3", "2"):
        try:
            library = load(choice)
            found.append(f"libfuse {library.version[0]}.{library.version[1]} by {MODULES[library.major]}")
        except FuseError as exc:
            failure = exc
    if found:
        return Finding("libfuse", OK, ", also ".join(found))
    assert failure is not None
    return Finding("libfuse", FAIL, "no libfuse is installed", failure.hint, failure.exit_code)


def _fusermount() -> Finding:
    from xnatfs.frontends.mountpoint import FUSERMOUNT_HINT, fusermount

    program = fusermount()
    if program is None and os.geteuid() != 0:
        return Finding("fusermount", FAIL, "there is none, and ordinary users need it", FUSERMOUNT_HINT, 5)
    if program is None:
        return Finding("fusermount", OK, "there is none; root needs none")
    if os.geteuid() != 0 and not Path(program).stat().st_mode & stat.S_ISUID:
        hint = f"as root: chmod u+s {program}"
        return Finding("fusermount", WARN, f"{program} does not run as root, so it may not be able to mount", hint)
    return Finding("fusermount", OK, program)


def _cache(settings: Settings) -> Finding:
    directory = settings.cache_dir
    place = next(each for each in (directory, *directory.parents) if each.exists())
    if not os.access(place, os.W_OK | os.X_OK) or not place.is_dir():
        return Finding("cache", FAIL, f"{directory} cannot be written", "name another: --cache-dir DIR", 1)
    usage = shutil.disk_usage(place)
    room = max(0, usage.free - int(usage.total * settings.min_free))
    says = f"{directory}: {min(room, settings.cache_size) / GIB:.1f} GB may be used, {usage.free / GIB:.1f} GB are free"
    if place == directory:
        found = directory.stat()
        if found.st_uid != os.geteuid():
            return Finding("cache", FAIL, f"{directory} belongs to another user", "name another: --cache-dir DIR", 1)
        if found.st_mode & 0o077:
            return Finding("cache", WARN, f"{directory} can be entered by others", f"run: chmod 700 {directory}")
    if room < LITTLE_BYTES:
        return Finding("cache", WARN, says, "free some space, or name another directory: --cache-dir DIR")
    return Finding("cache", OK, says)


def _runtime() -> Finding:
    directory = default_session_dir()
    if directory.exists() and (directory.stat().st_uid != os.geteuid() or directory.stat().st_mode & 0o077):
        hint = f"run: chmod 700 {directory}"
        return Finding("sessions", WARN, f"{directory} is not this user's alone: mounts will not share a login", hint)
    place = next(each for each in (directory, *directory.parents) if each.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        hint = "set HOME, or XDG_RUNTIME_DIR, to a directory of yours"
        return Finding("sessions", WARN, f"{directory} cannot be written: mounts will not share a login", hint)
    return Finding("sessions", OK, f"mounts share one login by {directory}")


def _tokens() -> Finding:
    try:
        servers = TokenFile(default_token_path()).servers()
    except CredentialsError as exc:
        return Finding("credentials", FAIL, str(exc), exc.hint, exc.exit_code)
    known = f"tokens for {', '.join(servers)}" if servers else "no tokens stored"
    return Finding("credentials", OK, f"{known}; give a SOURCE to see what is used for it")


# --- the server -------------------------------------------------------------------------------------------------------


def _credentials(source: Source, settings: Settings) -> tuple[Finding, Credentials | None]:
    prompt = ask_password if sys.stdin is not None and sys.stdin.isatty() else None
    tokens = TokenFile(default_token_path())
    try:
        home = home_directory()
        found = find_object_credentials(source, settings, os.environ, home) or find_credentials(
            source, settings, os.environ, home, prompt, tokens
        )
    except XnatfsError as exc:
        return Finding("credentials", FAIL, str(exc), exc.hint, exc.exit_code), None
    if found.user is None:
        fine = settings.anonymous or not is_xnat(source)
        hint = "" if fine else "to log in: xnatfs login, XNAT_USER and XNAT_PASS, or ~/.netrc"
        return Finding("credentials", OK if fine else WARN, "none: you are a guest", hint), found
    who = found.origin if found.is_token else f"{found.user}, from {found.origin}"
    if travels_in_clear(source):
        whose = "token" if found.is_token else "password"
        return Finding(
            "credentials", WARN, f"{who}; the {whose} travels in clear", "is there an https:// address?"
        ), found
    return Finding("credentials", OK, who), found


def _server(source: Source, settings: Settings, credentials: Credentials) -> Iterator[Finding]:
    from xnatfs.factory import open_server

    if not is_xnat(source):
        yield _archive(source, settings, credentials)
        return
    server = open_server(settings.config(source, credentials))
    try:
        yield _way(source, settings)
        try:
            facts = server.login.greet()
        except ArchiveError as exc:
            yield _failed("server", exc, "is the address right, and does it answer from here (network, VPN, --proxy)?")
            return
        says = f"{source.url} is {facts.version or 'an XNAT that does not say its version'}, in {facts.answer_s:.2f} s"
        slow = "slow: is there a proxy or VPN in between?" if facts.answer_s > SLOW_S else ""
        yield Finding("server", WARN if slow else OK, says, slow)
        yield _clock(facts.skew_s)
        yield from _account(server, credentials)
    finally:
        server.close()


def _archive(source: Source, settings: Settings, credentials: Credentials) -> Finding:
    """Whether an archive that is no XNAT server answers: its top directory is asked for."""
    from xnatfs.factory import open_vfs

    started = time.monotonic()
    try:
        vfs = open_vfs(settings.config(source, credentials))
        try:
            count = len(vfs.listdir("/"))
        finally:
            vfs.close()
    except XnatfsError as exc:
        return Finding("archive", FAIL, str(exc), exc.hint, exc.exit_code)
    except ArchiveError as exc:
        return _failed("archive", exc, "is the address right, and does it answer from here (network, VPN, --proxy)?")
    return Finding("archive", OK, f"{source.url}: {count} names at its top, in {time.monotonic() - started:.2f} s")


def _way(source: Source, settings: Settings) -> Finding:
    parts = urlsplit(source.url)
    way = "encrypted" if parts.scheme == "https" else "not encrypted"
    if parts.scheme == "https" and settings.ca_bundle is not None:
        way += f", trusting {settings.ca_bundle}"
    if settings.proxy is not None:
        return Finding("way", OK, f"to {parts.netloc}, through the proxy {settings.proxy.rpartition('@')[2]}, {way}")
    unused = [name for name in (f"{parts.scheme}_proxy", f"{parts.scheme}_proxy".upper()) if os.environ.get(name)]
    hint = f"{unused[0]} is set and not looked at: give --proxy URL where a proxy is needed" if unused else ""
    return Finding("way", OK, f"to {parts.netloc}, directly, {way}", hint)


def _clock(skew_s: float | None) -> Finding:
    if skew_s is None:
        return Finding("clock", WARN, "the server does not say what time it is")
    if abs(skew_s) > SKEW_S:
        hint = "set this machine's clock: certificates and tokens depend on it"
        return Finding("clock", WARN, f"differs from the server's by {abs(skew_s):.0f} s", hint)
    return Finding("clock", OK, f"within {abs(skew_s) + 1:.0f} s of the server's")


def _account(server: XnatArchive, credentials: Credentials) -> Iterator[Finding]:
    try:
        who = server.who()
        is_guest = who == "guest"
        if is_guest and credentials.user is not None:
            yield Finding("login", FAIL, "the server takes us for a guest", "check the account in a browser", 3)
            return
        yield Finding("login", OK, "as a guest" if is_guest else f"logged in as {who}")
    except AccessDenied as exc:  # a failed login is one
        yield _failed("login", exc, "accounts lock after repeated failures: check before trying again", 3)
        return
    except ArchiveError as exc:
        yield _failed("login", exc)
        return
    try:
        listing = server.children(server.root())
        projects = [entry for entry in listing.children[server.root().key] if entry.is_dir]
    except ArchiveError as exc:
        guest_code = 3 if credentials.user is None and isinstance(exc, AccessDenied) else None
        yield _failed("projects", exc, exit_code=guest_code)
        return
    few = "" if projects else "is this account a member of any project? look in a browser"
    yield Finding("projects", OK if projects else WARN, f"{len(projects)} visible", few)
    yield from _files(server, projects)


def _files(server: XnatArchive, projects: list[Entry]) -> Iterator[Finding]:
    """Read one byte of one small file, and see what its listing tells."""
    try:
        files = _some_files(server, projects)
        if not files:
            yield Finding("files", WARN, f"none found in {LISTINGS} listings: nothing more can be told")
            return
        file = min(files, key=lambda entry: entry.size or 0)
        stream = server.open_range(file, 1, 2)
        ranged = stream.ranged
        stream.close()
    except ArchiveError as exc:
        yield _failed("files", exc)
        return
    yield Finding("files", OK, f"read from a file of {file.size} bytes")
    says = "honoured" if ranged else "not honoured, as by XNAT itself: far offsets cost the bytes before them"
    yield Finding("Range", OK, says)
    digests = sum(1 for entry in files if entry.digest)
    hint = "" if digests else "bytes are checked by length and date alone"
    says = f"listed for {digests} of {len(files)} files seen"
    yield Finding("digests", OK if digests else WARN, says, hint)


def _some_files(server: XnatArchive, projects: list[Entry]) -> list[Entry]:
    """Files of the first listing that has any of at least two bytes, depth first."""
    waiting = list(reversed(projects))
    seen: set[str] = set()
    while waiting and len(seen) < LISTINGS:
        directory = waiting.pop()
        if directory.listing in seen:
            continue
        seen.add(directory.listing)
        try:
            listing = server.children(directory)
        except (NotFound, AccessDenied) as exc:
            if isinstance(exc, LoginFailed):
                raise
            continue  # closed to this account, which is no fault
        entries = [entry for children in listing.children.values() for entry in children]
        # Documents are made by us; only what has a path of files below a resource comes as it is from the server.
        files = [entry for entry in entries if "/files/" in entry.key and not entry.is_dir and (entry.size or 0) > 1]
        if files:
            return files
        waiting += [entry for entry in reversed(entries) if entry.is_dir and entry.listing not in seen]
    return []


def _failed(name: str, error: ArchiveError, hint: str = "", exit_code: int | None = None) -> Finding:
    return Finding(name, FAIL, str(error), error.hint or hint, error.exit_code if exit_code is None else exit_code)
