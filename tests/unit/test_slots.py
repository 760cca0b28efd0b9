"""How many transfers run at once: all connections for files that end soon, all but one for those that may pause."""

from __future__ import annotations

import threading
import time

import pytest

from tests.helpers.trees import run_together
from xnatfs.archives.memory import MemoryArchive
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.config import KIB, MIB, ReadConfig
from xnatfs.reading.reader import BlockReader

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
