"""``xnatfs demo``: the embedded server and a mount of it, both in processes of their own, both gone at the end.

Knows the sample archive only through the server's ``/__demo__/truth``. The main thread waits; there is no other.
Signals and the death of either process end the wait, and what was started is taken down in the reverse order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from xnatfs.cli.main import INTERRUPTED, report_error
from xnatfs.cli.options import MESSAGES, MountPoint, OptionsCommand, Settings, load_settings, with_options
from xnatfs.cli.owned import Mount, Stopped, ignore_signals, mount_directory, mounted, signals_raise
from xnatfs.cli.sources import parse_source
from xnatfs.config import MIB, Config, Credentials
from xnatfs.errors import CorruptContent, Unavailable, XnatfsError

USER = PASSWORD = "demo"  # noqa: S105 (the sample server's account; it serves samples, on loopback only)
NEEDED = ("aiohttp", "nibabel", "numpy", "pydicom")  # the extra `demo`

START_TIMEOUT_S = 60.0  # guesses: a loaded two-core machine needs about 3 s for each
STOP_TIMEOUT_S = 20.0

CHECKED_SIZE = 8 * MIB  # --check reads the largest image file of at most this many bytes


@click.command(cls=OptionsCommand)
@click.argument("mountpoint", required=False, type=MountPoint())
@click.option("--check", is_flag=True, help="Mount, list, read and compare a file, unmount: for scripts.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The server's port; 0 takes a free one.")
@with_options(MESSAGES)
def demo(mountpoint: Path | None, check: bool, port: int, settings: Settings) -> int:
    """Mount a sample archive, served on this machine.

    Starts an XNAT-compatible server on 127.0.0.1 and mounts it at MOUNTPOINT, or in a new temporary directory, until
    Ctrl-C. Leaves no mount, process or file behind.
    """
    require_extra()
    with signals_raise(), contextlib.ExitStack() as stack:
        try:
            return _run(stack, mountpoint, check, port, settings)
        except Stopped:
            return INTERRUPTED if check else 0
        finally:
            ignore_signals()  # nothing may stop the taking down, which is what leaving the stack does


def _run(stack: contextlib.ExitStack, mountpoint: Path | None, check: bool, port: int, settings: Settings) -> int:
    room = stack.enter_context(temporary_room())
    place = stack.enter_context(mount_directory(mountpoint))
    server = stack.enter_context(demo_server(port, room))
    config = demo_config(server.url, room / "cache", settings)
    mount = stack.enter_context(mounted(config, place, room / "mount.log", START_TIMEOUT_S))
    files = read_truth(server.url)
    if check:
        return check_mount(place, files)
    show_what_to_try(place, server.url, files)
    return wait_for_the_end(server, mount, place)


def wait_for_the_end(server: Server, mount: Mount, place: Path) -> int:
    """Until the mount or the server is gone; a signal ends it earlier by ``Stopped``."""
    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    if ended is not None and ended.si_pid == server.process.pid:
        report_error(f"demo: the server ended: {last_words(server.log)}")
        return 1
    if mount.wait() != 0:
        report_error(f"demo: the mount at {place} ended by itself: {last_words(mount.log)}")
        return 1
    click.echo("Unmounted; the server ends as well.")
    return 0


def require_extra() -> None:
    """Fail with the line to run when the packages of the extra ``demo`` are missing."""
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise XnatfsError(f"demo: not installed: {', '.join(missing)}", "run: python -m pip install 'xnatfs[demo]'")


def demo_config(url: str, cache: Path, settings: Settings) -> Config:
    """Defaults, a cache of its own, the messages asked for: the user's variables and file are for other archives."""
    defaults = load_settings({}, (), {}, Path(os.devnull))
    own = dataclasses.replace(defaults, cache_dir=cache, log_file=settings.log_file, verbose=settings.verbose)
    if settings.origins["fuse"] != "default":
        own = dataclasses.replace(own, fuse=settings.fuse)
    config = own.config(parse_source(url), Credentials(USER, PASSWORD, "the demo"))
    return dataclasses.replace(config, http=dataclasses.replace(config.http, session_dir=None))


# --- directories ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def temporary_room() -> Iterator[Path]:
    """A new directory for the cache and the log, deleted at the end."""
    room = Path(tempfile.mkdtemp(prefix="xnatfs-demo-"))
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


def last_words(log: Path | None) -> str:
    """The last line a process of ours wrote."""
    known = log is not None and log.exists()
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log and known else []
    return lines[-1] if lines else "it did not say why"


