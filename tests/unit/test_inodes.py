"""Inodes: of paths alone, distinct, and for numbered files in the order of their numbers, which is how ``cp`` reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xnatfs.tree.inodes import inode_of, inodes_of_files

FORMS: list[Callable[[int], str]] = [
    "{:04}.dcm".format,
    "{}.dcm".format,
    "IM{:06}".format,
    "IMG-0001-{:05}.dcm".format,
    "I.{:03}".format,
    "slice_{}.nii.gz".format,
    lambda number: (
        f"1.3.12.2.1107.5.2.32.35177.3.2006121409284534196417894.0.0.0-2-{number}-{number * 7919 % 1009:x}q3.dcm"
    ),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form(7))
def test_numbered_files_have_inodes_in_the_order_of_their_numbers(form: Callable[[int], str]) -> None:
    names = [form(number) for number in range(1, 1201)]
    inodes = inodes_of_files("/P/S/E/scans/1-T1/DICOM/", names)
    assert inodes == sorted(inodes)
    assert len(set(inodes)) == len(inodes)


def test_an_inode_is_that_of_the_path_whatever_lies_beside_it() -> None:
    names = ["a.txt", "7.dcm", "IM8", "ünï 9.dcm", "0", "x\n3"]
    assert inodes_of_files("/P/", names) == [inodes_of_files("/P/", [name])[0] for name in names]


def test_the_same_names_in_many_directories_have_inodes_of_their_own() -> None:
    names = [f"{number:04}.dcm" for number in range(500)]
    inodes = {ino for place in range(200) for ino in inodes_of_files(f"/P/S{place}/", names)}
    assert len(inodes) == 200 * 500


def test_many_files_without_a_number_or_with_the_same_have_inodes_of_their_own() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [f"{a}{b}{c}" for a in letters for b in letters for c in letters[:3]]
    for form in ("{}", "{}-1.dcm"):
        assert len(set(inodes_of_files("/P/", [form.format(name) for name in names]))) == len(names)


def test_inodes_fit_63_bits_and_are_not_0() -> None:
    inodes = [*inodes_of_files("/P/", [f"{number}" * 9 for number in range(1000)]), inode_of(""), inode_of("/P")]
    assert all(0 < ino < 1 << 63 for ino in inodes)
