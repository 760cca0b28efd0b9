"""IDC's public buckets: a folder a series, an object an image, listings of a few keys a page, and ranges.

Answers ListObjectsV2 and GET, path-style, to guests. Pure functions on the sample.
"""

from __future__ import annotations

import email.utils
from collections.abc import Iterable
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


def answer(question: Question, series: Iterable[SampleSeries]) -> Reply:
    bucket, _, key = unquote(question.path).lstrip("/").partition("/")
    objects = {
        f"{one.folder}/{image.name}": image.content
        for one in series
        if one.bucket == bucket
        for image in one.idc_images
    }
    if not key:
        return _listing(bucket, objects, question.query)
    content = objects.get(key)
    if content is None:
        return plain("<Error><Code>NoSuchKey</Code></Error>", "application/xml", 404)
    headers = {
        "Content-Type": "application/dicom",
        "ETag": f'"{content.md5()}"',
        "Last-Modified": email.utils.formatdate(MTIME_S, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    return Reply(200, headers, Body(content.size, content.pieces, sliceable=True), ranges=True)


def _listing(bucket: str, objects: dict[str, Content], query: dict[str, str]) -> Reply:
    after = query.get("continuation-token", "")
    keys = sorted(key for key in objects if key.startswith(query.get("prefix", "")) and key > after)
    page, more = keys[:PAGE_KEYS], len(keys) > PAGE_KEYS
    when = datetime.fromtimestamp(MTIME_S, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    encoded = query.get("encoding-type") == "url"
    rows = [
        f"<Contents><Key>{quote(key) if encoded else escape(key)}</Key><LastModified>{when}</LastModified>"
        f"<ETag>&quot;{objects[key].md5()}&quot;</ETag><Size>{objects[key].size}</Size></Contents>"
        for key in page
    ]
    token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
    encoding = "<EncodingType>url</EncodingType>" if encoded else ""
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name>{encoding}<IsTruncated>{'true' if more else 'false'}</IsTruncated>{token}"
        f"{''.join(rows)}</ListBucketResult>"
    )
    return plain(text, "application/xml")
