"""Listings that outlive a mount: ages, doubts, an archive that is slow or away, nobody to ask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.trees import Clock, Gate, run_together
from xnatfs.archives.kept import KeptDocuments, KeptSizes, OfflineArchive
from xnatfs.archives.memory import MemoryArchive
from xnatfs.config import ListingConfig
from xnatfs.errors import AccessDenied, Unavailable
from xnatfs.model import Entry, Listing
from xnatfs.stats import Stats
from xnatfs.tree import listing as listing_module
from xnatfs.tree.listing import RETRY_S, ListingCache
from xnatfs.tree.stored import ListingStore

TTL_S = 300.0
YEAR_S = 365 * 86400.0


class World:
    """One archive, one directory, any number of mounts one after the other."""

    def __init__(self, directory: Path) -> None:
        self.archive = MemoryArchive({"P1": {"a.txt": b"abc", "b.txt": b"b"}, "P2": {}, "readme": b"hello"})
        self.clock = Clock()
        self.epoch_s = 1_700_000_000.0
        self.directory = directory
        self.stats = Stats()
        self.mounts: list[ListingCache] = []

    def mount(self, *, offline: bool = False, memory_entries: int = 1000, user: str = "demo") -> ListingCache:
        for mount in self.mounts:
            mount.close()
        store = ListingStore(self.directory / "listings", (user,), 1 << 20)
        config = ListingConfig(ttl_s=TTL_S, memory_entries=memory_entries, offline=offline)
        archive = OfflineArchive(self.archive) if offline else self.archive
        self.stats = Stats()
        mount = ListingCache(archive, config, self.clock, store, self.stats, lambda: self.epoch_s)
        self.mounts.append(mount)
        return mount

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.epoch_s += seconds

    def names(self, mount: ListingCache, *path: str) -> list[str]:
        at = self.archive.root()
        for name in path:
            at = mount.table(at)[0].names[name]
        return list(mount.table(at)[0].names)

    @property
    def asked(self) -> int:
        return self.archive.calls["children"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def away(operation: str, key: str) -> None:
    raise Unavailable("connection refused")


ROOT = ["P1", "P2", "readme"]


def test_a_remount_within_the_ttl_asks_nothing(world: World) -> None:
    first = world.mount()
    assert (world.names(first), world.names(first, "P1")) == (ROOT, ["a.txt", "b.txt"])
    world.advance(TTL_S - 1)
    again = world.mount()
    assert (world.names(again), world.names(again, "P1")) == (ROOT, ["a.txt", "b.txt"])
    assert world.asked == 2
    assert again.table(world.archive.root())[1] == world.clock() + 1  # what is left of its time, not all of it anew


def test_a_remount_after_the_ttl_asks_again_and_shows_what_is_new(world: World) -> None:
    world.names(world.mount())
    world.archive.replace("/new", b"n")
    world.advance(TTL_S)
    assert world.names(world.mount()) == [*ROOT, "new"]
    assert world.asked == 2
    assert world.names(world.mount()) == [*ROOT, "new"]
    assert world.asked == 2


def test_a_renewal_that_changes_nothing_makes_the_stored_one_young(world: World) -> None:
    world.names(world.mount())
    world.advance(TTL_S)
    world.names(world.mount())
    world.advance(TTL_S - 1)
    world.names(world.mount())
    assert world.asked == 2


def test_a_stored_listing_of_the_future_is_asked_for_again(world: World) -> None:
    world.names(world.mount())
    world.epoch_s -= 1000
    world.names(world.mount())
    assert world.asked == 2


def test_what_left_memory_comes_back_from_the_store(world: World) -> None:
    mount = world.mount(memory_entries=4)
    for _ in range(3):
        assert (world.names(mount), world.names(mount, "P1")) == (ROOT, ["a.txt", "b.txt"])
        mount.close()  # what waits to be written is written
    assert world.asked == 2


def test_a_doubted_listing_is_never_served_from_the_store(world: World) -> None:
    mount = world.mount()
    world.names(mount)
    mount.close()
    mount.invalidate("")
    assert world.names(world.mount()) == ROOT
    assert world.asked == 2


def test_a_listing_stored_by_another_mount_before_a_doubt_is_not_served(world: World) -> None:
    mount, other = world.mount(memory_entries=1), world.mount()
    world.names(mount)
    stored_before = world.archive.children(world.archive.root())
    asked_at_s = world.epoch_s
    world.advance(1)
    mount.invalidate("")
    world.names(mount, "P1")  # drives the root out of memory
    store = ListingStore(world.directory / "listings", ("demo",), 1 << 20)
    mount.close()
    store.put(stored_before, asked_at_s)
    before = world.asked
    mount._held.clear()
    world.names(mount)
    assert world.asked == before + 1
    other.close()


def test_a_directory_closed_to_the_account_is_forgotten_by_the_store(world: World) -> None:
    world.names(world.mount(), "P1")
    world.advance(TTL_S)

    def close_p1(operation: str, key: str) -> None:
        if key == "/P1":
            raise AccessDenied("403")

    world.archive.before = close_p1
    with pytest.raises(AccessDenied):
        world.names(world.mount(), "P1")
    assert world.names(world.mount(offline=True)) == ROOT
    with pytest.raises(Unavailable):
        world.names(world.mount(offline=True), "P1")


def test_two_users_share_a_directory_and_see_nothing_of_each_other(world: World) -> None:
    world.names(world.mount(user="a"))
    world.names(world.mount(user="b"))
    assert world.asked == 2
    world.names(world.mount(user="a"))
    assert world.asked == 2


# --- slow, away, offline ----------------------------------------------------------------------------------------------


def test_a_slow_renewal_serves_the_old_listing_and_goes_on_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.names(world.mount())
    world.archive.replace("/new", b"n")
    world.advance(TTL_S)
    world.archive.before = gate = Gate("children")
    monkeypatch.setattr(listing_module, "PATIENCE_S", 0.05)
    mount = world.mount()
    generation = mount.generation
    assert world.names(mount) == ROOT
    assert world.names(mount) == ROOT  # at once: the renewal is under way
    gate.open.set()
    end_of_threads()
    assert world.names(mount) == [*ROOT, "new"]
    assert mount.generation > generation
    assert world.asked == 2


def test_a_slow_refusal_is_not_hidden_behind_the_old_listing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.names(world.mount())
    world.advance(TTL_S)
    gate = Gate("children")

    def refuse_late(operation: str, key: str) -> None:
        gate(operation, key)
        raise AccessDenied("403")

    world.archive.before = refuse_late
    monkeypatch.setattr(listing_module, "PATIENCE_S", 0.05)
    mount = world.mount()
    assert world.names(mount) == ROOT
    gate.open.set()
    end_of_threads()
    for _ in range(2):
        with pytest.raises(AccessDenied):
            world.names(mount)
        world.advance(2)


def end_of_threads() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("xnatfs-"):
            thread.join(10)


def test_a_mount_without_its_server_shows_what_is_stored_says_so_once_and_heals(
    world: World, expected_warnings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected_warnings.append("does not answer")
    mount = world.mount()
    world.names(mount, "P1")
    world.advance(YEAR_S)
    world.archive.before = away
    mount = world.mount()
    assert (world.names(mount), world.names(mount, "P1")) == (ROOT, ["a.txt", "b.txt"])
    assert world.asked == 3  # one try for all
    with pytest.raises(Unavailable):
        world.names(mount, "P2")
    assert len(caplog.records) == 1
    assert world.stats.away_since_s > 0
    assert world.epoch_s - world.stats.listings_of_s == YEAR_S
    world.archive.before = None
    world.archive.replace("/new", b"n")
    world.advance(RETRY_S)
    assert world.names(mount) == [*ROOT, "new"]
    assert (world.stats.away_since_s, world.stats.listings_of_s) == (0.0, 0.0)


def test_offline_serves_whatever_is_stored_and_asks_nothing(world: World) -> None:
    world.names(world.mount(), "P1")
    world.advance(YEAR_S)
    mount = world.mount(offline=True)
    before = world.asked
    assert (world.names(mount), world.names(mount, "P1")) == (ROOT, ["a.txt", "b.txt"])
    world.advance(YEAR_S)
    assert world.names(mount, "P1") == ["a.txt", "b.txt"]
    with pytest.raises(Unavailable, match="offline"):
        world.names(mount, "P2")
    assert world.asked == before


def test_offline_a_size_and_bytes_that_are_not_held_fail_at_once(world: World) -> None:
    archive = OfflineArchive(world.archive)
    entry = Entry("a.txt", "/P1/a.txt", False, None)
    for call in (lambda: archive.stat(entry), lambda: archive.open_range(entry, 0, 1)):
        with pytest.raises(Unavailable, match="offline"):
            call()
    archive.close()


class Notes:
    """A keeper's texts."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.note = self.texts.__setitem__
        self.recall = self.texts.get


