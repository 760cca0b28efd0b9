"""The names of a directory, its entries kept as columns or as they are: the tables say the same."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from xnatfs.columns import Columns
from xnatfs.model import Entry
from xnatfs.tree.names import are_safe, safe_name
from xnatfs.tree.table import Names, Table


def files(names: Sequence[str]) -> tuple[Entry, ...]:
    return tuple(Entry(name, f"/files/{place}", False, place) for place, name in enumerate(names))


@pytest.mark.parametrize(
    "entries",
    [
        files(["a", "b"]),
        files(["a", "a"]),
        files(["a/b", "..", "", "\u00e9", "x" * 300]),
        files([]),
        (Entry("scans", "/scans", True, aliases=("4",), reserved=True), *files(["scans"])),
        (replace(files(["a"])[0], hidden=True), *files(["b"])),
    ],
)
def test_a_table_of_columns_says_what_a_table_of_entries_says(entries: tuple[Entry, ...]) -> None:
    lazy, plain = Table(Columns.of(entries)), Table(entries)
    assert list(lazy.names.items()) == list(plain.names.items())
    assert list(lazy.names.values()) == list(plain.names.values())
    for asked in (*plain.names, "4", "e\u0301", "nobody"):
        assert lazy.find(asked) == plain.find(asked)


def test_plain_files_with_safe_names_are_made_when_they_are_asked_for_and_kept() -> None:
    table = Table(Columns.of(files(["a", "b", "c"])))
    assert isinstance(table.names, Names)
    assert table.names["b"] is table.names["b"] == Entry("b", "/files/1", False, 1)
    assert "d" not in table.names
    assert table.names.get("d") is None
    assert list(table.names) == ["a", "b", "c"]


def test_one_entry_is_made_for_all_threads_that_ask_for_it() -> None:
    table = Table(Columns.of(files([str(number) for number in range(2000)])))
    seen: list[list[int]] = []

    def look() -> None:
        seen.append([id(entry) for entry in map(table.names.__getitem__, table.names)])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert seen == [seen[0]] * 4


def test_what_was_learnt_and_doubted_holds_in_a_table_of_columns() -> None:
    entries = (Entry("a", "/a", False), Entry("b", "/b", False, 3))
    table = Table(Columns.of(entries))
    table.learn("a", table.names["a"], replace(entries[0], size=5))
    table.doubt("b", table.names["b"])
    assert [entry.size for entry in table.names.values()] == [5, None]
    again = Table(Columns.of(entries), earlier=table)
    assert [entry.size for entry in again.names.values()] == [5, None]


@pytest.mark.parametrize(
    ("names", "safe"),
    [
        (["a", "b.dcm"], True),
        (["a", "."], False),
        (["a", ""], False),
        (["a/b"], False),
        (["a\0"], False),
        (["\u00e9"], False),
        (["x" * 256, "a"], False),
        ([], False),
    ],
)
def test_names_that_are_surely_safe_are_shown_as_they_are(names: list[str], safe: bool) -> None:
    assert are_safe(names) is safe
    if safe:
        assert [*map(safe_name, names)] == names
