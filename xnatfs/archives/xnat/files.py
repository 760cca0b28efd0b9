"""From the rows of XNAT's file lists to the files of directories. Pure functions: no I/O, no state.

A session has a thousand rows for each dozen of anything else, so they are handled column by column and many at once:
the rows of a resource come in a row, as one ``FileRun``. Rows are dicts as the server sent them (facts: every cell is a
string, a null is "", column names come in either case).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, repeat
from operator import contains, itemgetter
from typing import TypeVar

from xnatfs.columns import FIELDS, Columns, folded
from xnatfs.errors import UnexpectedReply
from xnatfs.model import Entry

log = logging.getLogger(__name__)

MD5_LENGTH = 32
_MD5 = re.compile(f"[0-9a-f]{{{MD5_LENGTH}}}")
MARK = "/files/"
"""What stands in a URI between its resource and its path inside that."""

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
    runs: list[FileRun] = []
    start = 0
    for (resource, label), group in groupby(zip(resources, labels, strict=True)):
        stop = start + len(list(group))
        cut = slice(start, stop)
        for prefix, paths in _by_prefix(uris[cut]):
            cut = slice(start, start + len(paths))
            runs.append(FileRun(prefix, resource, label, paths, uris[cut], sizes[cut], digests[cut]))
            start = cut.stop
    return runs


def _by_prefix(uris: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """URIs that follow each other and have the same prefix: that prefix, and their paths behind it."""
    prefix, mark, _ = uris[0].partition(MARK)
    if mark and all(map(str.startswith, uris, repeat(prefix + mark))):  # as a rule: one look at a third of the time
        yield prefix, list(map(str.removeprefix, uris, repeat(prefix + mark)))
        return
    parts = map(str.partition, uris, repeat(MARK))
    for same, group in groupby(parts, itemgetter(0)):
        yield same, [path for _, _, path in group]


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
    """The files of one directory, in the server's order.

    Attributes:
        run: All of them, where they came as one run.
        cells: Otherwise name -> (URI, size, digest).
    """

    cells: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    run: FileRun | None = None

    def __bool__(self) -> bool:
        return bool(self.cells) or self.run is not None

    def add(self, name: str, uri: str, size: str, digest: str) -> None:
        if self.run is not None:
            run, self.run = self.run, None
            self.cells = dict(zip(run.paths, zip(run.uris, run.sizes, run.digests, strict=True), strict=True))
        if name in self.cells:
            # A GET serves the first entry of a path that stands twice in a catalog (facts 3.2): show that one.
            log.debug("%s stands twice in its catalog", uri)
        else:
            self.cells[name] = (uri, size, digest)

    def add_all(self, run: FileRun) -> bool:
        """Add a run whose files all lie in this directory; False, and nothing is done, when that is not so simple."""
        if self or "" in run.paths or "/" in "".join(run.paths) or len(set(run.paths)) != len(run.paths):
            return False
        self.run = run
        return True

    def columns(self, mtime_ns: int) -> Columns:
        """As entries, all of one time."""
        names: Sequence[str]
        if self.run is not None:
            names, uris = self.run.paths, self.run.uris
            size_texts, digest_texts = self.run.sizes, self.run.digests
        else:
            names = list(self.cells)
            uris, size_texts, digest_texts = zip(*self.cells.values(), strict=True)
        sizes, digests = _sizes(size_texts), _digests(digest_texts)
        texts: Iterable[object] = sizes if None not in sizes else ["" if size is None else size for size in sizes]
        versions = [f"{size}:{digest}" for size, digest in zip(texts, digests, strict=True)]
        changing = {
            "name": names,
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
    joined = "".join(texts)
    if not joined:
        return texts
    lowered = texts if joined == joined.lower() else [text.lower() for text in texts]
    if set(map(len, texts)) == {MD5_LENGTH} and _is_hex(joined):
        return lowered
    return [text if _MD5.fullmatch(text) else "" for text in lowered]


def _is_hex(text: str) -> bool:
    try:
        return 2 * len(bytes.fromhex(text)) == len(text)  # it passes over blanks
    except ValueError:
        return False
