"""Names as contract 2 has them."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from xnatfs.model import Entry
from xnatfs.tree.names import assign_aliases, assign_names, safe_name


def file(name: str, id: str = "", *, key: str | None = None, reserved: bool = False) -> Entry:
    return Entry(name, key if key is not None else f"{name}#{id}", False, size=0, id=id, reserved=reserved)


def shown(*entries: Entry) -> dict[str, str]:
    """Shown name -> id, the same for every order in which the archive may list the entries."""
    results = [{name: entry.id for name, entry in assign_names(order).items()} for order in permutations(entries)]
    assert all(result == results[0] for result in results)
    return results[0]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("1.dcm", "1.dcm"),
        ("T1w/MPRAGE", "T1w_MPRAGE"),
        ("a\0b", "a_b"),
        ("", "_"),
        (".", "_"),
        ("..", "_"),
        ("...", "..."),
        (".hidden", ".hidden"),
        ("/", "_"),
        ("Übung 1", "Übung 1"),
        ("two\nlines\t\x1b[31m", "two\nlines\t\x1b[31m"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("pair \ud83d\ude00", "pair 😀"),
    ],
)
def test_safe_name(raw: str, expected: str) -> None:
    assert safe_name(raw) == expected


def test_a_name_of_255_bytes_stays_and_one_more_is_cut_with_a_hash() -> None:
    assert safe_name("a" * 255) == "a" * 255
    cut = safe_name("a" * 256)
    assert len(cut) == 255
    assert cut[:246] == "a" * 246
    assert cut[246] == "~"
    assert int(cut[247:], 16) >= 0
    assert cut != safe_name("a" * 257)


def test_cutting_never_splits_a_character() -> None:
    name = safe_name("é" * 200)
    assert len(name.encode()) <= 255
    assert set(name.partition("~")[0]) == {"é"}


def test_all_members_of_a_group_of_equal_names_get_their_id() -> None:
    assert shown(file("a", "1"), file("a", "2"), file("b", "3")) == {"a~1": "1", "a~2": "2", "b": "3"}


def test_names_that_become_equal_when_made_safe_get_their_id() -> None:
    assert shown(file("a/b", "1"), file("a_b", "2")) == {"a_b~1": "1", "a_b~2": "2"}


def test_a_reserved_name_stays_and_the_archives_own_gives_way() -> None:
    entries = file("resources", "r", reserved=True), file("resources", "E7"), file("scans", "E8")
    assert shown(*entries) == {"resources": "r", "resources~E7": "E7", "scans": "E8"}


def test_a_name_that_looks_like_a_disambiguated_one_stays_and_the_made_one_gives_way() -> None:
    result = shown(file("a", "1"), file("a", "2"), file("a~1", "3"))
    assert result["a~1"] == "3"
    assert result["a~2"] == "2"
    [made] = result.keys() - {"a~1", "a~2"}
    assert made.startswith("a~")
    assert result[made] == "1"


def test_equal_names_without_ids_are_told_apart_by_their_keys() -> None:
    result = assign_names([file("a", key="k1"), file("a", key="k2")])
    assert len(result) == 2
    assert all(name.startswith("a~") and len(name) == 18 for name in result)


def test_an_id_is_made_safe_too() -> None:
    assert shown(file("a", "x/1"), file("a", "2")) == {"a~x_1": "x/1", "a~2": "2"}


def test_long_equal_names_stay_within_the_limit() -> None:
    result = shown(file("n" * 255, "XNAT_E00001"), file("n" * 255, "XNAT_E00002"))
    assert sorted(len(name) for name in result) == [255, 255]
    assert all(name.endswith(f"~{id}") for name, id in result.items())


def test_a_file_listed_twice_shows_once_and_the_first_wins() -> None:
    first = Entry("a", "k", False, size=1)
    assert assign_names([first, replace(first, size=2)]) == {"a": first}


def test_the_archives_order_is_kept() -> None:
    assert list(assign_names([file("c"), file("a"), file("b", "1"), file("b", "2")])) == ["c", "a", "b~1", "b~2"]


def test_two_reserved_entries_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="reserved"):
        assign_names([file("scans", "1", reserved=True), file("scans", "2", reserved=True)])


def aliased(name: str, *aliases: str) -> Entry:
    return replace(file(name), aliases=aliases)


def test_an_alias_resolves_to_the_shown_name() -> None:
    assert assign_aliases(assign_names([aliased("3-T1w", "3"), aliased("4", "4")])) == {"3": "3-T1w"}


def test_an_alias_never_shadows_a_shown_name() -> None:
    assert assign_aliases(assign_names([aliased("one", "two"), file("two")])) == {}


def test_an_alias_that_two_entries_claim_resolves_to_neither() -> None:
    assert assign_aliases(assign_names([aliased("a", "x"), aliased("b", "x", "y")])) == {"y": "b"}
