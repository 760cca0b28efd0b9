"""Whatever arrives, in whatever pieces: the members as they were written, or an error."""

from __future__ import annotations

import io
import zipfile
from itertools import cycle

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_zipstream import Unseekable
from xnatfs.archives.zipstream import ZipStream
from xnatfs.errors import ArchiveError

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
DATA = st.one_of(
    st.binary(max_size=300), st.builds(lambda piece, times: piece * times, st.binary(max_size=9), st.integers(0, 9000))
)
PIECES = st.lists(st.integers(1, 5000), min_size=1, max_size=8)


@st.composite
def zips(draw: st.DrawFn) -> tuple[dict[str, bytes], bytes]:
    """Members, and a zip that holds them: each stored or deflated, in a file or written to a pipe."""
    contents = draw(st.dictionaries(NAMES, DATA, max_size=5))
    streamed = draw(st.booleans())
    out = Unseekable() if streamed else io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:  # type: ignore[arg-type]
        for name, data in contents.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED if streamed or draw(st.booleans()) else zipfile.ZIP_STORED
            with archive.open(info, "w", force_zip64=draw(st.booleans())) as member:
                member.write(data)
        archive.comment = draw(st.binary(max_size=30))
    names = dict(zip(contents, archive.namelist(), strict=True))  # as zipfile made them (os.sep)
    return {names[key]: data for key, data in contents.items()}, bytes(out.data if streamed else out.getvalue())  # type: ignore[union-attr]


def split(
    data: bytes, arriving: list[int], wanted: list[int], skipped: frozenset[int] = frozenset()
) -> dict[str, bytes]:
    """All members but those skipped, asked for and arriving in pieces of these sizes."""
    body = io.BytesIO(data)
    arrivals, sizes = cycle(arriving), cycle(wanted)

    def readinto(buffer: memoryview) -> int:
        return body.readinto(buffer[: next(arrivals)])

    into = readinto if sum(wanted) % 2 else None  # as any archive may read
    stream = ZipStream(lambda size: body.read(min(size, next(arrivals))), readinto=into)
    found: dict[str, bytes] = {}
    number = 0
    while (member := stream.next_member()) is not None:
        if number not in skipped:
            content = bytearray()
            while count := member.readinto(memoryview(buffer := bytearray(next(sizes)))):
                content += buffer[:count]
            found[member.name] = bytes(content)
        number += 1
    return found


@settings(deadline=None)
@given(zips(), PIECES, PIECES)
def test_members_come_out_as_they_went_in(
    made: tuple[dict[str, bytes], bytes], arriving: list[int], wanted: list[int]
) -> None:
    contents, data = made
    assert split(data, arriving, wanted) == contents


@settings(deadline=None)
@given(zips(), PIECES, PIECES, st.frozensets(st.integers(0, 4)))
def test_skipping_some_does_not_touch_the_others(
    made: tuple[dict[str, bytes], bytes], arriving: list[int], wanted: list[int], skipped: frozenset[int]
) -> None:
    contents, data = made
    expected = {name: one for number, (name, one) in enumerate(contents.items()) if number not in skipped}
    assert split(data, arriving, wanted, skipped) == expected


@settings(deadline=None)
@given(zips(), PIECES, PIECES, st.data())
def test_a_zip_cut_short_is_an_error(
    made: tuple[dict[str, bytes], bytes], arriving: list[int], wanted: list[int], data: st.DataObject
) -> None:
    _, whole = made
    length = data.draw(st.integers(0, len(whole) - 1))
    try:
        split(whole[:length], arriving, wanted)
    except ArchiveError:
        return
    raise AssertionError("a zip without its end was taken for a whole one")


@settings(deadline=None)
@given(zips(), PIECES, PIECES, st.data())
def test_flipped_bytes_never_pass_for_content(
    made: tuple[dict[str, bytes], bytes], arriving: list[int], wanted: list[int], data: st.DataObject
) -> None:
    contents, whole = made
    damaged = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        damaged[place] ^= data.draw(st.integers(1, 255))
    try:
        found = split(bytes(damaged), arriving, wanted)
    except ArchiveError:
        return
    assert found == contents  # the flip was in a field that says nothing of names or content


@settings(deadline=None)
@given(st.binary(max_size=200), PIECES)
def test_noise_is_an_error(noise: bytes, arriving: list[int]) -> None:
    try:
        found = split(noise, arriving, [64])
    except ArchiveError:
        return
    assert found == {}
