"""The table of public imaging data sets of `xnatfs datasets`: `table.toml` beside this file, and searches in it.

Says how each is mounted or why not; asks nobody and mounts nothing itself. Read once; safe from any thread.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote

from xnatfs.errors import UsageError

ACCESS = {
    "open": "open",
    "account": "account and terms",
    "application": "on application",
    "unclear": "access unclear",
}
"""Words of the table -> what is shown."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One row; see the head of ``table.toml``. Either ``source`` or ``why_not`` is there."""

    name: str
    title: str
    host: str
    url: str
    access: str
    ages: str
    modalities: str
    about: str
    source: str = ""
    why_not: str = ""
    listed_as: str = ""

    @property
    def command(self) -> str:
        """What to type to mount it; "" where that is not possible."""
        return f"xnatfs mount dataset:{self.name} DIR" if self.source else ""


@cache
def table() -> tuple[Dataset, ...]:
    """Every row, in the table's order."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    document: dict[str, Any] = tomllib.loads(
        resources.files(__package__).joinpath("table.toml").read_text(encoding="utf-8")
    )
    return (*(Dataset(**row) for row in document["dataset"]), *_collections(document["tcia"]))


def _collections(tcia: dict[str, Any]) -> list[Dataset]:
    """A row for each of TCIA's collections, which differ in name and modality only."""
    common = {key: value for key, value in tcia.items() if isinstance(value, str)}
    modalities: dict[str, str] = tcia["known_modalities"]
    rows = []
    for title in tcia["collections"]:
        name = "tcia-" + re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-")
        known = {"modalities": modalities[title]} if title in modalities else {}
        rows.append(Dataset(**{**common, **known}, name=name, title=title, source=f"tcia://{quote(title)}"))
    return rows


def search(words: Sequence[str]) -> list[Dataset]:
    """The rows in which every word occurs, in whatever column and case; all of them without words."""
    wanted = [word.casefold() for word in words]
    return [row for row in table() if all(word in _text(row) for word in wanted)]


def _text(row: Dataset) -> str:
    shown = (row.name, row.title, row.host, ACCESS[row.access], row.ages, row.modalities, row.about, row.listed_as)
    return " ".join(shown).casefold()


def source_of(name: str) -> str:
    """The SOURCE of the data set called ``name``.

    Raises:
        UsageError: there is none of that name, or it cannot be mounted.
    """
    rows = {row.name: row for row in table()}
    row = rows.get(name.lower())
    if row is None:
        near = difflib.get_close_matches(name.lower(), rows, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "xnatfs datasets lists them"
        raise UsageError(f"there is no data set called {name!r}", hint)
    if not row.source:
        raise UsageError(f"dataset:{row.name} cannot be mounted: {row.why_not}", f"see {row.url}")
    return row.source
