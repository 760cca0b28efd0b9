"""One restless reader: reads two mounts in every way at random and compares each byte with a copy of the truth.

``python -m tests.soak.reader SEED SECONDS TRUTH MOUNT...`` prints its counts as JSON at the end. A wrong byte is
printed at once and ends it with 1. An error is an outcome like any other: what it may be is for the caller to judge.
"""

from __future__ import annotations

import collections
import errno
import json
import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

_DIFFERS, _BROKEN = 250, 251  # exit codes of a child that are no errno

LARGEST = 300_000  # bytes of one read


class Reader:
    def __init__(self, seed: int, truth: Path, mounts: list[Path]) -> None:
        self._chance = random.Random(seed)
        self._mounts = mounts
        self._truth = truth
        self._names = sorted(str(path.relative_to(truth)) for path in truth.rglob("*") if path.is_file())
        self.counts: collections.Counter[str] = collections.Counter()
        self.bytes = 0
        self.longest_s = 0.0

    def step(self) -> None:
        name = self._chance.choice(self._names)
        way = self._chance.choice((self._spans, self._forward, self._mapped, self._listed))
        path = self._chance.choice(self._mounts) / name
        began = time.monotonic()
        try:
            way(path, (self._truth / name).read_bytes())
            outcome = "right"
        except OSError as error:
            outcome = errno.errorcode.get(error.errno or 0, str(error))
        self.counts[outcome] += 1
        self.longest_s = max(self.longest_s, time.monotonic() - began)

    def _compare(self, path: Path, offset: int, found: bytes, wanted: bytes) -> None:
        if found != wanted:
            _wrong(path, offset, found, wanted)
        self.bytes += len(found)

    def _spans(self, path: Path, truth: bytes) -> None:
        """pread here and there, across ends of blocks and of the file."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for _ in range(self._chance.randrange(1, 30)):
                offset = self._chance.randrange(0, len(truth) + 1000)
                size = self._chance.choice((1, 100, 4096, 131_072, self._chance.randrange(1, LARGEST)))
                self._compare(path, offset, _whole(descriptor, size, offset), truth[offset : offset + size])
        finally:
            os.close(descriptor)

    def _forward(self, path: Path, truth: bytes) -> None:
        """From the start on, now and then to the end."""
        step = self._chance.choice((4096, 65_536, 1 << 20))
        stop = len(truth) + 1 if self._chance.random() < 0.3 else self._chance.randrange(0, 8 << 20)
        with path.open("rb", buffering=0) as file:
            offset = 0
            while offset < stop:
                piece = _whole(file.fileno(), step, offset)
                self._compare(path, offset, piece, truth[offset : offset + step])
                offset += step

    def _mapped(self, path: Path, truth: bytes) -> None:
        """Through memory. An error there is a signal, so a child does it."""
        spans = [(self._chance.randrange(len(truth) or 1), self._chance.randrange(1, LARGEST)) for _ in range(5)]
        child = os.fork()
        if child == 0:
            code = _BROKEN
            try:
                descriptor = os.open(path, os.O_RDONLY)
                if truth:
                    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as view:
                        same = all(view[at : at + size] == truth[at : at + size] for at, size in spans)
                        code = 0 if same else _DIFFERS
                else:
                    code = 0
            except OSError as error:
                code = error.errno or _BROKEN
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code in (_DIFFERS, _BROKEN):
            _wrong(path, 0, b"mapped", b"")
        if code == -signal.SIGBUS:
            raise OSError(errno.EIO, "SIGBUS")
        if code:
            raise OSError(code, "in the child")

    def _listed(self, path: Path, truth: bytes) -> None:
        if path.name not in os.listdir(path.parent):
            _wrong(path.parent, 0, b"a listing without " + os.fsencode(path.name), b"")
        if path.stat().st_size != len(truth):
            _wrong(path, 0, b"a size of %d" % path.stat().st_size, b"%d" % len(truth))


def _whole(descriptor: int, size: int, offset: int) -> bytes:
    """All bytes there are: the kernel may stop before a page that failed, and gives the error with the next read.

    No bytes at all is the end of the file, and has to be.
    """
    found = b""
    while len(found) < size and (piece := os.pread(descriptor, size - len(found), offset + len(found))):
        found += piece
    return found


def _wrong(path: Path, offset: int, found: bytes, wanted: bytes) -> NoReturn:
    sys.stdout.write(f"WRONG {path} at {offset}: {len(found)} bytes {found[:40]!r} for {len(wanted)} {wanted[:40]!r}\n")
    sys.stdout.flush()
    os._exit(1)


def main() -> None:
    seed, seconds, truth, *mounts = sys.argv[1:]
    reader = Reader(int(seed), Path(truth), [Path(mount) for mount in mounts])
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        reader.step()
    facts = {"counts": reader.counts, "bytes": reader.bytes, "longest_s": round(reader.longest_s, 2)}
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
