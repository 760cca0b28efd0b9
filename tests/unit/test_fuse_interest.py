"""Attributes go along with names for programs that look at files, and for no others; a wrong guess is put right."""

from __future__ import annotations

from xnatfs.frontends.fuse_interest import FEW, PAUSE_S, REMEMBERED, TRUSTED, Interest, Wanted

FIND, LIST = 1001, 1002
ALL, TRIAL, NAMES = Wanted.ALL, Wanted.TRIAL, Wanted.NAMES


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def read(interest: Interest, caller: int, count: int, looks: bool = False, start: int = 0) -> list[Wanted]:
    """A program reads directories; one that looks asks for the file that comes without attributes."""
    got = []
    for number in range(start, start + count):
        got.append(interest.wanted(caller, f"/{caller}/{number}", 100))
        if looks and got[-1] is not ALL:
            interest.looked_at(f"/{caller}/{number}/a.dcm")
    return got


def test_who_never_looks_at_a_file_gets_names_after_two_directories() -> None:
    assert read(Interest(), FIND, 5) == [TRIAL, TRIAL, NAMES, NAMES, NAMES]


def test_who_looks_gets_attributes_and_a_trial_once_in_a_while() -> None:
    assert read(Interest(), LIST, 2 * TRUSTED + 4, looks=True) == 2 * [TRIAL, *[ALL] * TRUSTED] + [TRIAL, ALL]


def test_who_begins_to_look_gets_attributes_from_the_next_directory_on() -> None:
    interest = Interest()
    read(interest, FIND, 5)
    interest.looked_at(f"/{FIND}/4/b.dcm")
    assert read(interest, FIND, TRUSTED, start=5) == [ALL] * TRUSTED


def test_a_look_into_a_directory_read_earlier_counts_as_well() -> None:
    interest = Interest()
    read(interest, FIND, 5)
    interest.looked_at(f"/{FIND}/2/b.dcm")  # by whatever thread
    assert read(interest, FIND, 1, start=5) == [ALL]


def test_programs_are_told_apart() -> None:
    interest = Interest()
    for number in range(4):
        finds = interest.wanted(FIND, f"/f/{number}", 100)
        lists = interest.wanted(LIST, f"/l/{number}", 100)
        if lists is TRIAL:
            interest.looked_at(f"/l/{number}/a")
    assert (finds, lists) == (NAMES, ALL)


def test_after_a_pause_a_program_may_do_something_else() -> None:
    clock = Clock()
    interest = Interest(clock)
    assert read(interest, FIND, 3)[-1] is NAMES
    clock.now_s += PAUSE_S * 1.1
    assert read(interest, FIND, 1) == [TRIAL]


def test_small_directories_and_unknown_callers_get_all_and_prove_nothing() -> None:
    interest = Interest()
    assert {interest.wanted(FIND, f"/{number}", FEW - 1) for number in range(9)} == {ALL}
    assert {interest.wanted(0, f"/{number}", 100) for number in range(9)} == {ALL}
    assert not interest.watched
    assert read(interest, FIND, 1) == [TRIAL]


def test_what_is_remembered_is_bounded() -> None:
    interest = Interest()
    for caller in range(1, 2 * REMEMBERED):
        read(interest, caller, 1)
    assert len(interest._programs) == len(interest._directories) == REMEMBERED
