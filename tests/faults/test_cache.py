"""A cache directory that fills up, cannot be written, goes away or rots: reads stay right, and it is used again."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.matrix import BOUND_S, Bench, TrueBytes, sampled
from tests.helpers.mounting import Mount, mounted, user_environment, xnatfs
from tests.helpers.outcomes import cat, crowd
from tests.helpers.server import DemoServer

pytestmark = pytest.mark.fuse

MIB = 1024 * 1024
ARGUMENTS = ("--timeout", "10s", "--block-size", "128K", "--no-bulk", "--memory", "1M", "--min-free", "0%")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with DemoServer(sample="full", range="on") as server:
        yield server


@contextlib.contextmanager
def bench_on(server: DemoServer, room: Path, *arguments: str) -> Iterator[Bench]:
    with mounted(server.url, room, *ARGUMENTS, *arguments, user="demo", password="demo") as mount:
        yield Bench(server, mount)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB at the place of the cache of a mount in ``tmp_path``."""
    disk = tmp_path / "cache"
    disk.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "none", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def assert_all_right(files: list[TrueBytes], threads: int = 8) -> None:
    results = crowd((file.path for file in files), threads, 12 * BOUND_S).results()
    assert [(read.errno, read.md5) for read in results] == [(0, file.md5) for file in files]


