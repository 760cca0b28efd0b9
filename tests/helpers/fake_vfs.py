"""A tree in memory with the face of ``ArchiveVFS``, whose files can be changed, slowed and broken while mounted.

Run as a program it mounts itself and obeys one JSON list a line on stdin, answering each on stdout: see ``FakeMount``.
Imports the front end, no pytest.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xnatfs.config import MountConfig
from xnatfs.errors import AccessDenied, NotFound, StaleContent, TimedOut, Unavailable
from xnatfs.frontends import fuse, fuse_versions
from xnatfs.model import Entry

MTIME_NS = 1_700_000_000_123_456_789

FAILURES: dict[str, BaseException] = {
    "NotFound": NotFound("GET file: 404"),
    "AccessDenied": AccessDenied("GET file: 403"),
    "Unavailable": Unavailable("GET file: 503 after 3 tries"),
    "TimedOut": TimedOut("GET file: silence"),
    "StaleContent": StaleContent("GET file: another length"),
    "ConnectionError": ConnectionError(),
    "TimeoutError": TimeoutError(),
    "ValueError": ValueError("a fault of the program"),
    "SystemExit": SystemExit(1),
    "negative": OSError(-5, "negative"),
}


@dataclass(frozen=True)
class FakeNode:
    name: str
    entry: Entry
    ino: int
    size: int
    mtime_ns: int
    is_dir: bool


@dataclass
class FakeFile:
    content: bytes
    mtime_ns: int = MTIME_NS
    version: int = 1
    repeat: int = 1  # the content this many times over: large files in little memory


@dataclass
class FakeHandle:
    node: FakeNode
    keep_cache: bool
    content: bytes
    version: int
    path: str


@dataclass
class FakeVFS:
    files: dict[str, FakeFile] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)  # (operation, path) -> name in FAILURES
    delays_s: dict[tuple[str, str], float] = field(default_factory=dict)
    short: set[str] = field(default_factory=set)  # paths whose reads stop half-way
    calls: Counter[str] = field(default_factory=Counter)
    opened: dict[str, int] = field(default_factory=dict)  # path -> version at the last open
    in_flight: int = 0
    most_in_flight: int = 0
    open_handles: int = 0
    closed: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.directories: dict[str, list[str]] = {"/": []}

    def add(self, path: str, content: bytes, repeat: int = 1) -> None:
        self.files[path] = FakeFile(content, repeat=repeat)
        parent, name = os.path.split(path)
        while name:
            children = self.directories.setdefault(parent, [])
            if name in children:
                break
            children.append(name)
            parent, name = os.path.split(parent)

    def change(self, path: str, content: bytes, mtime_ns: int) -> None:
        old = self.files[path]
        self.files[path] = FakeFile(content, mtime_ns, old.version + 1)

    def _enter(self, operation: str, path: str) -> None:
        self.calls[operation] += 1
        delay_s = self.delays_s.get((operation, path))
        if delay_s is not None:
            with self.lock:
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self.closed.wait(delay_s)
            with self.lock:
                self.in_flight -= 1
        failure = self.failures.get((operation, path))
        if failure is not None:
            raise FAILURES[failure]

    def _node(self, path: str) -> FakeNode:
        name = path.rsplit("/", 1)[1]
        ino = zlib.crc32(path.encode()) + 2
        file = self.files.get(path)
        if file is not None:
            size = len(file.content) * file.repeat
            entry = Entry(name, path, False, size, file.mtime_ns, str(file.version), digest="d" * 32, id=f"id-{name}")
            return FakeNode(name, entry, ino, size, file.mtime_ns, False)
        if path in self.directories:
            entry = Entry(name, path, True, xsi_type="xnat:mrSessionData")
            return FakeNode(name, entry, ino, 0, MTIME_NS, True)
        if os.path.dirname(path) in self.files:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        raise NotFound(f"no {name}")

    def lookup(self, path: str) -> FakeNode:
        self._enter("lookup", path)
        return self._node(path)

    def listdir(self, path: str) -> list[FakeNode]:
        self._enter("listdir", path)
        if not self._node(path).is_dir:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        return [self._node(path.rstrip("/") + "/" + name) for name in self.directories[path]]

    def open(self, path: str) -> FakeHandle:
        self._enter("open", path)
        node = self._node(path)
        if node.is_dir:
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        file = self.files[path]
        keep = self.opened.get(path) == file.version
        self.opened[path] = file.version
        with self.lock:
            self.open_handles += 1
        return FakeHandle(node, keep, file.content, file.version, path)

    def pread_into(self, handle: FakeHandle, offset: int, buffer: memoryview) -> int:
        self._enter("read", handle.path)
        content, unit, done = handle.content, len(handle.content), 0
        if self.files[handle.path].version != handle.version:
            raise StaleContent("another version")
        stop = min(offset + len(buffer), handle.node.size)
        if handle.path in self.short:
            stop = min(stop, handle.node.size // 2)
        while offset + done < stop:
            at = (offset + done) % unit
            count = min(unit - at, stop - offset - done)
            buffer[done : done + count] = memoryview(content)[at : at + count]
            done += count
        self._enter("answer", handle.path)  # a change may come while the bytes are on their way
        return done

    def ensure_current(self, handle: FakeHandle) -> None:
        if self.files[handle.path].version != handle.version:
            raise StaleContent("another version")

    def cached_bytes(self, node: object) -> int:
        return 0

    def release(self, handle: FakeHandle) -> None:
        self._enter("release", handle.path)
        with self.lock:
            self.open_handles -= 1

    def close(self) -> None:
        self.closed.set()

    # --- control, each a line on stdin ---

    def obey(self, command: str, *arguments: Any) -> Any:
        if command == "add":
            self.add(arguments[0], arguments[1].encode(), *arguments[2:])
        elif command == "change":
            self.change(arguments[0], arguments[1].encode(), arguments[2])
        elif command == "fail":
            operation, path, failure = arguments
            if failure is None:
                self.failures.pop((operation, path), None)
            else:
                self.failures[operation, path] = failure
        elif command == "delay":
            self.delays_s[arguments[0], arguments[1]] = arguments[2]
        elif command == "short":
            self.short.add(arguments[0])
        elif command == "calls":
            return dict(self.calls)
        elif command == "state":
            return {"open": self.open_handles, "most_in_flight": self.most_in_flight, "threads": _native_threads()}
        else:
            raise ValueError(command)
        return None


def _native_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def small_tree() -> FakeVFS:
    """What the tests look at: a few files, a deep one, an empty one, names that need care."""
    vfs = FakeVFS()
    vfs.add("/readme.txt", b"hello\n")
    vfs.add("/empty", b"")
    vfs.add("/P1/S1/scan.bin", bytes(range(256)) * 4096)  # 1 MiB
    vfs.add("/P1/S1/big.bin", bytes(range(251)) * 20_000)  # 5 MB, no power of two
    vfs.add("/P1/na me/ünï 日本 \\x.txt", "café".encode())
    for number in range(300):
        vfs.add(f"/many/file-{number:04d}-with-a-name-that-fills-the-buffer", b"x" * number)
    return vfs


def serve() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("--fuse", default="auto")
    parser.add_argument("--attr-timeout", type=float, default=300.0)
    parser.add_argument("--files", type=int, nargs=2, default=None)
    parser.add_argument("--big", type=int, default=0, help="MiB")
    parser.add_argument("--told-limit", type=int, default=fuse_versions.TOLD_LIMIT)
    options = parser.parse_args()
    fuse_versions.TOLD_LIMIT = options.told_limit
    logging.basicConfig(level=logging.INFO)
    vfs = small_tree()
    if options.files:
        for directory in range(options.files[0]):
            for number in range(options.files[1]):
                vfs.add(f"/tree/d{directory:03d}/f{number:05d}.dcm", b"12345678")
    if options.big:
        vfs.add("/huge", os.urandom(1 << 20) * 64, options.big // 64)
    config = MountConfig(fuse=options.fuse, attr_timeout_s=options.attr_timeout)

    def control() -> None:
        for line in sys.stdin:
            print(json.dumps(vfs.obey(*json.loads(line))), flush=True)

    def ready() -> None:
        print("ready", flush=True)
        threading.Thread(target=control, daemon=True).start()

    fuse.mount(vfs, options.mountpoint, config, fsname="fake", ready=ready)  # type: ignore[arg-type]
    vfs.close()


class FakeMount:
    """``FakeVFS`` mounted in a process of its own."""

    def __init__(self, path: Path, *arguments: str) -> None:
        self.path = path
        self.log = path.parent / "fake.log"
        command = [sys.executable, "-m", "tests.helpers.fake_vfs", str(path), *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=Path(__file__).parents[2],
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line != "ready\n":
            self.process.wait()
            raise AssertionError(f"no mount: {line!r} {self.log.read_text()}")

    def tell(self, *command: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def calls(self) -> Counter[str]:
        return Counter(self.tell("calls"))

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 20.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        deadline_s = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.01)
        if self.process.poll() is None:
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        return self.process.wait()


if __name__ == "__main__":
    serve()
