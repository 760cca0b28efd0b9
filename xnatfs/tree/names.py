"""Makes an archive's names safe for a POSIX directory, the same way on every mount and in any listing order.

Knows nothing of paths, listings or XNAT. Pure functions, safe from any thread.

What stays as it is: everything POSIX allows in a name, control characters and newlines included. They are the
archive's data, a look-alike would be another file's name, and terminals are protected by the programs that print
(``ls`` quotes them). What cannot stay: "/" and NUL, the two names with a meaning of their own, the empty name, code
points that have no UTF-8 form, and more than 255 bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

from xnatfs.model import Entry

MAX_NAME_BYTES = 255  # NAME_MAX of Linux; longer names fail with ENAMETOOLONG before they reach us
_FORBIDDEN = str.maketrans({"/": "_", "\0": "_"})
_MEANINGLESS = frozenset({"", ".", ".."})


def safe_name(raw: str) -> str:
    """Return the name to show for ``raw``: 1 to 255 bytes of UTF-8, no "/" or NUL, neither "." nor "..".

    Stable: ``safe_name(safe_name(raw)) == safe_name(raw)``, and the result depends on ``raw`` alone.
    """
    if raw.isascii() and len(raw) <= MAX_NAME_BYTES and "/" not in raw and "\0" not in raw:
        return "_" if raw in _MEANINGLESS else raw
    name = _encodable(raw).translate(_FORBIDDEN)
    if len(name.encode()) > MAX_NAME_BYTES:
        return _with_suffix(name, _hash(raw, size=4))
    return name


def are_safe(names: Sequence[str]) -> bool:
    """Whether all of these are surely shown as they are; False leaves it open. Looks at all at once: 0.05 us a name."""
    joined = "/".join(names)
    return (
        joined.isascii()
        and joined.count("/") == len(names) - 1
        and "\0" not in joined
        and len(max(names, key=len)) <= MAX_NAME_BYTES
        and _MEANINGLESS.isdisjoint(names)
    )


def assign_names(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Return the shown name of each entry of one directory, in the archive's order, whatever that order is.

    A reserved entry keeps its name. All members of a group of equal names, and every name that equals a reserved
    one, become ``name~id``; where that is taken too, or there is no id, ``name~`` and 16 hex of the hash of the key.
    Of entries with equal name and key (one file listed twice) the first stays: archives serve the first match.

    Raises:
        ValueError: two reserved entries have the same name.
    """
    raw = [entry.name for entry in entries]
    names = dict(zip(raw if are_safe(raw) else map(safe_name, raw), entries, strict=True))
    if len(names) == len(entries):
        return names
    distinct = list({(entry.name, entry.key): entry for entry in reversed(entries)}.values())[::-1]
    return _tell_apart(distinct)


def assign_aliases(names: Mapping[str, Entry]) -> dict[str, str]:
    """Return alias -> shown name for ``names``, a result of ``assign_names``.

    A shown name is never shadowed; an alias that two entries claim resolves to neither, since either could be meant.
    """
    claims: dict[str, set[str]] = {}
    for shown, entry in names.items():
        for alias in entry.aliases:
            claims.setdefault(safe_name(alias), set()).add(shown)
    return {alias: shown.pop() for alias, shown in claims.items() if len(shown) == 1 and alias not in names}


def _tell_apart(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Move clashing names up step by step (name, name~id, name~hash, name~another hash) until all differ.

    Each round looks at the set of names only, so the order of the entries has no say. Of a clash between a name the
    archive gave and one that was made here, the made one gives way.
    """
    steps = [0] * len(entries)
    names = [safe_name(entry.name) for entry in entries]
    while True:
        clashes = [group for group in _groups(names) if len(group) > 1]
        if not clashes:
            return dict(zip(names, entries, strict=True))
        for group in clashes:
            movable = [place for place in group if not entries[place].reserved]
            if len(group) - len(movable) > 1:
                raise ValueError(f"two reserved entries are called {names[group[0]]!r}")
            top = max(steps[place] for place in movable)
            for place in movable:
                if steps[place] == top:
                    steps[place] += 1
                    names[place] = _numbered(entries[place], steps[place])


def _groups(names: Iterable[str]) -> Iterable[list[int]]:
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        groups[name].append(place)
    return groups.values()


def _numbered(entry: Entry, step: int) -> str:
    """The entry's name after ``step`` clashes. From step 2 on the hash differs at each step, so a free one is found."""
    suffix = safe_name(entry.id) if entry.id else ""
    if step > 1 or not suffix or len(suffix.encode()) > MAX_NAME_BYTES // 2:
        # The raw name is part of it: one key may be listed under two names that look the same when made safe.
        suffix = _hash(f"{step}:{entry.key}:{entry.name}", size=8)
    return _with_suffix(safe_name(entry.name), suffix)


def _with_suffix(name: str, suffix: str) -> str:
    """``name~suffix``, where ``name`` gives way at a character boundary so that all of it has at most 255 bytes."""
    tail = f"~{suffix}"
    head = name.encode()[: MAX_NAME_BYTES - len(tail.encode())].decode(errors="ignore")
    return head + tail


def _encodable(raw: str) -> str:
    """Join surrogate pairs, replace lone surrogates by U+FFFD: a name must have a UTF-8 form."""
    return raw.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _hash(text: str, *, size: int) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()
