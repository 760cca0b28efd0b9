"""Series as the directories of the Data Retriever: collection, patient, study, series, with its two kinds of tables.

Pure functions; no requests. A listing's id says what must be known to ask for it again, and all that decides what it
holds; that of a series changes when the series does, so that what was learnt of it holds as long as the id does.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlencode

from xnatfs.archives.documents import document_key, made
from xnatfs.archives.nbia.idc_index import Place
from xnatfs.archives.nbia.series import Received
from xnatfs.archives.nbia.tables import SAME, Series, license_text, metadata_csv, series_name, study_name
from xnatfs.model import Entry, Listing

SITE = "site"
MANIFEST = "manifest"
COLLECTION = "collection"
SERIES = "series"
MISSING = "missing"

METADATA = "metadata.csv"
LICENSE = "LICENSE"
UNAVAILABLE = "unavailable"
"""The directory of series that a manifest names and its server does not describe."""

PREFIX = "nbia:"

ONLY_IMAGE = "1-1.dcm"
"""What the server calls the file of a series that has one."""

ROOT = "/"


def listing_id(kind: str, **fields: str) -> str:
    return f"{kind}:{urlencode(fields)}"


def parse_listing_id(text: str) -> tuple[str, dict[str, str]]:
    kind, _, fields = text.partition(":")
    return kind, dict(parse_qsl(fields, keep_blank_values=True))


def directory_key(*names: str) -> str:
    """The key of a directory: a path whose names hold no slash of their own."""
    return "".join(f"/{_part(name)}" for name in names)


def _part(name: str) -> str:
    """Most names are UIDs, and a hundred thousand calls of ``quote`` for a large manifest took seconds."""
    return name if name.replace(".", "").isalnum() and name.isascii() else _quoted(name)


@functools.lru_cache(maxsize=SAME)
def _quoted(name: str) -> str:
    return quote(name, safe=" ")


# --- files ------------------------------------------------------------------------------------------------------------


def file_key(uid: str, name: str, sop: str) -> str:
    """The key of a file: its series, its name there, and by what it can be had alone ("": not at all)."""
    return f"{PREFIX}{uid}/{quote(name, safe='')}/{sop}"


def parse_file_key(key: str) -> tuple[str, str, str]:
    """(series, name, SOPInstanceUID) of a file's key."""
    uid, _, rest = key.removeprefix(PREFIX).partition("/")
    name, _, sop = rest.partition("/")
    return uid, unquote(name), sop


def received_entries(uid: str, token: str, files: Iterable[Received], mtime_ns: int) -> tuple[Entry, ...]:
    """The files of a series that has passed, in the order of their names."""
    entries = [
        Entry(
            name=file.name,
            key=file_key(uid, file.name, file.sop),
            is_dir=False,
            size=file.size,
            mtime_ns=mtime_ns,
            version=token,
            id=file.sop,
            digest=file.md5,
        )
        for file in files
    ]
    return tuple(sorted(entries, key=lambda entry: entry.name))


def only_entry(uid: str, size: int, stamp: str, mtime_ns: int) -> Entry:
    """The file of a series that has one: the series' size is its own, and its name is always the same."""
    key = file_key(uid, ONLY_IMAGE, "")
    return Entry(ONLY_IMAGE, key, False, size=size, mtime_ns=mtime_ns, version=f"{size}:{stamp}", id=uid)


# --- directories ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Directory:
    entry: Entry
    below: dict[str, _Directory] = field(default_factory=dict)
    files: list[Entry] = field(default_factory=list)


