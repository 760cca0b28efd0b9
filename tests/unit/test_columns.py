"""Entries kept column by column: what comes out is what went in, whoever asks how."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xnatfs.columns import FIELDS, Children, Columns, folded, lazy
from xnatfs.model import Entry

FILES = tuple(
    Entry(f"{number}.dcm", f"/d/{number}", False, number, 7, f"{number}:", digest="ab" * 16) for number in range(3)
)
FOLDER = Entry("scans", "/d/scans", True, listing="experiment:id=E1", aliases=("E1",), reserved=True)


@pytest.mark.parametrize("entries", [FILES, (FOLDER,), (FOLDER, *FILES), ()])
def test_entries_come_back_as_they_were(entries: tuple[Entry, ...]) -> None:
    columns = Columns.of(entries)
    assert columns.entries() == entries
    assert len(columns) == len(entries)
    assert tuple(columns.entry(place) for place in range(len(entries))) == entries


def test_a_field_that_is_the_same_in_all_is_kept_once() -> None:
    columns = Columns.of(FILES)
    assert list(columns.column("mtime_ns")) == [7]
    assert list(columns.column("size")) == [0, 1, 2]
    assert list(folded(["a", "a"])) == ["a"]
    assert list(folded(["a", "b"])) == ["a", "b"]


@pytest.mark.parametrize("cells", [[[1]] * 3, [[1, 2]] * len(FIELDS), [[]] * len(FIELDS)])
def test_columns_of_unequal_lengths_are_refused(cells: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="not of one length"):
        Columns(3, cells)


def test_children_are_equal_however_they_are_kept() -> None:
    plain = {"/d": FILES, "/e": (FOLDER,)}
    as_columns = Children({key: Columns.of(entries) for key, entries in plain.items()})
    as_entries = lazy(plain)
    assert as_columns == as_entries == plain == as_columns
    assert dict(as_columns) == plain
    assert as_columns.total == 4


@pytest.mark.parametrize("keep", [tuple, Columns.of])
def test_children_with_one_other_entry_are_other_children(keep: type[tuple[Entry, ...]]) -> None:
    changed = (*FILES[:2], replace(FILES[2], size=9))
    before, after = Children({"/d": keep(FILES), "/e": ()}), Children({"/d": keep(changed), "/e": ()})
    assert before != after
    assert before != Children({"/d": keep(FILES)})
    assert not before.has_same("/d", after)
    assert before.has_same("/e", after)
    assert before.has_same("/nowhere", after)
    assert not before.has_same("/e", {"/d": FILES})


def test_children_already_lazy_are_taken_as_they_are() -> None:
    children = Children({"/d": Columns.of(FILES)})
    assert lazy(children) is children
