"""What is read at equal distances is seen, and the next places are named; nothing is said of other patterns."""

from __future__ import annotations

import random

import pytest

from xnatfs.config import KIB, MIB
from xnatfs.reading.prefetch import GRAIN, ReadPattern
from xnatfs.reading.strides import MOST_BYTES, MOST_RUNS, PAGE, Span

SIZE = 1000 * MIB
WINDOW = 16 * MIB


class Handle:
    """One open file: reads as the kernel passes them on, and the places named so far."""

    def __init__(self, size: int = SIZE) -> None:
        self.pattern = ReadPattern()
        self.size = size
        self.named: list[Span] = []
        self.windows: list[int] = []

    def read(self, start: int, length: int) -> list[Span]:
        """Whole pages, 128 KiB at a time; what is named anew."""
        new: list[Span] = []
        at, end = start // PAGE * PAGE, -(-(start + length) // PAGE) * PAGE
        while at < end:
            stop = min(end, at + GRAIN)
            window = self.pattern.observe(at, stop, WINDOW)
            self.windows.append(window)
            if window == 0:
                new += self.pattern.strides.ahead(self.size, WINDOW)
            at = stop
        self.named += new
        return new


@pytest.mark.parametrize("step", [2 * MIB, 2_000_000, 5_000_001, 100 * MIB // 7])
@pytest.mark.parametrize("length", [4 * KIB, 64 * KIB, 300_001])
def test_each_run_is_named_once_before_it_is_read(step: int, length: int) -> None:
    handle = Handle()
    sure = 4 if step % PAGE == 0 else 40  # until it is seen that the kernel's pages hide where runs begin
    for number in range(SIZE // step):
        start = number * step
        touching = [span for span in handle.named if span[0] < start + length and start < span[1]]
        assert len(touching) <= (number >= 4)
        assert number < sure or touching[0][0] <= start < start + length <= touching[0][1]
        handle.read(start, length)
    named = sum(stop - start for start, stop in handle.named)
    assert named <= len(handle.named) * (length + 8 * PAGE)


def test_strides_backwards_are_named_too() -> None:
    handle = Handle()
    places = range(SIZE - 2 * MIB, 0, -2 * MIB)
    for number, start in enumerate(places):
        assert sum(first <= start < stop for first, stop in handle.named) == (1 if number >= 4 else 0)
        handle.read(start, 64 * KIB)


def test_more_is_named_the_longer_it_goes_on_up_to_a_bound() -> None:
    handle = Handle()
    ahead = []
    for number in range(100):
        handle.read(number * 2 * MIB, 64 * KIB)
        ahead.append(sum(start > number * 2 * MIB for start, _ in handle.named))
    assert ahead[:6] == [0, 0, 0, 2, 4, 8]
    assert max(ahead) == MOST_RUNS


def test_long_runs_are_bounded_in_bytes_and_not_read_on() -> None:
    handle = Handle()
    for number in range(30):
        handle.read(number * 30 * MIB, 3 * MIB)
        ahead = [span for span in handle.named if span[0] > number * 30 * MIB]
        assert sum(stop - start for start, stop in ahead) <= MOST_BYTES
    assert len(handle.named) > 20
    assert max(handle.windows[-24:]) <= 3 * MIB - GRAIN  # never past the end of the run
    assert handle.windows[-1] == 0


def test_random_places_are_never_taken_for_strides() -> None:
    handle = Handle()
    places = random.Random(1)
    for _ in range(50_000):
        assert handle.read(places.randrange(SIZE - 4096), 4096) == []


def test_reading_in_order_and_reading_one_place_again_name_nothing() -> None:
    handle = Handle()
    for start in range(0, 100 * MIB, GRAIN):
        handle.read(start, GRAIN)
    assert handle.windows[-1] == WINDOW
    again = Handle()
    for number in range(20):
        again.read((number % 2) * 50 * MIB, 4096)
    same = Handle()
    for _ in range(20):
        same.read(50 * MIB, 4096)
    assert handle.named == again.named == same.named == []


def test_a_row_that_ends_is_forgotten() -> None:
    handle = Handle()
    for number in range(10):
        handle.read(number * 2 * MIB, 64 * KIB)
    assert handle.pattern.strides.sure
    handle.read(700 * MIB, 64 * KIB)
    assert not handle.pattern.strides.sure
    for number in range(10, 20):
        handle.read(number * 2 * MIB, 64 * KIB)
    assert handle.pattern.strides.sure
    for start in range(20 * 2 * MIB, 30 * 2 * MIB, GRAIN):  # from here on in order
        handle.read(start, GRAIN)
    assert not handle.pattern.strides.sure
    assert handle.windows[-1] == WINDOW


def test_nothing_is_named_outside_the_file() -> None:
    handle = Handle(21 * MIB)
    for number in range(10):
        handle.read(number * 2 * MIB, 64 * KIB)
    assert all(0 <= start < stop <= 21 * MIB for start, stop in handle.named)
