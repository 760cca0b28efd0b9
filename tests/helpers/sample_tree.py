"""A tree in memory with every kind of name and size, and the doors through which the conformance suite looks at it.

Run as a program, ``python -m tests.helpers.sample_tree MOUNTPOINT 2|3``, it mounts the tree with that version of
libfuse, says "ready" on stdout and serves until it is unmounted. No pytest here.
"""

from __future__ import annotations

import errno
import gc
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tests.helpers.mounting import detach
from tests.helpers.trees import build_vfs
from xnatfs.archives.memory import MemoryArchive, Tree
from xnatfs.config import MountConfig
from xnatfs.frontends import fuse
from xnatfs.frontends.fsspec import ArchiveFileSystem
from xnatfs.model import Entry
from xnatfs.tree.vfs import ArchiveVFS

LARGE = b"".join(number.to_bytes(4, "big") for number in range(800_000))  # 3.2 MB, no two blocks alike

TREE: Tree = {
    "P": {
        "resources": {"docs": {"notes.txt": b"notes", "empty": b""}},
        "reserved": {"one": b"1"},
        "S1": {"scans": {"3-T1w": {"DICOM": {f"{n:03}.dcm": f"slice {n}".encode() for n in range(300)}}}},
        "S2": {},
        ".xnat": {"item.json": b'{"label": "P"}'},
        "large.nii": LARGE,
    },
    "names": {
        "a/b": b"slash",
        "a_b": b"underscore",
        "..": b"dots",
        "": b"empty name",
        "n" * 300: b"long",
        "\u00dcbung \u5b57 \U0001f600": b"unicode",
        "Zoe\u0308": b"decomposed",
        "two\nlines\t'quoted' \"twice\" \\": b"awkward",
        "-rf": b"dash",
        "*?[x]": b"glob",
        "percent%2F": b"percent",
    },
}
"""What the archive serves; ``described`` says which of it is hidden or has an alias."""


def described(entry: Entry) -> Entry:
    """S1 answers to its ID as well, .xnat is hidden and unlisted."""
    if entry.name == "S1":
        return replace(entry, aliases=("XNAT_S00001",))
    return replace(entry, hidden=entry.name == ".xnat")


def sample_vfs() -> ArchiveVFS:
    return build_vfs(MemoryArchive(TREE, ranged=False, describe=described))[0]


@dataclass(frozen=True)
class Facts:
    is_dir: bool
    size: int
    mtime_ns: int
    ino: int


class Door(Protocol):
    """One way to look at the tree. Paths begin with "/". Errors are OSErrors with an errno."""

    def names(self, path: str) -> list[str]: ...

    def facts(self, path: str) -> Facts: ...

    def read(self, path: str, offset: int, size: int) -> bytes: ...


class VfsDoor:
    """The VFS itself."""

    def __init__(self, vfs: ArchiveVFS) -> None:
        self._vfs = vfs

    def names(self, path: str) -> list[str]:
        return [node.name for node in self._vfs.listdir(path)]

    def facts(self, path: str) -> Facts:
        node = self._vfs.lookup(path)
        return Facts(node.is_dir, node.size, node.mtime_ns, node.ino)

    def read(self, path: str, offset: int, size: int) -> bytes:
        handle = self._vfs.open(path)
        try:
            return self._vfs.pread(handle, offset, size)
        finally:
            self._vfs.release(handle)


class FsspecDoor:
    """The tree as an fsspec file system, asked as libraries ask it."""

    def __init__(self, fs: ArchiveFileSystem) -> None:
        self._fs = fs

    def names(self, path: str) -> list[str]:
        found = self._fs.ls(path, detail=False)
        if found == [path]:  # fsspec lists a file as itself
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return [each.rpartition("/")[2] for each in found]

    def facts(self, path: str) -> Facts:
        found = self._fs.info(path)
        return Facts(found["type"] == "directory", found["size"], round((found["mtime"] or 0) * 1e9), found["ino"])

    def read(self, path: str, offset: int, size: int) -> bytes:
        with self._fs.open(path) as file:
            file.seek(offset)
            data = file.read(size)
        assert self._fs.cat_file(path, offset, offset + size) == data
        return bytes(data)


@contextmanager
def file_system(vfs: ArchiveVFS) -> Iterator[ArchiveFileSystem]:
    """A file system over a tree that is there already, in place of one that a URL names; closes the tree at the end."""
    fs = ArchiveFileSystem(f"https://sample-{id(vfs)}.invalid", skip_instance_cache=True)
    fs._build = lambda: vfs
    assert fs.vfs is vfs  # open from here on, so that its closing thread belongs to whoever asked
    try:
        yield fs
    finally:
        fs.close()
        gc.collect()  # what was raised holds the frames that it went through, and they the tree


class MountDoor:
    """The same tree mounted by a process of its own: a process that uses its own mount can hang beyond help."""

    def __init__(self, mountpoint: Path, libfuse: str) -> None:
        self._root = os.fspath(mountpoint)
        self._mountpoint = mountpoint
        command = [sys.executable, "-m", "tests.helpers.sample_tree", self._root, libfuse]
        top = Path(__file__).parents[2]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=top, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            self.close()
            raise RuntimeError(f"no mount with libfuse {libfuse}: {line!r}")

    def names(self, path: str) -> list[str]:
        return os.listdir(self._root + path)

    def facts(self, path: str) -> Facts:
        found = os.lstat(self._root + path)
        is_dir = stat.S_ISDIR(found.st_mode)
        return Facts(is_dir, 0 if is_dir else found.st_size, found.st_mtime_ns, found.st_ino)

    def read(self, path: str, offset: int, size: int) -> bytes:
        fd = os.open(self._root + path, os.O_RDONLY)
        try:
            return os.pread(fd, size, offset)
        finally:
            os.close(fd)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        detach(self._mountpoint)
        assert self._process.stdout is not None
        self._process.stdout.close()


def serve(mountpoint: Path, libfuse: str) -> None:
    with closing(sample_vfs()) as vfs:
        config = MountConfig(fuse=libfuse)
        fuse.mount(vfs, mountpoint, config, fsname="sample", ready=lambda: print("ready", flush=True))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2])