class Branch:
    """A listing of some series and every directory above them.

    Args:
        identifier: The listing's.
        top: Its highest directory: ``ROOT``, or one collection's.
        classic: Name studies and series by their UIDs alone.
    """

    def __init__(self, identifier: str, top: str, classic: bool) -> None:
        self.id = identifier
        self._documents: dict[str, bytes] = {}
        self._top = _Directory(Entry("", top, True, listing=identifier))
        self._classic = classic

    def add(self, series: Sequence[Series], places: Mapping[str, Place]) -> None:
        """Place them, with ``metadata.csv`` at the top and each collection's ``LICENSE`` in it."""
        in_order = sorted(series, key=_order)
        for one in in_order:
            at = self._top
            if at.entry.key == ROOT:
                at = self._below(at, one.collection, directory_key(one.collection), one.mtime_ns)
            key = f"{at.entry.key}/{_part(one.patient)}"
            at = self._below(at, one.patient, key, one.mtime_ns)
            key = f"{key}/{_part(one.study)}"
            at = self._below(at, study_name(one, self._classic), key, one.mtime_ns, one.study)
            key = f"{key}/{_part(one.uid)}"
            name = series_name(one, self._classic)
            at.below[key] = _Directory(
                Entry(
                    name,
                    key,
                    True,
                    mtime_ns=one.mtime_ns,
                    id=one.uid,
                    listing=series_id(one, places.get(one.uid)),
                    aliases=() if self._classic else (one.uid,),
                )
            )
        self._document(self._top, METADATA, METADATA, metadata_csv(in_order, self._classic))
        for collection in dict.fromkeys(one.collection for one in in_order):
            holder = self._top.below.get(directory_key(collection), self._top)
            of_it = [one for one in in_order if one.collection == collection]
            self._document(holder, LICENSE, f"{LICENSE} {quote(collection)}", license_text(collection, of_it))

    def add_missing(self, series: Iterable[str]) -> None:
        """Series of which nothing is known: directories that say so when they are opened."""
        for uid in series:
            top = f"{ROOT}?{UNAVAILABLE}"  # no collection's key has a "?"
            at = self._below(self._top, UNAVAILABLE, top, 0, reserved=True)
            key = f"{top}/{uid}"
            at.below[key] = _Directory(Entry(uid, key, True, id=uid, listing=listing_id(MISSING, uid=uid)))

    def listing(self) -> Listing:
        children: dict[str, tuple[Entry, ...]] = {}
        pending = [self._top]
        while pending:
            at = pending.pop()
            children[at.entry.key] = (*at.files, *(each.entry for each in at.below.values()))
            pending += [each for each in at.below.values() if each.entry.listing == self.id]
        return Listing(self.id, children, self._documents)

    def _below(
        self, parent: _Directory, name: str, key: str, mtime_ns: int, uid: str = "", reserved: bool = False
    ) -> _Directory:
        found = parent.below.get(key)
        if found is None:
            aliases = (uid,) if uid and not self._classic else ()
            entry = Entry(
                name, key, True, mtime_ns=mtime_ns, id=uid, listing=self.id, aliases=aliases, reserved=reserved
            )
            found = parent.below[key] = _Directory(entry)
        return found

    def _document(self, holder: _Directory, name: str, what: str, data: bytes) -> None:
        key = document_key(self.id, what)
        self._documents[key] = data
        holder.files.append(
            made(name, key, data, max((each.entry.mtime_ns for each in holder.below.values()), default=0))
        )


def collections_listing(identifier: str, collections: Iterable[str], view: Mapping[str, str]) -> Listing:
    """The top of an archive: its collections, each with a listing of its own."""
    entries = [
        Entry(name, directory_key(name), True, id=name, listing=listing_id(COLLECTION, name=name, **view))
        for name in sorted(set(collections))
    ]
    return Listing(identifier, {ROOT: tuple(entries)})


def series_id(series: Series, place: Place | None) -> str:
    """The id of a series' own listing: another one when the series changes."""
    where = "" if place is None else f"&{urlencode({'bucket': place.bucket, 'folder': place.folder})}"
    # As listing_id would, at a fifth of the time: there are as many as series.
    stamp = _encoded(series.stamp)
    return f"{SERIES}:uid={_encoded(series.uid)}&images={series.images}&size={series.size}&stamp={stamp}{where}"


def _encoded(text: str) -> str:
    return text if text.replace(".", "").isalnum() and text.isascii() else _quoted_plus(text)


@functools.lru_cache(maxsize=SAME)
def _quoted_plus(text: str) -> str:
    return quote_plus(text)


def _order(series: Series) -> tuple[str, str, str, str, float, str]:
    """Servers answer in no order of their own."""
    try:
        number = float(series.number)
    except ValueError:
        number = -1.0
    return series.collection, series.patient, series.date, series.study, number, series.uid
