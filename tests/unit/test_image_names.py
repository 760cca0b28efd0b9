"""NBIA's names of images: the documented rule, and the two numbers out of real files however much of them is there."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from xnatfs.archives.nbia.image_names import Numbers, names_of, numbers_in


def image(name: str) -> bytes:
    return Path(str(get_testdata_file(name, download=False))).read_bytes()


def test_the_example_of_the_release_notes() -> None:
    images = [Numbers(acquisition, instance) for acquisition in (1, 2) for instance in range(1, 43)]
    names = names_of(images)
    assert (names[0], names[41], names[42], names[83]) == ("1-01.dcm", "1-42.dcm", "2-01.dcm", "2-42.dcm")


@pytest.mark.parametrize(
    ("images", "names"),
    [
        ([], []),
        ([Numbers(7, 300)], ["1-1.dcm"]),
        ([Numbers(1, 30), Numbers(1, 10), Numbers(1, 20)], ["1-3.dcm", "1-1.dcm", "1-2.dcm"]),  # positions, not values
        ([Numbers(), Numbers(1, 1), Numbers(1, 2)], ["1-1.dcm", "2-1.dcm", "2-2.dcm"]),  # none comes first
        ([Numbers(1, 5), Numbers(1, 5), Numbers(1, 5)], ["1-1.dcm", "1-2.dcm", "1-3.dcm"]),
        ([Numbers(2, 1), Numbers(1, 9)], ["2-1.dcm", "1-1.dcm"]),
    ],
)
def test_places_are_counted_within_acquisitions(images: list[Numbers], names: list[str]) -> None:
    assert names_of(images) == names


def test_numbers_are_padded_to_the_width_of_the_series() -> None:
    assert names_of([Numbers(1, number) for number in range(133)])[0] == "1-001.dcm"
    assert names_of([Numbers(number, 1) for number in range(12)])[11] == "12-1.dcm"


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small_implicit.dcm",
        "MR_small_bigendian.dcm",
        "image_dfl.dcm",
        "rtplan.dcm",
        "nested_priv_SQ.dcm",
    ],
)
def test_any_part_of_a_file_tells_its_numbers_or_that_it_is_too_short(name: str) -> None:
    data = image(name)
    true = pydicom.dcmread(str(get_testdata_file(name, download=False)), stop_before_pixels=True)
    numbers = Numbers(
        *(-1 if true.get(key) is None else int(true[key].value) for key in ("AcquisitionNumber", "InstanceNumber"))
    )
    told = {stop: numbers_in(data[:stop], whole=False) for stop in range(132, min(len(data), 6000))}
    assert set(told.values()) <= {None, numbers}
    assert numbers_in(data, whole=True) == numbers


@pytest.mark.parametrize("data", [b"", b"DICM", b"<html>" * 100, image("CT_small.dcm")[132:]])
def test_what_is_no_dicom_has_no_numbers(data: bytes) -> None:
    assert numbers_in(data, whole=True) == Numbers()
    if len(data) > 132:
        assert numbers_in(data, whole=False) == Numbers()
