"""What programs see on a mount, over both FUSE bindings: names, attributes, bytes, errnos, and nothing else.

The tree is in memory and can be changed, slowed and broken while mounted: it is the adapter that is held here.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import stat
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.fake_vfs import MTIME_NS, FakeMount, FakeVFS
from tests.mount.conftest import MountFake
from xnatfs.frontends import fuse
from xnatfs.frontends.fuse_binding import load

pytestmark = pytest.mark.fuse

SCAN = bytes(range(256)) * 4096
BIG = bytes(range(251)) * 20_000
MANY = 300


def errno_of(action: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as raised:
        action()
    return raised.value.errno


# --- names and attributes ---------------------------------------------------------------------------------------------


def test_a_directory_lists_what_is_in_it(shared: FakeMount) -> None:
    assert os.listdir(shared.path) == ["readme.txt", "empty", "P1", "many"]
    assert os.listdir(shared.path / "P1") == ["S1", "na me"]


def test_a_directory_larger_than_the_kernels_buffer_lists_whole_and_once(shared: FakeMount) -> None:
    expected = [f"file-{number:04d}-with-a-name-that-fills-the-buffer" for number in range(MANY)]
    assert os.listdir(shared.path / "many") == expected


def test_an_open_directory_that_is_read_again_lists_what_is_there_now(own: FakeMount) -> None:
    directory = os.open(own.path / "many", os.O_RDONLY)
    try:
        assert len(os.listdir(directory)) == MANY
        own.tell("add", "/many/late", "here")
        assert "late" in os.listdir(directory)  # as after rewinddir
        assert own.calls()["listdir"] == 2
    finally:
        os.close(directory)


def test_types_come_with_the_names_and_cost_no_look_up(own: FakeMount) -> None:
    before = own.calls()["lookup"]
    types = {entry.name: entry.is_dir(follow_symlinks=False) for entry in os.scandir(own.path)}
    assert types == {"readme.txt": False, "empty": False, "P1": True, "many": True}
    assert own.calls()["lookup"] - before <= 2  # of the directory itself


def test_find_tells_files_from_directories(shared: FakeMount) -> None:
    found = subprocess.run(["find", shared.path, "-type", "f"], capture_output=True, text=True, check=True)
    assert len(found.stdout.splitlines()) == MANY + 5


def test_ls_l_costs_a_few_look_ups_a_directory_on_libfuse_3(mount_fake: MountFake) -> None:
    mount = mount_fake("--fuse", "3")
    listed = subprocess.run(["ls", "-l", mount.path / "many"], capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == MANY + 1
    assert mount.calls()["lookup"] <= MANY // 10


def many_directories(mount: FakeMount, files: int = 40) -> list[str]:
    """The paths of directories that a program is to walk through."""
    for directory in range(6):
        for number in range(files):
            mount.tell("add", f"/walked/{directory}/{number:04d}.dcm", "x" * number)
    return [str(mount.path / f"walked/{directory}") for directory in range(6)]


def test_who_walks_for_names_gets_names_that_are_right_and_makes_no_look_up(mount_fake: MountFake) -> None:
    mount = mount_fake("--fuse", "3")
    paths = many_directories(mount)
    before = mount.calls()["lookup"]
    found = subprocess.run(["find", *paths, "-type", "f", "-printf", "%i %f\n"], capture_output=True, check=True).stdout
    assert mount.calls()["lookup"] - before <= 6 * 2 + 1  # of the directories
    shown = [line.split() for line in found.decode().splitlines()]
    assert [name for _, name in shown] == [f"{number:04d}.dcm" for number in range(40)] * 6
    # Those of the last directories came without attributes; asked for one by one they are right, inodes included.
    for place, (ino, name) in enumerate(shown):
        state = os.stat(f"{paths[place // 40]}/{name}")
        assert (state.st_ino, state.st_size) == (int(ino), int(name[:4]))
    assert mount.calls()["lookup"] - before >= 4 * 40


def test_who_looks_at_all_files_asks_for_one_of_a_directory_once_in_a_while(mount_fake: MountFake) -> None:
    mount = mount_fake("--fuse", "3")
    paths = many_directories(mount)
    before = mount.calls()["lookup"]
    listed = subprocess.run(["ls", "-l", *paths], capture_output=True, text=True, check=True)
    sizes = [int(line.split()[4]) for line in listed.stdout.splitlines() if line.endswith(".dcm")]
    assert sizes == [*range(40)] * 6
    assert mount.calls()["lookup"] - before <= 6 * 2 + 2


def test_a_copy_that_reads_all_names_first_looks_no_file_up_on_libfuse_3(mount_fake: MountFake) -> None:
    mount = mount_fake("--fuse", "3")
    names = os.listdir(mount.path / "many")
    assert len(names) == MANY
    for name in names:
        (mount.path / "many" / name).read_bytes()
    assert mount.calls()["lookup"] <= 10


def test_attributes_are_those_of_the_node(shared: FakeMount) -> None:
    found = os.stat(shared.path / "P1/S1/big.bin")
    assert found.st_size == len(BIG)
    assert (found.st_mtime_ns, found.st_ctime_ns, found.st_atime_ns) == (MTIME_NS,) * 3
    assert (found.st_mode, found.st_nlink) == (stat.S_IFREG | 0o644, 1)
    assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())
    assert found.st_blocks == -(-len(BIG) // 512)
    assert os.stat(shared.path / "P1").st_mode == stat.S_IFDIR | 0o755


def test_attributes_listed_are_attributes_asked_for(shared: FakeMount) -> None:
    for entry in os.scandir(shared.path / "many"):
        assert entry.stat().st_size == int(entry.name[5:9])
        assert entry.inode() == entry.stat().st_ino


def test_inodes_are_the_same_after_a_remount_on_the_other_binding(mount_fake: MountFake) -> None:
    inodes = []
    for binding in ("2", "3"):
        mount = mount_fake("--fuse", binding)
        inodes.append({str(path.relative_to(mount.path)): path.stat().st_ino for path in mount.path.rglob("*")})
        mount.stop()
    assert inodes[0] == inodes[1]
    assert len(set(inodes[0].values())) == len(inodes[0])


def test_names_with_blanks_umlauts_and_backslashes_read(shared: FakeMount) -> None:
    name = "ünï 日本 \\x.txt"
    assert os.listdir(shared.path / "P1/na me") == [name]
    assert (shared.path / "P1/na me" / name).read_text(encoding="utf-8") == "café"


def test_what_is_not_there_is_enoent(shared: FakeMount) -> None:
    assert errno_of(lambda: os.stat(shared.path / "missing")) == errno.ENOENT
    assert errno_of(lambda: os.listdir(shared.path / "missing")) == errno.ENOENT
    assert errno_of(lambda: os.listdir(os.fsencode(shared.path) + b"/\xff\xfe")) == errno.ENOENT


def test_a_file_is_no_directory_and_a_directory_no_file(shared: FakeMount) -> None:
    assert errno_of(lambda: os.listdir(shared.path / "readme.txt")) == errno.ENOTDIR
    assert errno_of(lambda: os.stat(shared.path / "readme.txt/x")) == errno.ENOTDIR
    assert errno_of((shared.path / "P1").read_bytes) == errno.EISDIR


def test_df_shows_a_file_system_without_a_size_of_its_own(shared: FakeMount) -> None:
    found = os.statvfs(shared.path)
    assert (found.f_blocks, found.f_bfree, found.f_files) == (0, 0, 0)
    assert (found.f_bsize, found.f_frsize, found.f_namemax) == (4096, 4096, 255)
    assert subprocess.run(["df", "-h", shared.path], capture_output=True, check=True).stderr == b""


def test_extended_attributes_name_the_item(shared: FakeMount) -> None:
    path = shared.path / "P1/S1/scan.bin"
    assert sorted(os.listxattr(path)) == [
        "user.xnat.cached",
        "user.xnat.digest",
        "user.xnat.id",
        "user.xnat.uri",
    ]
    assert os.getxattr(path, "user.xnat.uri") == b"/P1/S1/scan.bin"
    assert os.getxattr(path, "user.xnat.digest") == b"d" * 32
    assert os.getxattr(shared.path / "P1", "user.xnat.xsitype") == b"xnat:mrSessionData"
    assert errno_of(lambda: os.getxattr(path, "user.xnat.xsitype")) == errno.ENODATA
    assert errno_of(lambda: os.getxattr(path, "user.other")) == errno.ENODATA
    assert errno_of(lambda: os.getxattr(path, "trusted.other")) in (errno.ENOTSUP, errno.ENODATA)


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_whole_files_are_equal(shared: FakeMount) -> None:
    assert (shared.path / "P1/S1/scan.bin").read_bytes() == SCAN
    assert (shared.path / "P1/S1/big.bin").read_bytes() == BIG
    assert (shared.path / "empty").read_bytes() == b""


def test_any_span_is_equal_and_ends_at_the_end(shared: FakeMount) -> None:
    with (shared.path / "P1/S1/big.bin").open("rb", buffering=0) as file:
        for offset, size in [(0, 1), (4095, 2), (131071, 131073), (len(BIG) - 1, 10), (len(BIG), 10), (10**12, 10)]:
            assert os.pread(file.fileno(), size, offset) == BIG[offset : offset + size]


def test_a_mapped_file_is_equal(shared: FakeMount) -> None:
    descriptor = os.open(shared.path / "P1/S1/big.bin", os.O_RDONLY)
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapped:
        os.close(descriptor)
        assert mapped[:] == BIG


def test_many_threads_read_the_right_bytes(shared: FakeMount) -> None:
    def read(seed: int) -> bool:
        numbers = random.Random(seed)
        with (shared.path / "P1/S1/big.bin").open("rb", buffering=0) as file:
            for _ in range(100):
                offset, size = numbers.randrange(len(BIG)), numbers.randrange(1, 200_000)
                if os.pread(file.fileno(), size, offset) != BIG[offset : offset + size]:
                    return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(read, range(16)))


def test_forty_readers_wait_side_by_side(own: FakeMount) -> None:
    own.tell("delay", "read", "/P1/S1/big.bin", 1.0)
    with (own.path / "P1/S1/big.bin").open("rb", buffering=0) as file, ThreadPoolExecutor(40) as pool:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        list(pool.map(lambda number: os.pread(file.fileno(), 10, number * 100_000), range(40)))
    assert own.tell("state")["most_in_flight"] >= 40


def test_closed_files_leave_no_handle_behind(own: FakeMount) -> None:
    descriptors = [os.open(own.path / "readme.txt", os.O_RDONLY) for _ in range(20)]
    assert own.tell("state")["open"] == 20
    for descriptor in descriptors:
        os.close(descriptor)
    waited = threading.Event()
    for _ in range(100):  # the kernel does not wait for release
        if own.tell("state")["open"] == 0:
            break
        waited.wait(0.02)
    assert own.tell("state")["open"] == 0


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        ("AccessDenied", errno.EACCES),
        ("NotFound", errno.ENOENT),
        ("Unavailable", errno.EIO),
        ("TimedOut", errno.ETIMEDOUT),
        ("StaleContent", errno.ESTALE),
        ("ConnectionError", errno.EIO),
        ("TimeoutError", errno.EIO),
        ("ValueError", errno.EIO),
        ("SystemExit", errno.EIO),
        ("negative", errno.EIO),
    ],
)
def test_every_failure_becomes_an_errno(own: FakeMount, failure: str, expected: int) -> None:
    directory, file = own.path / "P1/S1", own.path / "P1/S1/big.bin"
    own.tell("fail", "listdir", "/P1/S1", failure)
    assert errno_of(lambda: os.listdir(directory)) == expected
    own.tell("fail", "read", "/P1/S1/big.bin", failure)
    assert errno_of(file.read_bytes) == expected
    own.tell("fail", "open", "/P1/S1/big.bin", failure)
    assert errno_of(lambda: os.open(file, os.O_RDONLY)) == expected
    own.tell("fail", "lookup", "/readme.txt", failure)
    assert errno_of(lambda: os.stat(own.path / "readme.txt")) == expected
    for operation, path in (("listdir", "/P1/S1"), ("read", "/P1/S1/big.bin"), ("open", "/P1/S1/big.bin")):
        own.tell("fail", operation, path, None)
    assert file.read_bytes() == BIG


def test_a_failure_without_errno_is_no_short_file(own: FakeMount, tmp_path: Path) -> None:
    path = own.path / "P1/S1/big.bin"
    with path.open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 4096, 0) == BIG[:4096]
        own.tell("fail", "read", "/P1/S1/big.bin", "ConnectionError")
        copied = subprocess.run(["cp", path, tmp_path / "copy"], capture_output=True, check=False)
    assert copied.returncode != 0
    assert b"Input/output error" in copied.stderr
    assert path.stat().st_size == len(BIG)
    assert "Traceback" in own.log.read_text(encoding="utf-8")


def test_a_read_that_stops_half_way_is_an_error_not_zeroes(own: FakeMount) -> None:
    own.tell("short", "/P1/S1/big.bin")
    assert errno_of((own.path / "P1/S1/big.bin").read_bytes) == errno.EIO


WRITES: dict[str, Callable[[Path], object]] = {
    "open to write": lambda root: os.open(root / "readme.txt", os.O_WRONLY),
    "truncate at open": lambda root: os.open(root / "readme.txt", os.O_RDWR | os.O_TRUNC),
    "create": lambda root: os.open(root / "new", os.O_WRONLY | os.O_CREAT),
    "mkdir": lambda root: os.mkdir(root / "new"),
    "mkfifo": lambda root: os.mkfifo(root / "new"),
    "unlink": lambda root: os.unlink(root / "readme.txt"),
    "rmdir": lambda root: os.rmdir(root / "P1"),
    "symlink": lambda root: os.symlink("readme.txt", root / "new"),
    "link": lambda root: os.link(root / "readme.txt", root / "new"),
    "rename": lambda root: os.rename(root / "readme.txt", root / "new"),
    "chmod": lambda root: os.chmod(root / "readme.txt", 0o600),
    "chown": lambda root: os.chown(root / "readme.txt", os.getuid(), os.getgid()),
    "truncate": lambda root: os.truncate(root / "readme.txt", 0),
    "utime": lambda root: os.utime(root / "readme.txt"),
    "setxattr": lambda root: os.setxattr(root / "readme.txt", "user.xnat.id", b"1"),
    "removexattr": lambda root: os.removexattr(root / "readme.txt", "user.xnat.id"),
}


@pytest.mark.parametrize("write", WRITES)
def test_every_write_is_erofs(shared: FakeMount, write: str) -> None:
    assert errno_of(lambda: WRITES[write](shared.path)) == errno.EROFS
    assert (shared.path / "readme.txt").read_bytes() == b"hello\n"


def test_writes_are_erofs_even_where_root_makes_the_kernel_let_them_through(own: FakeMount) -> None:
    if os.getuid() == 0:
        subprocess.run(["mount", "-i", "-o", "remount,rw", own.path], check=True)
    for name, write in WRITES.items():
        assert errno_of(lambda write=write: write(own.path)) == errno.EROFS, name


# --- versions and the kernel's page cache -----------------------------------------------------------------------------


def test_a_file_read_twice_is_read_once(own: FakeMount) -> None:
    path = own.path / "P1/S1/big.bin"
    assert path.read_bytes() == BIG
    before = own.calls()
    assert path.read_bytes() == BIG
    after = own.calls()
    assert after["open"] == before["open"] + 1
    assert after["read"] == before["read"]


@pytest.mark.parametrize("new", ["same length\n" * 1000, "shorter", "longer\n" * 100_000])
def test_a_changed_file_reads_whole_and_new_at_the_next_open(own: FakeMount, new: str) -> None:
    path = own.path / "file"
    own.tell("add", "/file", "SAME LENGTH\n" * 1000)
    assert path.read_text() == "SAME LENGTH\n" * 1000
    own.tell("change", "/file", new, MTIME_NS + 1)
    assert path.read_text() == new
    assert path.stat().st_size == len(new)
    assert path.stat().st_mtime_ns == MTIME_NS + 1


def test_a_change_that_shows_in_neither_size_nor_date_is_not_served_from_old_pages(own: FakeMount) -> None:
    path = own.path / "file"
    own.tell("add", "/file", "old " * 10_000)
    assert path.read_text() == "old " * 10_000
    own.tell("change", "/file", "new " * 10_000, MTIME_NS)
    assert path.read_text() == "new " * 10_000


def test_an_open_reader_gets_the_old_version_or_estale_never_a_mix(own: FakeMount) -> None:
    path = own.path / "file"
    own.tell("add", "/file", "old " * 1_000_000)
    old = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(old, 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(old, 4, 0) == b"old "
        own.tell("change", "/file", "new " * 1_000_000, MTIME_NS)
        assert path.read_text() == "new " * 1_000_000
        assert os.pread(old, 4, 0) == b"old "  # still in the kernel
        assert errno_of(lambda: os.pread(old, 4, 2_000_000)) == errno.ESTALE
    finally:
        os.close(old)
    assert path.read_text() == "new " * 1_000_000


def test_old_pages_stay_for_nobody_until_the_kernel_has_dropped_them() -> None:
    vfs = FakeVFS()
    vfs.add("/file", b"new")
    operations = fuse.Operations(vfs, load("auto").attribute_packer(0, 0, 0o022))  # type: ignore[arg-type]
    operations.getattr("/file")
    first, second = operations.open("/file"), operations.open("/file")
    assert not first.keep_cache
    assert not second.keep_cache  # its answer may be there before the first one's
    for opened in (first, second):
        operations.read_into(opened.fh, 0, memoryview(bytearray(3)))
    assert operations.open("/file").keep_cache


def cut_under_an_open_reader(mount: FakeMount) -> int:
    """A handle of which 12 of 20 KB have been read, when the file has 8 KB."""
    mount.tell("add", "/file", "old " * 5000)
    handle = os.open(mount.path / "file", os.O_RDONLY)
    assert os.read(handle, 12_000) == b"old " * 3000
    mount.tell("change", "/file", "new " * 2000, MTIME_NS)
    threading.Event().wait(0.4)  # for the kernel to forget what it was told
    return handle


@pytest.mark.parametrize("library", ["2", "3"])
def test_a_file_that_became_shorter_under_its_reader_is_estale_and_no_short_file(
    mount_fake: MountFake, library: str
) -> None:
    mount = mount_fake("--fuse", library, "--attr-timeout", "0.2")
    handle = cut_under_an_open_reader(mount)
    assert errno_of(lambda: os.read(handle, 20_000)) == errno.ESTALE
    os.close(handle)
    assert (mount.path / "file").read_text() == "new " * 2000


@pytest.mark.parametrize("library", ["2", "3"])
def test_a_file_that_grows_while_its_end_is_on_its_way_gets_no_zeroes(mount_fake: MountFake, library: str) -> None:
    mount = mount_fake("--fuse", library, "--attr-timeout", "0.1")
    mount.tell("add", "/file", "old " * 1250)
    mount.tell("delay", "answer", "/file", 2.0)
    path = mount.path / "file"
    with ThreadPoolExecutor(1) as pool:
        handle = os.open(path, os.O_RDONLY)
        reading = pool.submit(os.read, handle, 8192)
        threading.Event().wait(0.4)  # for the kernel to ask for the bytes, and to forget the size
        mount.tell("change", "/file", "new " * 1500, MTIME_NS)
        assert path.stat().st_size == 6000
        with pytest.raises(OSError, match="Stale file handle"):
            reading.result()
    os.close(handle)


@pytest.mark.parametrize("look", [["stat", "file"], ["ls", "-l"]])
def test_the_same_though_others_have_looked_at_it_on_libfuse_3(mount_fake: MountFake, look: list[str]) -> None:
    mount = mount_fake("--fuse", "3", "--attr-timeout", "0.2")
    handle = cut_under_an_open_reader(mount)
    subprocess.run(look, cwd=mount.path, capture_output=True, check=True)
    assert errno_of(lambda: os.read(handle, 20_000)) == errno.ESTALE
    assert (mount.path / "file").read_text() == "new " * 2000
    os.close(handle)


def test_the_kernel_forgets_a_missing_name_when_told_to(mount_fake: MountFake) -> None:
    mount = mount_fake("--attr-timeout", "0.2")
    assert errno_of(lambda: os.stat(mount.path / "late")) == errno.ENOENT
    mount.tell("add", "/late", "here")
    threading.Event().wait(0.4)
    assert (mount.path / "late").read_text() == "here"


def test_a_file_forgotten_by_the_adapter_still_opens(mount_fake: MountFake) -> None:
    mount = mount_fake("--told-limit", "10")
    for round_ in range(2):
        for number in range(0, MANY, 7):
            path = mount.path / f"many/file-{number:04d}-with-a-name-that-fills-the-buffer"
            assert path.read_bytes() == b"x" * number, round_


def test_read_ahead_is_widened_where_root_mounts(shared: FakeMount) -> None:
    device = os.stat(shared.path).st_dev
    knob = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    assert int(knob.read_text()) == (1024 if os.getuid() == 0 else 128)


def test_struct_stat_matches_this_machine() -> None:
    from xnatfs.frontends import fuse_binding

    packer = fuse_binding.load("auto").attribute_packer(uid=7, gid=8, umask=0o027)
    packed = packer.pack(ino=2**63 - 1, is_dir=False, size=2**40 + 1, mtime_ns=-1_500_000_000)
    layout = fuse_binding.load("auto").module.c_stat.from_buffer_copy(packed)
    assert len(packed) == ctypes.sizeof(layout)
    assert (layout.st_ino, layout.st_size, layout.st_blocks) == (2**63 - 1, 2**40 + 1, 2**31 + 1)
    assert (layout.st_mode, layout.st_uid, layout.st_gid) == (stat.S_IFREG | 0o640, 7, 8)
    assert (layout.st_mtimespec.tv_sec, layout.st_mtimespec.tv_nsec) == (-2, 500_000_000)