# --- the server -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """The sample server's process and address."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path


@contextlib.contextmanager
def demo_server(port: int, room: Path) -> Iterator[Server]:
    """The sample server in its own process, answering; ended at the end."""
    log = room / "server.log"
    command = [sys.executable, "-m", "xnatfs.demo", "--port", str(port), "--die-with-parent"]
    # The user's own passwords are none of its business.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XNAT")}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for us alone: the mount goes first, then the server
        )
    try:
        server = Server(process, _first_line(process), log)
        if not server.url.startswith("http://"):
            raise XnatfsError(f"demo: the server does not start: {last_words(server.log)}", "try another --port")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _first_line(process: subprocess.Popen[bytes]) -> str:
    """The address that the server prints once it listens; "" when it ends or says nothing."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    deadline_s = time.monotonic() + START_TIMEOUT_S
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline_s - time.monotonic()))
        piece = os.read(descriptor, 1) if readable else b""
        if not piece:
            process.poll()
            return ""
        line += piece
    return line.decode("utf-8", "replace").strip()


# --- the sample -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One scan file of the sample archive: where it stands in the tree, and what it is."""

    path: str
    size: int
    md5: str

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]


def read_truth(url: str) -> list[Sample]:
    """The scan files of the project DEMO as the server knows them, in the tree's order; odd names left out."""
    import http.client

    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=START_TIMEOUT_S)
    try:
        connection.request("GET", "/__demo__/truth?project=DEMO")
        rows: list[dict[str, Any]] = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise Unavailable(f"demo: the server at {url} does not say what it holds: {exc}") from exc
    finally:
        connection.close()
    return [sample for row in rows if row["area"] == "scans" and row["on_disk"] and (sample := _sample(row))]


def _sample(row: dict[str, Any]) -> Sample | None:
    scan = f"{row['item']}-{row['item_type']}"
    path = "/".join((row["project"], row["subject"], row["experiment"], "scans", scan, row["resource"], row["path"]))
    plain = re.fullmatch(r"[\w./-]+", path)
    return Sample(path, row["size"], row["md5"]) if plain and row["md5"] else None


def _first(samples: Sequence[Sample], *endings: str) -> Sample:
    for sample in samples:
        if sample.path.endswith(endings):
            return sample
    raise CorruptContent(f"demo: the sample archive holds no {' or '.join(endings)} file")


def check_mount(place: Path, samples: Sequence[Sample]) -> int:
    """List, read one image wholly and compare its digest with the server's: what --check does once mounted."""
    import hashlib

    projects = sorted(path.name for path in place.iterdir())
    sample = max((sample for sample in samples if sample.size <= CHECKED_SIZE), key=lambda sample: sample.size)
    path = place / sample.path
    listed = [entry.stat().st_size for entry in path.parent.iterdir() if entry.name == path.name]
    content = path.read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if (listed, len(content), digest) != ([sample.size], sample.size, sample.md5):
        raise CorruptContent(f"demo: {sample.path}: {len(content)} bytes, MD5 {digest}; the server has {sample}")
    click.echo(f"listed  {len(projects)} projects: {', '.join(projects)}")
    click.echo(f"read    {sample.path}: {len(content)} bytes, MD5 {digest} as on the server")
    return 0


def show_what_to_try(place: Path, url: str, samples: Sequence[Sample]) -> None:
    """Lines to paste into another terminal, with the paths of this mount and the programs of this installation."""
    volume = _first(samples, ".nii.gz", ".nii")
    series = _first(samples, ".dcm").folder
    where = shlex.quote(str(place))
    session = "/".join(volume.path.split("/")[:3])
    python = shlex.quote(sys.executable)
    xnatfs = "xnatfs" if shutil.which("xnatfs") else f"{python} -m xnatfs"  # scripts/demo puts nothing on PATH
    lines = (
        f"ls -l {where}/{session}/scans",
        f"find {where}/DEMO -name '*.nii*'",
        f"cp -r {where}/{series} /tmp/series",
        f"{python} -c \"import nibabel; print(nibabel.load('{place}/{volume.path}').shape)\"",
        f"dcm2niix -o /tmp {where}/{series}",
        f"{xnatfs} umount {where}",
    )
    click.echo(f"The sample archive {url} (user {USER}, password {PASSWORD}) is mounted at {place}")
    click.echo("Try in another terminal:")
    for line in lines:  # never wrapped: a command that is cut into lines cannot be pasted
        click.echo(f"  {click.style(line, bold=True)}")
    click.echo("Ctrl-C unmounts it and ends the server.")