def test_a_size_that_was_told_once_is_told_again_when_nobody_answers_unless_it_proved_wrong(world: World) -> None:
    keeper: Any = Notes()
    entry = Entry("a.txt", "/P1/a.txt", False, None)
    told = KeptSizes(world.archive, keeper).stat(entry)
    offline = KeptSizes(OfflineArchive(world.archive), keeper)
    assert replace(offline.stat(entry), id=told.id) == told
    assert told.version
    for other in (replace(told, size=None), Entry("b.txt", "/P1/b.txt", False, None)):
        with pytest.raises(Unavailable, match="offline"):
            offline.stat(other)
    keeper.texts = dict.fromkeys(keeper.texts, "nonsense")
    keeper.recall = keeper.texts.get
    with pytest.raises(Unavailable, match="offline"):
        offline.stat(entry)


def test_what_is_around_an_archive_says_as_the_archive_does_that_it_is_alone(world: World) -> None:
    assert not KeptDocuments(world.archive, lambda listing, key: None).alone
    world.archive.alone = True
    assert KeptSizes(KeptDocuments(world.archive, lambda listing, key: None), Notes()).alone  # type: ignore[arg-type]


def test_many_threads_that_meet_a_stored_listing_read_it_once(world: World) -> None:
    world.names(world.mount())
    mount = world.mount()
    tables = run_together([lambda: mount.table(world.archive.root())[0]] * 16)
    assert {id(table) for table in tables} == {id(tables[0])}
    assert world.asked == 1


