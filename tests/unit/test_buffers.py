"""Block buffers are used again, and never while somebody can still see what they hold."""

from __future__ import annotations

import threading

from xnatfs.buffers import BufferPool

SIZE = 4096


def test_a_buffer_that_nobody_looks_at_is_given_out_again() -> None:
    pool = BufferPool(SIZE, 2)
    first = pool.take(SIZE)
    number = id(first)
    del first
    assert id(pool.take(SIZE)) == number


def test_a_buffer_with_a_view_on_a_part_of_it_is_not_given_out() -> None:
    pool = BufferPool(SIZE, 1)
    first = pool.take(SIZE)
    first[:3] = b"abc"
    view = memoryview(first).toreadonly()[1:3]
    del first
    for _ in range(3):
        other = pool.take(SIZE)
        other[:3] = b"xyz"
    assert view == b"bc"


def test_other_sizes_and_more_buffers_than_are_kept_are_new_memory() -> None:
    pool = BufferPool(SIZE, 1)
    held = [pool.take(SIZE) for _ in range(3)]
    assert len({id(buffer) for buffer in held}) == 3
    assert len(pool.take(10)) == 10


def test_threads_never_share_a_buffer() -> None:
    pool = BufferPool(SIZE, 4)
    mixed: list[bytes] = []

    def fill(mark: bytes) -> None:
        for _ in range(500):
            buffer = pool.take(SIZE)
            buffer[:] = mark * SIZE
            if buffer != mark * SIZE:
                mixed.append(mark)

    threads = [threading.Thread(target=fill, args=(bytes([number]),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mixed == []
