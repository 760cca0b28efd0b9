"""A project of the Open Science Framework: ``osf://axz5r``, its own files and those of its components.

OSF answers a guest 100 requests an hour. So a folder costs one request for each hundred names, and is not asked for
again for an hour unless one of its files proves to have changed. Bytes come from the store that OSF redirects to.
Safe to call from any thread.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from xnatfs.archives.base import RangeStream
from xnatfs.archives.http.errors import ServerFailed
from xnatfs.archives.objects.s3_listing import time_ns
from xnatfs.archives.objects.url_files import UrlFiles, open_to_all
from xnatfs.config import Credentials, HttpConfig, TreeConfig
from xnatfs.errors import NotFound, StaleContent, UnexpectedReply, UsageError
from xnatfs.model import Entry, Listing
from xnatfs.stats import Stats

API = "https://api.osf.io"

KEEP_S = 3600.0
"""Seconds for which a listing is not asked for again: the time over which OSF counts its 100 requests."""

PAGE_ROWS = 100
"""Rows asked for at once: ten are usual, a hundred the most."""

MAX_PAGES = 1000


class OsfArchive:
    """The osfstorage of one project, with its components as directories.

    Args:
        url: ``osf://ID[?endpoint=URL]``; the endpoint serves the API in place of the real one.
        credentials: Not used, like ``tree``: open projects only.
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
        address, _, query = url.partition("?")
        found = re.fullmatch(r"osf://([A-Za-z0-9]{5,})", address)
        options = dict(parse_qsl(query))
        self._api = options.pop("endpoint", API).rstrip("/")
        if found is None or options:
            raise UsageError(f"{url}: not the address of a project", "osf://axz5r; a folder in it follows a #/")
        self._node = found[1].lower()
        self.id = f"{self._api}/v2/nodes/{self._node}"
        self._files = UrlFiles(http, user_agent, stats or Stats(), trusted=self._api)
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, Listing]] = {}  # guarded by _lock

    def root(self) -> Entry:
        return _node("", self._node)

    @open_to_all()
    def children(self, directory: Entry) -> Listing:
        """See ``Archive.children``. A request for each hundred names; for a project one more for its components."""
        with self._lock:
            asked_at, listing = self._kept.get(directory.listing, (0.0, None))
        if listing is not None and time.monotonic() - asked_at < KEEP_S:
            return listing
        node, _, folder = directory.key.partition("/")
        rows = self._rows(f"/v2/nodes/{node}/files/osfstorage/{folder}", "name")
        entries = [_entry(node, row) for row in rows]
        if not folder:
            components = self._rows(f"/v2/nodes/{node}/children/", "title")
            entries += [_node(_text(row, "title"), str(row.get("id", ""))) for row in components]
        listing = Listing(directory.listing, {directory.key: tuple(entries)})
        with self._lock:
            self._kept[directory.listing] = time.monotonic(), listing
        return listing

    def _rows(self, path: str, sort: str) -> list[Mapping[str, Any]]:
        """The rows of a collection, page after page.

        Raises:
            UnexpectedReply: it is not all there.
        """
        total = 0
        # Sorted, or pages overlap: rows then come twice and others never.
        url: str | None = f"{self._api}{path}?page%5Bsize%5D={PAGE_ROWS}&sort={sort}"
        found: dict[str, Mapping[str, Any]] = {}
        for _ in range(MAX_PAGES):
            if url is None:
                if len(found) < total:
                    raise UnexpectedReply(f"GET {path}: {len(found)} of {total} rows came")
                return list(found.values())
            if f"{urlsplit(url).scheme}://{urlsplit(url).netloc}" != self._api:
                raise UnexpectedReply(f"GET {path}: the next page is on another host")
            client, target = self._files.client(url)
            try:
                document = client.get_json(target)
            except ServerFailed as error:
                if error.status != 429:
                    raise
                hint = "OSF answers guests 100 requests an hour: what is listed stays readable, the rest later"
                raise ServerFailed(str(error), hint, error.status, error.retry_after_s) from error
            rows = document.get("data") if isinstance(document, dict) else None
            links = document.get("links") if isinstance(document, dict) else None
            if not isinstance(rows, list) or not isinstance(links, dict):
                raise UnexpectedReply(f"GET {path}: no listing of files")
            total = max(total, _total(document))
            found.update((_identifier(row), row) for row in rows)
            url = links.get("next")
        raise UnexpectedReply(f"GET {path}: the listing does not end")

    def stat(self, entry: Entry) -> Entry:
        """See ``Archive.stat``."""
        return self._files.stat(entry)

    def open_range(self, entry: Entry, start: int, stop: int) -> RangeStream:
        """See ``Archive.open_range``."""
        try:
            return self._files.open_range(entry, start, stop)
        except (StaleContent, NotFound):
            with self._lock:
                self._kept.clear()  # it proved wrong
            raise

    def open_bulk(self, files: Sequence[Entry]) -> None:
        """See ``Archive.open_bulk``. Files come one by one."""

    def close(self) -> None:
        self._files.close()


def _node(title: str, node: str) -> Entry:
    """A project or component as a directory. Its key has no slash, that of a folder in it has one."""
    return Entry(title, node, True, id=node, listing=f"node {node}")


def _identifier(row: Any) -> str:
    if not isinstance(row, dict) or not row.get("id"):
        raise UnexpectedReply("listing of OSF: a row without id")
    return str(row["id"])


def _total(document: Mapping[str, Any]) -> int:
    """How many rows a collection has, as far as a page says: newer versions of the API say it in another place."""
    for place in (document.get("meta"), document["links"].get("meta")):
        if isinstance(place, dict) and isinstance(place.get("total"), int):
            return int(place["total"])
    return 0


def _text(row: Mapping[str, Any], name: str) -> str:
    attributes = row.get("attributes")
    value = attributes.get(name) if isinstance(attributes, dict) else None
    if not isinstance(value, str) or not value:
        raise UnexpectedReply(f"listing of OSF: a row without {name}")
    return value


def _entry(node: str, row: Mapping[str, Any]) -> Entry:
    name, kind = _text(row, "name"), _text(row, "kind")
    if kind == "folder":
        key = f"{node}{_text(row, 'path')}"
        return Entry(name, key, True, id=key.strip("/").rpartition("/")[2], listing=f"folder {key}")
    attributes, links = row["attributes"], row.get("links")
    url = links.get("download") if isinstance(links, dict) else None
    if not isinstance(url, str):
        raise UnexpectedReply(f"listing of OSF: {name} has no address")
    size = attributes.get("size")
    extra = attributes.get("extra")
    hashes = extra.get("hashes") if isinstance(extra, dict) else None
    md5 = hashes.get("md5") if isinstance(hashes, dict) else None
    return Entry(
        name,
        url,
        False,
        size if isinstance(size, int) else None,
        time_ns(str(attributes.get("date_modified") or "")),
        f"{attributes.get('current_version')} {md5 or attributes.get('date_modified')}",
        str(row.get("id", "")),
        digest=md5 if isinstance(md5, str) and re.fullmatch(r"[0-9a-f]{32}", md5) else "",
    )
