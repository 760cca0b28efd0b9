"""One table of options: flags, ``-o``, environment, config file, help and origins all come from it.

Reads argv's parsed flags, ``XNATFS_*`` variables and the config file, once, and turns them into ``Settings``, then
``Config``. Reads no SOURCE (``cli/sources.py``), finds no passwords (``cli/credentials.py``), opens nothing on the
network. Single-threaded.

How a command uses it::

    @click.command(cls=OptionsCommand)           # prints the options in groups; optional
    @click.argument("source")
    @click.argument("mountpoint", type=MountPoint())
    @with_options(SERVER, VIEW, CACHE, MOUNT, MESSAGES)
    def mount(source: str, mountpoint: Path, settings: Settings) -> None:
        config = config_for(source, settings)    # cli/credentials.py: parse_source, find_credentials, settings.config
        if settings.foreground: ...              # typed fields; not part of Config: foreground, log_file, verbose
        settings.origins["cache-size"]           # "--cache-size", "-o", "XNATFS_CACHE_SIZE", the file's path, "default"

The decorator has set up logging by then. A daemon that has closed its descriptors calls ``set_up_logging`` again.
"""

from __future__ import annotations

import functools
import keyword
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import click

from xnatfs.cli.values import (
    choice,
    integer,
    parse_block_size,
    parse_bool,
    parse_duration,
    parse_fraction,
    parse_path,
    parse_proxy,
    parse_size,
    parse_umask,
    parse_url,
    positive,
)
from xnatfs.config import (
    CacheConfig,
    Config,
    Credentials,
    HttpConfig,
    ListingConfig,
    MountConfig,
    ReadConfig,
    Source,
    TciaConfig,
    TreeConfig,
)
from xnatfs.errors import UsageError

SERVER = "Server"
VIEW = "What is shown"
TCIA = "TCIA"
CACHE = "Cache"
MOUNT = "Mount"
MESSAGES = "Messages"

# mount(8) and /etc/fstab hand these to every file system; they decide nothing here (the mount is read-only, nosuid
# and nodev anyway). "user" without a value means "users may mount this"; "user=NAME" is the option --user.
MOUNT_WORDS = frozenset(
    (
        *("ro", "rw", "defaults", "auto", "noauto", "nofail", "_netdev", "async", "sync", "dirsync"),
        *("user", "nouser", "users", "owner", "group"),
        *("suid", "nosuid", "dev", "nodev", "exec", "noexec"),
        *("atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime"),
        *("lazytime", "nolazytime", "iversion", "noiversion", "mand", "nomand", "silent", "loud"),
        *("default_permissions", "auto_unmount"),  # which libfuse is given, or does, in any case
    )
)

LEAST_TTL_S = 1.0
"""A look-up asks for each directory on its way, and the kernel looks up one name after the other: with nothing fresh
for the length of that, one stat of a file seven levels down took 118 requests, with this six."""

REQUESTS_AHEAD = 4  # at once, of each fetch ahead of a crawl: it sends six, side by side

CommandFunction = Callable[..., Any]  # click calls it with what the decorators below it declare
Decorator = Callable[[CommandFunction], CommandFunction]


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """One row: ``--cache-size`` is also ``XNATFS_CACHE_SIZE``, ``cache-size`` in the file and ``-o cache-size=…``.

    Attributes:
        default: As a user would write it, parsed like any other value; None stands for None (or no values).
        kind: "value", "flag" (yes or no), "list" (repeatable; commas in the environment), "count" (``-vv``).
        metavar: What help shows for the value.
        secret: The value may hold a password: never on a command line, masked where values are shown.
    """

    key: str
    group: str
    default: str | None
    help: str
    parse: Callable[[str], object] = str
    kind: str = "value"
    metavar: str = "TEXT"
    short: str = ""
    secret: bool = False

    @property
    def name(self) -> str:
        return self.key.replace("-", "_") + ("_" if keyword.iskeyword(self.key) else "")

    @property
    def variable(self) -> str:
        return "XNATFS_" + self.key.replace("-", "_").upper()


