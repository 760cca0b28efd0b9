"""Where the sample's images come from: files that pydicom and nibabel ship, and series made from them.

Nothing is downloaded: a name that is not inside the installed package is an error. Imports those packages when first
called, because a server that only lists should start at once.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING

from xnatfs.demo.contents import BytesContent, Content, FileContent, MadeContent, doubled_tile

if TYPE_CHECKING:
    import pydicom

_UID_ROOT = "1.2.826.0.1.3680043.8.498.20240305"
_PLACE_UID = "1.2.826.0.1.3680043.8.498.99.99.9999999"  # what a template's files replace, length for length
_PLACE_SERIES = "1.2.826.0.1.3680043.8.498.88.88.8888888"
_PLACE_NUMBER = "7777"
_PLACE_POSITION = "66666.66"


def dicom_sample(name: str) -> Content:
    """One of pydicom's packaged test files."""
    from pydicom.data import get_testdata_file

    path = get_testdata_file(name, download=False)
    if path is None:
        raise LookupError(f"pydicom does not ship {name}")
    return FileContent(Path(str(path)))


def nibabel_sample(name: str) -> Content:
    """One of nibabel's packaged test files."""
    import nibabel

    # Not by nibabel.testing, which imports pytest: a demo has none.
    return FileContent(Path(nibabel.__file__).parent / "tests" / "data" / name)


@functools.lru_cache(maxsize=16)
def dicom_series(source: str, slices: int, series: int, description: str) -> tuple[BytesContent, ...]:
    """A series of ``slices`` consistent images made from one packaged image; the same bytes on every run."""
    import pydicom

    made = []
    for number in range(1, slices + 1):
        dataset = pydicom.dcmread(io.BytesIO(dicom_sample(source).read()))
        _name_slice(dataset, series, number, slices, description)
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        made.append(BytesContent(buffer.getvalue()))
    return tuple(made)


def _name_slice(dataset: pydicom.Dataset, series: int, number: int, slices: int, description: str) -> None:
    from pydicom.uid import UID

    uid = UID(f"{_UID_ROOT}.{series}.{number}")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.StudyInstanceUID = f"{_UID_ROOT}.1"
    dataset.SeriesInstanceUID = f"{_UID_ROOT}.{series}"
    dataset.FrameOfReferenceUID = f"{_UID_ROOT}.2"
    dataset.SeriesNumber = series
    dataset.SeriesDescription = description
    dataset.ProtocolName = description
    dataset.InstanceNumber = number
    dataset.AcquisitionNumber = 1
    dataset.ImagesInAcquisition = slices
    dataset.PatientName = "Demo^Sample"
    dataset.PatientID = "DEMO"
    dataset.SliceThickness = 2.0
    dataset.SpacingBetweenSlices = 2.0
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-80.0, -80.0, 2.0 * (number - 1)]
    dataset.SliceLocation = 2.0 * (number - 1)
    # Pixels differ from slice to slice, so that no two files are equal.
    pixels = bytearray(dataset.PixelData)
    pixels[0:2] = number.to_bytes(2, "little")
    dataset.PixelData = bytes(pixels)


@functools.lru_cache(maxsize=4)
def _template(rows: int) -> bytes:
    """A valid image of ``rows`` x ``rows`` 16-bit pixels whose numbers are placeholders of fixed length."""
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(dicom_sample("MR_small.dcm").read()))
    _name_slice(dataset, 1, 1, 1, "made on the fly")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(_PLACE_UID)
    dataset.SeriesInstanceUID = _PLACE_SERIES
    dataset.InstanceNumber = _PLACE_NUMBER
    dataset.ImagePositionPatient = ["-80.0", "-80.0", _PLACE_POSITION]
    dataset.SliceLocation = _PLACE_POSITION
    dataset.Rows = dataset.Columns = rows
    dataset.PixelData = bytes(rows * rows * 2)
    if "DataSetTrailingPadding" in dataset:
        del dataset.DataSetTrailingPadding
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    data = buffer.getvalue()
    return data[: len(data) - rows * rows * 2]


def dicom_on_the_fly(series: int, number: int, rows: int) -> MadeContent:
    """Slice ``number`` (1 to 2000) of a made series; 320 rows give about 200 KB, 64 rows about 9 KB."""
    pixels = rows * rows * 2

    def make() -> bytes:
        header = _template(rows)
        series_uid = f"1.2.826.0.1.3680043.8.498.88.88.{1_000_000 + series}"
        image_uid = f"1.2.826.0.1.3680043.8.498.99.{10 + number % 90}.{1_000_000 + series * 4000 + number}"
        header = header.replace(_PLACE_UID.encode(), image_uid.encode())
        header = header.replace(_PLACE_SERIES.encode(), series_uid.encode())
        header = header.replace(_PLACE_NUMBER.encode(), f"{number:4d}".encode())
        header = header.replace(_PLACE_POSITION.encode(), f"{2.0 * number:8.2f}".encode())
        phase = (series * 1013 + number * 7919) * 101 % (8 * 1024 * 1024 - pixels)
        return header + bytes(doubled_tile()[phase : phase + pixels])

    return MadeContent(len(_template(rows)) + pixels, make)
