"""What researchers run: nibabel and pydicom on files of a mount, held to the files that the sample is made from."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel.testing import data_path

pytestmark = [pytest.mark.fuse, pytest.mark.tools]

SESSION = "DEMO_001/DEMO_001_MR1"
BOLD = f"{SESSION}/scans/3-bold_rest (AP)/NIFTI"
T1W = f"{SESSION}/scans/1-T1w"


def test_nibabel_loads_a_compressed_image(project: Path) -> None:
    shown = nib.load(project / BOLD / "example4d.nii.gz")
    true = nib.load(Path(data_path) / "example4d.nii.gz")
    assert shown.shape == true.shape
    assert np.array_equal(np.asarray(shown.dataobj), np.asarray(true.dataobj))


def test_nibabel_maps_an_uncompressed_image_into_memory(project: Path) -> None:
    shown = nib.load(project / T1W / "NIFTI/anatomical.nii", mmap="r")
    true = nib.load(Path(data_path) / "anatomical.nii")
    voxels = np.memmap(
        project / T1W / "NIFTI/anatomical.nii",
        shown.get_data_dtype(),
        mode="r",
        offset=int(shown.dataobj.offset),
        shape=shown.shape,
        order="F",
    )
    assert isinstance(shown.dataobj.get_unscaled(), np.memmap)
    assert np.array_equal(voxels, true.dataobj.get_unscaled())


def test_pydicom_reads_a_series_in_slice_order(project: Path) -> None:
    slices = [pydicom.dcmread(path) for path in (project / T1W / "DICOM").iterdir()]
    slices.sort(key=lambda dataset: int(dataset.InstanceNumber))
    assert [int(dataset.InstanceNumber) for dataset in slices] == list(range(1, 25))
    volume = np.stack([dataset.pixel_array for dataset in slices])
    assert volume.shape == (24, 64, 64)
    # The sample writes the slice number into the first pixel, so that no two slices are equal.
    assert volume[:, 0, 0].tolist() == list(range(1, 25))


def test_pydicom_stops_before_the_pixels(project: Path) -> None:
    header = pydicom.dcmread(project / T1W / "DICOM/T1w-0003.dcm", stop_before_pixels=True)
    assert (header.SeriesDescription, header.InstanceNumber) == ("T1w MPRAGE", 3)
