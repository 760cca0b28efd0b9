"""Mean intensity of NIfTI images on a mount, and of one slice without reading the rest.

    python examples/nibabel_mean.py MOUNT/PROJECT/.../T1w.nii.gz MOUNT/PROJECT/.../bold.nii

A compressed image (.nii.gz) is read as a whole. An uncompressed one (.nii) is memory-mapped by nibabel: only the
pages that the computation touches travel from the server, in blocks of about a megabyte, which stay in the cache.
"""

import sys

import nibabel as nib
import numpy as np


def main(paths: list[str]) -> None:
    for path in paths:
        image = nib.load(path)  # reads the header: a few hundred bytes
        print(path)
        print(f"  shape {image.shape}, {image.get_data_dtype()}, voxels of {image.header.get_zooms()[:3]} mm")

        middle = image.shape[2] // 2
        one_slice = np.asarray(image.dataobj[:, :, middle])  # one slice (of each volume)
        print(f"  mean of slice {middle}: {one_slice.mean():.3f}")

        if np.prod(image.shape) <= 50_000_000:  # larger ones: slice by slice, as above
            print(f"  mean of the image: {np.asarray(image.dataobj).mean():.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
