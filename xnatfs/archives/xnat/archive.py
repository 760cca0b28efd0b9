"""An XNAT server as an archive: pyxnat logs in, requests carries listings and bytes.

Which listing takes which requests is here; what their rows mean is in ``tables.py``. Safe to call from any thread.
Only GET, HEAD and the logout are ever sent: nothing here can change data.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import md5
from typing import Any
from urllib.parse import quote

from xnatfs.archives.base import BulkStream, RangeStream
from xnatfs.archives.documents import (
    BytesBody,
    DocumentStore,
    is_document,
    made,
    split_key,
)
from xnatfs.archives.http.account import Account
from xnatfs.archives.http.body import checked_body, http_time_ns, is_page
from xnatfs.archives.http.client import HttpClient
from xnatfs.archives.http.errors import PageReply, ServerFailed
from xnatfs.archives.http.numbers import whole_number
from xnatfs.archives.http.session import ServerSession, SharedSession
from xnatfs.archives.xnat.bulk import open_zip
from xnatfs.archives.xnat.files import FileRun, file_runs
from xnatfs.archives.xnat.login import WHO_PATH, XnatLogin
from xnatfs.archives.xnat.tables import (
    EXPERIMENT_COLUMNS,
    SITE,
    SUBJECT_COLUMNS,
    Item,
    Row,
    catalog_files,
    experiment_listing,
    files_listing,
    inputs_listing,
    item_path,
    parse_listing_id,
    project_listing,
    resources_listing,
    rows_by_experiment,
    site_listing,
)
from xnatfs.archives.xnat.zips import needs_zip, open_in_zip, stat_in_zip
from xnatfs.config import Credentials, HttpConfig, TreeConfig
from xnatfs.errors import AccessDenied, LoginFailed, NotFound, StaleContent, UnexpectedReply
from xnatfs.model import Entry, Listing
from xnatfs.stats import Stats

log = logging.getLogger(__name__)

DATA_PATHS = ("/data/", "/REST/", "/xapi/")
"""What a redirect may lead to; anything else is a page for people (a login, an agreement)."""

JSON = {"format": "json"}

SEVERAL_TRIES = 3
"""Lists of sessions that a server may refuse in a row until it is taken for one that knows no lists."""


class XnatArchive:
    """Projects, subjects, sessions, scans and resources of one XNAT server, as one account sees them.

    Args:
        base_url: ``https://host[:port][/context]`` without a trailing slash.
        user_agent: ``xnatfs/<version>``. Must not look like a browser's: XNAT sends those a login page with status 200.
    """

    def __init__(
        self,
        base_url: str,
        credentials: Credentials,
        http: HttpConfig,
        tree: TreeConfig,
        user_agent: str,
        stats: Stats | None = None,
    ) -> None:
        self.id = base_url
        self._base_url = base_url
        self._http_config = http
        self._tree = tree
        shared = SharedSession(http.session_dir, base_url, credentials) if http.session_dir is not None else None
        self._account = Account(credentials, self._log_in, http.timeout_s, shared, stats)
        self._http = HttpClient(base_url, http, self._account, user_agent, stats, WHO_PATH, DATA_PATHS)
        self.login = XnatLogin(base_url, credentials, http.timeout_s, self._http.new_session)
        self._lock = threading.Lock()
        self._documents = DocumentStore()
        self._refused_several = 0  # times in a row; a race costs a further try
        self._told_missing = False
        self._side: ThreadPoolExecutor | None = None  # guarded by _lock: requests sent beside the caller's own

    def _log_in(self) -> ServerSession:
        return self.login.log_in()

    def who(self) -> str:
        """The user that the server takes us for; "guest" for a visitor. Logs in where that is due."""
        said = self._http.get_text(WHO_PATH)
        return said.split("'")[1] if said.count("'") >= 2 else said.strip()[:80]

    def root(self) -> Entry:
        return Entry(name="", key="/data/projects", is_dir=True, listing=SITE)

    # --- listings ----------------------------------------------------------------------------------------------

    def children(self, directory: Entry) -> Listing:
        """See ``Archive.children``. One to three requests, side by side."""
        return self._listing(directory.listing, directory.mtime_ns)

    def _listing(self, identifier: str, mtime_ns: int = 0) -> Listing:
        kind, fields = parse_listing_id(identifier)
        if kind == SITE:
            listing, documents = site_listing(self._table("/data/projects", JSON), self._tree)
            self._tell_missing(listing)
        elif kind == "project":
            listing, documents = self._project(fields["id"])
        elif kind == "resources":
            owner = _quoted(fields["owner"])
            resources = self._table(f"{owner}/resources", JSON)
            # One after the other: most subjects have none, and a crawl asks for all of them.
            files = self._files(f"{owner}/files", JSON) if resources else []
            return resources_listing(identifier, mtime_ns, resources, files, self._tree)
        elif kind == "inputs":
            files = self._files(f"{_quoted(fields['owner'])}/in/files", JSON)
            return inputs_listing(identifier, mtime_ns, files, self._tree)
        elif kind == "files":
            return files_listing(identifier, mtime_ns, self._files_or_catalog(fields["owner"]))
        else:
            listing, documents = self._experiment(identifier, mtime_ns)
        self._documents.put(documents)
        return replace(listing, documents=documents)

    def _tell_missing(self, site: Listing) -> None:
        """Say once that a project which was asked for is not there, or the user looks at an empty directory."""
        shown = {entry.id for entries in site.children.values() for entry in entries}
        missing = [project for project in self._tree.projects if project not in shown]
        if missing and not self._told_missing:
            self._told_missing = True
            log.warning("the server shows no project %s to this account", ", ".join(map(repr, missing)))

    def _project(self, project: str) -> tuple[Listing, dict[str, bytes]]:
        path = f"/data/projects/{quote(project, safe='')}"
        try:
            subjects, experiments = self._side_by_side(
                # ID and label together, or a shared subject shows its owner's label (ProjectSubjectList)
                lambda: self._table(f"{path}/subjects", {**JSON, "columns": ",".join(SUBJECT_COLUMNS)}),
                lambda: self._table(f"{path}/experiments", {**JSON, "columns": ",".join(EXPERIMENT_COLUMNS)}),
            )
        except LoginFailed:
            raise
        except AccessDenied:
            log.warning("project %s is listed but closed to this account: ask its owner for access", project)
            raise
        return project_listing(project, subjects, experiments, self._tree)

    def _experiment(self, identifier: str, mtime_ns: int) -> tuple[Listing, dict[str, bytes]]:
        fields = parse_listing_id(identifier)[1]
        path = f"/data/experiments/{quote(fields['id'], safe='')}"
        everything = {**JSON, "all": "true"}
        item, files, resources = self._side_by_side(
            lambda: self._item(path, fields["id"]),
            lambda: self._files_or_none(f"{path}/files", everything),
            lambda: self._table(f"{path}/resources", everything),
        )
        return experiment_listing(identifier, mtime_ns, item, resources, files, self._tree)

    def children_of_several(self, directories: Sequence[Entry]) -> Mapping[str, Listing]:
        """The listings of several experiments in fewer requests; those that it cannot tell for sure are missing.

        XNAT takes lists of IDs (facts 3.5), and its rows then say whose they are by the file's URI alone.
        """
        if not any(_experiment_of(each.listing) for each in directories):
            answers = self._side_by_side(*(partial(self.children, each) for each in directories))
            return {listing.id: listing for listing in answers}
        asked = {fields["id"]: each for each in directories if (fields := _experiment_of(each.listing))}
        if len(asked) < 2 or self._refused_several >= SEVERAL_TRIES:
            return {}
        together = f"/data/experiments/{','.join(quote(each, safe='') for each in asked)}"
        everything = {**JSON, "all": "true"}
        try:
            files, resources, *items = self._side_by_side(
                lambda: self._files(f"{together}/files", everything),
                lambda: self._table(f"{together}/resources", everything),
                *(partial(self._item, f"/data/experiments/{quote(each, safe='')}", each) for each in asked),
            )
        except PageReply:  # says nothing of lists: a login, or a site that is down for an hour
            return {}
        except (NotFound, UnexpectedReply):  # one of them may have gone meanwhile; or it takes no lists
            self._refused_several += 1
            return {}
        self._refused_several = 0
        named = {experiment: item.resources() for experiment, item in zip(asked, items, strict=True)}
        told = rows_by_experiment(named, files, resources)
        listings: dict[str, Listing] = {}
        for (experiment, directory), item in zip(asked.items(), items, strict=True):
            if told is not None and experiment in told:
                own_files, own_resources = told[experiment]
                listing, documents = experiment_listing(
                    directory.listing, directory.mtime_ns, item, own_resources, own_files, self._tree
                )
                self._documents.put(documents)
                listings[listing.id] = replace(listing, documents=documents)
        return listings

    def _files_or_none(self, path: str, params: Mapping[str, str]) -> list[FileRun] | None:
        """The file list, or None where the server fails over it: XNAT 1.7 does when one file is gone from its disk."""
        try:
            return self._files(path, params)
        except ServerFailed as error:
            if error.status != 500:
                raise
            log.info("%s: asking for each resource by itself", error)
            return None

    def _files_or_catalog(self, resource: str) -> list[FileRun]:
        """The files of one resource: its list, or else its catalog, which the server reads without looking at files."""
        rows = self._files_or_none(f"{_quoted(resource)}/files", JSON)
        if rows is not None:
            return rows
        document = self._http.get_bytes(_quoted(resource), {"format": "xml"})
        try:
            return catalog_files(resource, document)
        except ValueError as error:
            raise UnexpectedReply(f"GET {resource}: not a catalog: {error}") from error

    def _item(self, path: str, identifier: str) -> Item:
        """An experiment's own document: its scans, assessors and reconstructions, with and without files."""
        document = self._http.get_json(path, JSON)
        items = document.get("items") if isinstance(document, dict) else None
        item = Item.parsed(items[0]) if isinstance(items, list) and items else None
        if item is None or item.row.get("id") != identifier:
            raise UnexpectedReply(f"GET {path}: not the document of {identifier}")
        return item

    def _side_by_side(self, *calls: Callable[[], Any]) -> list[Any]:
        """Several requests at once: the first on the caller's thread, the others beside it."""
        with self._lock:
            if self._side is None:
                self._side = ThreadPoolExecutor(self._http_config.max_connections, "xnatfs-listing")
            side = self._side
        others = [side.submit(call) for call in calls[1:]]
        try:
            first = calls[0]()
        except BaseException:
            for future in others:
                future.cancel()
            raise
        return [first, *(future.result() for future in others)]

    def _table(self, path: str, params: Mapping[str, str]) -> list[Row]:
        """The rows of a listing, with lower-case column names.

        Raises:
            UnexpectedReply: not a table. A route that does not exist answers with its parent item and status 200.
        """
        return [Row(row) for row in self._rows(path, params)]

    def _files(self, path: str, params: Mapping[str, str]) -> list[FileRun]:
        """The rows of a file list. Errors as ``_table``."""
        return file_runs(self._rows(path, params))

    def _rows(self, path: str, params: Mapping[str, str]) -> list[dict[str, object]]:
        document = self._http.get_json(path, params)
        result = document.get("ResultSet") if isinstance(document, dict) else None
        rows = result.get("Result") if isinstance(result, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            what = "the parent item" if isinstance(document, dict) and "items" in document else "another document"
            raise UnexpectedReply(
                f"GET {path}: {what} in place of a table", "is this an XNAT server of version 1.7 or later?"
            )
        return rows

    # --- documents ---------------------------------------------------------------------------------------------

    def _document(self, key: str) -> bytes:
        """The bytes of a document: as announced if they are still here, else made again."""
        data = self._documents.get(key)
        if data is not None:
            return data
        listing, what = split_key(key)
        kind, _, name = what.partition(" ")
        if kind == "search":
            data = self._search(parse_listing_id(listing)[1]["id"], name)
        elif kind == "item.xml":
            data = self._http.get_bytes(_quoted(item_path(name)), {"format": "xml"})
            if not data.lstrip().startswith(b"<?xml") or b"<html" in data[:500].lower():
                raise UnexpectedReply(f"GET {name}: no XML document", "a login or agreement page? open it in a browser")
        else:
            self._listing(listing)
            data = self._documents.get(key)
            if data is None:
                raise NotFound(f"{name}: no longer listed")
        self._documents.put({key: data})
        return data

    def _search(self, project: str, xsi_type: str) -> bytes:
        """Every search field of a data type as CSV: one row an experiment of the project, or shared into it."""
        elements = self._table(f"/data/search/elements/{quote(xsi_type, safe=':')}", JSON)
        columns = [
            f"{row.get('element_name') or xsi_type}/{row['field_id']}"
            for row in elements
            if row.get("field_id") and row.get("requires_value", "").lower() != "true"
        ]
        if not columns:
            raise UnexpectedReply(f"search for {xsi_type}: the server names no fields")
        of_project = [
            (f"{xsi_type}/project", "=", project),
            (f"{xsi_type}/sharing/share/project", "=", project),
            "OR",
        ]
        from pyxnat.core.search import build_search_document  # takes 0.1 s, and few mounts need it

        document: bytes = build_search_document(xsi_type, columns, [of_project, "AND"])
        data = self._http.post_search("/data/search", {"format": "csv"}, document)
        header = data.partition(b"\n")[0].decode("latin-1").lower()
        if not any(column.rpartition("/")[2].lower() in header for column in columns):
            raise UnexpectedReply(f"search for {xsi_type}: no table came back")
        return data

    def stat(self, entry: Entry) -> Entry:
        """See ``Archive.stat``. One HEAD request; a document is made."""
        if is_document(entry.key):
            data = self._document(entry.key)
            known = made(entry.name, entry.key, data, entry.mtime_ns)
            return replace(entry, size=known.size, version=known.version, digest=known.digest)
        if needs_zip(entry.key):
            return stat_in_zip(self._http, entry, self._http_config.timeout_s)
        headers = self._http.head(_quoted(entry.key))
        if is_page(headers, entry):
            raise self._http.page_reply(f"HEAD {entry.key}")
        length = whole_number(headers.get("Content-Length", ""))
        if length is None:
            raise UnexpectedReply(f"HEAD {entry.key}: no Content-Length")
        modified = headers.get("Last-Modified", "")
        return replace(
            entry,
            size=length,
            mtime_ns=http_time_ns(modified) or entry.mtime_ns,
            version=f"{length}:{entry.digest}:{modified}",
        )

    # --- bytes -------------------------------------------------------------------------------------------------

    def open_range(self, entry: Entry, start: int, stop: int) -> RangeStream:
        """See ``Archive.open_range``. XNAT ignores Range and sends 200 with the whole file; a proxy may honour it."""
        if is_document(entry.key):
            data = self._document(entry.key)
            if len(data) != entry.size or md5(data, usedforsecurity=False).hexdigest() != entry.digest:
                raise StaleContent(f"{entry.name}: has changed on the server", "open it again")
            return BytesBody(data)
        try:
            return self._body(entry, start, stop)
        except PageReply as page:
            self._http.doubt(page.generation)
            return self._body(entry, start, stop)

    def open_bulk(self, files: Sequence[Entry]) -> BulkStream | None:
        """See ``Archive.open_bulk``. One zip of the resource, or of the folder, that holds all the files."""
        try:
            return open_zip(self._http, files, self._http_config.timeout_s)
        except PageReply as page:
            self._http.doubt(page.generation)
            return open_zip(self._http, files, self._http_config.timeout_s)

    def _body(self, entry: Entry, start: int, stop: int) -> RangeStream:
        if needs_zip(entry.key):
            return open_in_zip(self._http, entry, self._http_config.timeout_s)
        reply = self._http.open(_quoted(entry.key), {"Range": f"bytes={start}-{stop - 1}"})
        try:
            if reply.status == 200 and is_page(reply.headers, entry):
                raise self._http.page_reply(f"GET {entry.key}", reply.generation)
            return checked_body(reply, entry, start, stop)
        except BaseException:
            reply.close()
            raise

    def close(self) -> None:
        with self._lock:
            side, self._side = self._side, None
        if side is not None:
            side.shutdown(wait=False, cancel_futures=True)
        self.login.log_out(self._account.leave())
        self._http.close()


def _experiment_of(listing: str) -> dict[str, str]:
    """The fields of an experiment's listing id; none of another's."""
    kind, fields = parse_listing_id(listing)
    return fields if kind == "experiment" and "," not in fields["id"] else {}


def _quoted(path: str) -> str:
    """A raw path from a listing for a request: XNAT does not encode its URIs, and reads a raw + as a space."""
    return quote(path, safe="/")
