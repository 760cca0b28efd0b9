"""``xnatfs datasets``: public imaging data sets, and how to mount each. Asks no server. Main thread."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from xnatfs.datasets import ACCESS, Dataset, search
from xnatfs.errors import XnatfsError


@click.command()
@click.argument("words", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON array, with the address to read about each.")
def datasets(words: tuple[str, ...], as_json: bool) -> int:
    """List public imaging data sets, and how to mount each.

    WORDS narrow the list: each must occur in a row, in any column. What can be mounted is mounted by name, as in
    `xnatfs mount dataset:hbn DIR`. Piped output is one row a line, columns separated by tabs.
    """
    found = search(words)
    if as_json:
        import json

        click.echo(json.dumps([{**asdict(row), "command": row.command} for row in found], indent=1))
        return 0
    if not found:
        raise XnatfsError(f"no data set matches {' '.join(words)!r}", "fewer words, or none for the whole list")
    for row in found:
        click.echo(_block(row) if sys.stdout.isatty() else "\t".join(_columns(row)))
    return 0


def _columns(row: Dataset) -> tuple[str, ...]:
    how = row.command or f"not mountable: {row.why_not}"
    return row.name, row.title, row.host, ACCESS[row.access], row.ages, row.modalities, how


def _block(row: Dataset) -> str:
    _, title, host, access, ages, modalities, how = _columns(row)
    heading = f"{click.style(row.name, bold=True)}  {title}"
    return f"{heading}\n    {host}, {access}; {ages}; {modalities}\n    {row.about}\n    {how}\n    {row.url}\n"
