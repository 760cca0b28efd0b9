"""``xnatfs get`` and ``xnatfs prefetch``: many files at once, from an archive to a disk or into a mount's cache.

``get`` reads through the tree that a mount shows, without FUSE; ``prefetch`` reads through a mount, so that what comes
lands in that mount's cache. Both may be run again: what is there already is left out. ``cli/work.py`` runs the jobs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

import click

from xnatfs.cli.inspect import Archives, Place, copy_bytes
from xnatfs.cli.main import describe, exit_code_for, hint_for, report_error
from xnatfs.cli.options import CACHE, MESSAGES, SERVER, VIEW, Invocation, OptionsCommand, Settings, with_options
from xnatfs.cli.text import size_text
from xnatfs.cli.work import Advance, Failure, Job, Progress, Summary, is_special, run_jobs
from xnatfs.config import MIB
from xnatfs.errors import CorruptContent, StaleContent, UsageError

if TYPE_CHECKING:
    from xnatfs.tree.vfs import Node

VERSION_ATTRIBUTE = "user.xnatfs.version"
"""On a copied file: the hash of what the archive called its version, so that running again need not read it."""

PART = ".xnatfs-part-"
"""A file on its way: renamed when it is whole. A name of its own length, since a target's may have 255 bytes."""

_JOBS = click.option("--jobs", default=4, show_default=True, type=click.IntRange(1, 64), help="Files at once.")
_DRY = click.option("--dry-run", is_flag=True, help="Only print what would be done, a path a line.")
_REPORT = click.option(
    "--report",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    help="Write what was done, and what failed why, as JSON.",
)


@click.command(cls=OptionsCommand)
@click.argument("source", metavar="SOURCE[#/PATH]")
@click.argument("dest", metavar="DEST")
@_JOBS
@_DRY
@_REPORT
@with_options(SERVER, VIEW, CACHE, MESSAGES)
def get(source: str, dest: str, jobs: int, dry_run: bool, report: Path | None, settings: Settings) -> int:
    """Copy a file or a directory of an archive, without mounting it.

    DEST becomes what PATH is: the files of a directory land below it, and running the same command again copies what
    is missing, has changed, or failed. Each file is checked against the archive's size and digest before it gets its
    name. A single file lands in DEST where that is a directory or ends in a slash.
    """
    _check_report(report)
    with Archives(settings, fresh=True) as archives:  # a copy is of what is there now
        place = archives.locate(source)
        top = place.vfs.lookup(place.path)
        target = _target(place, top, dest)
        if top.is_dir:
            place.vfs.listdir(place.path)  # when that fails nothing can be copied, now or by running it again
            if not dry_run:
                target.mkdir(parents=True, exist_ok=True)  # likewise
        found = _to_copy(place, top, target)
        summary = _run("copying", found, jobs, dry_run)
    return _conclude("get", summary, dry_run, report, {"source": source, "dest": dest})


@click.command(cls=OptionsCommand)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@_JOBS
@_DRY
@_REPORT
@with_options(MESSAGES)
def prefetch(paths: tuple[Path, ...], jobs: int, dry_run: bool, report: Path | None, settings: Settings) -> int:
    """Fill the cache of a mount, ahead of use.

    PATHs are files or directories of a mounted archive. What is cached already is left out.
    """
    _check_report(report)
    for path in paths:
        _check_room(path, _mount_of(path))
    summary = _run("fetching", _to_fetch(paths), jobs, dry_run)
    return _conclude("prefetch", summary, dry_run, report, {"paths": [str(path) for path in paths]})


def _target(place: Place, top: Node, dest: str) -> Path:
    """Where the top of a copy goes.

    Raises:
        UsageError: nowhere; or there is a file, and a directory is to be copied.
    """
    if not dest:
        raise UsageError("get: DEST is empty", "for the directory where you are: .")
    target = Path(dest)
    if not top.is_dir:
        return target / top.name if dest.endswith("/") or target.is_dir() else target
    if os.path.lexists(target) and not target.is_dir():
        raise UsageError(f"get {dest}: is no directory, and {place.path} is one", "name a directory, or a new one")
    return target


# --- both -------------------------------------------------------------------------------------------------------------


def _run(what: str, jobs: Iterator[Job], workers: int, dry_run: bool) -> Summary:
    failure = _reporter()
    if not dry_run:
        return run_jobs(jobs, workers, Progress(what), failure)
    summary = Summary()
    for job in jobs:
        try:
            due_bytes = job.due_bytes()
        except OSError as exc:
            summary.failures.append(failure(job, exc))
            summary.first = summary.first or exc
            continue
        if due_bytes is not None:
            summary.done += 1
            summary.done_bytes += due_bytes
            sys.stdout.buffer.write(os.fsencode(job.path) + b"\n")
        else:
            summary.skipped += 1
            summary.skipped_bytes += job.size
    sys.stdout.buffer.flush()
    return summary