OPTIONS: tuple[Option, ...] = (
    Option("user", SERVER, None, "Log in as this user; picks among several stored passwords, or asks for one."),
    Option("anonymous", SERVER, "no", "Do not log in, whatever passwords are stored.", parse_bool, "flag"),
    Option(
        "credentials",
        SERVER,
        None,
        "User and password: netrc, two lines, or pyxnat's JSON; readable by you alone.",
        parse_path,
        metavar="FILE",
    ),
    Option("ca-bundle", SERVER, None, "Trust these certificates (PEM).", parse_path, metavar="FILE"),
    Option("proxy", SERVER, None, "Reach the server through this proxy.", parse_proxy, metavar="URL", secret=True),
    Option("connections", SERVER, "8", "Requests at once, at most.", integer(1, 256), metavar="N"),
    Option("timeout", SERVER, "60s", "Longest silence of the server.", positive(parse_duration), metavar="TIME"),
    Option("project", VIEW, None, "Show only this project; repeatable.", kind="list", metavar="ID"),
    Option("scan-type", VIEW, None, "Show only scans of this type; repeatable.", kind="list", metavar="GLOB"),
    Option("resource", VIEW, None, "Show only resources of this label; repeatable.", kind="list", metavar="GLOB"),
    Option("names", VIEW, "label", "What directories are called.", choice("label", "id"), metavar="label|id"),
    Option(
        "metadata-ttl", VIEW, "5m", "How long a listing counts as fresh, 1s at least.", parse_duration, metavar="TIME"
    ),
    Option("offline", VIEW, "no", "Ask the server nothing: show and read what is cached.", parse_bool, "flag"),
    Option("from", TCIA, "auto", "Where images come from.", choice("auto", "idc", "nbia"), metavar="auto|idc|nbia"),
    Option("nbia-url", TCIA, None, "NBIA server (default: the manifest's, or TCIA's).", parse_url, metavar="URL"),
    Option("idc-url", TCIA, TciaConfig().idc_url, "Store that holds IDC's buckets.", parse_url, metavar="URL"),
    Option(
        "idc-index",
        TCIA,
        None,
        "IDC's index, CSV or Parquet (default: the package idc-index-data's).",
        parse_path,
        metavar="FILE",
    ),
    Option("cache-dir", CACHE, None, "Where blocks are kept (default: the user's cache).", parse_path, metavar="DIR"),
    Option("cache-size", CACHE, "20G", "Disk space it may use: a hard cap.", positive(parse_size), metavar="SIZE"),
    Option("min-free", CACHE, "5%", "Leave this share of the disk free.", parse_fraction, metavar="PERCENT"),
    Option("memory", CACHE, "128M", "Memory for blocks.", positive(parse_size), metavar="SIZE"),
    Option("block-size", CACHE, "1M", "Unit of caching.", parse_block_size, metavar="SIZE"),
    Option("no-bulk", CACHE, "no", "Fetch each file by itself, never a folder as one zip.", parse_bool, "flag"),
    Option("foreground", MOUNT, "no", "Stay in the foreground; Ctrl-C unmounts.", parse_bool, "flag", short="-f"),
    Option("fuse", MOUNT, "auto", "Which libfuse to use.", choice("auto", "2", "3"), metavar="auto|2|3"),
    Option("allow-other", MOUNT, "no", "Let other users of this machine read the mount.", parse_bool, "flag"),
    Option("uid", MOUNT, None, "Owner shown (default: you).", integer(0, 2**32 - 2), metavar="N"),
    Option("gid", MOUNT, None, "Group shown (default: yours).", integer(0, 2**32 - 2), metavar="N"),
    Option("umask", MOUNT, "022", "Permission bits taken away.", parse_umask, metavar="OCTAL"),
    Option("log-file", MESSAGES, None, "Write messages to this file.", parse_path, metavar="FILE"),
    Option("verbose", MESSAGES, "0", "Say more; -vv for everything.", integer(0, 9), "count", short="-v"),
)

BY_KEY: Mapping[str, Option] = {option.key: option for option in OPTIONS}


