"""How many streams a file deserves, by what they bring; the clock and the bytes are made up."""

from __future__ import annotations

from collections.abc import Callable

from xnatfs.reading.streams import MOST_STREAMS, Sample, StreamCount

MB = 1e6


def watched(
    count: StreamCount, rate: Callable[[int], float], *, waiting: float = 1.0, busy: float = 0.1, seconds: float = 10
) -> StreamCount:
    """Let time pass, a tenth of a second a step, while ``rate(streams)`` bytes a second come."""
    now = moved = 0.0
    while now < seconds:
        count.note(Sample(now, int(moved), waiting * now, busy * now))
        now += 0.1
        moved += 0.1 * rate(count.count)
    return count


def test_connections_that_are_limited_one_by_one_get_all_streams() -> None:
    count = watched(StreamCount(MOST_STREAMS), lambda streams: streams * 20 * MB)
    assert (count.count, count.settled) == (MOST_STREAMS, True)


def test_a_line_that_is_limited_as_a_whole_keeps_one_stream_after_one_try() -> None:
    tried: list[int] = []

    def rate(streams: int) -> float:
        tried.append(streams)
        return 40 * MB

    count = watched(StreamCount(MOST_STREAMS), rate)
    assert (count.count, count.settled) == (1, True)
    assert max(tried) == 2


def test_a_moment_in_which_little_comes_does_not_end_a_stream() -> None:
    steps: list[int] = []

    def rate(streams: int) -> float:
        steps.append(streams)
        since = len(steps) - 1 - steps.index(streams)  # tenths of a second with so many
        return (20 if 3 <= since < 9 else streams * 20) * MB

    assert watched(StreamCount(MOST_STREAMS), rate).count == MOST_STREAMS


def test_streams_stay_only_as_long_as_each_brings_more() -> None:
    count = watched(StreamCount(MOST_STREAMS), lambda streams: min(streams * 20, 45) * MB)
    assert (count.count, count.settled) == (2, True)


def test_a_fast_stream_is_left_alone() -> None:
    assert watched(StreamCount(MOST_STREAMS), lambda streams: 300 * MB).count == 1


def test_fast_enough_together_is_enough() -> None:
    assert watched(StreamCount(MOST_STREAMS), lambda streams: 90 * MB * streams**1.5).count == 2


def test_a_reader_that_does_not_wait_gets_no_further_stream() -> None:
    assert watched(StreamCount(MOST_STREAMS), lambda streams: streams * 20 * MB, waiting=0.3).count == 1


def test_a_busy_processor_gets_no_further_stream() -> None:
    assert watched(StreamCount(MOST_STREAMS), lambda streams: streams * 20 * MB, busy=0.9).count == 1


def test_a_short_read_gets_no_further_stream() -> None:
    assert watched(StreamCount(MOST_STREAMS), lambda streams: streams * 20 * MB, seconds=0.4).count == 1


def test_what_was_found_for_another_file_is_taken_at_once() -> None:
    for known in (1, 3):
        count = StreamCount(MOST_STREAMS, known)
        assert (count.count, count.settled) == (known, True)


def test_few_connections_mean_few_streams() -> None:
    assert watched(StreamCount(1), lambda streams: streams * 20 * MB).count == 1
    assert watched(StreamCount(2), lambda streams: streams * 20 * MB).count == 2
    assert StreamCount(2, known=4).count == 2


def test_streams_that_fail_side_by_side_are_given_up() -> None:
    count = watched(StreamCount(MOST_STREAMS), lambda streams: streams * 20 * MB, seconds=2)
    assert count.count > 1
    count.give_up()
    assert (count.count, count.settled) == (1, True)
    assert watched(count, lambda streams: streams * 20 * MB).count == 1
