"""Reads ``.tcia`` manifests: what to ask which server for. Pure functions; no I/O.

The format is a Java properties header, a line ``ListOfSeriesToDownload=``, then one SeriesInstanceUID a line. Published
ones have other line ends, blank lines, a literal ``Series ID`` in the list, no final newline; all of that is taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from xnatfs.errors import UsageError

MARKER = "listofseriestodownload"

MAX_RETRIES = 10
"""The most that a manifest may ask for: the highest number seen in a published one."""

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)+")
_MAX_UID = 64  # characters, DICOM PS3.5 section 9
_SERVLET = "/nbia-download/"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One manifest.

    Attributes:
        server: Scheme, host and port of the NBIA server, "" when it names none.
        series: SeriesInstanceUIDs in their order, each once.
        retries: Further tries of a download, as the manifest wishes; None when it does not say.
        odd: What stands in the list and is no UID.
    """

    server: str
    series: tuple[str, ...]
    retries: int | None = None
    odd: tuple[str, ...] = ()


def parse_manifest(text: str, name: str) -> Manifest:
    """The manifest in ``text``.

    Args:
        name: The file, for messages.
    Raises:
        UsageError: no manifest, one without a list of series (its list is on the server), or an empty list.
    """
    header, found, listed = _split(text)
    if not found:
        if "databasketid" in header or "downloadserverurl" in header:
            version = header.get("manifestversion", "1.0")
            raise UsageError(
                f"{name}: a manifest of version {version} keeps its list of series on the server",
                "download the manifest anew from the archive's web page",
            )
        raise UsageError(f"{name}: not a TCIA manifest", "one has a line ListOfSeriesToDownload= and UIDs below it")
    series, odd = _uids(listed)
    if not series:
        raise UsageError(f"{name}: lists no series")
    retries = header.get("noofrretry", header.get("noofretry", ""))
    return Manifest(
        _server(header.get("downloadserverurl", "")),
        series,
        min(int(retries), MAX_RETRIES) if retries.isdigit() else None,
        odd,
    )


def _split(text: str) -> tuple[dict[str, str], bool, list[str]]:
    """The header with lower-case keys, whether the marker was there, and the lines behind it."""
    header: dict[str, str] = {}
    lines = text.removeprefix("\ufeff").splitlines()
    for number, line in enumerate(lines):
        key, _, value = line.partition("=")
        key = key.strip().lower()
        if key == MARKER:
            return header, True, [value, *lines[number + 1 :]]
        if key and not key.startswith(("#", "!")):
            header.setdefault(key, value.strip().replace("\\:", ":").replace("\\=", "="))
    return header, False, []


def _uids(lines: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    series: dict[str, None] = {}
    odd: list[str] = []
    for line in lines:
        words = [word.strip("\"'") for word in re.split(r"[\s,;]+", line) if word.strip("\"'")]
        if all(_UID.fullmatch(word) and len(word) <= _MAX_UID for word in words):
            series.update(dict.fromkeys(words))
        else:
            odd.append(line.strip())
    return tuple(series), tuple(odd)


def _server(url: str) -> str:
    """What stands before the download servlet's path: a REST service lives beside it."""
    if not re.match(r"https?://[^/]", url):
        return ""
    return url.partition(_SERVLET)[0].rstrip("/")