@dataclass(frozen=True, slots=True)
class Settings:
    """Every option's value, typed, and where each came from. Field names are the table's keys with ``_``."""

    user: str | None
    anonymous: bool
    credentials: Path | None
    ca_bundle: Path | None
    proxy: str | None = field(repr=False)
    connections: int
    timeout: float  # seconds
    project: tuple[str, ...]
    scan_type: tuple[str, ...]
    resource: tuple[str, ...]
    names: str
    metadata_ttl: float  # seconds
    offline: bool
    from_: str
    nbia_url: str | None
    idc_url: str
    idc_index: Path | None
    cache_dir: Path
    cache_size: int  # bytes
    min_free: float  # fraction
    memory: int  # bytes
    block_size: int  # bytes
    no_bulk: bool
    foreground: bool
    fuse: str
    allow_other: bool
    uid: int | None
    gid: int | None
    umask: int
    log_file: Path | None
    verbose: int
    origins: Mapping[str, str]

    def config(self, source: Source, credentials: Credentials) -> Config:
        """The records that the layers below take, for one source and its credentials."""
        window = max(self.block_size, min(ReadConfig().max_window, self.memory // 8))
        ttl_s = max(self.metadata_ttl, LEAST_TTL_S)
        return Config(
            source=source,
            credentials=credentials,
            http=HttpConfig(
                timeout_s=self.timeout,
                max_connections=self.connections,
                ca_bundle=self.ca_bundle,
                proxy=self.proxy,
                session_dir=default_session_dir(),
            ),
            cache=CacheConfig(
                directory=self.cache_dir,
                block_size=self.block_size,
                limit_bytes=self.cache_size,
                min_free=self.min_free,
                memory_bytes=self.memory,
            ),
            listing=ListingConfig(
                ttl_s=ttl_s,
                offline=self.offline,
                ahead=max(1, self.connections // REQUESTS_AHEAD),
            ),
            read=ReadConfig(
                max_window=window,
                timeout_s=self.timeout,
                max_transfers=max(1, self.connections - 1),
                brief_transfers=min(1, self.connections - 1),
                bulk=not self.no_bulk,
                max_bulk=self.cache_size // 2,
            ),
            tree=TreeConfig(
                projects=self.project, scan_types=self.scan_type, resources=self.resource, names=self.names
            ),
            tcia=TciaConfig(
                prefer=self.from_, nbia_url=self.nbia_url or "", idc_url=self.idc_url, idc_index=self.idc_index
            ),
            mount=MountConfig(
                fuse=self.fuse,
                allow_other=self.allow_other,
                uid=self.uid,
                gid=self.gid,
                umask=self.umask,
                # The kernel may keep what a listing says only as long as we hold the listing to be true.
                attr_timeout_s=ttl_s,
            ),
        )


# --- flags, -o, environment, file, default ----------------------------------------------------------------------------


def load_settings(
    flags: Mapping[str, object], pairs: Iterable[str], environ: Mapping[str, str], config_path: Path
) -> Settings:
    """Settle every option: flag > ``-o`` > environment > file > default.

    Args:
        flags: Option key -> value as click gives it; None, False, 0 and () stand for "not given".
        pairs: The values of ``-o``, each ``KEY=VALUE[,KEY=VALUE]``.
        config_path: The TOML file; it may be absent.
    Raises:
        UsageError: a value that makes no sense, named with its origin; an unknown key, with the nearest known one.
    """
    given = parse_pairs(pairs)
    stored = read_config_file(config_path)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for option in OPTIONS:
        raw, origin, label = _first_given(option, flags, given, environ, stored, config_path)
        if option.secret and origin.startswith("-") and "@" in str(raw):
            raise UsageError(
                f"{label}: a password on the command line can be seen by every user of this machine",
                f"set {option.variable}, or {option.key} in {config_path}",
            )
        values[option.name] = _parse(option, raw, label)
        origins[option.key] = origin
    if values["cache_dir"] is None:
        values["cache_dir"] = default_cache_dir()
    return Settings(**values, origins=origins)


def _first_given(
    option: Option,
    flags: Mapping[str, object],
    given: Mapping[str, object],
    environ: Mapping[str, str],
    stored: Mapping[str, object],
    config_path: Path,
) -> tuple[object, str, str]:
    """A raw value, its origin, and how a message names the place."""
    if flags.get(option.key):
        return flags[option.key], f"--{option.key}", f"--{option.key}"
    if option.key in given:
        return given[option.key], "-o", f"-o {option.key}"
    if environ.get(option.variable):
        return environ[option.variable], option.variable, option.variable
    if option.key in stored:
        return stored[option.key], str(config_path), f"{option.key} in {config_path}"
    return option.default, "default", f"the default of {option.key}"


def _parse(option: Option, raw: object, label: str) -> object:
    """One value in its final type, or a UsageError that says where the bad one stands."""
    try:
        if option.kind == "list":
            return tuple(str(option.parse(word)) for word in _words(raw))
        if raw is None:
            return None
        if isinstance(raw, bool) and option.kind != "flag":
            raise ValueError("yes or no is not a value for this")
        if isinstance(raw, int) and option.parse is parse_umask:
            raise ValueError('write the octal digits as text, such as "022"')
        if not isinstance(raw, (str, int, float)):
            raise ValueError("one value is expected here")
        return option.parse(str(raw))
    except ValueError as exc:
        raise UsageError(f"{label}: {exc}") from None


def _words(raw: object) -> list[str]:
    if raw is None:
        return []
    words = [word.strip() for word in raw.split(",")] if isinstance(raw, str) else raw
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) and word for word in words):
        raise ValueError("a list of words is expected here")
    return list(words)


def parse_pairs(pairs: Iterable[str]) -> dict[str, object]:
    """What ``-o`` gave: key -> text, a list for repeatable ones. ``\\,`` is a comma within a value.

    Words that mount(8) gives to every file system are dropped; ``cache_size`` and ``cache-size`` are the same key.
    """
    found: dict[str, object] = {}
    for word in _split_pairs(pairs):
        key, equals, value = word.partition("=")
        if (not equals and key in MOUNT_WORDS) or key.startswith("x-") or key == "comment":
            continue
        option = known_option(key.replace("_", "-"), "-o")
        if option.kind == "list":
            listed = found.setdefault(option.key, [])
            assert isinstance(listed, list)
            listed.append(value)
        elif equals:
            found[option.key] = value
        elif option.kind == "value":
            raise UsageError(f"-o {option.key}: a value is missing", f"write -o {option.key}={option.metavar}")
        else:
            found[option.key] = "1"
    return found


def _split_pairs(pairs: Iterable[str]) -> Iterator[str]:
    for pair in pairs:
        for word in re.split(r"(?<!\\),", pair):
            if word.strip():
                yield word.strip().replace("\\,", ",")


def read_config_file(path: Path) -> dict[str, object]:
    """Option key -> value as TOML gives it; nothing when there is no such file."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):  # the latter where HOME is /dev/null, as some services have it
        return {}
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"config file {path}: cannot be read: {getattr(exc, 'strerror', exc)}") from exc
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"config file {path}: {exc}", 'each line reads: cache-size = "20G"') from exc
    return {known_option(key.replace("_", "-"), f"config file {path}").key: value for key, value in document.items()}


def known_option(key: str, place: str) -> Option:
    option = BY_KEY.get(key)
    return option if option else _unknown(key, place)


def _unknown(key: str, place: str) -> NoReturn:
    import difflib

    nearest = difflib.get_close_matches(key, BY_KEY, n=1, cutoff=0.5)
    if "pass" in key or key in ("pw", "secret", "token"):
        hint = "passwords are read from ~/.netrc, XNAT_PASS or --credentials FILE"
    else:
        hint = f"did you mean {nearest[0]}?" if nearest else f"known keys: {', '.join(BY_KEY)}"
    raise UsageError(f"{place}: unknown option {key!r}", hint)


def home_directory() -> Path:
    """Where the files of this user lie that other tools keep.

    Raises:
        UsageError: there is none: a container may be run under any number, without HOME.
    """
    return _below_home(lambda: str(Path("~").expanduser()))


def _below_home(find: Callable[[], str]) -> Path:
    try:
        found = Path(find())
    except RuntimeError:
        found = Path()
    if not found.is_absolute():
        raise UsageError("there is no home directory: the system knows none for this user", "set HOME to one")
    return found


def default_config_path() -> Path:
    import platformdirs

    return _below_home(lambda: platformdirs.user_config_dir("xnatfs", appauthor=False)) / "config.toml"


def default_token_path() -> Path:
    return default_config_path().with_name("tokens.json")


def default_cache_dir() -> Path:
    import platformdirs

    return _below_home(lambda: platformdirs.user_cache_dir("xnatfs", appauthor=False))


def default_session_dir() -> Path:
    """Where processes of this user find each other's server session: gone with the login where the system has that."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    try:
        if runtime.stat().st_uid == os.getuid():
            return runtime / "xnatfs"
    except OSError:
        pass
    import platformdirs

    # Not below the cache directory: the block store counts, and may empty, all that lies there.
    return _below_home(lambda: platformdirs.user_state_dir("xnatfs", appauthor=False)) / "sessions"


# --- click ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Invocation:
    """What the error handler of ``cli/main.py`` wants to know of the command that failed: click's root ``obj``."""

    verbose: int = 0
    credentials_origin: str = ""


class GroupedOption(click.Option):
    """A click option that remembers the heading it is listed under."""

    group = ""


class MountPoint(click.Path):
    """A directory to mount at. An empty word, as a script's unset variable leaves it, is not the one we are in.

    Unlike its base it asks the file system nothing: what is mounted there may be dead, silent or closed to us.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty", param, ctx)
        if "://" in str(value):
            self.fail(f"{value!r} is no directory; SOURCE comes first", param, ctx)
        return Path(value)


class OptionsCommand(click.Command):
    """A command whose help lists the options of the table under their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(parameter, "group", "Options"), []).append(record)
        for heading in sorted(sections, key=lambda name: name != "Options"):
            if sections[heading]:
                with formatter.section(heading):
                    formatter.write_dl(sections[heading])