def _check_report(report: Path | None) -> None:
    """Say that a report cannot be written before the work is done, not after it.

    Raises:
        UsageError: so it is.
    """
    if report is None:
        return
    code = 0
    if report.is_dir():
        code = errno.EISDIR
    elif not report.parent.is_dir():
        code = errno.ENOENT
    elif not os.access(report if is_special(report) else report.parent, os.W_OK):
        code = errno.EACCES
    if code:
        raise UsageError(f"--report {report}: {os.strerror(code)}")


def _reporter() -> Callable[[Job, OSError], Failure]:
    """Tells the user of a failure, from any thread, and says how the report puts it."""
    invocation = click.get_current_context().find_root().ensure_object(Invocation)  # worker threads have no context

    def failure(job: Job, error: OSError) -> Failure:
        why, hint = describe(error), hint_for(error, invocation)
        report_error(why if job.path in why else f"{job.path}: {why}", hint)
        return Failure(job.path, errno.errorcode.get(error.errno or 0, "EIO"), why, hint)

    return failure


def _conclude(command: str, summary: Summary, dry_run: bool, report: Path | None, what: dict[str, object]) -> int:
    """Say what became of it, write the report, and settle the exit code: that of the first failure."""
    verb = "to do" if dry_run else "done"
    parts = [f"{summary.done} files {verb} ({size_text(summary.done_bytes)})"]
    if summary.skipped:
        parts.append(f"{summary.skipped} there already")
    if summary.failures:
        parts.append(f"{len(summary.failures)} failed")
    click.echo(f"{command}: {', '.join(parts)}", err=True)
    if report is not None:
        summary.write(report, command=command, dry_run=dry_run, **what)
    if summary.stopped:
        report_error(f"{command}: stopped: {summary.stopped}", "run the same command again to go on from here")
    elif summary.failures:
        report_error(f"{command}: not complete", "run the same command again: it tries only what is missing")
    if summary.first is not None:
        return exit_code_for(summary.first, click.get_current_context().find_root().ensure_object(Invocation))
    return 1 if summary.stopped else 0


def _failing(path: str, error: OSError) -> Job:
    """A directory that cannot be listed, as a job: it fails when its turn comes."""

    def fail(*_: object) -> NoReturn:
        raise error

    return Job(path, 0, fail, fail)


# --- get --------------------------------------------------------------------------------------------------------------


def _to_copy(place: Place, node: Node, target: Path) -> Iterator[Job]:
    """A job for each file at and below a place; for a directory that cannot be listed, one that fails."""
    pending = [(place, node, target)]
    while pending:
        here, node, target = pending.pop()
        if not node.is_dir:
            yield _copy_job(here, max(node.size, 0), target)
            continue
        try:
            nodes: Sequence[Node] = here.vfs.listdir(here.path)
        except OSError as exc:
            yield _failing(here.path, exc)
            continue
        pending.extend((here.child(one.name), one, target / one.name) for one in reversed(nodes))


def _copy_job(place: Place, size: int, target: Path) -> Job:
    def due_bytes() -> int | None:
        node = place.vfs.lookup(place.path)
        return None if _is_there(target, node) else node.size

    def run(advance: Advance) -> bool:
        node = place.vfs.lookup(place.path)  # now with its size
        if _is_there(target, node):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _copy(place, node, target, advance)
        except StaleContent:  # the listing told of another version: now the tree knows better
            _copy(place, place.vfs.lookup(place.path), target, advance)
        return True

    return Job(place.path, size, run, due_bytes)


def _is_there(target: Path, node: Node) -> bool:
    """Whether the file was copied before and neither it nor the archive's version has changed since.

    Raises:
        OSError: what is there cannot be replaced by a file, or must not: as root, a device could.
    """
    try:
        found = target.lstat()
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if is_special(target):
        raise FileExistsError(errno.EEXIST, "is a device or a pipe, which no file replaces", str(target))
    if not stat.S_ISREG(found.st_mode) or found.st_size != node.size:
        return False
    if node.mtime_ns and found.st_mtime_ns // 10**9 != node.mtime_ns // 10**9:
        return False
    with contextlib.suppress(OSError):
        return os.getxattr(target, VERSION_ATTRIBUTE) == _version(node)
    if node.entry.digest:  # a file system without attributes, or a copy that another program made
        with target.open("rb") as file:
            return _md5_of(file) == node.entry.digest
    return bool(node.mtime_ns)


def _version(node: Node) -> bytes:
    text = f"{node.entry.key}\0{node.entry.version}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest().encode()


def _md5_of(file: BinaryIO) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while piece := file.read(MIB):
        digest.update(piece)
    return digest.hexdigest()


def _copy(place: Place, node: Node, target: Path, advance: Advance) -> None:
    """Copy one file beside its target, check it, and give it its name."""
    name = hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()
    part = target.parent / f"{PART}{name}"
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        _claim(file, part, target)
        file.truncate()
        digest = hashlib.md5(usedforsecurity=False) if node.entry.digest else None

        def write(piece: memoryview) -> None:
            view = piece
            while view:  # a full disk takes a part without an error
                view = view[file.write(view) :]
            if digest is not None:
                digest.update(piece)
            advance(len(piece))

        try:
            copy_bytes(place.vfs, place.path, write)
            if digest is not None and digest.hexdigest() != node.entry.digest:
                raise CorruptContent(f"{place.path}: the MD5 of what came is not the archive's")
            with contextlib.suppress(OSError):
                os.setxattr(file.fileno(), VERSION_ATTRIBUTE, _version(node))
            if node.mtime_ns:
                os.utime(file.fileno(), ns=(node.mtime_ns, node.mtime_ns))
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)  # what has passed is in the block cache: the next run does not ask for it
            raise


