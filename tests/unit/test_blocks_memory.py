"""The memory store: bounded in bytes, least recently used first, held contents last, values never copied."""

from __future__ import annotations

import random
import threading

from xnatfs.blocks.base import BlockKey
from xnatfs.blocks.memory import OVERHEAD_BYTES, MemoryBlocks
from xnatfs.model import ContentId

KIB = 1024


def content(name: str) -> ContentId:
    return ContentId("https://xnat.example.org", f"/data/files/{name}", "v1")


def key(name: str, number: int = 0) -> BlockKey:
    return BlockKey(content(name), number, KIB)


def room_for(blocks: int) -> MemoryBlocks:
    return MemoryBlocks(blocks * (KIB + OVERHEAD_BYTES))


def kept(store: MemoryBlocks, *keys: BlockKey) -> list[bool]:
    return [store.get(each) is not None for each in keys]


def test_a_block_comes_back_as_the_very_object_that_was_put() -> None:
    store, data = room_for(1), bytes(KIB)
    store.put(key("a"), data)
    assert store.get(key("a")) is data


def test_an_unknown_block_is_a_miss() -> None:
    assert room_for(1).get(key("a")) is None


def test_an_empty_block_is_not_a_miss() -> None:
    store = room_for(1)
    store.put(key("a"), b"")
    assert store.get(key("a")) == b""


def test_the_least_recently_used_block_goes_first() -> None:
    store = room_for(2)
    store.put(key("a"), bytes(KIB))
    store.put(key("b"), bytes(KIB))
    store.get(key("a"))
    store.put(key("c"), bytes(KIB))
    assert kept(store, key("a"), key("b"), key("c")) == [True, False, True]


def test_blocks_of_a_held_content_go_last() -> None:
    store = room_for(2)
    store.put(key("held"), bytes(KIB))
    store.hold(content("held"))
    for number in range(5):
        store.put(key("other", number), bytes(KIB))
    assert kept(store, key("held"), key("other", 4), key("other", 3)) == [True, True, False]


def test_a_block_put_while_its_content_is_held_is_held_too() -> None:
    store = room_for(2)
    store.hold(content("held"))
    store.put(key("held"), bytes(KIB))
    store.put(key("a"), bytes(KIB))
    store.put(key("b"), bytes(KIB))
    assert kept(store, key("held"), key("a"), key("b")) == [True, False, True]


def test_the_limit_holds_even_when_everything_is_held() -> None:
    store = room_for(2)
    store.hold(content("held"))
    for number in range(5):
        store.put(key("held", number), bytes(KIB))
    assert kept(store, *(key("held", number) for number in range(5))) == [False, False, False, True, True]


def test_holds_are_counted_and_end_with_the_last_release() -> None:
    store = room_for(1)
    store.hold(content("a"))
    store.hold(content("a"))
    store.release(content("a"))
    store.put(key("a"), bytes(KIB))
    store.release(content("a"))
    store.release(content("a"))  # one too many: nothing to end
    store.put(key("b"), bytes(KIB))
    assert kept(store, key("a"), key("b")) == [False, True]


def test_a_block_over_the_limit_is_not_kept_and_evicts_nothing() -> None:
    store = room_for(1)
    store.put(key("a"), bytes(KIB))
    store.put(key("huge"), bytes(4 * KIB))
    assert kept(store, key("a"), key("huge")) == [True, False]


def test_putting_a_block_again_does_not_count_it_twice() -> None:
    store = room_for(2)
    for _ in range(10):
        store.put(key("a"), bytes(KIB))
    assert store.used_bytes == KIB + OVERHEAD_BYTES


def test_discard_drops_blocks_and_note_of_one_content_only() -> None:
    store = room_for(4)
    for number in range(2):
        store.put(key("a", number), bytes(KIB))
    store.put(key("b"), bytes(KIB))
    store.put_note(content("a"), "Mon")
    store.put_note(content("b"), "Tue")
    store.discard(content("a"))
    assert kept(store, key("a", 0), key("a", 1), key("b")) == [False, False, True]
    assert (store.get_note(content("a")), store.get_note(content("b"))) == (None, "Tue")
    assert store.used_bytes == KIB + OVERHEAD_BYTES


def test_close_lets_all_memory_go() -> None:
    store = room_for(1)
    store.put(key("a"), bytes(KIB))
    store.close()
    assert store.get(key("a")) is None
    assert store.used_bytes == 0


def test_random_use_never_exceeds_the_limit_nor_returns_another_block() -> None:
    rng = random.Random(5)
    limit = 20 * KIB
    store = MemoryBlocks(limit)
    for _ in range(20_000):
        name, number = rng.choice("abcd"), rng.randrange(8)
        act = rng.randrange(10)
        if act < 5:
            data = store.get(key(name, number))
            assert data is None or data[:2] == f"{name}{number}".encode()
        elif act < 9:
            store.put(key(name, number), f"{name}{number}".encode() + bytes(rng.randrange(2 * KIB)))
        else:
            rng.choice([store.hold, store.release, store.discard])(content(name))
        assert 0 <= store.used_bytes <= limit


def test_sixteen_threads_share_one_store() -> None:
    store = room_for(8)
    wrong: list[str] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(2_000):
            name = rng.choice("abcdefghijkl")
            data = store.get(key(name))
            if data is None:
                store.put(key(name), name.encode() * KIB)
            elif data != name.encode() * KIB:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