def with_options(*groups: str) -> Decorator:
    """Give a click command the options of these groups and a keyword argument ``settings``.

    With ``SERVER`` come TCIA's, with ``MOUNT`` comes ``-o KEY=VALUE``. Variables
    and file keys of all groups are read and checked in any case.
    """
    shown = {*groups, TCIA} if SERVER in groups else set(groups)
    chosen = [option for option in OPTIONS if option.group in shown]

    def decorate(function: CommandFunction) -> CommandFunction:
        @functools.wraps(function)
        def command(*args: Any, **parameters: Any) -> Any:
            flags = {option.key: parameters.pop(f"option_{option.name}") for option in chosen}
            invocation = click.get_current_context().find_root().ensure_object(Invocation)
            invocation.verbose = int(flags.get("verbose") or 0)
            settings = load_settings(flags, parameters.pop("pairs", ()), os.environ, default_config_path())
            invocation.verbose = settings.verbose
            set_up_logging(settings)
            return function(*args, settings=settings, **parameters)

        decorated: CommandFunction = command
        if MOUNT in groups:
            decorated = _pairs_option()(decorated)
        for option in reversed(chosen):
            decorated = _click_option(option)(decorated)
        return decorated

    return decorate


def _click_option(option: Option) -> Decorator:
    shape: dict[str, Any] = {"metavar": option.metavar, "default": None}
    if option.kind == "flag":
        shape = {"is_flag": True, "default": False}
    elif option.kind == "count":
        shape = {"count": True}
    elif option.kind == "list":
        shape["multiple"] = True
    names = [name for name in (option.short, f"--{option.key}") if name]
    shown = option.default if option.kind == "value" else None
    text = f"{option.help} [default: {shown}]" if shown else option.help
    return _grouped(option.group, *names, f"option_{option.name}", help=text, **shape)


