"""Questions of the ConnectomeDB tutorial, asked with pandas to a folder.

    python examples/neo_ffi_scores.py MOUNT/HCP_Q2 [THRESHOLD]

``tables/<data type>.csv`` is made when it is opened: every search field of that data type, one row an experiment. So
there is no search to write, and no field to look up first: they are the columns.
"""

import sys
from pathlib import Path

import pandas as pd

NEO_FFI = [f"neo_neofac_{letter}" for letter in "aocne"]


def main(project: Path, threshold: int = 40) -> None:
    scores = pd.read_csv(project / "tables" / "nt:scores.csv")
    subjects = pd.read_csv(project / "subjects.csv")

    # The search names subjects by ID; the project's own labels are in subjects.csv.
    labels = subjects.set_index("ID")["label"]
    scores["subject"] = scores["subject_id"].map(labels)

    neo_ffi = scores.set_index("subject")[NEO_FFI]
    print("NEO-FFI scores by subject:")
    print(neo_ffi.sort_index().to_string())

    agreeable = neo_ffi[neo_ffi["neo_neofac_a"] > threshold]
    print(f"agreeableness above {threshold}: {', '.join(agreeable.index) or 'nobody'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
