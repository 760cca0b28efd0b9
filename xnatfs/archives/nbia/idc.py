"""IDC's open buckets: a series is a folder, an image an object with a size, an ETag and ranges.

Speaks the listing that S3 and Google's store share (ListObjectsV2). Knows no series, patients or NBIA. Any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import quote

from xnatfs.archives.base import RangeStream
from xnatfs.archives.http.body import checked_body, http_time_ns
from xnatfs.archives.http.client import HttpClient
from xnatfs.archives.http.numbers import whole_number
from xnatfs.archives.http.reply import content_length
from xnatfs.archives.nbia.idc_index import Place
from xnatfs.archives.objects.s3_listing import DATED, parse_page
from xnatfs.errors import NotFound, StaleContent, UnexpectedReply
from xnatfs.model import Entry

PREFIX = "idc:"

MAX_PAGES = 1000
"""Of 1,000 objects each: a listing that goes on beyond that is going round in circles."""


def is_object(key: str) -> bool:
    return key.startswith(PREFIX)


def list_folder(http: HttpClient, place: Place) -> tuple[Entry, ...]:
    """The files of a folder, in the order of their names. One request for each 1,000.

    Raises:
        NotFound: there are none.
        UnexpectedReply: no listing.
    """
    files: list[Entry] = []
    params = {"list-type": "2", "prefix": f"{place.folder}/"}
    what = f"bucket {place.bucket}, folder {place.folder}"
    for _ in range(MAX_PAGES):
        page = parse_page(http.get_bytes(f"/{quote(place.bucket)}/", params), what)
        files += [_placed(entry, place, what) for entry in page.files]
        if not page.token:
            break
        if page.token == params.get("continuation-token"):
            raise UnexpectedReply(f"{what}: a listing without end")
        params = {**params, "continuation-token": page.token}
    else:
        raise UnexpectedReply(f"{what}: a listing without end")
    if not files:
        raise NotFound(f"{what}: empty, or not there")
    return tuple(sorted(files, key=lambda entry: entry.name))


def _placed(entry: Entry, place: Place, what: str) -> Entry:
    name = entry.key.removeprefix(f"{place.folder}/")
    if name == entry.key or "/" in name:
        raise UnexpectedReply(f"{what}: another folder's object in the listing")
    return replace(entry, name=name, key=f"{PREFIX}{place.bucket}/{entry.key}", id=name.removesuffix(".dcm"))


def stat_object(http: HttpClient, entry: Entry) -> Entry:
    """The entry with its size, by a HEAD request."""
    headers = http.head(_path(entry))
    length = whole_number(headers.get("Content-Length", ""))
    if length is None:
        raise UnexpectedReply(f"HEAD {entry.key}: no Content-Length")
    etag = _etag(headers)
    mtime_ns = http_time_ns(headers.get("Last-Modified", "")) or entry.mtime_ns
    return replace(entry, size=length, version=etag, mtime_ns=mtime_ns)


def open_object(http: HttpClient, entry: Entry, start: int, stop: int) -> RangeStream:
    """See ``Archive.open_range``. An object with another ETag than the listing's is another version."""
    reply = http.open(_path(entry), {"Range": f"bytes={start}-{stop - 1}"})
    try:
        is_page = reply.status == 200 and reply.headers.get("Content-Type", "").lower().startswith("text/html")
        if is_page and content_length(reply) != entry.size:
            raise http.page_reply(f"GET {entry.key}", reply.generation)
        etag = _etag(reply.headers)
        if etag and not entry.version.startswith(DATED) and etag != entry.version:
            raise StaleContent(f"{entry.key}: has changed in its bucket", "list the directory again")
        return checked_body(reply, entry, start, stop, validator=etag)
    except BaseException:
        reply.close()
        raise


def _path(entry: Entry) -> str:
    return "/" + quote(entry.key.removeprefix(PREFIX), safe="/")


def _etag(headers: Mapping[str, str]) -> str:
    return headers.get("ETag", "").removeprefix("W/").strip('"')