def _pairs_option() -> Decorator:
    text = "Any option of this page without its dashes, as mount(8) and fstab write them; repeatable."
    return _grouped(MOUNT, "-o", "pairs", multiple=True, metavar="KEY=VALUE[,…]", help=text)


def _grouped(group: str, *names: str, **shape: Any) -> Decorator:
    heading = type("GroupedOption", (GroupedOption,), {"group": group})
    decorate: Decorator = click.option(*names, cls=heading, **shape)
    return decorate


def set_up_logging(settings: Settings) -> None:
    """Send the package's log to ``--log-file`` or stderr. Calling it again replaces what the last call set up."""
    import logging

    from xnatfs.cli.text import one_line

    class Line(logging.Formatter):
        """Names in it are the archive's: they begin no line of their own and steer no terminal."""

        def formatMessage(self, record: logging.LogRecord) -> str:
            return one_line(super().formatMessage(record))

    logger = logging.getLogger("xnatfs")
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(2, settings.verbose)])
    for handler in [handler for handler in logger.handlers if handler.get_name() == "xnatfs-cli"]:
        logger.removeHandler(handler)
        handler.close()
    if settings.log_file is not None:
        added = _log_file_handler(settings.log_file)
        added.setFormatter(Line("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"))
    else:
        added = logging.StreamHandler()
        added.setFormatter(Line("xnatfs: %(levelname)s: %(message)s"))
    added.set_name("xnatfs-cli")
    logger.addHandler(added)


def _log_file_handler(path: Path) -> Any:
    """A handler appending to ``path``, made with mode 0600: names of subjects and files stand in it."""
    import logging

    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        return logging.FileHandler(path, encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"--log-file {path}: {exc.strerror}") from exc