def _claim(file: FileIO, part: Path, target: Path) -> None:
    """Let no other process write the same part, nor truncate what has just got its name.

    Raises:
        OSError: EBUSY, somebody else is at it.
    """
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), part.lstat()):
            return
    raise OSError(errno.EBUSY, "another xnatfs get is copying it", str(target))


# --- prefetch ---------------------------------------------------------------------------------------------------------


def _mount_of(path: Path) -> Path:
    """The mount point of ours that a path lies below.

    Raises:
        UsageError: it does not.
    """
    from xnatfs.frontends.mountpoint import OWN_TYPE, find_mount, resolve

    here = resolve(path)
    for above in (here, *here.parents):
        mounted = find_mount(above)
        if mounted is not None:
            if mounted.fs_type == OWN_TYPE:
                return above
            break
    raise UsageError(f"prefetch {path}: not below a mount of xnatfs", "mount it first, or copy with: xnatfs get")


def _check_room(path: Path, mountpoint: Path) -> None:
    """Refuse to fill a cache that is not there."""
    from xnatfs.cli import daemon
    from xnatfs.cli.control import ask

    for record in daemon.recorded(os.getuid()):
        if record.mountpoint == mountpoint and record.alive:
            with contextlib.suppress(OSError):
                if ask(record.socket).get("cache_directory") is None:
                    raise UsageError(f"prefetch {path}: that mount keeps no cache on disk", "mount it with --cache-dir")


def _to_fetch(paths: Sequence[Path]) -> Iterator[Job]:
    """A job for each file at and below some paths; for a directory that cannot be listed, one that fails."""
    return _Walk().visit(paths)


@dataclass(slots=True, eq=False)
class _Directory:
    """What the walk saw directly in one.

    Attributes:
        size: Bytes of its own files.
        left: All that lies below it has been seen as well.
    """

    jobs: list[Job] = field(default_factory=list)
    size: int = 0
    left: bool = False


class _Walk:
    """The walk of one ``prefetch``, through each directory before those below it. Belongs to one thread.

    Whether a file is there already is looked up before any job could make the mount bring it: for a reader of many
    small files it brings all of their directory, and what lies below unless that outweighs the directory's own files
    (``reading/bulk.py``). So the jobs of a directory wait until that much has been seen.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Directory] = deque()
        self._below = 0  # bytes of those behind the first: they all lie below it, or it has been left

    def visit(self, paths: Sequence[Path]) -> Iterator[Job]:
        """The jobs of a directory that has these paths in it, and of those below."""
        here, inner = _Directory(), []
        for path in paths:
            try:
                found = path.stat()  # a mount shows no links, but one may lead there
            except OSError as exc:
                here.jobs.append(_failing(str(path), exc))
                continue
            if stat.S_ISDIR(found.st_mode):
                inner.append(path)
            else:
                here.jobs.append(_fetch_job(path, found.st_size))
                here.size += found.st_size
        yield from self._entered(here)
        for path in inner:
            try:
                with os.scandir(path) as entries:
                    found_there = [Path(entry.path) for entry in entries]
            except OSError as exc:
                yield from self._entered(_Directory([_failing(str(path), exc)], left=True))
            else:
                yield from self.visit(found_there)
        here.left = True
        yield from self._ready()

    def _entered(self, directory: _Directory) -> Iterator[Job]:
        if self._waiting:
            self._below += directory.size
        self._waiting.append(directory)
        return self._ready()

    def _ready(self) -> Iterator[Job]:
        """The jobs that need wait no longer."""
        while self._waiting and (self._waiting[0].left or self._below > self._waiting[0].size):
            yield from self._waiting.popleft().jobs
            if self._waiting:
                self._below -= self._waiting[0].size


def _fetch_job(path: Path, size: int) -> Job:
    due = _cached_percent(path) < 100

    def run(advance: Advance) -> bool:
        if not due:
            return False
        if _cached_percent(path) == 100:  # it came with its neighbours, whom an earlier job has read
            advance(size)
            return True
        try:
            _read_through(path, advance)
        except OSError as exc:
            if exc.errno != errno.ESTALE:
                raise
            _read_through(path, advance)  # the listing told of another version: now the mount knows better
        return True

    return Job(str(path), size, run, lambda: size if due else None)


def _read_through(path: Path, advance: Advance) -> None:
    got = 0
    buffer = memoryview(bytearray(MIB))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            got += count
            advance(count)
        size = os.fstat(file.fileno()).st_size
        # The kernel need not keep a second copy of what is in the cache.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if got != size:
        raise CorruptContent(f"{path}: {got} of {size} bytes")


def _cached_percent(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(os.getxattr(path, "user.xnat.cached"))
    return 0
