"""A walk through an archive is noticed, and what it will want next is fetched ahead: once, in order, not without it."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

import pytest

from tests.helpers.trees import Clock, build_vfs
from xnatfs.archives.memory import MemoryArchive
from xnatfs.errors import Unavailable
from xnatfs.model import Entry, Listing
from xnatfs.tree.crawl import PAUSE_S, WINDOW, Crawl
from xnatfs.tree.vfs import ArchiveVFS

SESSIONS = 40


class Walk:
    """A project of subjects, each with its own ``resources`` and one session, and what a crawl of it fetches."""

    def __init__(self, room: int = 10_000) -> None:
        self.clock = Clock()
        self.fetched: list[str] = []
        self.batches: list[list[str]] = []
        self._lock = threading.Lock()
        children: dict[str, tuple[Entry, ...]] = {"P": tuple(directory(f"S{n:02}", "P") for n in range(SESSIONS))}
        for n in range(SESSIONS):
            own = Entry("resources", f"R{n:02}", True, listing=f"R{n:02}", reserved=True)
            children[f"S{n:02}"] = (own, directory(f"E{n:02}", f"E{n:02}"), Entry("f", "f", False, 1))
        self.project = Listing("P", children)
        self.crawl = Crawl(
            self.listing,
            self.fetch,
            lambda ids: None,
            lambda path: hash_of(path),
            threads=2,
            room=room,
            clock=self.clock,
        )

    def listing(self, listing_id: str) -> Listing | None:
        return self.project if listing_id == "P" else Listing(listing_id, {listing_id: (Entry("a", "a", False),) * 9})

    def fetch(self, entries: Sequence[Entry]) -> None:
        with self._lock:
            self.batches.append([entry.listing for entry in entries])
            self.fetched += self.batches[-1]

    def enter(self, *listings: str) -> list[str]:
        """What is fetched because these are entered, one after the other."""
        before = len(self.fetched)
        for listing in listings:
            subject = f"S{listing[1:]}"
            (entry,) = (each for each in self.project.children[subject] if each.listing == listing)
            self.crawl.entered(directory(subject, "P"), f"/P/{subject}", entry)
            settle()
        return sorted(self.fetched[before:])


def directory(name: str, listing: str) -> Entry:
    return Entry(name, name, True, listing=listing)


def hash_of(path: str) -> int:
    return random.Random(path).getrandbits(60)


def settle() -> None:
    for thread in threading.enumerate():
        if thread.name == "xnatfs-ahead":
            thread.join(10)


@pytest.fixture
def walk() -> Walk:
    return Walk()


def all_in_order(*kinds: str) -> list[str]:
    return [f"{kind}{n:02}" for n in range(SESSIONS) for kind in kinds]


def test_one_or_two_sessions_fetch_nothing(walk: Walk) -> None:
    assert walk.enter("E00") == []
    assert walk.enter("E01") == []


def test_the_third_in_a_row_begins_to_fetch_what_comes_next(walk: Walk) -> None:
    walk.enter("E07", "E08")
    assert walk.enter("E09") == ["E10"]  # and not the resources between them, which nobody looks at


def test_a_whole_walk_fetches_all_that_is_left_and_each_once(walk: Walk) -> None:
    order = all_in_order("R", "E")
    fetched = walk.enter(*order)
    assert fetched == sorted(order[3:])
    assert len(set(walk.fetched)) == len(walk.fetched)


def test_it_is_never_further_ahead_than_the_window_or_the_room(walk: Walk) -> None:
    for room, most in ((10_000, WINDOW), (40, 4)):
        walk = Walk(room)
        for place, listing in enumerate(all_in_order("R", "E")):
            walk.enter(listing)
            assert max((number(each) for each in walk.fetched), default=0) <= place + most


def number(listing: str) -> int:
    return 2 * int(listing[1:]) + (listing[0] == "E")


def test_several_are_fetched_together_and_of_one_kind(walk: Walk) -> None:
    walk.enter(*all_in_order("R", "E"))
    assert max(map(len, walk.batches)) > 1
    assert all(len({each[0] for each in batch}) == 1 for batch in walk.batches)


def test_a_walk_by_name_or_by_inode_is_noticed_too(walk: Walk) -> None:
    by_inode = sorted(range(SESSIONS), key=lambda n: hash_of(f"/P/S{n:02}"))
    assert len(walk.enter(*(f"E{n:02}" for n in by_inode))) > SESSIONS // 2


def test_sessions_picked_at_random_fetch_nothing_to_speak_of(walk: Walk) -> None:
    picked = random.Random(1).sample(range(SESSIONS), 10)
    assert len(walk.enter(*(f"E{n:02}" for n in picked))) <= 2


def test_a_walk_that_rests_has_ended(walk: Walk) -> None:
    walk.enter("E00", "E01")
    walk.clock.advance(PAUSE_S + 1)
    assert walk.enter("E02") == []


def test_after_close_nothing_is_fetched(walk: Walk) -> None:
    walk.enter("E00", "E01")
    walk.crawl.close()
    assert walk.enter("E02", "E03") == []


# --- through the tree -------------------------------------------------------------------------------------------------


def crawled(vfs: ArchiveVFS, path: str = "") -> list[str]:
    found = []
    for node in vfs.listdir(path or "/"):
        found.append(f"{path}/{node.name}")
        if node.is_dir:
            found += crawled(vfs, found[-1])
    return found


def test_a_crawl_asks_for_every_listing_once_and_sees_everything() -> None:
    archive = MemoryArchive({"P": {f"S{n}": {f"E{n}": {"a": b"a"}} for n in range(30)}})
    vfs, _ = build_vfs(archive)
    assert len(crawled(vfs)) == 1 + 30 * 3
    settle()
    assert archive.calls["children"] == 2 + 30 * 2


def test_a_listing_ahead_that_fails_is_no_error_of_the_walk_before_it_comes_there() -> None:
    archive = MemoryArchive({"P": {f"E{n:02}": {"a": b"a"} for n in range(12)}})

    def refuse(operation: str, key: str) -> None:
        if key.endswith("E09"):
            raise Unavailable("503")

    archive.before = refuse
    vfs, _ = build_vfs(archive)
    for n in range(9):
        assert [node.name for node in vfs.listdir(f"/P/E{n:02}")] == ["a"]
    with pytest.raises(Unavailable):
        vfs.listdir("/P/E09")
    assert [node.name for node in vfs.listdir("/P/E10")] == ["a"]
    settle()


def test_a_defect_in_a_fetch_leaves_nobody_waiting() -> None:
    archive = MemoryArchive({"P": {f"E{n:02}": {"a": b"a"} for n in range(12)}})

    def defective(entries: Sequence[Entry]) -> dict[str, Listing]:
        raise Unavailable("together: 500")

    archive.children_of_several = defective  # type: ignore[attr-defined]
    vfs, _ = build_vfs(archive)
    assert len(crawled(vfs)) == 25
    settle()
