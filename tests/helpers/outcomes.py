"""What a tool made of a mount: its output and the errno that it names, within a time. A tool that hangs is killed.

The tools are processes of their own: one that is stuck in a mount can be killed, a thread of the tests cannot.
Knows nothing of pytest. Safe to use from any thread.
"""

from __future__ import annotations

import errno
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILL_S = 5.0  # for a killed tool to be gone

_ERRNOS = {os.strerror(number): number for number in errno.errorcode}
_SAID = re.compile("|".join(re.escape(text) for text in sorted(_ERRNOS, key=len, reverse=True)))


class Hangs(AssertionError):
    """A tool did not end within its bound."""


@dataclass(frozen=True)
class Outcome:
    """The end of one run of a tool.

    Attributes:
        output: What it wrote to its standard output.
        errno: The first that it named in its error messages; 0 for a tool that ended well.
    """

    code: int
    output: bytes
    said: str
    errno: int
    took_s: float


def run_tool(command: Sequence[str | os.PathLike[str]], bound_s: float, cwd: Path | None = None) -> Outcome:
    """Run a tool to its end.

    Raises:
        Hangs: it took longer than ``bound_s``; it has been killed, which a reader on a mount must allow.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        [os.fspath(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
        cwd=cwd,
    )
    try:
        output, errors = process.communicate(timeout=bound_s)
    except subprocess.TimeoutExpired:
        end(process)
        raise Hangs(f"{command}: not at its end after {bound_s} s") from None
    said = errors.decode(errors="replace")
    found = _SAID.search(said)
    number = _ERRNOS[found.group()] if found and process.returncode else 0
    return Outcome(process.returncode, output, said, number, time.monotonic() - started)


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a tool and its pipes, whatever it is doing."""
    process.kill()
    try:
        process.wait(KILL_S)
    except subprocess.TimeoutExpired:
        raise Hangs(f"{process.args}: cannot be killed") from None
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def cat(path: Path, bound_s: float) -> Outcome:
    return run_tool(["cat", path], bound_s)


def ls(path: Path, bound_s: float) -> Outcome:
    return run_tool(["ls", "-A", path], bound_s)


@dataclass(frozen=True)
class Part:
    """What one ``pread`` of a ``Handle`` gave: bytes, or an errno."""

    data: bytes
    errno: int = 0


class Handle:
    """A file held open by a process of its own, read from there piece by piece."""

    def __init__(self, path: Path, bound_s: float = 20.0) -> None:
        self._bound_s = bound_s
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _HANDLE, os.fspath(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        part = self._answer()
        if part.errno:
            self.close()
            raise OSError(part.errno, os.strerror(part.errno), os.fspath(path))

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def pread(self, size: int, offset: int) -> Part:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{size} {offset}\n".encode())
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Part:
        head = b""
        deadline = time.monotonic() + self._bound_s
        while not head.endswith(b"\n"):
            head += self._some(1, deadline)
        number, length = (int(word) for word in head.split())
        data = b""
        while len(data) < length:
            data += self._some(length - len(data), deadline)
        return Part(data, number)

    def _some(self, size: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            self.close()
            raise Hangs(f"a read was not answered within {self._bound_s} s")
        piece = os.read(self._process.stdout.fileno(), size)
        assert piece, "the process that reads has ended"
        return piece

    def close(self) -> None:
        end(self._process)


_HANDLE = """
import os, sys
out = sys.stdout.buffer
def answer(number, data=b""):
    out.write(b"%d %d\\n" % (number, len(data)) + data)
    out.flush()
try:
    descriptor = os.open(sys.argv[1], os.O_RDONLY)
except OSError as error:
    answer(error.errno)
    sys.exit()
answer(0)
for line in sys.stdin:
    size, offset = (int(word) for word in line.split())
    try:
        answer(0, os.pread(descriptor, size, offset))
    except OSError as error:
        answer(error.errno)
"""


@dataclass(frozen=True)
class Read:
    """What one thread of a ``Crowd`` made of one file: the MD5 and length of all its bytes, or an errno."""

    path: str
    md5: str
    size: int
    errno: int
    took_s: float


def crowd(paths: Iterable[Path], threads: int, bound_s: float) -> Crowd:
    return Crowd([os.fspath(path) for path in paths], threads, bound_s)


class Crowd:
    """Threads of one process that read whole files at once; ``results`` waits for all of them."""

    def __init__(self, paths: list[str], threads: int, bound_s: float) -> None:
        self._deadline = time.monotonic() + bound_s
        self._bound_s = bound_s
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _CROWD, str(threads), json.dumps(paths)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )

    def results(self) -> list[Read]:
        try:
            output, _ = self._process.communicate(timeout=max(0.1, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            raise Hangs(f"readers are not at their end after {self._bound_s} s") from None
        return [Read(*row) for row in json.loads(output)]

    def kill(self) -> None:
        end(self._process)

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)


_CROWD = """
import hashlib, json, sys, time
from concurrent.futures import ThreadPoolExecutor
def read(path):
    started, number, digest, size = time.monotonic(), 0, hashlib.md5(usedforsecurity=False), 0
    try:
        with open(path, "rb", buffering=0) as file:
            while data := file.read(131072):
                digest.update(data)
                size += len(data)
    except OSError as error:
        number = error.errno
    return path, digest.hexdigest(), size, number, time.monotonic() - started
with ThreadPoolExecutor(int(sys.argv[1])) as pool:
    print(json.dumps(list(pool.map(read, json.loads(sys.argv[2])))))
"""
