"""Tables and headers without a mount: pandas and nibabel on xnat:// URLs.

python examples/fsspec_pandas.py xnat://HOST/PROJECT
"""

import sys

import fsspec
import nibabel as nib
import pandas as pd


def main(project: str) -> None:
    subjects = pd.read_csv(f"{project}/subjects.csv")
    print(f"{len(subjects)} subjects: {', '.join(subjects['label'])}")

    fs, root = fsspec.url_to_fs(project)
    for path in fs.glob(f"{root}/**/*.nii"):
        with fs.open(path) as file:  # of an image of any size, about a megabyte travels
            header = nib.Nifti1Header.from_fileobj(file, check=False)
        print(f"{path}: {header.get_data_shape()}, {fs.size(path)} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
