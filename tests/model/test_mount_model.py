"""A mount against a model: any sequence of operations and of changes on the server, made up by hypothesis.

The model is a list of the versions that each file has had. What holds after every step:

- a read gives bytes of one version, the same one for as long as the handle is open, or an errno;
- a handle opened when a version had been in place for a while, with the server well, gives that version's bytes;
- a directory lists what is there, no more and no less, once its listing has had time to be renewed;
- whatever happened, everything reads right again when the server is well, without a remount.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from tests.helpers.mounting import Mount, mounted, why_no_fuse
from tests.helpers.server import DemoServer

pytestmark = pytest.mark.fuse

BLOCK = 128 * 1024
TTL_S = 1.0  # the least there is
SETTLED_S = 2.6  # a listing is renewed after its TTL, and the kernel has one of its own; a failure lasts a second
HEALED_S = 6.5  # after an outage the old listing serves for five seconds before the server is asked again
SHOWS_S = 15.0  # a machine that is busy with other things may take this long to show what is new; a bound, no promise
ALLOWED = {errno.EIO, errno.ESTALE, errno.ENOENT, errno.ETIMEDOUT, errno.EACCES}
SIZES = [0, 1, 4095, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 77]

_numbers = itertools.count()
_place: dict[str, Any] = {}  # the one server and mount that all machines of a run share


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Known:
    """One file in the model.

    Attributes:
        versions: Every content it has had, the present one last; None while it is not there.
        changed_s: When it last changed, on the monotonic clock.
    """

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.versions: list[bytes | None] = [data]
        self.changed_s = time.monotonic()

    def change(self, data: bytes | None) -> None:
        self.versions.append(data)
        self.changed_s = time.monotonic()


class Opened:
    def __init__(self, file: Known, descriptor: int, expected: bytes | None) -> None:
        self.file = file
        self.descriptor = descriptor
        self.expected = expected  # the version it has to give; None while it may be any
        # A version that came before the handle was opened may still be given, one that comes later never.
        self.candidates = [version for version in file.versions if version is not None]


class MountMachine(RuleBasedStateMachine):
    files: Bundle[Known] = Bundle("files")
    handles: Bundle[Opened] = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.server: DemoServer = _place["server"]
        self.mount: Mount = _place["mount"]
        self.folder: Path = _place["folder"]
        self.base: str = _place["uri"]
        self.known: list[Known] = []
        self.open: list[Opened] = []
        self.trouble_s = float("-inf")  # when something on the server last failed on purpose
        self.troubled = False
        self.server.reset()

    # --- the server changes -------------------------------------------------------------------------------------------

    @initialize(target=files)
    def first(self) -> Known:
        return self._add(0, BLOCK + 1)

    @rule(target=files, seed=st.integers(0, 9), size=st.sampled_from(SIZES))
    def add(self, seed: int, size: int) -> Known:
        return self._add(seed, size)

    def _add(self, seed: int, size: int) -> Known:
        file = Known(f"model-{next(_numbers)}.bin", content(seed, size))
        self.server.edit("add", f"{self.base}/{file.name}", file.versions[-1])
        self.known.append(file)
        return file

    @rule(file=files, seed=st.integers(10, 99), size=st.sampled_from([*SIZES, -1]))
    def replace(self, file: Known, seed: int, size: int) -> None:
        """By other bytes of any size; -1 stands for the size it has."""
        last = file.versions[-1]
        if last is not None:
            data = content(seed, len(last) if size < 0 else size)
            if data != last:
                self.server.edit("replace", f"{self.base}/{file.name}", data)
                file.change(data)

    @rule(file=files)
    def grow(self, file: Known) -> None:
        last = file.versions[-1]
        if last is not None:
            self.server.edit("grow", f"{self.base}/{file.name}", b"more")
            file.change(last + b"more")

    @rule(file=files)
    def unlist(self, file: Known) -> None:
        if file.versions[-1] is not None:
            self.server.edit("unlist", f"{self.base}/{file.name}")
            file.change(None)

    @rule(
        kind=st.sampled_from(["status", "reset", "short", "html", "empty"]), at=st.sampled_from([None, 0, 1000, BLOCK])
    )
    def break_some_replies(self, kind: str, at: int | None) -> None:
        more = {"at": at} if kind in ("reset", "short") else {}
        self.server.fault("/data/", kind, times=3, **more)
        self.troubled, self.trouble_s = True, time.monotonic()

    @rule()
    def expire_sessions(self) -> None:
        self.server.switch(expire_sessions=True)

    @rule(range=st.booleans())
    def switch_ranges(self, range: bool) -> None:
        self.server.switch(range=range)

    @rule(outage=st.booleans())
    def outage(self, outage: bool) -> None:
        self.server.switch(outage=outage)
        self.troubled, self.trouble_s = True, time.monotonic()

    @rule()
    def heal(self) -> None:
        self.server.switch(outage=False)
        self.server.clear_faults()
        self.troubled, self.trouble_s = False, time.monotonic()

    @rule()
    def wait(self) -> None:
        time.sleep(HEALED_S if time.monotonic() - self.trouble_s < HEALED_S else SETTLED_S)

    # --- someone reads ------------------------------------------------------------------------------------------------

    def _is_settled(self, since_s: float) -> bool:
        """Nothing fails on purpose, nothing has for a while, and nothing has changed since long before."""
        now = time.monotonic()
        return not self.troubled and now - self.trouble_s > HEALED_S and now - since_s > SETTLED_S

    @rule(target=handles, file=files)
    def open_file(self, file: Known) -> Opened | Any:
        settled = self._is_settled(file.changed_s)
        last = file.versions[-1]
        if settled:
            self._await_present_version(file)
        try:
            descriptor = os.open(self.folder / file.name, os.O_RDONLY)
        except OSError as error:
            assert error.errno in ALLOWED
            assert not settled or last is None, f"{file.name} cannot be opened: {error}"
            return Opened(file, -1, None)
        assert not settled or last is not None, f"{file.name} is gone, and opens"
        opened = Opened(file, descriptor, last if settled else None)
        self.open.append(opened)
        return opened

    @rule(
        handle=handles,
        offset=st.sampled_from([0, 1, 4096, BLOCK - 1, BLOCK, 2 * BLOCK + 5, 5 * BLOCK]),
        size=st.sampled_from([1, 100, 4096, BLOCK, 4 * BLOCK]),
    )
    def read(self, handle: Opened, offset: int, size: int) -> None:
        if handle.descriptor < 0:
            return
        untouched = self._is_settled(handle.file.changed_s)
        try:
            found = os.pread(handle.descriptor, size, offset)
        except OSError as error:
            assert error.errno in ALLOWED
            same = handle.expected is not None and handle.file.versions[-1] is handle.expected
            assert not (untouched and same), f"{handle.file.name} does not read: {error}"
            return
        if handle.expected is not None:
            handle.candidates = [version for version in handle.candidates if version is handle.expected]
        fitting = [version for version in handle.candidates if _fits(version, found, offset, size)]
        assert fitting, f"{handle.file.name} at {offset}: {len(found)} bytes that no version it may give has there"
        handle.candidates = fitting

    @rule(handle=consumes(handles))
    def close(self, handle: Opened) -> None:
        if handle in self.open:
            self.open.remove(handle)
            os.close(handle.descriptor)

    @rule()
    def list_all(self) -> None:
        if not self._is_settled(max(file.changed_s for file in self.known)):
            with contextlib.suppress(OSError):
                os.listdir(self.folder)
            return
        self._compare_listing()

    def _compare_listing(self) -> None:
        """Once the listing has been renewed, which a busy machine takes its time for, it shows what is there."""
        ours = {file.name for file in self.known}
        wanted = {file.name for file in self.known if file.versions[-1] is not None}
        limit = time.monotonic() + SHOWS_S
        while (found := ours & set(os.listdir(self.folder))) != wanted and time.monotonic() < limit:
            time.sleep(0.2)
        assert found == wanted

    def _await_present_version(self, file: Known) -> None:
        """Until its directory shows a file as it is now, by its digest."""
        last = file.versions[-1]
        wanted = None if last is None else hashlib.md5(last).hexdigest().encode()
        limit = time.monotonic() + SHOWS_S
        while (shown := _digest(self.folder / file.name)) != wanted and time.monotonic() < limit:
            time.sleep(0.2)
        assert shown == wanted, file.name

    @invariant()
    def the_mount_lives(self) -> None:
        assert self.mount.process is not None
        assert self.mount.process.poll() is None

    # --- afterwards ---------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """All is well again, and so must be everything that is read."""
        for handle in self.open:
            os.close(handle.descriptor)
        self.server.reset()
        time.sleep(HEALED_S if self.trouble_s > float("-inf") else SETTLED_S)
        try:
            self._compare_listing()
            for file in self.known:
                last = file.versions[-1]
                if last is not None:
                    assert _read_again(self.folder / file.name) == last, file.name
        finally:
            for file in self.known:
                if file.versions[-1] is not None:
                    self.server.edit("unlist", f"{self.base}/{file.name}")


def _digest(path: Path) -> bytes | None:
    try:
        return os.getxattr(path, "user.xnat.digest")
    except FileNotFoundError:
        return None


def _fits(version: bytes, found: bytes, offset: int, size: int) -> bool:
    """Whether a read gave this version's bytes; fewer than asked for when a page behind them failed, but never none."""
    wanted = version[offset : offset + size]
    return found == wanted or (bool(found) and wanted.startswith(found))


