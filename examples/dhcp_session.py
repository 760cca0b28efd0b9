"""Open the images of a session by scan type, as a user of the dHCP archive would.

    python examples/dhcp_session.py MOUNT/PROJECT/SUBJECT/SESSION T1w [RESOURCE]

Scan folders are called ``<ID>-<type>``, so a shell pattern finds a type without knowing its number. Only the image that
is opened travels, not the session.
"""

import sys
from pathlib import Path

import nibabel as nib


def main(session: Path, scan_type: str, resource: str = "NIFTI") -> None:
    found = sorted(session.glob(f"scans/*-{scan_type}*/{resource}/*.nii*"))
    if not found:
        types = sorted(scan.name.partition("-")[2] for scan in (session / "scans").iterdir())
        sys.exit(f"{session.name} has no {resource} of type {scan_type}; its types are {', '.join(types)}")
    for path in found:
        image = nib.load(path)
        print(f"{path.relative_to(session)}: {image.shape} {image.get_data_dtype()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
