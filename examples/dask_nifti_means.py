"""The mean of every NIfTI image of a project, on the worker processes of a Dask cluster.

    python examples/dask_nifti_means.py xnat://HOST/PROJECT [WORKERS | tcp://SCHEDULER:8786]

Workers open the files by themselves: what travels to them is a URL, never a password. They find credentials where every
command does (`xnatfs login`, ~/.netrc, XNAT_USER and XNAT_PASS). Those of one machine share a cache, so that each byte
comes to it once, and one session on the server.
"""

import contextlib
import gzip
import sys

import fsspec
import nibabel as nib
import numpy as np
from dask.distributed import Client, LocalCluster


def mean_of(file: fsspec.core.OpenFile) -> tuple[str, float]:
    with file as stream:
        if file.path.endswith(".gz"):
            stream = gzip.GzipFile(fileobj=stream)
        header_size = stream.read(4)
        stream.seek(0)
        kind = nib.Nifti2Image if b"\x1c\x02" in (header_size[:2], header_size[:1:-1]) else nib.Nifti1Image  # 540 bytes
        return file.path, float(np.asarray(kind.from_stream(stream).dataobj).mean())


def main(project: str, where: str = "4") -> None:
    files = fsspec.open_files([f"{project}/**/*.nii", f"{project}/**/*.nii.gz"])
    with contextlib.ExitStack() as stack:
        cluster: str | LocalCluster = where  # or dask_jobqueue.SLURMCluster(...)
        if where.isdigit():
            cluster = LocalCluster(n_workers=int(where), threads_per_worker=1, dashboard_address=None)
            stack.enter_context(cluster)
        client = stack.enter_context(Client(cluster))
        for path, mean in sorted(client.gather(client.map(mean_of, files))):
            print(f"{mean:12.3f}  {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
