"""From the rows of XNAT's file lists to the files of directories. Pure functions: no I/O, no state.

A session has a thousand rows for each dozen of anything else, so they are handled column by column and many at once:
the rows of a resource come in a row, as one ``FileRun``. Rows are dicts as the server sent them (facts: every cell is a
string, a null is "", column names come in either case).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, repeat
from operator import contains, itemgetter
from typing import TypeVar

from xnatfs.columns import FIELDS, Columns, folded
from xnatfs.errors import UnexpectedReply
from xnatfs.model import Entry

log = logging.getLogger(__name__)

_MD5 = re.compile("[0-9a-f]{32}")
PLACE = "uri"
"""The column without which a file cannot be shown."""


Cell = TypeVar("Cell")


def required(row: Mapping[str, Cell], column: str) -> Cell:
    """A cell without which an item cannot be shown.

    Raises:
        UnexpectedReply: the table lacks the column: leaving its rows out would show an empty directory.
    """
    if column not in row:
        raise UnexpectedReply(
            f"a listing without the column {column!r}", "is this an XNAT server of version 1.7 or later?"
        )
    return row[column]


@dataclass(frozen=True, slots=True)
class FileRun:
    """Files that one resource has and that follow each other in a list.

    Attributes:
        prefix: Their URIs up to ``/files/``.
        resource: The resource's number, "" when the list does not say.
        label: Of the resource.
        paths: Inside the resource; "" where a URI has none.
        uris, sizes, digests: As the server sent them; as many as paths.
    """

    prefix: str
    resource: str
    label: str
    paths: Sequence[str]
    uris: Sequence[str]
    sizes: Sequence[str]
    digests: Sequence[str]


def file_runs(rows: Sequence[Mapping[str, object]]) -> list[FileRun]:
    """The rows of a file list, resource by resource, in the server's order.

    Raises:
        UnexpectedReply: the list lacks the column of URIs: leaving its rows out would show an empty directory.
    """
    if not rows:
        return []
    uris, sizes, digests, resources, labels = _columns(rows, (PLACE, "size", "digest", "cat_id", "collection"))
    prefixes, _, paths = zip(*map(str.partition, uris, repeat("/files/")), strict=True)
    runs = []
    start = 0
    for (prefix, resource, label), group in groupby(zip(prefixes, resources, labels, strict=True)):
        stop = start + len(list(group))
        cut = slice(start, stop)
        runs.append(FileRun(prefix, resource, label, paths[cut], uris[cut], sizes[cut], digests[cut]))
        start = stop
    return runs


def _columns(rows: Sequence[Mapping[str, object]], names: Sequence[str]) -> list[Sequence[str]]:
    """The cells of these columns as text; "" where there is none. One pass a column where rows are alike."""
    sent = {key.lower(): key for key in rows[0]}
    columns: list[Sequence[str]] = []
    if PLACE not in sent or not all(map(contains, rows, repeat(sent[PLACE]))):
        for row in rows:
            required({key.lower(): value for key, value in row.items()}, PLACE)
    for name in names:
        try:
            cells = list(map(itemgetter(sent[name]), rows))
            "".join(cells)  # a TypeError when one is no text
            columns.append(cells)
        except (KeyError, TypeError):
            columns.append([_cell(row, name) for row in rows])
    return columns


def _cell(row: Mapping[str, object], name: str) -> str:
    value = {key.lower(): value for key, value in row.items()}.get(name)
    return "" if value is None else str(value)


@dataclass(slots=True)
class Files:
    """The files of one directory: name -> (URI, size, digest), in the server's order."""

    cells: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def add(self, name: str, uri: str, size: str, digest: str) -> None:
        if name in self.cells:
            # A GET serves the first entry of a path that stands twice in a catalog (facts 3.2): show that one.
            log.debug("%s stands twice in its catalog", uri)
        else:
            self.cells[name] = (uri, size, digest)

    def add_all(self, run: FileRun) -> bool:
        """Add a run whose files all lie in this directory; False, and nothing is done, when that is not so simple."""
        if self.cells or "" in run.paths or "/" in "".join(run.paths):
            return False
        cells = dict(zip(run.paths, zip(run.uris, run.sizes, run.digests, strict=True), strict=True))
        if len(cells) != len(run.paths):
            return False
        self.cells = cells
        return True

    def columns(self, mtime_ns: int) -> Columns:
        """As entries, all of one time."""
        uris, size_texts, digest_texts = zip(*self.cells.values(), strict=True)
        sizes, digests = _sizes(size_texts), _digests(digest_texts)
        texts: Iterable[object] = sizes if None not in sizes else ["" if size is None else size for size in sizes]
        versions = [f"{size}:{digest}" for size, digest in zip(texts, digests, strict=True)]
        changing = {
            "name": list(self.cells),
            "key": uris,
            "size": sizes,
            "version": versions,
            "digest": digests,
        }
        return Columns(len(uris), [folded(changing.get(name, default)) for name, default in _file(mtime_ns)])


def _file(mtime_ns: int) -> list[tuple[str, tuple[object, ...]]]:
    """The columns of files, as far as all files have the same in them."""
    plain = Entry("", "", False, mtime_ns=mtime_ns)
    return [(name, (getattr(plain, name),)) for name in FIELDS]


def _sizes(texts: Sequence[str]) -> Sequence[int | None]:
    joined = "".join(texts)
    if joined.isascii() and joined.isdigit() and "" not in texts and len(max(texts, key=len)) < 19:
        return list(map(int, texts))
    return list(map(parse_size, texts))


def parse_size(text: str) -> int | None:
    """A size cell in bytes, or None when it is blank, negative or no number: then the file itself is asked."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _digests(texts: Sequence[str]) -> Sequence[str]:
    if any(texts):
        lowered = [text.lower() for text in texts]
        return [text if _MD5.fullmatch(text) else "" for text in lowered]
    return texts
