"""Tables as XNAT prints them: every cell a string, null as "", in JSON, CSV, XML or HTML. Knows no records."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

Row = dict[str, str]


@dataclass(slots=True)
class Table:
    columns: Sequence[str]
    rows: list[Row]
    title: str = ""
    total: bool = True  # totalRecords is part of the JSON answer
    title_key: str = "title"
    uri_column: bool = field(default=False)  # file lists describe their URI column


def to_json(table: Table) -> bytes:
    result: dict[str, object] = {}
    if table.uri_column:
        result["Columns"] = [{"key": "URI", "serverRoot": ""}]
    result["Result"] = table.rows
    if table.total:
        result["totalRecords"] = str(len(table.rows))
    if table.title:
        result[table.title_key] = table.title
    return json.dumps({"ResultSet": result}, ensure_ascii=False, separators=(",", ":")).encode()


def to_csv(table: Table) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    writer.writerow(table.columns)
    writer.writerows([row.get(column, "") for column in table.columns] for row in table.rows)
    return buffer.getvalue().encode()


def to_xml(table: Table) -> bytes:
    columns = "".join(f"<column>{html.escape(c)}</column>" for c in table.columns)
    lines = []
    for row in table.rows:
        cells = "".join(f"<cell>{html.escape(row.get(c, ''))}</cell>" for c in table.columns)
        lines.append(f"<row>{cells}</row>\n")
    title = f"<title>{html.escape(table.title)}</title>" if table.title else ""
    results = f"<columns>{columns}</columns>\n<rows>\n{''.join(lines)}</rows>"
    body = f"<ResultSet>{title}<results>\n{results}</results></ResultSet>"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'.encode()


def to_html(table: Table) -> bytes:
    head = "".join(f"<th>{html.escape(c)}</th>" for c in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(row.get(c, ''))}</td>" for c in table.columns) + "</tr>\n"
        for row in table.rows
    )
    return f"<html><body><table>\n<tr>{head}</tr>\n{rows}</table></body></html>\n".encode()


RENDERERS = {
    "json": ("application/json", to_json),
    "csv": ("text/csv", to_csv),
    "xml": ("text/xml", to_xml),
    "html": ("text/html", to_html),
}
