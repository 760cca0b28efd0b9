"""Many small jobs, side by side, with a progress bar, a count of what failed and why, and a report in JSON.

Knows nothing of archives or copies: a job is something that has a path and a size and can be run. ``run_jobs`` is
called in the main thread and starts its own; they have ended when it returns.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xnatfs.errors import LoginFailed, Unavailable, UsageError

AHEAD = 1000
"""Jobs that may wait: the walk through the tree stays this far before the work, and memory stays bounded."""

AWAY_LIMIT = 3
"""Failures of the kind "the server does not answer", one after the other, for each worker, before the rest is left for
another run: each of them has waited for its timeout. A guess."""

_HOPELESS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.ENOTCONN,
)  # of the disk that is written to, or the mount that is read, whose process has ended: the next file fares no better

Advance = Callable[[int], None]
"""Called with the number of bytes done since the last call. Raises ``Stopped`` when the work is to end."""


class Stopped(Exception):
    """The work is to end: the user said so, or nothing more can be had."""


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to do.

    Attributes:
        path: What a message and the report call it.
        size: Bytes; 0 when it is none, or when only doing it tells.
        run: Does it; False when there was nothing to do.
        due_bytes: What there is to do, None when there is nothing, for a dry run. Raises what ``run`` would.
    """

    path: str
    size: int
    run: Callable[[Advance], bool]
    due_bytes: Callable[[], int | None]


@dataclass(frozen=True, slots=True)
class Failure:
    path: str
    error: str  # the errno's name, such as EIO
    why: str
    hint: str


@dataclass(slots=True)
class Summary:
    """What became of the jobs.

    Attributes:
        stopped: Why the work ended before the last job; "" when it did not.
        first: The first error, for the exit code.
    """

    done: int = 0
    done_bytes: int = 0
    skipped: int = 0
    skipped_bytes: int = 0
    failures: list[Failure] = field(default_factory=list)
    stopped: str = ""
    first: OSError | None = None

    def write(self, path: Path, **more: object) -> None:
        """The report: JSON, put in place whole, readable by the user alone since it names subjects.

        Into a pipe or a device, such as /dev/stdout, it is written as it is.

        Raises:
            UsageError: it cannot be written there.
        """
        facts: dict[str, Any] = {**more, **asdict(self)}
        del facts["first"]
        new = path if is_special(path) else path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
                json.dump(facts, file, indent=1)
                file.write("\n")
            if new != path:
                new.replace(path)
        except OSError as exc:
            raise UsageError(f"--report {path}: {exc.strerror}") from exc


def is_special(path: Path) -> bool:
    """Whether a device or a pipe is there, or a link such as /dev/stdout: what no file may take the place of."""
    with contextlib.suppress(OSError):
        if path.is_symlink() and path.readlink().is_relative_to("/proc"):
            return True
        mode = path.stat().st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


class Progress:
    """What the user sees while it runs: files, bytes, rate and time left, on a terminal; nothing elsewhere."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None
        self._task: Any = None
        self._files = self._found = 0
        self._bytes = 0

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), TextColumn("{task.fields[files]} files"), BarColumn())
        sizes = (DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
        with Bar(*columns, *sizes, console=Console(stderr=True)) as self._bar:
            self._task = self._bar.add_task(self._what, total=None, files="0")
            yield

    def found(self, job: Job) -> None:
        self._found += 1
        self._bytes += job.size
        self._show()

    def finished(self) -> None:
        self._files += 1
        self._show()

    def advance(self, count: int) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, count)

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, total=self._bytes, files=f"{self._files}/{self._found}")


def run_jobs(
    jobs: Iterable[Job], workers: int, progress: Progress, report: Callable[[Job, OSError], Failure]
) -> Summary:
    """Run jobs in their order, ``workers`` at a time, going on when one fails.

    Args:
        jobs: Taken from as the work goes on, in the caller's thread.
        report: Tells the user of a failure, and says how the report puts it. Called by one thread at a time.
    Raises:
        KeyboardInterrupt: after the workers have ended.
    """
    crew = _Crew(workers, progress, report)
    with progress.shown():
        crew.start()
        try:
            for job in jobs:
                progress.found(job)
                if not crew.give(job):
                    break
        except BaseException:
            crew.stop("interrupted")
            raise
        finally:
            crew.finish()
    return crew.summary


class _Crew:
    def __init__(self, workers: int, progress: Progress, report: Callable[[Job, OSError], Failure]) -> None:
        self.summary = Summary()
        self._progress = progress
        self._report = report
        self._pending: queue.Queue[Job | None] = queue.Queue(AHEAD)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._away = 0  # guarded by _lock
        self._away_limit = AWAY_LIMIT * workers
        self._threads = [threading.Thread(target=self._work, name="xnatfs-job", daemon=True) for _ in range(workers)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def give(self, job: Job) -> bool:
        """Hand out a job, waiting for room; False when the work has been stopped."""
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Full):
                self._pending.put(job, timeout=0.1)
                return True
        return False

    def stop(self, why: str) -> None:
        with self._lock:
            self.summary.stopped = self.summary.stopped or why
        self._stopping.set()

    def finish(self) -> None:
        """Let the workers come to an end, and wait for it in steps short enough for Ctrl-C."""
        try:
            for _ in self._threads:
                while not self._stopping.is_set():
                    with contextlib.suppress(queue.Full):
                        self._pending.put(None, timeout=0.1)
                        break
            while any(thread.is_alive() for thread in self._threads):
                for thread in self._threads:
                    thread.join(0.1)
        except KeyboardInterrupt:
            self.stop("interrupted")
            for thread in self._threads:
                thread.join()
            raise

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                job = self._pending.get(timeout=0.1)
            except queue.Empty:
                continue
            if job is None:
                return
            self._do(job)

    def _do(self, job: Job) -> None:
        came = 0

        def advance(count: int) -> None:
            nonlocal came
            came += count
            self._advance(count)

        try:
            did = job.run(advance)
        except Stopped:
            return
        except OSError as exc:
            self._failed(job, exc)
        else:
            with self._lock:
                self._away = 0
                if did:
                    self.summary.done += 1
                    self.summary.done_bytes += job.size or came
                else:
                    self.summary.skipped += 1
                    self.summary.skipped_bytes += job.size
            if not did:
                self._progress.advance(job.size)
        self._progress.finished()

    def _advance(self, count: int) -> None:
        if self._stopping.is_set():
            raise Stopped
        self._progress.advance(count)

    def _failed(self, job: Job, error: OSError) -> None:
        with self._lock:
            self.summary.first = self.summary.first or error
            self.summary.failures.append(self._report(job, error))
            away = isinstance(error, Unavailable)
            self._away = self._away + 1 if away else 0
            why = ""
            if isinstance(error, LoginFailed):
                why = "the login is refused"
            elif error.errno in _HOPELESS:
                why = str(error.strerror or error)
            elif self._away >= self._away_limit:
                why = "the server does not answer"
        if why:
            self.stop(why)
