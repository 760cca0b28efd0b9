"""The sample of the TCIA side: a few collections of real DICOM files, some of them in IDC's buckets too.

Made when first asked for, the same on every run. Knows nothing of HTTP. Immutable once made.
"""

from __future__ import annotations

import functools
import hashlib
import io
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xnatfs.demo.contents import BytesContent, Content, doubled_tile
from xnatfs.demo.series import dicom_sample

if TYPE_CHECKING:
    import pydicom

ROOT = "1.2.826.0.1.3680043.8.498.77"
LICENSE_NAME = "Creative Commons Attribution 4.0 International License"
LICENSE_URL = "https://creativecommons.org/licenses/by/4.0/"
MTIME_S = 1_704_103_200  # 2024-01-01T10:00:00Z


@dataclass(frozen=True, slots=True)
class Image:
    """One DICOM file; ``name`` is the one that NBIA gives it."""

    name: str
    sop: str
    content: Content


@dataclass(frozen=True, slots=True)
class Study:
    uid: str
    patient: str
    collection: str
    date: str = ""  # YYYY-MM-DD
    id: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class SampleSeries:
    """One series.

    Attributes:
        limited: Seen by the user ``demo`` only.
        bucket: Where IDC keeps it, "" for nowhere, in ``folder``; ``idc_images`` are the objects there.
    """

    uid: str
    study: Study
    modality: str
    images: tuple[Image, ...]
    number: int | None = None
    description: str = ""
    manufacturer: str = ""
    limited: bool = False
    bucket: str = ""
    idc_images: tuple[Image, ...] = field(default=())

    @property
    def folder(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, self.uid))

    @property
    def size(self) -> int:
        return sum(image.content.size for image in self.images)


@functools.lru_cache(maxsize=1)
def tcia_sample() -> tuple[SampleSeries, ...]:
    """Every series of every collection."""
    lung = Study(f"{ROOT}.1.10001", "DL-0001", "Demo Lung", "2000-01-31", "", "CT CHEST W/O  CONTRAST")
    later = Study(f"{ROOT}.1.10002", "DL-0001", "Demo Lung", "2001-12-05", "4711", "x" * 70)
    other = Study(f"{ROOT}.1.10003", "DL/0002", "Demo Lung")
    open_ = Study(f"{ROOT}.2.10001", "IDC-0001", "DEMO_IDC", "2010-06-01", "1", "IN THE CLOUD")
    closed = Study(f"{ROOT}.3.10001", "LIM-0001", "Demo-Limited", "2020-02-29", "1", "LIMITED")
    return (
        _series(1, lung, "CT", "CT_small.dcm", 12, 2, "Axial, 2.5mm (lung)", "GE MEDICAL SYSTEMS"),
        _series(2, lung, "RTSTRUCT", "rtplan.dcm", 1, 1000, "QIN CT challenge: alg01 run1"),
        _series(3, lung, "MR", "MR_small.dcm", 9),
        _series(4, later, "MR", "MR_small.dcm", 20, 3, "T1w", "Demo / Works, Inc."),
        _series(5, other, "MR", "MR_small.dcm", 3, 1, "large", rows=1100),
        _series(6, open_, "CT", "CT_small.dcm", 5, 1, "in both", bucket="idc-open-data"),
        _series(7, open_, "CT", "CT_small.dcm", 4, 2, "grown since IDC took it", bucket="idc-open-data", in_idc=3),
        _series(8, open_, "CT", "CT_small.dcm", 2, 3, "in NBIA alone"),
        _series(9, open_, "MR", "MR_small.dcm", 2, 4, "large in both", bucket="idc-open-data-two", rows=1500),
        _series(10, closed, "CT", "CT_small.dcm", 3, 1, "for members", limited=True),
    )


def _series(
    serial: int,
    study: Study,
    modality: str,
    source: str,
    count: int,
    number: int | None = None,
    description: str = "",
    manufacturer: str = "",
    *,
    rows: int = 0,
    limited: bool = False,
    bucket: str = "",
    in_idc: int | None = None,
) -> SampleSeries:
    uid = f"{ROOT}.9.{20000 + serial}"
    made = [
        (_file(source, study, uid, modality, number, one, rows), f"{uid}.{one}", one) for one in range(1, count + 1)
    ]
    # As the database has them: in no order of their own.
    shuffled = sorted(made, key=lambda image: hashlib.sha256(image[1].encode()).digest())
    names = file_names([one for _, _, one in shuffled])
    images = tuple(Image(name, sop, content) for name, (content, sop, _) in zip(names, shuffled, strict=True))
    objects = tuple(
        Image(f"{uuid.uuid5(uuid.NAMESPACE_OID, image.sop)}.dcm", image.sop, image.content)
        for image in (images[:in_idc] if bucket else ())
    )
    return SampleSeries(uid, study, modality, images, number, description, manufacturer, limited, bucket, objects)


def file_names(instances: Sequence[int]) -> list[str]:
    """``A-I.dcm`` for images with these instance numbers, where all are of one acquisition.

    Numbered by position, padded to the width of the count.
    """
    width = len(str(len(set(instances))))
    order = sorted(range(len(instances)), key=lambda place: instances[place])
    names = [""] * len(instances)
    for position, place in enumerate(order, 1):
        names[place] = f"1-{position:0{width}}.dcm"
    return names


def _file(
    source: str, study: Study, series: str, modality: str, number: int | None, instance: int, rows: int
) -> BytesContent:
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(dicom_sample(source).read()))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(f"{series}.{instance}")
    dataset.StudyInstanceUID = study.uid
    dataset.SeriesInstanceUID = series
    dataset.Modality = modality
    dataset.PatientID = study.patient
    dataset.PatientName = study.patient
    dataset.StudyDate = study.date.replace("-", "")
    dataset.InstanceNumber = instance
    if number is not None:
        dataset.SeriesNumber = number
    if "PixelData" in dataset:
        _place(dataset, series, instance, rows)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return BytesContent(buffer.getvalue())


def _place(dataset: pydicom.Dataset, series: str, instance: int, rows: int) -> None:
    """A slice of a volume, its pixels unlike any other's."""
    dataset.FrameOfReferenceUID = f"{series}.0"
    dataset.AcquisitionNumber = 1
    dataset.SliceThickness = dataset.SpacingBetweenSlices = 2.0
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-80.0, -80.0, 2.0 * (instance - 1)]
    dataset.SliceLocation = 2.0 * (instance - 1)
    if rows:
        dataset.Rows = dataset.Columns = rows
        phase = instance * 7919
        dataset.PixelData = bytes(doubled_tile()[phase : phase + rows * rows * 2])
    pixels = bytearray(dataset.PixelData)
    pixels[0:2] = instance.to_bytes(2, "little")
    dataset.PixelData = bytes(pixels)
