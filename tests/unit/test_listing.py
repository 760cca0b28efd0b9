"""Listings: one request, valid for a time, bounded, right after every failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.helpers.trees import Clock, Gate, run_together
from xnatfs.archives.memory import MemoryArchive
from xnatfs.config import ListingConfig
from xnatfs.errors import AccessDenied, ArchiveError, NotFound, TimedOut, Unavailable, UnexpectedReply
from xnatfs.model import Entry, Listing
from xnatfs.tree.flights import FAILURE_S
from xnatfs.tree.listing import RETRY_S, ListingCache, Table

TTL_S = 300.0


def cached(archive: MemoryArchive, clock: Clock, memory_entries: int = 1000) -> ListingCache:
    return ListingCache(archive, ListingConfig(ttl_s=TTL_S, memory_entries=memory_entries), clock)


def below(listings: ListingCache, directory: Entry) -> dict[str, Entry]:
    return listings.table(directory)[0].names


def failing(*errors: ArchiveError | None) -> Callable[[str, str], None]:
    """Calls of ``children`` fail with these in turn, None lets one through; after the last all go through."""
    left: Iterator[ArchiveError | None] = iter(errors)

    def before(operation: str, key: str) -> None:
        error = next(left, None) if operation == "children" else None
        if error is not None:
            raise error

    return before


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def archive() -> MemoryArchive:
    return MemoryArchive({"P1": {"a.txt": b"abc", "b.txt": b"b"}, "P2": {}, "readme": b"hello"})


def test_a_listing_is_asked_for_once_within_its_ttl(archive: MemoryArchive, clock: Clock) -> None:
    listings = cached(archive, clock)
    first, fresh_until = listings.table(archive.root())
    assert list(first.names) == ["P1", "P2", "readme"]
    assert fresh_until == clock() + TTL_S
    clock.advance(TTL_S - 1)
    assert listings.table(archive.root())[0] is first
    assert archive.calls["children"] == 1


def test_after_its_ttl_a_listing_is_asked_for_again(archive: MemoryArchive, clock: Clock) -> None:
    listings = cached(archive, clock)
    below(listings, archive.root())
    archive.replace("/new", b"n")
    clock.advance(TTL_S)
    assert not listings.fresh("")
    assert list(below(listings, archive.root())) == ["P1", "P2", "readme", "new"]
    assert listings.fresh("")
    assert archive.calls["children"] == 2


def test_an_unchanged_answer_keeps_the_table_and_the_generation(archive: MemoryArchive, clock: Clock) -> None:
    listings = cached(archive, clock)
    table, _ = listings.table(archive.root())
    generation = listings.generation
    clock.advance(TTL_S)
    assert listings.table(archive.root()) == (table, clock() + TTL_S)
    assert listings.generation == generation


def test_a_changed_answer_moves_the_generation_and_keeps_unchanged_directories(clock: Clock) -> None:
    archive = MemoryArchive({"P1": {"a": b"1"}, "P2": {"b": b"2"}}, one_listing=True)
    listings = cached(archive, clock)
    root = below(listings, archive.root())
    unchanged, changed = listings.table(root["P1"])[0], listings.table(root["P2"])[0]
    generation = listings.generation
    archive.replace("/P2/c", b"3")
    clock.advance(TTL_S)
    assert list(below(listings, root["P2"])) == ["b", "c"]
    assert list(changed.names) == ["b"]
    assert listings.table(root["P1"])[0] is unchanged
    assert listings.generation > generation


def test_one_listing_answers_for_every_directory_in_it(clock: Clock) -> None:
    archive = MemoryArchive({"S": {"scans": {"1": {"DICOM": {"1.dcm": b"d"}}}}}, one_listing=True)
    listings = cached(archive, clock)
    at = archive.root()
    for name in ("S", "scans", "1", "DICOM", "1.dcm"):
        at = below(listings, at)[name]
    assert at.size == 1
    assert archive.calls["children"] == 1


def test_sixteen_threads_that_want_one_listing_make_one_request(archive: MemoryArchive, clock: Clock) -> None:
    archive.before = lambda operation, key: time.sleep(0.1)
    listings = cached(archive, clock)
    tables = run_together([lambda: listings.table(archive.root())[0]] * 16)
    assert {id(table) for table in tables} == {id(tables[0])}
    assert isinstance(tables[0], Table)
    assert archive.calls["children"] == 1


def test_threads_that_want_different_listings_do_not_wait_for_each_other(archive: MemoryArchive, clock: Clock) -> None:
    listings = cached(archive, clock)
    root = below(listings, archive.root())
    together = threading.Barrier(2, timeout=10)  # breaks unless both requests are under way at once
    archive.before = lambda operation, key: together.wait() and None
    results = run_together([lambda: below(listings, root["P1"]), lambda: below(listings, root["P2"])])
    assert [list(names) for names in results if isinstance(names, dict)] == [["a.txt", "b.txt"], []]


def test_all_who_wait_for_a_request_that_fails_get_its_error_as_their_own(archive: MemoryArchive, clock: Clock) -> None:
    def fail_slowly(operation: str, key: str) -> None:
        time.sleep(0.1)
        raise AccessDenied("listing of P1: 403", "ask its owner")

    archive.before = fail_slowly
    listings = cached(archive, clock)
    errors = run_together([lambda: listings.table(archive.root())] * 8)
    assert {(type(error), str(error)) for error in errors} == {(AccessDenied, "listing of P1: 403")}
    assert {getattr(error, "hint", None) for error in errors} == {"ask its owner"}
    assert len({id(error) for error in errors}) == 8
    assert archive.calls["children"] == 1


def test_a_failure_is_the_answer_for_a_moment_and_then_heals(archive: MemoryArchive, clock: Clock) -> None:
    archive.before = failing(TimedOut("no answer in 60 s"))
    listings = cached(archive, clock)
    for _ in range(5):
        with pytest.raises(TimedOut):
            listings.table(archive.root())
    assert archive.calls["children"] == 1
    clock.advance(FAILURE_S)
    assert list(below(listings, archive.root())) == ["P1", "P2", "readme"]


def test_a_defect_in_the_archive_leaves_nobody_waiting(archive: MemoryArchive, clock: Clock) -> None:
    def break_slowly(operation: str, key: str) -> None:
        time.sleep(0.1)
        raise ZeroDivisionError

    archive.before = break_slowly
    listings = cached(archive, clock)
    errors = run_together([lambda: listings.table(archive.root())] * 4)
    assert sorted(type(error).__name__ for error in errors) == ["Unavailable"] * 3 + ["ZeroDivisionError"]
    archive.before = None
    assert list(below(listings, archive.root())) == ["P1", "P2", "readme"]


def test_when_the_archive_is_away_the_old_listing_serves_on_with_one_warning(
    archive: MemoryArchive, clock: Clock, expected_warnings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected_warnings.append("does not answer")
    listings = cached(archive, clock)
    root = below(listings, archive.root())
    below(listings, root["P1"])
    clock.advance(TTL_S)
    archive.before = failing(*[Unavailable("connection refused")] * 2)
    assert list(below(listings, archive.root())) == list(root)
    assert list(below(listings, root["P1"])) == ["a.txt", "b.txt"]
    clock.advance(RETRY_S - 1)
    assert list(below(listings, archive.root())) == list(root)
    assert archive.calls["children"] == 3  # two at first, one try for all since
    clock.advance(1)
    assert list(below(listings, archive.root())) == list(root)
    assert archive.calls["children"] == 4
    assert len([record for record in caplog.records if "does not answer" in record.getMessage()]) == 1
    archive.replace("/new", b"n")
    clock.advance(RETRY_S)
    assert list(below(listings, archive.root())) == [*root, "new"]


@pytest.mark.parametrize("error", [AccessDenied("403"), UnexpectedReply("a login page"), NotFound("404")])
def test_any_other_failure_to_renew_is_never_hidden_behind_the_old_listing(
    archive: MemoryArchive, clock: Clock, error: ArchiveError
) -> None:
    listings = cached(archive, clock)
    below(listings, archive.root())
    clock.advance(TTL_S)
    archive.before = failing(error)
    with pytest.raises(type(error)):
        listings.table(archive.root())
    clock.advance(FAILURE_S)
    assert list(below(listings, archive.root())) == ["P1", "P2", "readme"]


def test_a_directory_that_is_gone_is_not_found_and_forgotten(archive: MemoryArchive, clock: Clock) -> None:
    listings = cached(archive, clock)
    p1 = below(listings, archive.root())["P1"]
    below(listings, p1)
    generation = listings.generation
    archive.remove("/P1")
    clock.advance(TTL_S)
    with pytest.raises(NotFound):
        listings.table(p1)
    assert listings.peek(p1) is None
    assert listings.generation > generation


def test_while_a_listing_is_renewed_others_are_served_the_old_one(archive: MemoryArchive, clock: Clock) -> None:
    listings = cached(archive, clock)
    below(listings, archive.root())
    archive.replace("/new", b"n")
    clock.advance(TTL_S)
    archive.before = gate = Gate("children")
    renewer = threading.Thread(target=lambda: below(listings, archive.root()))
    renewer.start()
    assert gate.reached.wait(10)
    assert "new" not in below(listings, archive.root())
    gate.open.set()
    renewer.join(10)
    assert "new" in below(listings, archive.root())
    assert archive.calls["children"] == 2


def test_an_invalidated_listing_is_asked_for_whatever_its_age(archive: MemoryArchive, clock: Clock) -> None:
    listings = cached(archive, clock)
    below(listings, archive.root())
    generation = listings.generation
    listings.invalidate("")
    assert not listings.fresh("")
    assert listings.generation > generation
    below(listings, archive.root())
    assert archive.calls["children"] == 2


def test_a_request_that_began_before_the_listing_was_invalidated_does_not_make_it_current(
    archive: MemoryArchive, clock: Clock
) -> None:
    listings = cached(archive, clock)
    gate = Gate("children")

    def answer_late(directory: Entry) -> Listing:
        answer = MemoryArchive.children(archive, directory)
        gate("children", directory.key)
        return answer

    archive.children = answer_late  # type: ignore[method-assign]
    early: list[dict[str, Entry]] = []
    reader = threading.Thread(target=lambda: early.append(below(listings, archive.root())))
    reader.start()
    assert gate.reached.wait(10)
    archive.replace("/new", b"n")
    listings.invalidate("")
    gate.open.set()
    reader.join(10)
    assert "new" not in early[0]
    assert "new" in below(listings, archive.root())


def test_memory_is_bounded_by_entries_and_the_least_recently_used_go_first(clock: Clock) -> None:
    archive = MemoryArchive({f"S{n}": {f"{m}": b"" for m in range(9)} for n in range(4)})  # each weighs 10, the root 5
    listings = cached(archive, clock, memory_entries=30)
    root = below(listings, archive.root())
    below(listings, root["S0"])
    below(listings, root["S1"])
    below(listings, archive.root())
    below(listings, root["S0"])
    generation = listings.generation
    below(listings, root["S2"])
    assert [listings.fresh(key) for key in ("", "/S0", "/S1", "/S2")] == [True, True, False, True]
    assert listings.generation > generation


def test_a_listing_larger_than_the_bound_is_kept_alone(clock: Clock) -> None:
    archive = MemoryArchive({f"{n}": b"" for n in range(100)})
    listings = cached(archive, clock, memory_entries=10)
    below(listings, archive.root())
    below(listings, archive.root())
    assert archive.calls["children"] == 1


def test_a_path_through_listings_larger_than_the_bound_is_asked_for_once(clock: Clock) -> None:
    many: dict[str, bytes] = {f"{n}": b"" for n in range(100)}
    archive = MemoryArchive({"P": {"S": many, **many}})
    listings = cached(archive, clock, memory_entries=40)
    for _ in range(3):
        below(listings, below(listings, below(listings, archive.root())["P"])["S"])
    assert archive.calls["children"] == 3


def test_an_answer_without_the_directory_asked_for_is_an_error_and_no_empty_directory(clock: Clock) -> None:
    archive = MemoryArchive({"P": {}})
    archive.children = lambda directory: Listing(directory.listing, {})  # type: ignore[method-assign]
    with pytest.raises(UnexpectedReply):
        cached(archive, clock).table(archive.root())


def test_an_answer_that_is_another_listing_is_an_error(clock: Clock) -> None:
    archive = MemoryArchive({"P": {}})
    archive.children = lambda directory: Listing("other", {directory.key: ()})  # type: ignore[method-assign]
    with pytest.raises(UnexpectedReply):
        cached(archive, clock).table(archive.root())


def test_a_directory_missing_from_a_listing_is_asked_for(clock: Clock) -> None:
    archive = MemoryArchive({"A": {"a": b""}, "B": {"b": b""}}, one_listing=True)
    whole = archive.children

    def in_parts(directory: Entry) -> Listing:
        answer = whole(directory)
        return Listing(answer.id, {key: answer.children[key] for key in {"", directory.key}})

    archive.children = in_parts  # type: ignore[method-assign]
    listings = cached(archive, clock)
    root = below(listings, archive.root())
    assert list(below(listings, root["A"])) == ["a"]
    assert list(below(listings, root["B"])) == ["b"]
    assert archive.calls["children"] == 3


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_an_unknown_size_is_asked_for_once_by_any_number_of_threads(clock: Clock) -> None:
    archive = MemoryArchive({"item.xml": b"<item/>"}, sizes=False, before=lambda operation, key: time.sleep(0.05))
    listings = cached(archive, clock)
    table, _ = listings.table(archive.root())
    answers = run_together([lambda: listings.sized(table, "item.xml")] * 8)
    assert {answer.size for answer in answers if isinstance(answer, Entry)} == {7}
    assert listings.sized(table, "item.xml").size == 7
    assert archive.calls["stat"] == 1


def test_a_size_that_was_asked_for_outlives_a_renewal_of_its_listing(clock: Clock) -> None:
    archive = MemoryArchive({"a": b"abc", "b": b"b"}, sizes=False)
    listings = cached(archive, clock)
    listings.sized(listings.table(archive.root())[0], "a")
    archive.replace("/b", b"bb")
    clock.advance(TTL_S)
    names = below(listings, archive.root())
    assert (names["a"].size, names["b"].size) == (3, None)


def test_a_file_that_changed_is_asked_for_its_size_again(clock: Clock) -> None:
    archive = MemoryArchive({"a": b"abc"}, sizes=False)
    listings = cached(archive, clock)
    listings.sized(listings.table(archive.root())[0], "a")
    archive.replace("/a", b"abcdef")
    clock.advance(TTL_S)
    assert listings.sized(listings.table(archive.root())[0], "a").size == 6


def test_a_failed_question_for_a_size_is_not_repeated_at_once(clock: Clock) -> None:
    archive = MemoryArchive({"a": b"abc"}, sizes=False)
    listings = cached(archive, clock)
    table, _ = listings.table(archive.root())
    archive.remove("/a")
    for _ in range(3):
        with pytest.raises(NotFound):
            listings.sized(table, "a")
    assert archive.calls["stat"] == 1


def test_an_archive_that_never_tells_a_size_is_an_error(clock: Clock) -> None:
    archive = MemoryArchive({"a": b"abc"}, sizes=False)
    archive.stat = lambda entry: entry  # type: ignore[method-assign]
    listings = cached(archive, clock)
    table, _ = listings.table(archive.root())
    with pytest.raises(UnexpectedReply):
        listings.sized(table, "a")


def test_a_doubted_size_stays_doubted_when_the_listing_repeats_it(clock: Clock) -> None:
    archive = MemoryArchive({"a": b"abc", "b": b""}, describe=lambda entry: replace(entry, size=99))
    listings = cached(archive, clock)
    table, _ = listings.table(archive.root())
    table.doubt("a", table.names["a"])
    listings.invalidate("")
    archive.replace("/b", b"b")
    renewed, _ = listings.table(archive.root())
    assert renewed is not table
    assert listings.sized(renewed, "a").size == 3


def test_what_is_learnt_of_an_entry_that_was_replaced_meanwhile_is_dropped() -> None:
    old = Entry("a", "k", False, size=None, version="1")
    table = Table((replace(old, version="2"),))
    table.learn("a", old, replace(old, size=5))
    assert table.names["a"].version == "2"


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_table_finds_names_aliases_and_the_other_unicode_form() -> None:
    table = Table(
        (
            Entry("3-T1w", "s3", True, aliases=("3",)),
            Entry("B\u00e9la", "composed", True),
            Entry("Zoe\u0308", "decomposed", True, aliases=("\u00dc1",)),
        )
    )
    assert table.find("3-T1w") == table.find("3") == "3-T1w"
    assert table.find("Be\u0301la") == "B\u00e9la"
    assert table.find("Zo\u00eb") == "Zoe\u0308"
    assert table.find("U\u03081") == "Zoe\u0308"
    assert table.find("4") is None
    assert table.find("\u00e9") is None
