"""Rows as a table of text, as JSON, and as the generated blocks of the documents. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import Row, figure

BEGIN, END = "<!-- bench: begin (written by scripts/bench --write-docs) -->", "<!-- bench: end -->"
HEAD = ("#", "what", "who", "median", "min - max", "unit", "goal", "")


def cells(row: Row) -> tuple[str, ...]:
    spread = f"{figure(min(row.samples))} - {figure(max(row.samples))}" if len(row.samples) > 1 else ""
    median = "-" if row.median is None else figure(row.median)
    last = "; ".join(part for part in (row.verdict, row.note) if part)
    return (row.label, row.what, row.who, median, spread, row.unit, row.goal, last)


def table(rows: Sequence[Row]) -> str:
    """All rows as aligned text."""
    lines = [HEAD, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    right = {0, 3, 4}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def as_json(rows: Sequence[Row], facts: Mapping[str, object], took_s: Mapping[str, float] = {}) -> str:
    listed = [
        asdict(row) | {"samples": list(row.samples), "median": row.median, "verdict": row.verdict} for row in rows
    ]
    return json.dumps({"facts": dict(facts), "took_s": dict(took_s), "rows": listed}, indent=2) + "\n"


def rows_from(document: Mapping[str, Any]) -> list[Row]:
    """The rows of a JSON file that ``as_json`` has written."""
    known = set(Row.__dataclass_fields__)
    return [Row(**{name: value for name, value in row.items() if name in known}) for row in document["rows"]]


def markdown(document: Mapping[str, Any]) -> str:
    """The table and what it was measured with."""
    lines = ["| # | what | who | median | min - max | unit | goal | verdict |", "|--:|---|---|--:|--:|---|---|---|"]
    shown = ""
    for row in rows_from(document):
        number, *rest = (cell.replace("|", "\\|") for cell in cells(row))
        rest[-1] = rest[-1].replace("MISSED", "**missed**")
        lines.append(f"| {number if row.label != shown else ''} | {' | '.join(rest)} |")
        shown = row.label
    facts = "\n".join(f"- {name}: {value}" for name, value in document["facts"].items())
    if took_s := sum(document.get("took_s", {}).values()):
        facts += f"\n- time it took: {took_s / 60:.0f} minutes"
    return "\n".join(lines) + f"\n\nMeasured with:\n\n{facts}\n"


@dataclass(frozen=True)
class Line:
    """One headline: a figure of ours, and those to compare it with, as (number, start of who, start of what)."""

    label: str
    ours: tuple[int, str, str]
    others: tuple[tuple[str, tuple[int, str, str]], ...] = ()


HEADLINES = (
    Line(
        "cold read of 1 GB",
        (5, "xnatfs", "cold"),
        (("rclone mount", (5, "rclone mount", "cold")), ("curl, no file system", (5, "curl", "cold"))),
    ),
    Line("the same after a remount", (6, "xnatfs", "read after")),
    Line("bytes sent for the header of a 100 MB file", (8, "xnatfs", ""), (("rclone mount", (8, "rclone", "")),)),
    Line(
        "`ls -lR` of 2,000 files",
        (2, "xnatfs, cold", "ls"),
        (("rclone mount", (2, "rclone", "ls")), ("pyxnat", (2, "pyxnat", "")), ("again", (2, "xnatfs, repeated", ""))),
    ),
    Line(
        "`cp -r` of 1,000 DICOM files",
        (10, "xnatfs", "cp"),
        (
            ("curl of XNAT's zip + unzip", (10, "curl", "cp")),
            ("pyxnat", (10, "pyxnat", "")),
            ("xnatpy", (10, "xnatpy", "the same")),
            ("rclone mount", (10, "rclone", "cp")),
        ),
    ),
    Line("memory, idle", (14, "xnatfs", "resident")),
)


def headlines(document: Mapping[str, Any]) -> str:
    """The figures that tell most, for the README."""
    rows = rows_from(document)

    def shown(name: str, number: int, who: str, what: str) -> str:
        found = (r for r in rows if (r.number, r.source, bool(r.unit)) == (number, "", True))
        row = next((r for r in found if r.who.startswith(who) and r.what.startswith(what)), None)
        if row is None or row.median is None:
            return f"{name} {row.note if row is not None else '-'}".strip()
        return f"{name} {figure(row.median)} {row.unit.removesuffix(' sent')}".strip()

    lines = ["| at 20 ms a request where requests count | xnatfs | others |", "|---|---|---|"]
    for line in HEADLINES:
        others = "; ".join(shown(name, *key) for name, key in line.others)
        lines.append(f"| {line.label} | {shown('', *line.ours)} | {others} |")
    load = [str(value) for name, value in document["facts"].items() if name.startswith("load average")]
    return "\n".join([*lines, *(f"\nLoad average of the machine: {value}." for value in load)]) + "\n"


def write_block(page: Path, block: str) -> None:
    """Put ``block`` in place of what is between the two marks of ``page``."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise RuntimeError(f"{page.name} lacks the marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{block}\n{END}{after}", encoding="utf-8")
