"""The records that every layer speaks: frozen, no I/O, no behaviour beyond a constructor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Entry:
    """One directory or file as its archive describes it. Names are raw here; ``tree/names.py`` makes them safe.

    Attributes:
        name: What the archive calls it: any characters, possibly empty, possibly equal to a sibling's.
        key: Names this entry within its archive, opaque to everyone else. For a file, key and version name its bytes.
        is_dir: True for a directory.
        size: Bytes; None when the archive has not said (``Archive.stat`` then asks once).
        mtime_ns: Nanoseconds since the epoch, 0 when unknown.
        version: Changes when the content does (size, digest, ...). Files only.
        id: The archive's own identifier: tells equal names apart as ``name~id``.
        listing: The id of the Listing that holds this directory's children; of a file, that of the Listing which
            brought its bytes along (``Listing.documents``), else "".
        aliases: Further names that resolve to this entry without being listed (XNAT IDs).
        digest: MD5 of the content in lower-case hex, or "".
        xsi_type: XNAT data type such as ``xnat:mrScanData``, or "".
        hidden: Found by name, never listed.
        reserved: The name belongs to the tree itself (``resources``, ``scans``): it is never altered, and an
            archive's name that equals it gives way.
    """

    name: str
    key: str
    is_dir: bool
    size: int | None = None
    mtime_ns: int = 0
    version: str = ""
    id: str = ""
    listing: str = ""
    aliases: tuple[str, ...] = ()
    digest: str = ""
    xsi_type: str = ""
    hidden: bool = False
    reserved: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """One answer of an archive about a directory and, where it comes for free, everything below it.

    Attributes:
        id: Equals ``Entry.listing`` of every directory whose children it holds.
        children: Directory key -> its entries, in the archive's order. A directory key that is absent is not empty:
            it is not part of this listing.
        documents: File key -> bytes of the files that the answer itself was enough to make.
    """

    id: str
    children: Mapping[str, tuple[Entry, ...]]
    documents: Mapping[str, bytes] = field(default_factory=dict)


class ContentId(NamedTuple):
    """Names immutable bytes: a changed file has another version, hence another id, and no block is ever overwritten.

    A tuple, because each read of a cached block hashes it half a dozen times.
    """

    archive: str
    key: str
    version: str
