"""IDC's public buckets: a folder a series, an object an image, listings of a few keys a page, and ranges.

Answers ListObjectsV2 and GET, path-style, to guests. Pure functions on the sample.
"""

from __future__ import annotations

import bisect
import email.utils
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from xnatfs.demo.api import Question
from xnatfs.demo.contents import Content
from xnatfs.demo.replies import Reply, plain
from xnatfs.demo.sending import Body
from xnatfs.demo.tcia_sample import MTIME_S, SampleSeries

BUCKETS = ("idc-open-data", "idc-open-data-two", "idc-open-data-cr")
PAGE_KEYS = 3
"""Keys in one answer: few, so that every client has to turn pages."""
LAST = "\U0010ffff"  # sorts behind everything that a key goes on with


def answer(question: Question, series: Iterable[SampleSeries]) -> Reply:
    bucket, _, key = unquote(question.path).lstrip("/").partition("/")
    objects = {
        f"{one.folder}/{image.name}": image.content
        for one in series
        if one.bucket == bucket
        for image in one.idc_images
    }
    if not key:
        keys = sorted(objects)
        return listing(bucket, keys, lambda name: stored(objects[name].size, objects[name].md5()), question.query)
    content = objects.get(key)
    return no_such_key() if content is None else whole(content, content.md5(), MTIME_S)


def no_such_key() -> Reply:
    return plain("<Error><Code>NoSuchKey</Code></Error>", "application/xml", 404)


def whole(content: Content, etag: str, mtime_s: int) -> Reply:
    """An object; whoever sends it cuts the range out."""
    headers = {
        "Content-Type": "application/dicom",
        "ETag": f'"{etag}"',
        "Last-Modified": email.utils.formatdate(mtime_s, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    return Reply(200, headers, Body(content.size, content.pieces, sliceable=True), ranges=True)


def stored(size: int, etag: str, mtime_s: int = MTIME_S) -> str:
    """What a listing says of one object."""
    when = datetime.fromtimestamp(mtime_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return f"<LastModified>{when}</LastModified><ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size>"


def listing(
    bucket: str, keys: Sequence[str], about: Callable[[str], str], query: dict[str, str], page_keys: int = PAGE_KEYS
) -> Reply:
    """One page of ``keys`` (sorted): those that begin with ``prefix``, folded at ``delimiter``."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    shown: Callable[[str], str] = quote if query.get("encoding-type") == "url" else escape
    rows: list[str] = []
    place = bisect.bisect_left(keys, prefix)
    after, last = query.get("continuation-token", ""), ""
    if after:
        place = max(place, _behind(keys, after, delimiter))
    limit = min(page_keys, int(query.get("max-keys", page_keys)))
    while place < len(keys) and keys[place].startswith(prefix) and len(rows) < limit:
        last = key = keys[place]
        end = key.find(delimiter, len(prefix)) if delimiter else -1
        if end < 0:
            rows.append(f"<Contents><Key>{shown(key)}</Key>{about(key)}</Contents>")
        else:
            last = key[: end + len(delimiter)]
            rows.append(f"<CommonPrefixes><Prefix>{shown(last)}</Prefix></CommonPrefixes>")
        place = _behind(keys, last, delimiter)
    more = place < len(keys) and keys[place].startswith(prefix)
    token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
    encoding = "<EncodingType>url</EncodingType>" if shown is quote else ""
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name>{encoding}<KeyCount>{len(rows)}</KeyCount>"
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{token}{''.join(rows)}</ListBucketResult>"
    )
    return plain(text, "application/xml")


def _behind(keys: Sequence[str], last: str, delimiter: str) -> int:
    """The place behind ``last``: a key, or all keys that begin with it where it ends as a folded one does."""
    if delimiter and last.endswith(delimiter):
        return bisect.bisect_left(keys, last + LAST)
    return bisect.bisect_right(keys, last)
