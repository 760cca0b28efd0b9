"""A bucket of an S3-compatible server as an archive, for guests and for those who have keys.

Which listing takes which requests, and the checks of a file's reply; what an answer means is in ``s3_listing.py``,
signatures in ``s3_sign.py``, connections in ``http/client.py``. Plain GETs, not fsspec's s3fs: one stream a file with
back-pressure in place of one request a block, and this project's timeouts, retries, connections and User-Agent.
Safe to call from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import parse_qsl, quote, urlsplit

from xnatfs.archives.base import RangeStream
from xnatfs.archives.http.account import Guest
from xnatfs.archives.http.body import checked_body, http_time_ns
from xnatfs.archives.http.client import HttpClient
from xnatfs.archives.http.errors import OddStatus
from xnatfs.archives.http.numbers import whole_number
from xnatfs.archives.http.reply import Reply
from xnatfs.archives.objects.s3_listing import DATED, Page, directories, listing_id, parse_page
from xnatfs.archives.objects.s3_sign import UNRESERVED, encoded_query, signed_headers
from xnatfs.config import Credentials, HttpConfig, TreeConfig
from xnatfs.errors import AccessDenied, NotFound, StaleContent, UnexpectedReply, UsageError
from xnatfs.model import Entry, Listing
from xnatfs.stats import Stats

PAGE_KEYS = 1000
"""Keys in one answer: S3 gives no more."""

MAX_PAGES = 2000
"""Answers to one listing at most: two million names in one directory are a mistake, and about a gigabyte of memory."""

DEFAULT_REGION = "us-east-1"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where a bucket is: what ``s3://bucket/prefix?endpoint=URL&region=NAME`` says.

    Attributes:
        prefix: What is mounted: "" or ends in "/".
        endpoint: URL of the server, without a trailing slash; "" is AWS.
    """

    name: str
    prefix: str
    endpoint: str
    region: str

    @staticmethod
    def parsed(url: str) -> Bucket:
        """
        Raises:
            UsageError: no name, or an option that does not exist.
        """
        address, _, query = url.partition("?")
        name, _, prefix = address.partition("://")[2].partition("/")
        options = dict(parse_qsl(query))
        endpoint, region = options.pop("endpoint", ""), options.pop("region", DEFAULT_REGION)
        if not name or options or (endpoint and urlsplit(endpoint).scheme not in ("http", "https")):
            raise UsageError(f"{url}: not the address of a bucket", "s3://BUCKET/PREFIX?endpoint=URL&region=NAME")
        prefix = prefix.strip("/")
        return Bucket(name, f"{prefix}/" if prefix else "", endpoint.rstrip("/"), region)

    @property
    def base_url(self) -> str:
        """Path-style: names with dots in them fit no certificate otherwise."""
        if self.endpoint:
            return self.endpoint
        return (
            "https://s3.amazonaws.com" if self.region == DEFAULT_REGION else f"https://s3.{self.region}.amazonaws.com"
        )