# --- documents --------------------------------------------------------------------------------------------------------


def read_all(archive: KeptDocuments, entry: Entry) -> bytes:
    assert entry.size is not None
    stream = archive.open_range(entry, 0, entry.size)
    buffer = bytearray(entry.size)
    assert stream.readinto(memoryview(buffer)) == entry.size
    return bytes(buffer)


def test_a_document_is_read_from_the_store_only_as_what_was_announced(world: World) -> None:
    digest = "900150983cd24fb0d6963f7d28e17f72"
    entry = Entry("item.json", "/P1/a.txt", False, 3, listing="L", digest=digest)
    kept: dict[str, bytes] = {"/P1/a.txt": b"abc"}
    find: Callable[[str, str], bytes | None] = lambda listing, key: kept.get(key)  # noqa: E731
    offline = KeptDocuments(OfflineArchive(world.archive), find)
    assert read_all(offline, entry) == b"abc"
    kept["/P1/a.txt"] = b"abd"
    with pytest.raises(Unavailable):
        read_all(offline, entry)
    assert read_all(KeptDocuments(world.archive, find), entry) == b"abc"  # of the archive itself


def test_documents_are_stored_with_their_listing_and_not_held_in_memory(world: World) -> None:
    plain = world.archive.children

    def with_document(directory: Entry) -> Listing:
        answer = plain(directory)
        return Listing(answer.id, answer.children, {"/doc": b"{}"})

    world.archive.children = with_document  # type: ignore[method-assign]
    mount = world.mount()
    world.names(mount)
    mount.close()
    store = ListingStore(world.directory / "listings", ("demo",), 1 << 20)
    assert store.document("", "/doc") == b"{}"
    held = mount.listing("")
    assert held is not None
    assert held.documents == {}
