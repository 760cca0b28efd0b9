"""How many transfers run at once: all connections for files that end soon, all but one for those that may pause."""

from __future__ import annotations

import threading
import time

import pytest

from tests.helpers.trees import run_together
from xnatfs.archives.memory import MemoryArchive
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.config import KIB, MIB, ReadConfig
from xnatfs.errors import Unavailable
from xnatfs.reading import transfer
from xnatfs.reading.reader import BlockReader
from xnatfs.turns import current_turn

BLOCK = 128 * KIB


class Crowd:
    """For ``MemoryArchive(before=...)``: lets requests take a while and counts how many are under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.most = 0

    def __call__(self, operation: str, key: str) -> None:
        if operation != "open_range":
            return
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.05)
        with self._lock:
            self._now -= 1


@pytest.mark.parametrize(("size", "most"), [(BLOCK, 4), (3 * BLOCK, 3)])
def test_short_files_use_every_connection_and_long_ones_leave_one(size: int, most: int) -> None:
    crowd = Crowd()
    files = {f"{number}": bytes([number]) * size for number in range(24)}
    archive = MemoryArchive(files, ranged=False, before=crowd)
    config = ReadConfig(max_window=MIB, timeout_s=10.0, max_transfers=3, brief_transfers=1)
    reader = BlockReader(archive, MemoryBlocks(64 * MIB), config, BLOCK)

    def read(part: int) -> None:
        for entry in archive.children(archive.root()).children[""][part::12]:
            file = reader.open(entry)
            assert reader.pread(file, 0, size) == files[entry.name]
            reader.release(file)

    assert run_together([lambda part=part: read(part) for part in range(12)]) == [None] * 12
    reader.close()
    assert crowd.most == most


class Silent:
    """For ``MemoryArchive(before=...)``: requests for some files are not answered until they are told to go on."""

    def __init__(self, *names: str) -> None:
        self._keys = tuple(f"/{name}" for name in names)
        self.speaks = threading.Event()
        self.begun = threading.Semaphore(0)

    def __call__(self, operation: str, key: str) -> None:
        turn = current_turn()
        if operation == "open_range" and key in self._keys and not self.speaks.is_set():
            assert turn is not None
            left = threading.Event()
            turn.waits_with(left.set)
            self.begun.release()
            while not (left.wait(0.01) or self.speaks.is_set()):
                pass
            if left.is_set():
                raise Unavailable("given up")


def test_silent_transfers_give_way_and_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "STALLED_S", 0.1)
    silent = Silent("0", "1")
    files = {f"{number}": bytes([number]) * BLOCK for number in range(3)}
    archive = MemoryArchive(files, ranged=False, before=silent)
    config = ReadConfig(max_window=MIB, timeout_s=30.0, max_transfers=2, brief_transfers=0)
    reader = BlockReader(archive, MemoryBlocks(64 * MIB), config, BLOCK)
    entries = {entry.name: entry for entry in archive.children(archive.root()).children[""]}

    def read(name: str) -> bytes:
        file = reader.open(entries[name])
        try:
            return reader.pread(file, 0, BLOCK)
        finally:
            reader.release(file)

    def read_the_third() -> bytes:
        for _ in range(2):
            silent.begun.acquire(timeout=30.0)
        third = read("2")
        silent.speaks.set()
        return third

    got: dict[str, bytes] = {}
    assert (
        run_together(
            [
                lambda: got.update({"0": read("0")}),
                lambda: got.update({"1": read("1")}),
                lambda: got.update({"2": read_the_third()}),
            ]
        )
        == [None] * 3
    )
    reader.close()
    assert got == files
