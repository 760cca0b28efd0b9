"""Where the server's files stand in the tree, worked out apart from the code under test (ordinary names only)."""

from __future__ import annotations

import re
from typing import Any, NamedTuple


class TrueFile(NamedTuple):
    """What a file is, by the server's own word."""

    size: int
    md5: str


def tree_path(row: dict[str, Any]) -> str:
    """The path below its project of one row of ``DemoServer.truth``.

    The input side of assessors stands in a folder ``in`` of theirs, the output side in themselves.
    """
    names = [row["subject"], row["experiment"], row["area"]]
    if row["area"] == "scans":
        names.append(re.sub("/", "_", f"{row['item']}-{row['item_type']}"))
    elif row["area"] != "resources":
        names += [row["item_label"] or row["item"], "in" if row["side"] == "in" else ""]
    return "/".join([*(name for name in names if name), row["resource"], row["path"]])


def project_truth(rows: list[dict[str, Any]]) -> dict[str, TrueFile]:
    """Every file that the server holds of one project: path below the project -> what it is."""
    return {tree_path(row): TrueFile(row["size"], row["md5"]) for row in rows}