def _read_again(path: Path) -> bytes:
    """The file's bytes; ESTALE once is what a change under a listing looks like, and opening again is its cure."""
    for left in reversed(range(3)):
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.EIO) or not left:
                raise
            time.sleep(1.2)
    raise AssertionError("not reached")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    reason = why_no_fuse()
    if reason:
        pytest.skip(reason)
    room = tmp_path_factory.mktemp("model")
    words = ("--metadata-ttl", f"{TTL_S}s", "--timeout", "2s", "--block-size", str(BLOCK), "--memory", "1M")
    words += ("--cache-size", "4M")  # what one machine makes does not always fit
    with DemoServer() as server, mounted(server.url, room, *words, user="demo", password="demo") as mount:
        (row, *_) = [row for row in server.truth("DEMO") if row["resource"] == "QC"]
        _place["server"], _place["mount"] = server, mount
        _place["uri"] = row["uri"].rpartition("/files/")[0] + "/files"
        project = mount.path / row["project"]
        _place["folder"] = project / row["subject"] / row["experiment"] / "resources" / row["resource"]
        os.listdir(_place["folder"])
        yield
        _place.clear()


# No shrinking: what depends on time does not fail twice in the same way, and trying takes hours.
PHASES = (Phase.explicit, Phase.generate)
COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
    "phases": PHASES,
}


def test_a_few_sequences_of_reads_and_changes_agree_with_the_model(place: None) -> None:
    run_machine(MountMachine, settings=settings(max_examples=4, stateful_step_count=25, derandomize=True, **COMMON))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_many_sequences_of_reads_and_changes_agree_with_the_model(place: None) -> None:
    run_machine(
        MountMachine,
        settings=settings(
            max_examples=int(os.environ.get("XNATFS_MODEL_EXAMPLES", "100")), stateful_step_count=40, **COMMON
        ),
    )
