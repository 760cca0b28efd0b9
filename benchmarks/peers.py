"""Who is measured: xnatfs by its command line, rclone mount, curl. Each is a context manager; times nothing itself.

Everything runs in processes of its own, with a home and a cache directory of its own, against one demo server.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.mounting import answers, detach, is_mounted, user_environment
from tests.helpers.server import DemoServer

ROOT = Path(__file__).resolve().parents[1]
WAIT_S = 30.0


@dataclass(frozen=True)
class RemoteFile:
    """One file of the demo server's sample."""

    name: str
    path: str  # below the mount point of xnatfs
    uri: str
    size: int


def big_file(server: DemoServer, name: str) -> RemoteFile:
    """One of the sample's large files, by its name."""
    row: dict[str, Any] = next(row for row in server.truth("BIG") if row["name"] == name)
    parts = [row["project"], row["subject"], row["experiment"], "scans", f"{row['item']}-{row['item_type']}"]
    return RemoteFile(name, "/".join([*parts, row["resource"], row["path"]]), row["uri"], row["size"])


class Xnatfs:
    """`xnatfs mount` and `xnatfs umount`. A second ``mounted`` with the same room is a remount: its cache is kept."""

    name = "xnatfs"

    def __init__(self, server: DemoServer, room: Path, *options: str) -> None:
        self._server = server
        self._room = room
        self._options = options
        self._environment = user_environment(room / "home", server.user, server.password)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        point = self._room / "mnt"
        point.mkdir(parents=True, exist_ok=True)
        cache = ("--cache-dir", str(self._room / "cache"))
        self._run("mount", *cache, *self._options, self._server.url, str(point))
        try:
            yield point
        finally:
            try:
                self._run("umount", str(point))
            finally:
                if is_mounted(point):
                    detach(point)

    def forget(self) -> None:
        """Empty the cache: the next read is a cold one."""
        shutil.rmtree(self._room / "cache", ignore_errors=True)

    def _run(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "xnatfs", *arguments]
        # Not captured by pipes: the mount's own process would keep them open.
        with (self._room / "log").open("ab") as log:
            done = subprocess.run(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=120,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments[:1])} failed: {(self._room / 'log').read_text()[-2000:]}")


class Rclone:
    """`rclone mount` of the same server's files, through an index page, with the options that serve it best here.

    Chunked reading is off: it asks for ranges, which XNAT answers with whole files.
    """

    name = "rclone mount"
    options = ("--read-only", "--vfs-read-chunk-size", "off")

    def __init__(self, server: DemoServer, room: Path, files: Sequence[RemoteFile]) -> None:
        parts = urllib.parse.urlsplit(server.url)
        login = f"{server.user}:{server.password}@"
        base = f"{parts.scheme}://{login}{parts.netloc}{parts.path}"
        self._links = {file.name: {"url": base + urllib.parse.quote(file.uri), "size": file.size} for file in files}
        self._room = room

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        point = self._room / "mnt"
        point.mkdir(parents=True, exist_ok=True)
        environment = user_environment(self._room / "home", None, None) | {"RCLONE_CONFIG": str(self._room / "no.conf")}
        with _index_server(self._links) as url, (self._room / "log").open("ab") as log:
            command = ["rclone", "mount", ":http:", str(point), "--http-url", url, *self.options]
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                _wait_for(point, process, self._room / "log")
                yield point
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(WAIT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                if is_mounted(point):
                    detach(point)


@contextlib.contextmanager
def _index_server(links: dict[str, dict[str, object]]) -> Iterator[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "index_server.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(links) + "\n")
        process.stdin.flush()
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(WAIT_S)
        process.stdout.close()


def _wait_for(point: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + WAIT_S
    while not answers(point):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"no mount: {log.read_text()[-2000:]}")
        time.sleep(0.02)


def curl(server: DemoServer, file: RemoteFile) -> None:
    """Fetch a file to nowhere: what the server, loopback and HTTP allow."""
    url = server.url + urllib.parse.quote(file.uri)
    command = ["curl", "-sSf", "-o", "/dev/null", "-u", f"{server.user}:{server.password}", url]
    subprocess.run(command, check=True, env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"})


def versions() -> dict[str, str]:
    """What was measured: programs, Python, kernel."""
    import xnatfs

    found = {"xnatfs": xnatfs.__version__, "python": sys.version.split()[0], "kernel": os.uname().release}
    for program in ("rclone", "curl"):
        if shutil.which(program):
            text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
            found[program] = text.split()[1]
    return found