def requests_for(bench: Bench, file: TrueBytes) -> int:
    """How many requests one more reading takes, the kernel's pages dropped."""
    bench.server.clear_log()
    descriptor = os.open(file.path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    file.assert_right(cat(file.path, BOUND_S).output)
    return len(bench.server.data_requests())


def assert_caches_again(bench: Bench) -> None:
    """What is read from now on is kept on disk: soon a second reading asks for nothing, others having come between."""
    for _ in range(4):
        file = bench.fresh()
        assert_all_right([file, *(bench.fresh() for _ in range(12))])  # 2.5 MB go through a memory of 1 MB
        if not requests_for(bench, file):
            return
        time.sleep(1.0)
    raise AssertionError("nothing is kept")


@as_root
def test_a_full_disk_costs_no_read_and_is_used_again_when_there_is_room(
    server: DemoServer, tmp_path: Path, small_disk: Path
) -> None:
    with bench_on(server, tmp_path) as bench:
        (small_disk / "somebody else's").write_bytes(b"x" * (2 * MIB))
        assert_all_right([bench.fresh() for _ in range(40)])  # 8 MB
        with contextlib.suppress(OSError):
            (small_disk / "more of it").write_bytes(b"x" * (4 * MIB))
        assert_all_right([bench.fresh() for _ in range(20)])
        for path in small_disk.glob("*e*of it"):
            path.unlink()
        (small_disk / "somebody else's").unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        assert_caches_again(bench)


@as_root
def test_a_disk_that_becomes_read_only_costs_no_read_and_is_used_again(
    server: DemoServer, tmp_path: Path, small_disk: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    with bench_on(server, tmp_path) as bench:
        known = [bench.fresh() for _ in range(4)]
        assert_all_right(known)
        time.sleep(0.5)  # written by then
        lock = subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], capture_output=True, check=False)
        if lock.returncode:  # files are open for writing: as a disk that fails under its users does
            subprocess.run(["mount", "--bind", str(small_disk), str(small_disk)], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", str(small_disk)], check=True)
        assert_all_right([*known, *(bench.fresh() for _ in range(8))])
        if lock.returncode:
            subprocess.run(["umount", str(small_disk)], check=True)
        else:
            subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        assert_caches_again(bench)


def test_a_cache_removed_while_mounted_costs_no_read_and_is_made_again(server: DemoServer, tmp_path: Path) -> None:
    with bench_on(server, tmp_path) as bench:
        known = [bench.fresh() for _ in range(4)]
        assert_all_right(known)
        shutil.rmtree(bench.mount.cache)
        assert_all_right([*known, *(bench.fresh() for _ in range(8))])
        assert_caches_again(bench)
        assert (bench.mount.cache.stat().st_mode & 0o777) == 0o700


@pytest.mark.parametrize("bad", ["open to all", "a symbolic link", "a file"])
def test_a_cache_that_others_could_have_filled_is_not_used(server: DemoServer, tmp_path: Path, bad: str) -> None:
    cache = tmp_path / "cache"
    if bad == "open to all":
        cache.mkdir()
        cache.chmod(0o777)
    elif bad == "a symbolic link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        cache.symlink_to(tmp_path / "elsewhere")
    else:
        cache.write_text("not a directory")
    mount = Mount(server.url, tmp_path, ARGUMENTS, "demo", "demo")
    try:
        mount.start()
    except AssertionError as refused:
        assert "cache" in str(refused)
    else:
        file = Bench(server, mount).fresh()
        file.assert_right(cat(file.path, BOUND_S).output)
        assert "cache" in mount.log.read_text()
    finally:
        mount.stop()
    kept = [path for path in tmp_path.rglob("*") if "cache" in path.parts or "elsewhere" in path.parts]
    assert not [path for path in kept if path.is_file() and path.stat().st_size > 64 * 1024]


# --- rot ------------------------------------------------------------------------------------------------------------

Damage = Callable[[bytearray], bytes]


def flip_a_bit(data: bytearray) -> bytes:
    data[len(data) // 2] ^= 1
    return bytes(data)


def flip_in_the_header(data: bytearray) -> bytes:
    data[9] ^= 0x80
    return bytes(data)


def flip_in_each_block(data: bytearray) -> bytes:
    for place in (70_000, 140_000):
        data[place] ^= 4
    return bytes(data)


DAMAGES: dict[str, Damage] = {
    "a bit flipped in the data": flip_a_bit,
    "a bit flipped in the header": flip_in_the_header,
    "cut in half": lambda data: bytes(data[: len(data) // 2]),
    "empty": lambda data: b"",
    "zeroes": lambda data: bytes(len(data)),
    "a bit flipped in the data of each block": flip_in_each_block,
    "zeroes behind its header": lambda data: bytes(data[:4096]) + bytes(len(data) - 4096),
    "a pickle": lambda data: pickle.dumps(Trap()) + bytes(data),
}


class Trap:
    """A pickle that makes a file when it is loaded."""

    place = "/nonexistent"

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (Trap.place,))


def block_files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 60_000)


def filled(server: DemoServer, room: Path, *arguments: str) -> list[TrueBytes]:
    """A cache in ``room`` that holds these files; the mount is gone again."""
    with bench_on(server, room, *arguments) as bench:
        files = [bench.fresh() for _ in range(16)]
        assert_all_right(files)
    assert len([path for path in block_files(room / "cache") if "cache.db" not in path.name]) >= 16
    return files


@pytest.mark.parametrize("ranges", [True, False], ids=["with Range", "without Range"])
def test_one_reading_makes_every_kind_of_damage_good(server: DemoServer, tmp_path: Path, ranges: bool) -> None:
    server.switch(range=ranges)
    files = filled(server, tmp_path)
    Trap.place = str(tmp_path / "sprung")
    paths = [path for path in block_files(tmp_path / "cache") if "cache.db" not in path.name]
    done = {}
    for number, path in enumerate(paths[1:]):
        done[path], damage = list(DAMAGES.items())[number % len(DAMAGES)]
        path.write_bytes(damage(bytearray(path.read_bytes())))
    done[paths[1]] = "another file's block, sound in itself"
    shutil.copy(paths[0], paths[1])
    with bench_on(server, tmp_path):
        assert_all_right(files)
        assert not (tmp_path / "sprung").exists()
    for path, damage in done.items():
        assert path.stat().st_size > 60_000, damage
    with bench_on(server, tmp_path):
        server.clear_log()
        assert_all_right(files)
        assert server.data_requests() == []


DATA_DAMAGES = {name: each for name, each in DAMAGES.items() if name != "a bit flipped in the header"}
"""An open file's header has been read and is not read again: its blocks are sound without."""


@pytest.mark.parametrize("damage", sampled(DATA_DAMAGES, 3))
def test_damage_under_an_open_file_is_made_good_by_one_reading(
    server: DemoServer, tmp_path: Path, damage: Damage
) -> None:
    with bench_on(server, tmp_path) as bench:
        file = bench.fresh()
        with file.path.open("rb", buffering=0) as opened:
            file.assert_right(opened.read())
            assert_all_right([bench.fresh() for _ in range(12)])  # 2.5 MB go through a memory of 1 MB
            assert requests_for(bench, file) == 0  # it is on disk
            assert_all_right([bench.fresh() for _ in range(12)])
            for path in block_files(bench.mount.cache):
                if "cache.db" not in path.name:
                    path.write_bytes(damage(bytearray(path.read_bytes())))
            assert requests_for(bench, file) > 0
            assert_all_right([bench.fresh() for _ in range(12)])
            assert requests_for(bench, file) == 0
            opened.seek(0)
            file.assert_right(opened.read())


@pytest.mark.parametrize(
    "how", sampled({how: how for how in ("garbage", "empty", "a pickle", "cut", "gone", "garbage in its log")}, 2)
)
def test_a_garbled_index_costs_the_cache_and_no_read(server: DemoServer, tmp_path: Path, how: str) -> None:
    files = filled(server, tmp_path)
    Trap.place = str(tmp_path / "sprung")
    index = tmp_path / "cache/cache.db"
    found = [index, *index.parent.glob("*.db")]
    assert any(path.exists() for path in found), "no index to garble"
    for path in {path for path in found if path.exists()}:
        data = path.read_bytes()
        if how == "garbage":
            path.write_bytes(random.Random(1).randbytes(len(data)))
        elif how == "empty":
            path.write_bytes(b"")
        elif how == "cut":
            path.write_bytes(data[: len(data) // 3])
        elif how == "a pickle":
            path.write_bytes(pickle.dumps(Trap()))
        elif how == "gone":
            path.unlink()
        else:
            Path(f"{path}-wal").write_bytes(random.Random(1).randbytes(40_000))
    with bench_on(server, tmp_path) as bench:
        assert_all_right(files)
        assert not (tmp_path / "sprung").exists()
        assert_caches_again(bench)


def test_an_index_garbled_while_mounted_costs_no_read(server: DemoServer, tmp_path: Path) -> None:
    with bench_on(server, tmp_path) as bench:
        known = [bench.fresh() for _ in range(8)]
        assert_all_right(known)
        for path in bench.mount.cache.glob("*.db*"):
            path.write_bytes(random.Random(2).randbytes(path.stat().st_size))
        assert_all_right([*known, *(bench.fresh() for _ in range(16))])


# --- the cap --------------------------------------------------------------------------------------------------------


class Scale:
    """What a directory takes on disk, sampled every 100 ms."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._weigh, daemon=True)
        self.most = 0

    def __enter__(self) -> Scale:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _weigh(self) -> None:
        while not self._ended.wait(0.1):
            total = 0
            for folder, _, names in os.walk(self._directory):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            self.most = max(self.most, total)


@pytest.mark.parametrize("mounts", [1, 2])
def test_the_cap_holds_at_every_sample_under_load(server: DemoServer, tmp_path: Path, mounts: int) -> None:
    cap, slack = 16 * MIB, 4 * MIB
    shared = tmp_path / "shared cache"
    with contextlib.ExitStack() as stack:
        benches = [
            stack.enter_context(
                bench_on(server, tmp_path / f"room{n}", "--cache-dir", str(shared), "--cache-size", "16M")
            )
            for n in range(mounts)
        ]
        files = [[bench.fresh() for _ in range(300)] for bench in benches]  # 60 MB
        with Scale(shared) as scale:
            crowds = [crowd((file.path for file in some), 16, 60) for some in files]
            for some, readers in zip(files, crowds, strict=True):
                assert [read.md5 for read in readers.results()] == [file.md5 for file in some]
    assert 4 * MIB < scale.most <= cap + slack


def test_cache_verify_finds_what_rots_and_the_mount_does_not_mind(server: DemoServer, tmp_path: Path) -> None:
    files = filled(server, tmp_path)
    path = next(path for path in block_files(tmp_path / "cache") if "cache.db" not in path.name)
    path.write_bytes(flip_a_bit(bytearray(path.read_bytes())))
    environment = user_environment(tmp_path / "home", "demo", "demo")
    with bench_on(server, tmp_path):
        xnatfs("cache", "verify", "--cache-dir", tmp_path / "cache", environment=environment)
        assert_all_right(files)
