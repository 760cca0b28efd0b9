"""``xnatfs ls``, ``stat`` and ``cat``: the tree that a mount shows, read without FUSE.

Paths and bytes come from the same ``ArchiveVFS`` as a mount's. Writes to standard output only. Main thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import click

from xnatfs.cli.credentials import config_for
from xnatfs.cli.main import describe, exit_code_for, hint_for, report_error
from xnatfs.cli.options import CACHE, MESSAGES, SERVER, VIEW, Invocation, OptionsCommand, Settings, with_options
from xnatfs.cli.sources import parse_source
from xnatfs.config import MIB
from xnatfs.errors import CorruptContent, LoginFailed, StaleContent, Unavailable

if TYPE_CHECKING:
    from xnatfs.tree.vfs import ArchiveVFS, Node

_READ_SIZE = MIB  # bytes asked for at once by `cat`: one block of the default size

_SOURCES = click.argument("sources", nargs=-1, required=True, metavar="SOURCE[#/PATH]...")


@click.command(cls=OptionsCommand)
@_SOURCES
@click.option("-l", "long", is_flag=True, help="Type, size in bytes, time and name.")
@click.option("-R", "recursive", is_flag=True, help="List directories within directories as well.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with all that is known.")
@with_options(SERVER, VIEW, CACHE, MESSAGES)
def ls(sources: tuple[str, ...], long: bool, recursive: bool, as_json: bool, settings: Settings) -> int:
    """List directories of an archive, without mounting it.

    A path in the archive follows the #, as in https://host#/PROJECT/SUBJECT/SESSION/scans. Piped output is one plain
    name a line.
    """
    terminal = sys.stdout.isatty()
    form = _json_lines if as_json else _long_lines if long else _names
    headings = not as_json and (recursive or len(sources) > 1)
    out = sys.stdout.buffer
    with Archives(settings) as archives:
        failures = Failures()
        first = True
        for text in sources:
            pending = [archives.locate(text)]
            while pending:
                place = pending.pop()
                with failures.counted(place):
                    nodes, is_dir = _listed(place, failures if long or as_json else None)
                    if headings and is_dir:
                        _write(out, [("" if first else "\n") + _safe(place.path, terminal) + ":"])
                    first = False
                    _write(out, form(place, nodes, is_dir, terminal))
                    if recursive and is_dir:
                        pending.extend(place.child(node.name) for node in reversed(nodes) if node.is_dir)
    return failures.exit_code


@click.command(cls=OptionsCommand)
@_SOURCES
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@with_options(SERVER, VIEW, CACHE, MESSAGES)
def stat(sources: tuple[str, ...], as_json: bool, settings: Settings) -> int:
    """Show what is known of files and directories.

    Size, time, XNAT's id, URI, data type and digest, each where the archive says it.
    """
    terminal = sys.stdout.isatty()
    with Archives(settings) as archives:
        failures = Failures()
        for number, text in enumerate(sources):
            place = archives.locate(text)
            with failures.counted(place):
                facts = _facts(place, place.vfs.lookup(place.path))
                if as_json:
                    lines = [_json(facts)]
                else:
                    shown = {key: value for key, value in facts.items() if value not in (None, "")}
                    lines = [f"{key}: {_safe(str(value), terminal)}" for key, value in shown.items()]
                    lines[:0] = [""] if number else []  # between two
                _write(sys.stdout.buffer, lines)
    return failures.exit_code


@click.command(cls=OptionsCommand)
@_SOURCES
@with_options(SERVER, VIEW, CACHE, MESSAGES)
def cat(sources: tuple[str, ...], settings: Settings) -> int:
    """Write files of an archive to standard output.

    One after the other. What a mount has cached is not fetched again, and the other way round.
    """
    with Archives(settings) as archives:
        failures = Failures()
        for text in sources:
            place = archives.locate(text)
            with failures.counted(place):
                _show(place)
                sys.stdout.buffer.flush()
    return failures.exit_code


def _show(place: Place) -> None:
    """Write a file to standard output. When nothing is written yet, a listing that told of another version costs a
    second try: the tree knows better by then."""
    shown = 0

    def write(piece: memoryview) -> None:
        nonlocal shown
        shown += len(piece)
        sys.stdout.buffer.write(piece)

    try:
        copy_bytes(place.vfs, place.path, write)
    except StaleContent:
        if shown:
            raise
        copy_bytes(place.vfs, place.path, write)


# --- archives and places ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """One path in one archive."""

    vfs: ArchiveVFS
    url: str
    path: str

    def child(self, name: str) -> Place:
        return Place(self.vfs, self.url, f"{self.path.rstrip('/')}/{name}")


class Archives:
    """The archives that one command reads: each server opened once, all of them closed at the end."""

    def __init__(self, settings: Settings, fresh: bool = False) -> None:
        """``fresh``: listings that were stored before now are asked for anew."""
        self._settings = settings
        self._not_before_s = time.time() if fresh else 0.0
        self._opened: dict[str, ArchiveVFS] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Archives:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def locate(self, text: str) -> Place:
        """The place that ``SOURCE[#/PATH]`` names. Makes no request."""
        source = parse_source(text)
        if source.url not in self._opened:
            from xnatfs.factory import open_vfs

            # The path may be a file, so the tree is opened at the top and the path looked up in it.
            config = config_for(text, self._settings)
            listing = dataclasses.replace(config.listing, not_before_s=self._not_before_s)
            top = dataclasses.replace(config, source=dataclasses.replace(source, inside="/"), listing=listing)
            vfs = open_vfs(top)
            self._stack.callback(vfs.close)
            self._opened[source.url] = vfs
        return Place(self._opened[source.url], source.url, source.inside)


class Failures:
    """Reports what failed of several things and goes on, unless nothing more can be had of the server.

    ``exit_code`` is that of the first failure.
    """

    def __init__(self) -> None:
        self.exit_code = 0

    @contextlib.contextmanager
    def counted(self, place: Place) -> Iterator[None]:
        try:
            yield
        except (Unavailable, LoginFailed, BrokenPipeError):
            raise  # each further try would wait for its timeout, or bring the account closer to being locked
        except OSError as exc:
            sys.stdout.buffer.flush()
            invocation = click.get_current_context().find_root().ensure_object(Invocation)
            self.exit_code = self.exit_code or exit_code_for(exc, invocation)
            why = describe(exc)
            report_error(why if place.path in why else f"{place.path}: {why}", hint_for(exc, invocation))


def copy_bytes(vfs: ArchiveVFS, path: str, write: Callable[[memoryview], object]) -> int:
    """Hand all bytes of a file to ``write`` in pieces of 1 MiB or less; returns how many there were.

    Raises:
        CorruptContent: fewer bytes came than the file has (the reader says so earlier; this is the last guard).
    """
    handle = vfs.open(path)
    try:
        buffer = memoryview(bytearray(_READ_SIZE))
        offset = 0
        while count := vfs.pread_into(handle, offset, buffer):
            write(buffer[:count])
            offset += count
        if offset != handle.node.size:
            raise CorruptContent(f"read {path}: {offset} of {handle.node.size} bytes")
        return offset
    finally:
        vfs.release(handle)


# --- lines ------------------------------------------------------------------------------------------------------------


def _listed(place: Place, sizes: Failures | None) -> tuple[Sequence[Node], bool]:
    """The nodes to show for a path, by name, and whether it is a directory; a file shows itself.

    With ``sizes``, those that the listing does not tell are asked for, one request each. A file that does not tell its
    size either is counted there, and the others are shown for all that.
    """
    node = place.vfs.lookup(place.path)
    if not node.is_dir:
        return (node,), False
    nodes = sorted(place.vfs.listdir(place.path), key=lambda node: node.name)
    if sizes is not None:
        for number, node in enumerate(nodes):
            if node.size < 0:
                child = place.child(node.name)
                with sizes.counted(child):
                    nodes[number] = place.vfs.lookup(child.path)
    return nodes, True


def _names(place: Place, nodes: Sequence[Node], is_dir: bool, terminal: bool) -> Iterable[str]:
    for node in nodes:
        yield _safe(node.name if is_dir else place.path, terminal) + ("/" if terminal and node.is_dir else "")


def _long_lines(place: Place, nodes: Sequence[Node], is_dir: bool, terminal: bool) -> Iterable[str]:
    width = len(str(max((node.size for node in nodes), default=0)))
    for node in nodes:
        size = node.size if node.size >= 0 else "?"
        name = _safe(node.name if is_dir else place.path, terminal)
        yield f"{'d' if node.is_dir else '-'} {size:>{width}} {_local_time(node.mtime_ns)} {name}"


def _json_lines(place: Place, nodes: Sequence[Node], is_dir: bool, terminal: bool) -> Iterable[str]:
    return (_json(_facts(place.child(node.name) if is_dir else place, node)) for node in nodes)


def _facts(place: Place, node: Node) -> dict[str, str | int | None]:
    """What ``stat`` shows, None where the archive does not say."""
    entry = node.entry
    return {
        "path": place.path,
        "name": node.name,
        "type": "directory" if node.is_dir else "file",
        "size": None if node.is_dir or node.size < 0 else node.size,
        "mtime": _utc_time(node.mtime_ns),
        "id": entry.id or None,
        "uri": entry.key or None,
        "xsitype": entry.xsi_type or None,
        "digest": entry.digest or None,
    }


def _json(facts: dict[str, str | int | None]) -> str:
    import json

    return json.dumps(facts)


def _local_time(mtime_ns: int) -> str:
    """Minutes are enough to compare by eye; 16 characters always."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(mtime_ns // 10**9)) if mtime_ns else f"{'-':>16}"


def _utc_time(mtime_ns: int) -> str | None:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(mtime_ns // 10**9)) if mtime_ns else None


def _safe(text: str, terminal: bool) -> str:
    """A name as it is when piped; on a terminal quoted for the shell, and without what could steer the terminal."""
    if not terminal or re.fullmatch(r"[\w@%+=:,./#~-]+", text):
        return text
    if text.isprintable():
        return "'" + text.replace("'", "'\\''") + "'"
    return "$'" + "".join(_escaped(character) for character in text) + "'"


def _escaped(character: str) -> str:
    if character in "'\\":
        return "\\" + character
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def _write(out: BinaryIO, lines: Iterable[str]) -> None:
    """Bytes, not text: a name need not fit the locale."""
    for line in lines:
        out.write(line.encode("utf-8", "surrogateescape") + b"\n")
