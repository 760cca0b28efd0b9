"""File systems that are measured: xnatfs by its command line, and rclone mount, httpdirfs and fsspec.fuse beside it.

Everything runs in processes of its own, with a home and a cache directory of its own, against one demo server. The
peers know only directory pages, which XNAT has not: they read the same files from the demo server's /index/. Times
nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.mounting import answers, detach, is_mounted, processes_naming, user_environment
from tests.helpers.server import DemoServer

ROOT = Path(__file__).resolve().parents[1]
WAIT_S = 30.0
END_S = 2.0  # for a peer to end: one that was stopped in the middle of its job may never
HANG_S = 120.0  # a mount that is still there after this long has hung: no job is given as much time


@dataclass(frozen=True)
class RemoteFile:
    """One file of the demo server's sample.

    Attributes:
        path: Below the mount point of xnatfs.
        page_path: Below /index/ of the demo server, and so below the mount point of a peer.
    """

    name: str
    path: str
    page_path: str
    uri: str
    size: int


def remote_file(row: dict[str, Any]) -> RemoteFile:
    """A file of a scan, from the server's truth about it."""
    parts = [row["project"], row["subject"], row["experiment"], "scans", f"{row['item']}-{row['item_type']}"]
    page = [row["project"], row["experiment"], row["item"], row["resource"], row["path"]]
    path = "/".join([*parts, row["resource"], row["path"]])
    return RemoteFile(row["name"], path, "/".join(page), row["uri"], row["size"])


def big_file(server: DemoServer, name: str) -> RemoteFile:
    """One of the sample's large files, by its name."""
    return remote_file(next(row for row in server.truth("BIG") if row["name"] == name))


class Xnatfs:
    """`xnatfs mount` and `xnatfs umount`. A second ``mounted`` with the same room is a remount: its cache is kept."""

    name = "xnatfs"

    def __init__(self, server: DemoServer, room: Path, *options: str, source: str = "") -> None:
        self._source = source or server.url
        self.room = room
        self._options = options
        self._environment = user_environment(room / "home", server.user, server.password)

    @property
    def cache(self) -> Path:
        return self.room / "cache"

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        point = self.mount()
        try:
            yield point
        finally:
            self.unmount()

    def mount(self) -> Path:
        """Mount, and return when the command has."""
        point = self.room / "mnt"
        point.mkdir(parents=True, exist_ok=True)
        self._run("mount", "--cache-dir", str(self.cache), *self._options, self._source, str(point))
        return point

    def unmount(self) -> None:
        point = self.room / "mnt"
        try:
            self._run("umount", str(point))
        finally:
            if is_mounted(point):
                detach(point)

    def pids(self) -> list[int]:
        return processes_naming(self.room / "mnt")

    def forget(self) -> None:
        """Empty the cache: the next read is a cold one."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def _run(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "xnatfs", *arguments]
        # Not captured by pipes: the mount's own process would keep them open.
        with (self.room / "log").open("ab") as log:
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
            raise RuntimeError(f"{' '.join(arguments[:1])} failed: {(self.room / 'log').read_text()[-2000:]}")


class Peer:
    """A read-only mount of the demo server's directory pages, in the foreground of a process of its own.

    Attributes:
        needs_range: It refuses, or fails with, a server that ignores Range, as XNAT does. While it is mounted the
            server honours Range, which its name says.
    """

    name = ""
    needs_range = False

    def __init__(self, server: DemoServer, room: Path) -> None:
        self.server = server
        self.room = room
        self.process: subprocess.Popen[bytes] | None = None

    def missing(self) -> str:
        """Why it cannot be run here; "" when it can."""
        raise NotImplementedError

    def command(self, point: Path) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Its settings, where they are not flags."""
        return {}

    @property
    def login(self) -> str:
        return f"{self.server.user}:{self.server.password}"

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        point = self.room / "mnt"
        point.mkdir(parents=True, exist_ok=True)
        environment = user_environment(self.room / "home", None, None, self.environment())
        if self.needs_range:
            self.server.switch(range=True)
        try:
            with (self.room / "log").open("ab") as log:
                command = self.command(point)
                process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                self.process = process
                # Whatever waits for a hung peer, we ourselves or a reader that was killed, waits until it is gone.
                hung = threading.Timer(HANG_S, process.kill)
                hung.daemon = True
                hung.start()
                try:
                    self._wait(point, process)
                    yield point
                finally:
                    hung.cancel()
                    _end(process)
                    if is_mounted(point):
                        detach(point)
        finally:
            if self.needs_range:
                self.server.switch(range=False)

    def pids(self) -> list[int]:
        return [self.process.pid] if self.process is not None else []

    def forget(self) -> None:
        """Empty its cache, if it keeps one."""
        shutil.rmtree(self.room / "cache", ignore_errors=True)

    def _wait(self, point: Path, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + WAIT_S
        while not answers(point):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"no mount: {(self.room / 'log').read_text(errors='replace')[-2000:]}")
            time.sleep(0.005)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)


