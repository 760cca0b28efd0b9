"""A data set of OpenNeuro: ``openneuro://ds000228`` its newest snapshot, ``openneuro://ds000228/1.1.0`` one of them.

The newest lies in an open bucket and is read there (``s3.py``). An older one is asked of OpenNeuro's API, in one
request for the whole tree: each file is named by the version of an object in the bucket. Safe to call from any thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from xnatfs.archives.base import Archive, RangeStream
from xnatfs.archives.objects.s3 import S3Archive
from xnatfs.archives.objects.url_files import UrlFiles
from xnatfs.config import Credentials, HttpConfig, TreeConfig
from xnatfs.errors import NotFound, UnexpectedReply, UsageError
from xnatfs.model import Entry, Listing
from xnatfs.stats import Stats

API = "https://openneuro.org"
BUCKET = "openneuro.org"

QUERY = """query ($dataset: ID!, $tag: String!) {
  snapshot(datasetId: $dataset, tag: $tag) { files(recursive: true) { id directory filename size urls } }
}"""


def open_dataset(
    url: str,
    credentials: Credentials,
    http: HttpConfig,
    tree: TreeConfig,
    user_agent: str,
    stats: Stats | None = None,
) -> Archive:
    """The archive of one data set. Keys are not used: everything here is open.

    Args:
        url: ``openneuro://ID[/TAG][?endpoint=URL]``; the endpoint serves API and bucket in place of the real ones.
    Raises:
        UsageError: not the address of a data set.
    """
    address, _, query = url.partition("?")
    found = re.fullmatch(r"openneuro://(ds\d+)(?:/(?:versions/)?(\d+(?:\.\d+)+))?", address)
    options = dict(parse_qsl(query))
    endpoint = options.pop("endpoint", "")
    if found is None or options:
        raise UsageError(f"{url}: not the address of a data set", "openneuro://ds000228, or openneuro://ds000228/1.1.0")
    if found[2] is None:
        bucket = f"s3://{BUCKET}/{found[1]}" + (f"?endpoint={endpoint}" if endpoint else "")
        return S3Archive(bucket, Credentials(), http, tree, user_agent, stats)
    return SnapshotArchive(endpoint.rstrip("/") or API, found[1], found[2], http, user_agent, stats or Stats())


class SnapshotArchive:
    """One snapshot, which does not change any more."""

    def __init__(self, api: str, dataset: str, tag: str, http: HttpConfig, user_agent: str, stats: Stats) -> None:
        self.id = f"{api}/datasets/{dataset}/versions/{tag}"
        self._api = api
        self._dataset = dataset
        self._tag = tag
        self._files = UrlFiles(http, user_agent, stats, trusted=api)

    def root(self) -> Entry:
        return Entry("", "/", True, listing=self._tag)

    def children(self, directory: Entry) -> Listing:
        """See ``Archive.children``. One request for the whole tree."""
        what = f"snapshot {self._tag} of {self._dataset}"
        question = {"query": QUERY, "variables": {"dataset": self._dataset, "tag": self._tag}}
        client, path = self._files.client(f"{self._api}/crn/graphql")
        answer = client.post_search(path, {}, json.dumps(question).encode(), "application/json")
        tree = snapshot_tree(_rows(answer, what), self._tag, what)
        if directory.key not in tree:
            raise NotFound(f"{directory.key}: not in {what}")
        return Listing(directory.listing, tree)

    def stat(self, entry: Entry) -> Entry:
        """See ``Archive.stat``."""
        return self._files.stat(entry)

    def open_range(self, entry: Entry, start: int, stop: int) -> RangeStream:
        """See ``Archive.open_range``."""
        return self._files.open_range(entry, start, stop)

    def open_bulk(self, files: Sequence[Entry]) -> None:
        """See ``Archive.open_bulk``. Files come one by one."""

    def close(self) -> None:
        self._files.close()


def _rows(answer: bytes, what: str) -> list[Mapping[str, Any]]:
    try:
        document = json.loads(answer)
        snapshot = document["data"]["snapshot"]
        if snapshot is None:
            raise NotFound(f"{what}: OpenNeuro has no such snapshot")
        rows = snapshot["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnexpectedReply(f"{what}: not the answer that was asked for: {_said(answer)}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UnexpectedReply(f"{what}: no files in the answer")
    return rows


def _said(answer: bytes) -> str:
    """The API's own words for what is wrong, in short."""
    try:
        return str(json.loads(answer)["errors"][0]["message"])[:200]
    except (ValueError, KeyError, TypeError, IndexError):
        return "no words about it"


def snapshot_tree(rows: Sequence[Mapping[str, Any]], listing: str, what: str) -> dict[str, tuple[Entry, ...]]:
    """Directory key -> entries, of rows whose ``filename`` is a path from the top.

    Keys of directories are paths that end in a slash, those of files URLs: the same object under two names is one
    content. The size is the API's, which is not always right: opening finds out.
    """
    tree: dict[str, dict[str, Entry]] = {"/": {}}
    for row in rows:
        path, urls = row.get("filename"), row.get("urls")
        if row.get("directory"):
            continue
        if not isinstance(path, str) or not isinstance(urls, list) or not urls or not isinstance(urls[0], str):
            raise UnexpectedReply(f"{what}: a file without a name or an address")
        at = "/"
        *above, name = path.strip("/").split("/")
        for segment in above:
            inner = f"{at}{segment}/"
            tree[at].setdefault(inner, Entry(segment, inner, True, listing=listing))
            tree.setdefault(inner, {})
            at = inner
        url = next((url for url in urls if "versionId=" in url), urls[0])
        size = row.get("size")
        known = size if isinstance(size, int) and size > 0 else None
        tree[at][path] = Entry(name, url, False, known, version=str(row.get("id", "")))
    return {key: tuple(entries.values()) for key, entries in tree.items()}
