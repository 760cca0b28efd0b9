"""What an S3 server's ListObjectsV2 answers, as directories and files. Pure functions; no requests here.

A bucket knows keys and no directories: "a/b" lies in "a" because people read it so. A key that ends in "/" marks a
directory and is no file. A key that is both ("a" and "a/b") gives a file and a directory of one name, which
``tree/names.py`` tells apart by the ids given here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from xnatfs.errors import UnexpectedReply
from xnatfs.model import Entry

FILE_ID, DIRECTORY_ID = "file", "dir"


@dataclass(frozen=True, slots=True)
class Page:
    """One answer.

    Attributes:
        files: Of every key in it that does not end in "/"; ``name`` is not cut yet, ``key`` is the whole key.
        prefixes: What keys have in common up to the delimiter, and keys that end in "/".
        token: How to ask for the next page; "" when this is the last.
    """

    files: tuple[Entry, ...]
    prefixes: tuple[str, ...]
    token: str


def parse_page(document: bytes, what: str) -> Page:
    """One ListObjectsV2 answer.

    Raises:
        UnexpectedReply: it is not one. A bucket that seems empty because of a strange answer would be a lie.
    """
    try:
        if b"<!DOCTYPE" in document[:4096]:
            raise ValueError("a document type")
        root = ElementTree.fromstring(document)  # noqa: S314  # without entities there is nothing to expand
        space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
        if root.tag != f"{space}ListBucketResult":
            raise ValueError(f"<{root.tag[len(space) :][:40]}>")
        return _page(root, space)
    except (ElementTree.ParseError, ValueError) as error:
        raise UnexpectedReply(f"{what}: no listing of a bucket: {error}", "does an S3 server answer there?") from error


def _page(root: ElementTree.Element, space: str) -> Page:
    encoded = root.findtext(f"{space}EncodingType") == "url"
    truncated = root.findtext(f"{space}IsTruncated")
    if truncated not in ("true", "false"):
        raise ValueError("it does not say whether it is the whole")
    token = root.findtext(f"{space}NextContinuationToken") or ""
    if truncated == "true" and not token:
        raise ValueError("there is more, and no way to ask for it")
    files: list[Entry] = []
    prefixes: list[str] = []
    for row in root.iterfind(f"{space}Contents"):
        text = row.findtext(f"{space}Key") or ""
        key = unquote_plus(text, errors="surrogateescape") if encoded else text
        if key.endswith("/"):
            prefixes.append(key)
        elif key:
            size = int(row.findtext(f"{space}Size") or "")
            if not 0 <= size < 2**63:
                raise ValueError(f"a size of {size}")
            modified = row.findtext(f"{space}LastModified") or ""
            etag = (row.findtext(f"{space}ETag") or "").strip('"')
            files.append(Entry("", key, False, size, time_ns(modified), etag or f"{DATED}{modified}"))
    for row in root.iterfind(f"{space}CommonPrefixes"):
        text = row.findtext(f"{space}Prefix") or ""
        prefixes.append(unquote_plus(text, errors="surrogateescape") if encoded else text)
    return Page(tuple(files), tuple(prefixes), token if truncated == "true" else "")


DATED = "dated "
"""Begins the version of a file that has no ETag."""


def time_ns(text: str) -> int:
    """An ISO date in nanoseconds since the epoch; 0 when there is none. A date without a zone is in UTC."""
    try:
        when = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return int((when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()) * 1_000_000_000
    except ValueError:
        return 0


def listing_id(prefix: str) -> str:
    """What the listing of a prefix is called: never empty."""
    return f"/{prefix}"


def directories(top: str, pages: Iterable[Page], below: str | None) -> dict[str, tuple[Entry, ...]]:
    """Directory key -> entries, for everything that the pages say below the prefix ``top``.

    Args:
        below: The id of the listing that the children of a directory found here belong to: None for one of its own.
    """
    tree: dict[str, dict[str, Entry]] = {top: {}}

    def descend(key: str) -> str:
        """The directory of a key, known from here on with all above it."""
        at = top
        while (end := key.find("/", len(at))) >= 0:
            inner = key[: end + 1]
            if inner not in tree[at]:
                tree[at][inner] = Entry(
                    key[len(at) : end], inner, True, listing=listing_id(inner) if below is None else below
                )
            tree.setdefault(inner, {})
            at = inner
        return at

    for page in pages:
        for prefix in page.prefixes:
            descend(prefix)
        for file in page.files:
            at = descend(file.key)
            tree[at][file.key] = Entry(file.key[len(at) :], file.key, False, file.size, file.mtime_ns, file.version)
    if below is None:
        tree = {top: tree[top]}
    return {key: tuple(_told_apart(entries)) for key, entries in tree.items()}


def _told_apart(entries: dict[str, Entry]) -> Iterable[Entry]:
    for key, entry in entries.items():
        twin = key[:-1] if entry.is_dir else f"{key}/"
        if twin not in entries:
            yield entry
        else:
            identifier = DIRECTORY_ID if entry.is_dir else FILE_ID
            yield Entry(
                entry.name,
                key,
                entry.is_dir,
                entry.size,
                entry.mtime_ns,
                entry.version,
                identifier,
                entry.listing,
            )
