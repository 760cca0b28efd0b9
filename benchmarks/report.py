"""Rows as a table of text, as JSON, and as the generated block of docs/performance.md. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import Row, figure

BEGIN, END = "<!-- bench: begin (written by scripts/bench --write-docs) -->", "<!-- bench: end -->"
HEAD = ("#", "what", "who", "median", "min - max", "unit", "goal", "")


def cells(row: Row) -> tuple[str, ...]:
    spread = f"{figure(min(row.samples))} - {figure(max(row.samples))}" if len(row.samples) > 1 else ""
    median = "-" if row.median is None else figure(row.median)
    last = "; ".join(part for part in (row.verdict, row.note) if part)
    return (str(row.number), row.what, row.who, median, spread, row.unit, row.goal, last)


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


def as_json(rows: Sequence[Row], facts: Mapping[str, object]) -> str:
    listed = [
        asdict(row) | {"samples": list(row.samples), "median": row.median, "verdict": row.verdict} for row in rows
    ]
    return json.dumps({"facts": dict(facts), "rows": listed}, indent=2) + "\n"


def rows_from(document: Mapping[str, Any]) -> list[Row]:
    """The rows of a JSON file that ``as_json`` has written."""
    known = set(Row.__dataclass_fields__)
    return [Row(**{name: value for name, value in row.items() if name in known}) for row in document["rows"]]


def markdown(document: Mapping[str, Any]) -> str:
    """The table and what it was measured with."""
    lines = ["| # | what | who | median | min - max | unit | goal | verdict |", "|--:|---|---|--:|--:|---|---|---|"]
    shown = 0
    for row in rows_from(document):
        number, *rest = (cell.replace("|", "\\|") for cell in cells(row))
        rest[-1] = rest[-1].replace("MISSED", "**missed**")
        lines.append(f"| {number if row.number != shown else ''} | {' | '.join(rest)} |")
        shown = row.number
    facts = "\n".join(f"- {name}: {value}" for name, value in document["facts"].items())
    return "\n".join(lines) + f"\n\nMeasured with:\n\n{facts}\n"


def write_block(page: Path, document: Mapping[str, Any]) -> None:
    """Put the table in place of what is between the two marks of ``page``."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise RuntimeError(f"{page.name} lacks the marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{markdown(document)}\n{END}{after}", encoding="utf-8")
