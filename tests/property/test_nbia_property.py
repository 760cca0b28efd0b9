"""Whatever a manifest, a table or a file's first bytes hold: a record or an error of ours, never another exception."""

from __future__ import annotations

import re
from contextlib import suppress

import pydicom
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from xnatfs.archives.nbia.dicom import sop_instance_uid
from xnatfs.archives.nbia.image_names import Numbers, names_of, numbers_in
from xnatfs.archives.nbia.manifest import parse_manifest
from xnatfs.archives.nbia.tables import Series, parse_rows, series_name, series_of, study_name
from xnatfs.archives.nbia.tree import ROOT, Branch, file_key, parse_file_key, parse_listing_id
from xnatfs.errors import UnexpectedReply, UsageError
from xnatfs.tree.names import assign_names

UIDS = st.from_regex(r"[1-9][0-9]{0,3}(\.[0-9]{1,9}){1,5}", fullmatch=True)
TEXTS = st.text(max_size=80)
NAMES = st.text(min_size=1, max_size=80)
PATH = str(get_testdata_file("MR_small.dcm", download=False))
with open(PATH, "rb") as opened:
    HEAD = opened.read(4096)


@given(st.text())
def test_any_text_is_a_manifest_or_a_usage_error(text: str) -> None:
    for whole in (text, f"downloadServerUrl=x\nListOfSeriesToDownload=\n{text}"):
        with suppress(UsageError):
            manifest = parse_manifest(whole, "m")
            assert manifest.series
            assert all(re.fullmatch(r"[0-9.]{1,64}", uid) for uid in manifest.series)


@given(st.lists(UIDS, min_size=1, max_size=20), st.sampled_from(["\n", "\r\n", "\n\n", " \n", ",\n"]), st.booleans())
def test_every_uid_of_a_list_is_read_in_its_order(uids: list[str], end: str, last: bool) -> None:
    text = "noOfrRetry=4\nListOfSeriesToDownload=\n" + end.join(uids) + (end if last else "")
    assert parse_manifest(text, "m").series == tuple(dict.fromkeys(uids))


@given(st.binary(max_size=400) | st.text(max_size=400).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_answer_is_rows_or_an_unexpected_reply(data: bytes) -> None:
    with suppress(UnexpectedReply):
        for row in parse_rows(data, "x"):
            with suppress(UnexpectedReply):
                assert series_of(row).uid


@given(st.binary(max_size=600), st.integers(0, 4096))
def test_any_first_bytes_give_a_uid_or_nothing(data: bytes, cut: int) -> None:
    for head in (data, b"\0" * 128 + b"DICM" + data, HEAD[:cut], HEAD[:cut] + data):
        assert re.fullmatch(r"[0-9.]{0,64}", sop_instance_uid(head))


def test_the_uid_of_a_real_file_is_pydicoms() -> None:
    assert sop_instance_uid(HEAD) == pydicom.dcmread(PATH, stop_before_pixels=True).SOPInstanceUID


@given(NAMES, NAMES, TEXTS, TEXTS, TEXTS)
def test_any_series_is_placed_and_its_listing_id_can_be_read(
    collection: str, patient: str, description: str, number: str, stamp: str
) -> None:
    series = Series(
        "1.2.3", collection, patient, "4.5.6", study_description=description, description=description, number=number,
        images=2, size=3, stamp=stamp,
    )  # fmt: skip
    for classic in (False, True):
        assert study_name(series, classic).endswith("4.5.6")
        assert series_name(series, classic).endswith("1.2.3")
        branch = Branch("manifest:x", ROOT, classic)
        branch.add([series], {})
        listing = branch.listing()
        at = ROOT
        for _ in range(4):
            [entry] = [entry for entry in listing.children[at] if entry.is_dir]
            assert assign_names(listing.children[at])
            at = entry.key
        kind, fields = parse_listing_id(entry.listing)
        assert (kind, fields) == (
            "series",
            {"uid": "1.2.3", "images": "2", "size": "3", "stamp": stamp},
        )


@given(UIDS, TEXTS.filter(lambda text: text.isprintable()), UIDS | st.just(""))
def test_a_files_key_tells_what_it_was_made_of(uid: str, name: str, sop: str) -> None:
    assert parse_file_key(file_key(uid, name, sop)) == (uid, name, sop)


@given(st.binary(max_size=300), st.integers(0, len(HEAD)), st.integers(0, 64), st.booleans())
def test_any_beginning_of_a_file_has_numbers_or_not(noise: bytes, at: int, cut: int, whole: bool) -> None:
    for head in (noise, HEAD[:128] + b"DICM" + noise, HEAD[:at] + noise + HEAD[at + cut :]):
        found = numbers_in(head, whole)
        assert found is None or all(number >= -1 for number in found)
        assert found is not None or not whole


@given(st.lists(st.builds(Numbers, st.integers(-1, 3), st.integers(-1, 12)), max_size=40))
def test_images_get_names_of_their_own_in_the_order_of_their_numbers(images: list[Numbers]) -> None:
    names = names_of(images)
    assert len(set(names)) == len(names) == len(images)
    assert all(re.fullmatch(r"[0-9]+-[0-9]+\.dcm", name) for name in names)

    def place(name: str) -> tuple[int, ...]:
        return tuple(int(part) for part in name.removesuffix(".dcm").split("-"))

    in_order = [image for _, image in sorted(zip(map(place, names), images, strict=True))]
    assert in_order == sorted(images)
