"""The results of one run in a JSON file, written after every task, so that an interrupted run can be finished."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import Row
from report import as_json, rows_from


@dataclass
class Results:
    """Rows by number, what they were measured with, and how long each task took.

    Attributes:
        took_s: Task -> seconds; a task that is in it is done.
    """

    path: Path
    facts: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    took_s: dict[str, float] = field(default_factory=dict)

    def add(self, task: str, rows: Sequence[Row], took_s: float) -> None:
        """Keep a task's rows, in memory and in the file."""
        self.rows = sorted([*self.rows, *rows], key=lambda row: (row.number, row.source, "Gb/s" in row.what))
        self.took_s[task] = round(took_s, 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(as_json(self.rows, self.facts, self.took_s))
        new.replace(self.path)

    def going_on_with(self, facts: Mapping[str, Any]) -> Results:
        """The same results, for a run that finishes them; what differs from before is shown with both values."""
        both = {
            name: value if self.facts.get(name, value) == value else f"{self.facts[name]}, then {value}"
            for name, value in facts.items()
        }
        return Results(self.path, both, self.rows, self.took_s)


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def newest(folder: Path, sizes: str) -> Results | None:
    """The newest results of these sizes that say which tasks are done."""
    for path in sorted(folder.glob("2*.json"), reverse=True):
        document = load(path)
        if document["facts"].get("sizes") == sizes and "took_s" in document:
            return saved(path)
    return None


def saved(path: Path) -> Results:
    document = load(path)
    return Results(path, document["facts"], rows_from(document), document["took_s"])


def names_of(text: str) -> list[str]:
    """What ``--only`` and ``--skip`` take: "5", "5,6", "bucket"."""
    return [name for name in text.replace(" ", ",").split(",") if name]


def wanted(numbers: Sequence[int], source: str, only: Sequence[str], skip: Sequence[str]) -> bool:
    """Whether one of ``numbers``, measured on this source, is asked for and not left out.

    A number alone stands for it on every source, "xnat" and "bucket" for all numbers on that source.
    """
    own = {source or "xnat", *map(str, numbers)}
    left = {str(number) for number in numbers} - set(skip)
    return (not only or bool(own & set(only))) and (source or "xnat") not in skip and bool(left)


def wanted_row(row: Row, only: Sequence[str], skip: Sequence[str]) -> bool:
    return wanted([row.number], row.source, only, skip)
