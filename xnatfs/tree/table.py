"""The names of one directory, safe and unique, and the entries that they stand for.

Knows nothing of paths, of where entries come from or how long they hold. Safe from any thread.
"""

from __future__ import annotations

import unicodedata
from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from dataclasses import replace

from xnatfs.columns import Columns
from xnatfs.model import Entry
from xnatfs.tree.names import are_safe, assign_aliases, assign_names


class Names(Mapping[str, Entry]):
    """Shown name -> entry of a directory whose entries are made when they are asked for, and then kept.

    Attributes:
        columns: The entries as listed.
        changed: An entry has taken the place of a listed one.
    """

    __slots__ = ("_made", "_places", "changed", "columns")

    def __init__(self, columns: Columns, places: dict[str, int]) -> None:
        self.columns = columns
        self.changed = False
        self._places = places
        self._made: dict[str, Entry] = {}  # filled by single dictionary operations: two threads get one entry

    @classmethod
    def of(cls, columns: Columns) -> Names | None:
        """None where names must be looked at one by one, or entries are more than plain files."""
        names = columns.column("name")
        plain = all(
            len(cell) == 1 and not cell[0] for cell in map(columns.column, ("is_dir", "aliases", "hidden", "reserved"))
        )
        if not plain or len(names) != len(columns) or not are_safe(names):
            return None
        places = dict(zip(names, range(len(names)), strict=True))
        return cls(columns, places) if len(places) == len(names) else None

    def __getitem__(self, name: str) -> Entry:
        made = self._made.get(name)
        return made if made is not None else self._made.setdefault(name, self.columns.entry(self._places[name]))

    def __setitem__(self, name: str, entry: Entry) -> None:
        self.changed = True
        self._made[name] = entry

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def values(self) -> ValuesView[Entry]:
        self.make_all()
        return super().values()

    def items(self) -> ItemsView[str, Entry]:
        self.make_all()
        return super().items()

    def make_all(self) -> None:
        """All entries at once, which takes half the time of one by one."""
        if len(self._made) < len(self._places):
            for name, entry in zip(self._places, self.columns.entries(), strict=True):
                self._made.setdefault(name, entry)


class Table:
    """The names of one directory: made safe once, when the directory is first used.

    Attributes:
        names: Shown or hidden name -> entry, in the archive's order. Changed by ``learn`` and ``doubt`` only.
    """

    __slots__ = ("_aliases", "_raw", "names")

    def __init__(self, entries: Columns | Sequence[Entry], earlier: Table | None = None) -> None:
        """``earlier`` is the directory's table before its listing was renewed: what was learnt of entries that did not
        change since stays true."""
        names = Names.of(entries) if isinstance(entries, Columns) else None
        self.names: Names | dict[str, Entry]
        if names is not None:
            self.names, self._aliases = names, {}
        else:
            self.names = assign_names(entries.entries() if isinstance(entries, Columns) else entries)
            self._aliases = assign_aliases(self.names)
        self._raw: dict[str, Entry] = {}  # name -> the entry as listed, where ``names`` holds another
        for name, raw in (earlier._raw if earlier is not None else {}).items():
            if self.names.get(name) == raw:
                self._keep(name, earlier.names[name])  # type: ignore[union-attr]  # earlier is set when it has items

    def find(self, name: str) -> str | None:
        """The name in ``names`` that ``name`` means: itself, else an alias, else in the other Unicode form."""
        if name in self.names:
            return name
        alias = self._aliases.get(name)
        if alias is not None or name.isascii():
            return alias
        # macOS and some editors decompose letters (NFD) that others write as one (NFC).
        for form in ("NFC", "NFD"):
            other = unicodedata.normalize(form, name)
            if other in self.names:
                return other
            if other in self._aliases:
                return self._aliases[other]
        return None

    def learn(self, name: str, asked: Entry, answer: Entry) -> None:
        """Keep what ``Archive.stat`` said, unless the entry is not the one that was asked about any more."""
        if self.names.get(name) is asked:
            self._keep(name, answer)

    def doubt(self, name: str, entry: Entry) -> None:
        """Forget the size of an entry that proved wrong, so that the archive is asked for it.

        Stays so when the listing is renewed and says the same again.
        """
        if self.names.get(name) is entry:
            self._keep(name, replace(entry, size=None))

    def _keep(self, name: str, entry: Entry) -> None:
        self._raw.setdefault(name, self.names[name])
        self.names[name] = entry
