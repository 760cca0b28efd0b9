"""What holds for names of any characters, equal or not, in any order."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from xnatfs.archives.memory import MemoryArchive
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.config import ListingConfig, ReadConfig, TreeConfig
from xnatfs.model import Entry
from xnatfs.reading.reader import BlockReader
from xnatfs.tree.listing import ListingCache
from xnatfs.tree.names import assign_names, safe_name
from xnatfs.tree.vfs import ArchiveVFS

ANY_TEXT = st.one_of(
    st.text(st.characters(), max_size=12),  # all of Unicode, lone surrogates included
    st.text("a/\0.~_1é\ud800", max_size=4),  # where names collide
    st.text("aé字😀/", min_size=80, max_size=300),  # around and over 255 bytes
    st.sampled_from(["", ".", "..", "a", "a~1", "resources", "scans"]),
)


@st.composite
def directories(draw: st.DrawFn) -> list[Entry]:
    rows = draw(st.lists(st.tuples(ANY_TEXT, st.sampled_from(["", "1", "2", "x/y", "~", "é" * 200])), max_size=12))
    entries = [Entry(name, f"key{number}", False, size=number, id=id) for number, (name, id) in enumerate(rows)]
    if draw(st.booleans()):
        entries.append(Entry("resources", "reserved", True, reserved=True))
    return entries


def is_a_posix_name(name: str) -> bool:
    return 0 < len(name.encode()) <= 255 and not {"/", "\0"} & set(name) and name not in {".", ".."}


@given(ANY_TEXT)
def test_a_safe_name_is_a_posix_name_and_stays_itself(raw: str) -> None:
    name = safe_name(raw)
    assert is_a_posix_name(name)
    assert safe_name(name) == name


@given(directories())
def test_every_entry_is_shown_once_under_a_posix_name(entries: list[Entry]) -> None:
    names = assign_names(entries)
    assert list(names.values()) == entries
    assert all(map(is_a_posix_name, names))


@given(directories(), st.integers())
def test_names_do_not_depend_on_the_order_of_the_listing(entries: list[Entry], seed: int) -> None:
    shuffled = list(entries)
    Random(seed).shuffle(shuffled)
    assert assign_names(shuffled) == assign_names(entries)


@given(directories())
def test_a_reserved_name_is_never_altered(entries: list[Entry]) -> None:
    names = assign_names(entries)
    assert all(names[entry.name] is entry for entry in entries if entry.reserved)


@given(directories())
def test_a_name_that_is_safe_and_has_no_equal_is_never_altered(entries: list[Entry]) -> None:
    safe = [safe_name(entry.name) for entry in entries]
    names = assign_names(entries)
    assert all(names[name] is entry for name, entry in zip(safe, entries, strict=True) if safe.count(name) == 1)


@given(st.dictionaries(ANY_TEXT, st.binary(max_size=3), max_size=8))
def test_what_is_listed_is_found_again_with_its_own_bytes(files: dict[str, bytes]) -> None:
    archive = MemoryArchive(files)
    reader = BlockReader(archive, MemoryBlocks(1 << 20), ReadConfig(), 1 << 20)
    vfs = ArchiveVFS(archive, reader, ListingCache(archive, ListingConfig()), TreeConfig())
    nodes = vfs.listdir("/")
    assert sorted(node.entry.name for node in nodes) == sorted(files)
    for node in nodes:
        assert vfs.lookup(f"/{node.name}") == node
        assert node.size == len(files[node.entry.name])
    assert len({node.ino for node in nodes}) == len(nodes)