class S3Archive:
    """The keys of one bucket below one prefix.

    Args:
        url: See ``Bucket.parsed``.
        tree: Not used: a bucket has no projects or scans.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials,
        http: HttpConfig,
        tree: TreeConfig,
        user_agent: str,
        stats: Stats | None = None,
    ) -> None:
        self._bucket = Bucket.parsed(url)
        self._credentials = credentials
        self._config = http
        self._user_agent = user_agent
        self._stats = stats or Stats()
        self._lock = threading.Lock()
        self._client = self._connect(self._bucket)  # replaced under _lock, with _bucket, when AWS names another region
        self.id = f"s3://{self._bucket.name}" + (f"@{self._bucket.endpoint}" if self._bucket.endpoint else "")

    def _connect(self, bucket: Bucket) -> HttpClient:
        return HttpClient(bucket.base_url, self._config, Guest(), self._user_agent, self._stats)

    def root(self) -> Entry:
        return Entry("", self._bucket.prefix, True, listing=listing_id(self._bucket.prefix))

    # --- listings ----------------------------------------------------------------------------------------------

    def children(self, directory: Entry) -> Listing:
        """See ``Archive.children``. One request for all that is below, where that is a thousand keys or fewer.

        Otherwise one more for each thousand names of this directory alone. A listing that once held all below stays
        of that kind as long as somebody asks for a directory inside it.
        """
        top = directory.listing[1:]
        first = self._page(top, "", "")
        if not first.token or directory.key != top:
            pages = [first, *self._pages(top, "", first.token)]
            found = directories(top, pages, below=directory.listing)
        else:
            pages = list(self._pages(top, "/", None))
            found = directories(top, pages, below=None)
        empty = not any(page.files or page.prefixes for page in pages)
        if directory.key not in found or (empty and top):
            raise NotFound(f"{directory.key}: no key of {self.id} begins so", "is it a file? name its directory")
        return Listing(directory.listing, found)

    def _pages(self, prefix: str, delimiter: str, token: str | None) -> Iterator[Page]:
        """The pages from ``token`` on: None for all, "" for none."""
        count = 0
        while token is None or token:
            page = self._page(prefix, delimiter, token or "")
            yield page
            count += 1
            if page.token == token or count > MAX_PAGES:
                raise UnexpectedReply(f"{self.id}: the listing of {prefix or 'the bucket'} does not end")
            token = page.token

    def _page(self, prefix: str, delimiter: str, token: str) -> Page:
        query = {"list-type": "2", "encoding-type": "url", "max-keys": str(PAGE_KEYS), "prefix": prefix}
        if delimiter:
            query["delimiter"] = delimiter
        if token:
            query["continuation-token"] = token

        def ask(client: HttpClient, bucket: Bucket) -> bytes:
            target = f"/{quote(bucket.name, safe=UNRESERVED)}?{encoded_query(query)}"
            return client.get_bytes(target, headers=self._signed("GET", bucket, target))

        return parse_page(self._asked(ask), f"listing of {prefix or self.id}")

    # --- files -------------------------------------------------------------------------------------------------

    def stat(self, entry: Entry) -> Entry:
        """See ``Archive.stat``. One HEAD request."""

        def ask(client: HttpClient, bucket: Bucket) -> Mapping[str, str]:
            target = _target(bucket, entry.key)
            return client.head(target, self._signed("HEAD", bucket, target))

        headers = self._asked(ask)
        length = whole_number(headers.get("Content-Length", ""))
        if length is None:
            raise UnexpectedReply(f"HEAD {entry.key}: no Content-Length")
        modified = headers.get("Last-Modified", "")
        version = _etag(headers) or f"{DATED}{modified}"
        return replace(entry, size=length, mtime_ns=http_time_ns(modified) or entry.mtime_ns, version=version)

    def open_range(self, entry: Entry, start: int, stop: int) -> RangeStream:
        """See ``Archive.open_range``. The version in the listing is asked for, and no other is taken."""
        wanted = "" if entry.version.startswith(DATED) else entry.version

        def ask(client: HttpClient, bucket: Bucket) -> Reply:
            target = _target(bucket, entry.key)
            headers = {"Range": f"bytes={start}-{stop - 1}", **({"If-Match": f'"{wanted}"'} if wanted else {})}
            return client.open(target, {**headers, **self._signed("GET", bucket, target)})

        reply = self._asked(ask)
        try:
            found = _etag(reply.headers)
            if wanted and not found:
                raise UnexpectedReply(
                    f"GET {entry.key}: an answer without a version", "does an S3 server answer there?"
                )
            if wanted and found != wanted:
                raise StaleContent(f"GET {entry.key}: has changed on the server", "list the directory again")
            dated = reply.headers.get("Last-Modified", "")
            return checked_body(reply, entry, start, stop, found or dated, stored=True)
        except BaseException:
            reply.close()
            raise

    def open_bulk(self, files: Sequence[Entry]) -> None:
        """See ``Archive.open_bulk``. Objects come one by one."""

    def close(self) -> None:
        with self._lock:
            client = self._client
        client.close()

    # --- requests ----------------------------------------------------------------------------------------------

    def _signed(self, method: str, bucket: Bucket, target: str) -> dict[str, str]:
        path = urlsplit(bucket.base_url).path
        return signed_headers(method, _host(bucket.base_url), path + target, bucket.region, self._credentials)

    def _asked(self, ask: Callable[[HttpClient, Bucket], T]) -> T:
        """Ask where the bucket is thought to be, and once more where AWS says that it is."""
        with self._lock:
            client, bucket = self._client, self._bucket
        try:
            return ask(client, bucket)
        except AccessDenied as error:
            raise AccessDenied(str(error), self._closed_hint()) from error
        except OddStatus as error:
            region = error.headers.get("x-amz-bucket-region", "")
            if not region or bucket.endpoint or region == bucket.region:
                raise
        client, bucket = self._move(region)
        return ask(client, bucket)

    def _move(self, region: str) -> tuple[HttpClient, Bucket]:
        with self._lock:
            if self._bucket.region != region:
                self._client.close()
                self._bucket = replace(self._bucket, region=region)
                self._client = self._connect(self._bucket)
            return self._client, self._bucket

    def _closed_hint(self) -> str:
        if self._credentials.user is None:
            return "it may want keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        return f"the keys from {self._credentials.origin} do not open it; an open bucket may want --anonymous"


def _etag(headers: Mapping[str, str]) -> str:
    return headers.get("ETag", "").removeprefix("W/").strip('"')


def _host(base_url: str) -> str:
    """The Host header of a URL: without the scheme's own port."""
    parts = urlsplit(base_url)
    default = {"http": 80, "https": 443}[parts.scheme]
    return parts.netloc.removesuffix(f":{default}")


def _target(bucket: Bucket, key: str) -> str:
    """The path of a key.

    Raises:
        UnexpectedReply: the key has a segment that every HTTP client and proxy takes out: another key would answer.
    """
    if any(segment in (".", "..") for segment in key.split("/")):
        raise UnexpectedReply(f"{key}: a key with . or .. in its path cannot be asked for by HTTP")
    text = key.encode("utf-8", "surrogateescape")
    return f"/{quote(bucket.name, safe=UNRESERVED)}/{quote(text, safe=f'/{UNRESERVED}')}"
