"""What a mount uses of the machine: numbers 14 (memory) and 15 (disk)."""

from __future__ import annotations

import os
import threading

from large_files import side_by_side
from listings import resident_mb
from measure import Row, Series, at_most, at_most_always, read_through, run
from peers import Rclone, big_file
from tasks import Bench, measures, must_run

from tests.helpers.usage import disk_used

SAMPLE_S = 0.1
MEBI = 2**20


@measures(14)
def memory(bench: Bench) -> list[Row]:
    """Resident memory of a mount: idle, at most during a cold read of 1 GB, at most with 32 readers."""
    big = big_file(bench.server, "bold_100m.nii" if bench.quick else "bold_1g.nii")
    files = [big_file(bench.server, name) for name in ("bold_1g.nii", "bold_500m.nii", "bold_100m.nii")]
    if bench.quick:
        files = files[2:]
    used = Series()
    (rclone,) = bench.peers(Rclone)
    for _ in range(bench.few):
        xnatfs = bench.xnatfs("memory")
        with xnatfs.mounted() as point:
            os.listdir(point)
            used.add("idle", resident_mb(xnatfs))
            read_through(point / big.path, big.size)
            used.add("read", resident_mb(xnatfs, "VmHWM"))
        xnatfs = bench.xnatfs("memory")
        with xnatfs.mounted() as point:
            session = point / "BENCH" / "BENCH_1" / "BENCH_2000_FILES" / "scans"
            folders = sorted(session.iterdir())[:8]
            whole = [file for _ in range(24 // len(files)) for file in files]
            readers = [lambda file=file: read_through(point / file.path, file.size) for file in whole]
            readers += [lambda folder=folder: run(["tar", "-cf", "/dev/null", "-C", folder, "."]) for folder in folders]
            side_by_side(readers)
            used.add("many", resident_mb(xnatfs, "VmHWM"))

        def theirs() -> float:
            must_run(rclone)
            with rclone.mounted() as point:
                read_through(point / big.page_path, big.size, bench.patience_s)
                return resident_mb(rclone, "VmHWM")

        used.attempt(rclone.name, theirs)
    size = f"{big.size / 1e9:.2g} GB"
    return [
        at_most(14, "resident memory, idle", "xnatfs", "MB", used["idle"], 80),
        at_most(14, f"highest during a read of {size}", "xnatfs", "MB", used["read"], 150),
        at_most(14, "highest with 32 readers", "xnatfs", "MB", used["many"], 400),
        *used.rows(14, f"highest during a read of {size}", "MB", [rclone.name]),
    ]


@measures(15)
def disk(bench: Bench) -> list[Row]:
    """Disk used by the cache, looked at every 100 ms while six readers read several times its cap."""
    cap = 32 * MEBI if bench.quick else 256 * MEBI
    names = ("bold_100m.nii",) if bench.quick else ("bold_1g.nii", "bold_500m.nii", "bold_100m.nii")
    files = [big_file(bench.server, name) for name in names]
    xnatfs = bench.xnatfs("disk", "--cache-size", str(cap))
    samples: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_S):
            samples.append(disk_used(xnatfs.cache) / MEBI)

    with xnatfs.mounted() as point:
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            side_by_side([lambda file=file: read_through(point / file.path, file.size) for file in files * 2])
        finally:
            over.set()
            watcher.join()
    samples.append(disk_used(xnatfs.cache) / MEBI)
    what = f"disk used, cap {cap // MEBI} MiB, {len(samples)} samples"
    return [at_most_always(15, what, "xnatfs", "MiB", samples, cap // MEBI + 64)]
