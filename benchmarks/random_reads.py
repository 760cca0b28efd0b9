"""Reads 4 KB at random places of one file; prints {"reads": n, "seconds": s}.

python benchmarks/random_reads.py FILE plain|direct READS SECONDS [READERS]

``direct`` opens with O_DIRECT, so that the kernel neither answers from its page cache nor reads ahead. Ends after READS
reads or SECONDS seconds. READERS threads share them.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import sys
import threading
import time

SIZE = 4096


def main() -> None:
    path, mode, reads, limit_s = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    readers = int(sys.argv[5]) if len(sys.argv) > 5 else 1
    file = os.open(path, os.O_RDONLY | (os.O_DIRECT if mode == "direct" else 0))
    pages = os.fstat(file).st_size // SIZE
    counts = [0] * readers
    faults: list[BaseException] = []

    def read(number: int) -> None:
        places = random.Random(number)
        page = mmap.mmap(-1, SIZE)  # O_DIRECT wants aligned memory
        for _ in range(reads // readers):
            if time.perf_counter() > end:
                return
            try:
                if os.preadv(file, [page], places.randrange(pages) * SIZE) != SIZE:
                    raise RuntimeError("a short read")
            except (OSError, RuntimeError) as exc:
                faults.append(exc)
                return
            counts[number] += 1

    start = time.perf_counter()
    end = start + limit_s
    threads = [threading.Thread(target=read, args=(number,)) for number in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    print(json.dumps({"reads": sum(counts), "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
