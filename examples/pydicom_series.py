"""Read one DICOM series from a mounted archive, in slice order, as a NumPy volume.

python examples/pydicom_series.py MOUNT/PROJECT/SUBJECT/SESSION/scans/4-T1w/DICOM
"""

import sys
from pathlib import Path

import numpy as np
import pydicom


def main(folder: Path) -> None:
    # Headers first: pydicom stops before the pixels, so little more than the headers travels.
    headers = {path: pydicom.dcmread(path, stop_before_pixels=True) for path in folder.iterdir() if path.is_file()}
    in_order = sorted(headers, key=lambda path: int(headers[path].get("InstanceNumber") or 0))

    first = headers[in_order[0]]
    print(f"{len(in_order)} files, {first.Modality}, series {first.get('SeriesDescription', '(no description)')}")

    # Now the pixels: each file is fetched once, and from the cache when this is run again.
    volume = np.stack([pydicom.dcmread(path).pixel_array for path in in_order])
    print(f"volume of shape {volume.shape}, {volume.dtype}, values {volume.min()} to {volume.max()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
