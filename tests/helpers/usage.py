"""What processes and folders use of the machine, as the kernel counts it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def resident_bytes(pids: Iterable[int], field: str = "VmRSS") -> int:
    """Resident memory of these processes together, now; ``field="VmHWM"`` for each one's highest so far."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
    if not total:
        raise AssertionError("no process was named")
    return total


def disk_used(folder: Path) -> int:
    """Bytes on disk below a folder, as `du` counts them; what vanishes meanwhile counts as nothing."""
    total = 0
    pending = [folder]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            continue
    return total