class Rclone(Peer):
    """`rclone mount` with the options that serve it best here.

    Chunked reading is off: it asks for ranges, which XNAT answers with whole files. Cookies are on: otherwise each
    request would open a session on the server.
    """

    name = "rclone mount"
    options: tuple[str, ...] = ("--vfs-read-chunk-size", "off")

    def missing(self) -> str:
        return "" if shutil.which("rclone") else "rclone is not installed"

    def command(self, point: Path) -> list[str]:
        parts = urllib.parse.urlsplit(self.server.url)
        url = f"{parts.scheme}://{self.login}@{parts.netloc}{parts.path}/index/"
        own = ["--config", str(self.room / "no.conf"), "--cache-dir", str(self.room / "cache")]
        return [
            "rclone",
            "mount",
            ":http:",
            str(point),
            "--http-url",
            url,
            "--read-only",
            "--use-cookies",
            *own,
            *self.options,
        ]


class RcloneFullCache(Rclone):
    """`rclone mount` that keeps what was read on disk."""

    name = "rclone mount, full cache"
    options = ("--vfs-cache-mode", "full")


class RcloneNames(Rclone):
    """`rclone mount` that does not ask for sizes: fewer requests where only names matter."""

    name = "rclone mount, names only"
    options = ("--http-no-head",)


class RcloneBucket(Rclone):
    """`rclone mount` of a bucket, as a guest; dates as the listing has them, not by a HEAD for each file."""

    options = ("--use-server-modtime",)
    bucket = ""

    def environment(self) -> dict[str, str]:
        settings = {"TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": self.server.url, "LIST_VERSION": "2"}
        return {f"RCLONE_CONFIG_BUCKET_{name}": value for name, value in settings.items()}

    def command(self, point: Path) -> list[str]:
        own = ["--config", str(self.room / "no.conf"), "--cache-dir", str(self.room / "cache")]
        return ["rclone", "mount", f"bucket:{self.bucket}", str(point), "--read-only", *own, *self.options]


class Httpdirfs(Peer):
    """With its cache: without, each 128 KiB of a read is a request that takes it a tenth of a second."""

    name = "httpdirfs, Range on"
    needs_range = True

    def missing(self) -> str:
        return "" if shutil.which("httpdirfs") else "httpdirfs is not installed"

    def command(self, point: Path) -> list[str]:
        cache = self.room / "cache"
        cache.mkdir(exist_ok=True)
        own = ["-u", self.server.user, "-p", self.server.password, "--cache", "--cache-location", str(cache)]
        return ["httpdirfs", "-f", *own, f"{self.server.url}/index", str(point)]


class FsspecFuse(Peer):
    name = "fsspec.fuse, Range on"
    needs_range = True

    def missing(self) -> str:
        wanted = [name for name in ("fsspec", "fuse", "aiohttp") if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(wanted)}" if wanted else ""

    def command(self, point: Path) -> list[str]:
        script = ROOT / "benchmarks" / "fsspec_mount.py"
        return [sys.executable, str(script), f"{self.server.url}/index", str(point), self.login]


MOUNTS: tuple[type[Peer], ...] = (Rclone, Httpdirfs, FsspecFuse)
