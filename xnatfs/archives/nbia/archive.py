"""TCIA as an archive: series of a manifest or a collection, from IDC's open buckets or from an NBIA server.

Which listing takes which requests is here; rows and names are ``tables.py``, a series' zip ``series.py``, the
buckets ``idc.py``. Safe to call from any thread. Nothing it sends changes anything on a server.

The tree is the Data Retriever's: collection, patient, study, series. One answer describes all down to the series. What
is in a series is known beforehand in IDC only; NBIA tells it by sending the series, so that listing such a directory is
its one download, and its files go to the keeper.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from hashlib import md5, sha256
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode

from xnatfs.archives.base import BulkStream, Keeper, RangeStream
from xnatfs.archives.documents import BytesBody, DocumentStore, is_document, split_key
from xnatfs.archives.http.account import Guest
from xnatfs.archives.http.body import checked_body
from xnatfs.archives.http.client import HttpClient
from xnatfs.archives.http.errors import OddStatus, ServerFailed
from xnatfs.archives.http.reply import Reply
from xnatfs.archives.nbia import idc
from xnatfs.archives.nbia.idc_index import IdcIndex, Place
from xnatfs.archives.nbia.idc_names import IdcNames
from xnatfs.archives.nbia.learning import SeriesLearner
from xnatfs.archives.nbia.login import TokenAccount, log_in
from xnatfs.archives.nbia.manifest import Manifest, parse_manifest
from xnatfs.archives.nbia.series import (
    SeriesBody,
    SeriesBulk,
    open_member,
    open_series,
)
from xnatfs.archives.nbia.tables import Row, Series, parse_rows, series_of, time_ns
from xnatfs.archives.nbia.tree import (
    COLLECTION,
    MANIFEST,
    MISSING,
    PREFIX,
    ROOT,
    SERIES,
    SITE,
    Branch,
    collections_listing,
    directory_key,
    listing_id,
    only_entry,
    parse_file_key,
    parse_listing_id,
    received_entries,
)
from xnatfs.config import Config, Credentials, HttpConfig, TciaConfig, TreeConfig
from xnatfs.errors import (
    AccessDenied,
    ArchiveError,
    LoginFailed,
    NotFound,
    StaleContent,
    Unavailable,
    UnexpectedReply,
    UsageError,
)
from xnatfs.model import Entry, Listing
from xnatfs.stats import Stats

log = logging.getLogger(__name__)

PUBLIC_NBIA = "https://nbia.cancerimagingarchive.net"

SERVICES = "/nbia-api/services"

SERIES_A_QUESTION = 5000
"""UIDs in one request for descriptions, about 300 KB of form: half of what other clients send."""

MAX_MANIFEST = 64 << 20
"""Bytes: a published one with 19,000 series has 1.2 MB."""

NOT_FOR_NAMES = 2
"""Connections left to readers while a long series' images are looked into for their names."""

LIMITED = "access may be limited: ask the archive for access, then give --user and store its password in ~/.netrc"

_UID = re.compile(r"[0-9.]{1,64}")

T = TypeVar("T")


class NbiaArchive:
    """The series of one manifest, or the collections of one server.

    Args:
        manifest: None shows every collection.
        server: Scheme, host and port of the NBIA server.
    """

    def __init__(
        self,
        manifest: Manifest | None,
        server: str,
        credentials: Credentials,
        http: HttpConfig,
        tree: TreeConfig,
        tcia: TciaConfig,
        user_agent: str,
        stats: Stats | None = None,
    ) -> None:
        self.id = f"nbia:{server}"
        self._manifest = manifest
        self._tree = tree
        self._tcia = tcia
        self._timeout_s = http.timeout_s
        self._connections = http.max_connections
        retries = manifest.retries if manifest is not None else None
        self._stats = stats or Stats()
        nobody = HttpClient(server, http, Guest(), user_agent, self._stats)
        account = (
            Guest()
            if credentials.user is None
            else TokenAccount(credentials, lambda: log_in(nobody, credentials), http.timeout_s, self._stats)
        )
        self._buckets = HttpClient(tcia.idc_url, http, Guest(), user_agent, self._stats)
        self._http = HttpClient(server, http, account, user_agent, self._stats)
        self._clients = (nobody, self._buckets, self._http)
        self._index = IdcIndex(tcia.idc_index)
        self._learner = SeriesLearner(self._open_zip, http.retries if retries is None else retries, self._stats)
        self._idc_names = IdcNames(
            lambda entry, start, stop: idc.open_object(self._buckets, entry, start, stop),
            lambda: self._learner.keeper,
            http.timeout_s,
            max(1, http.max_connections - NOT_FOR_NAMES),
        )
        self._documents = DocumentStore()
        self._lock = threading.Lock()
        self._closed = False  # guarded by _lock
        self._side: ThreadPoolExecutor | None = None  # guarded by _lock
        self._api = "v4"
        self._api_answered = False

    @classmethod
    def from_config(cls, config: Config, user_agent: str, stats: Stats | None) -> NbiaArchive:
        """The archive of a SOURCE: the path of a manifest, or ``tcia:``.

        Raises:
            UsageError: the manifest or IDC's index cannot be read, or the login is for another server than the
                manifest's.
        """
        tcia, url = config.tcia, config.source.url
        manifest = None if url == "tcia:" else _read_manifest(Path(url))
        server = tcia.nbia_url or (manifest.server if manifest else "") or PUBLIC_NBIA
        if config.credentials.user is not None and server != (tcia.nbia_url or PUBLIC_NBIA):
            raise UsageError(
                f"{url} names the server {server}, and the login is for another", f"add --nbia-url {server}"
            )
        index = IdcIndex(tcia.idc_index)
        index.check()
        if tcia.prefer == "idc" and not index.is_there():
            raise UsageError(
                "--from idc: there is no index of IDC", "pip install 'xnatfs[idc]', or give --idc-index FILE"
            )
        return cls(manifest, server, config.credentials, config.http, config.tree, tcia, user_agent, stats)

    def keep_with(self, keeper: Keeper) -> None:
        self._learner.keeper = keeper

    def root(self) -> Entry:
        return Entry(name="", key=ROOT, is_dir=True, listing=self._root_id())

    def close(self) -> None:
        with self._lock:
            self._closed = True
            side, self._side = self._side, None
        self._learner.close()
        if side is not None:
            side.shutdown(wait=False, cancel_futures=True)
        for client in self._clients:
            client.close()

    # --- listings ----------------------------------------------------------------------------------------------

    def _root_id(self) -> str:
        if self._manifest is None:
            return listing_id(SITE, **self._view())
        named = sha256("\n".join(self._manifest.series).encode()).hexdigest()[:32]
        return listing_id(MANIFEST, series=named, **self._view())

    def _view(self) -> dict[str, str]:
        """What else decides how a listing looks."""
        view = {"names": self._tree.names, "from": self._tcia.prefer}
        if self._tree.projects:
            view["collections"] = "\n".join(self._tree.projects)
        if self._tree.scan_types:
            view["modalities"] = "\n".join(self._tree.scan_types)
        return view

    def children(self, directory: Entry) -> Listing:
        """See ``Archive.children``. A series that only NBIA has is transferred: that takes as long as it is large."""
        kind, fields = parse_listing_id(directory.listing)
        if kind == SERIES:
            return Listing(directory.listing, {directory.key: self._series(directory, fields)})
        if kind == MISSING:
            raise AccessDenied(
                f"series {fields.get('uid')}: {self._http.origin} does not describe it to this account",
                f"withdrawn, misspelt in the manifest, or not for everybody; {LIMITED}",
            )
        listing = self._top(directory.listing)
        self._documents.put(listing.documents)
        return listing

    def _top(self, identifier: str) -> Listing:
        kind, fields = parse_listing_id(identifier)
        if kind == COLLECTION:
            return self._branch(identifier, directory_key(fields["name"]), self._collection(fields["name"]), ())
        if kind == MANIFEST and self._manifest is not None:
            series = self._described(self._manifest.series)
            found = {one.uid for one in series}
            missing = [uid for uid in self._manifest.series if uid not in found]
            if missing:
                log.info("%d of %d series are not described", len(missing), len(self._manifest.series))
            return self._branch(identifier, ROOT, series, missing)
        if kind == SITE:
            names = [row.get("collection", "") for row in self._rows("getCollectionValues", {})]
            wanted = self._tree.projects
            named = [name for name in names if name and (not wanted or name in wanted)]
            if not any(names):
                raise UnexpectedReply(f"{self._http.origin} names no collection")
            return collections_listing(identifier, named, self._view())
        raise NotFound(f"listing {identifier}: not of this archive")

    def _branch(self, identifier: str, top: str, series: Collection[Series], missing: Collection[str]) -> Listing:
        branch = Branch(identifier, top, classic=self._tree.names == "id")
        shown = [one for one in series if self._is_shown(one)]
        places = {} if self._tcia.prefer == "nbia" else self._index.find([one.uid for one in shown])
        branch.add(shown, places)
        branch.add_missing(missing)
        return branch.listing()

    def _is_shown(self, series: Series) -> bool:
        projects, kinds = self._tree.projects, self._tree.scan_types
        return (not projects or series.collection in projects) and (
            not kinds or any(fnmatchcase(series.modality, kind) for kind in kinds)
        )

    def _collection(self, name: str) -> list[Series]:
        """The series of a collection, in two requests: what is known of studies is not said of series."""
        side = self._beside()
        asked = side.submit(lambda: self._rows("getPatientStudy", {"Collection": name}))
        try:
            rows = self._rows("getSeries", {"Collection": name})
        except BaseException:
            asked.cancel()
            raise
        studies = {row.get("studyinstanceuid", ""): row for row in asked.result()}
        if not rows:
            raise NotFound(f"collection {name}: {self._http.origin} shows nothing of it to this account", LIMITED)
        return [series_of(row, studies.get(row.get("studyinstanceuid", "")), f"collection {name}") for row in rows]

    def _described(self, uids: Collection[str]) -> list[Series]:
        """Those of these series that the server describes to us."""
        rows: list[Row] = []
        asked = list(uids)
        for start in range(0, len(asked), SERIES_A_QUESTION):
            part = asked[start : start + SERIES_A_QUESTION]
            rows += self._versioned(partial(self._describe, part))
        wanted = set(asked)
        return [one for one in (series_of(row, None, "manifest") for row in rows) if one.uid in wanted]

    def _describe(self, uids: list[str], api: str) -> list[Row]:
        if api == "v4":
            path = f"{SERVICES}/v4/getSeriesMetadata"
            form = urlencode({"list": ",".join(uids)}).encode()
            answer = self._http.post_search(path, {}, form, "application/x-www-form-urlencoded")
            return parse_rows(answer, f"POST {path}")
        pool = self._beside()
        return [row for rows in pool.map(self._describe_one, uids) for row in rows]

    def _describe_one(self, uid: str) -> list[Row]:
        path = f"{SERVICES}/v1/getSeriesMetaData"
        try:
            return parse_rows(self._http.get_bytes(path, {"SeriesInstanceUID": uid}), f"GET {path}")
        except OddStatus as error:
            if error.status == 204:  # v1 has nothing to say of it
                return []
            raise

    def _rows(self, call: str, params: Mapping[str, str]) -> list[Row]:
        def ask(api: str) -> list[Row]:
            path = f"{SERVICES}/{api}/{call}"
            return parse_rows(self._http.get_bytes(path, {**params, "format": "json"}), f"GET {path}")

        return self._versioned(ask)

    def _versioned(self, ask: Callable[[str], T]) -> T:
        """By the newest interface that the server has: one without v4 answers 404 to all of it."""
        api = self._api
        try:
            answer = ask(api)
        except (NotFound, OddStatus) as error:
            unknown = isinstance(error, NotFound) or (isinstance(error, OddStatus) and error.status == 405)
            if not unknown or self._api_answered or api != "v4":
                raise
            answer = ask("v1")
            self._api = "v1"
        self._api_answered = True
        return answer

    def _beside(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._closed:
                raise Unavailable("the archive has been closed")
            if self._side is None:
                self._side = ThreadPoolExecutor(self._connections, "xnatfs-nbia")
            return self._side

    # --- a series ----------------------------------------------------------------------------------------------

    def _series(self, directory: Entry, fields: Mapping[str, str]) -> tuple[Entry, ...]:
        """The files of one series: a bucket's listing, or what is known of a single file, or the series itself."""
        uid, size, stamp = fields["uid"], int(fields["size"]), fields["stamp"]
        mtime_ns = time_ns(stamp) or directory.mtime_ns
        if self._tcia.prefer != "nbia":
            files = self._in_bucket(fields)
            if files is not None:
                return files
        if fields["images"] == "1" and size:
            return (only_entry(uid, size, stamp, mtime_ns),)
        learnt = self._learner.learn(directory.listing, fields)
        return received_entries(uid, learnt.token, learnt.files, mtime_ns)

    def _in_bucket(self, fields: Mapping[str, str]) -> tuple[Entry, ...] | None:
        """IDC's files, or None where NBIA has to do.

        IDC may hold another version of a series than NBIA describes: then they differ in number or bytes.
        """
        uid, images, size = fields["uid"], int(fields["images"]), int(fields["size"])
        if "bucket" not in fields:
            if self._tcia.prefer == "idc":
                raise NotFound(f"series {uid}: not in IDC's index", "--from auto takes it from NBIA")
            return None
        place = Place(fields["bucket"], fields["folder"])
        try:
            files = idc.list_folder(self._buckets, place)
            found = sum(entry.size or 0 for entry in files)
            if (images and len(files) != images) or (size and found != size):
                raise UnexpectedReply(
                    f"series {uid}: IDC has {len(files)} files with {found} bytes, NBIA {images} with {size}",
                    "another version of it; --from nbia has NBIA's",
                )
            if self._tree.names != "id":
                files = self._idc_names.named(f"{place.bucket}/{place.folder}", files)
        except ArchiveError as error:
            if self._tcia.prefer == "idc":
                raise
            log.info("series %s is taken from NBIA: %s", uid, error)
            return None
        return files

    def _open_zip(self, uid: str) -> SeriesBody:
        def ask(api: str) -> SeriesBody:
            params = {"SeriesInstanceUID": uid, "NewFileNames": "Yes"}
            if api == "v4":
                params["IncludeMD5"] = "Yes"
            what = f"series {uid} from {self._http.origin}"
            return open_series(self._http, f"{SERVICES}/{api}/getImage", params, what, self._timeout_s)

        with _denials(f"series {uid}"):
            return self._versioned(ask)

    # --- files -------------------------------------------------------------------------------------------------

    def _document(self, key: str) -> bytes:
        data = self._documents.get(key)
        if data is None:
            identifier, what = split_key(key)
            self._documents.put(self._top(identifier).documents)
            data = self._documents.get(key)
            if data is None:
                raise NotFound(f"{what}: no longer listed")
        return data

    def stat(self, entry: Entry) -> Entry:
        """See ``Archive.stat``. For an image of NBIA its series has to be transferred, unless it has been."""
        if is_document(entry.key):
            data = self._document(entry.key)
            digest = md5(data, usedforsecurity=False).hexdigest()
            return replace(entry, size=len(data), version=f"{len(data)}:{digest}", digest=digest)
        if idc.is_object(entry.key):
            return idc.stat_object(self._buckets, entry)
        uid, name, sop = _checked_key(entry.key)
        described = self._described([uid])
        if not described:
            raise NotFound(f"series {uid}: no longer on the server")
        one = described[0]
        fields = {"uid": uid, "images": str(one.images), "size": str(one.size), "stamp": one.stamp}
        learnt = self._learner.learn(listing_id(SERIES, **fields), fields)
        for file in received_entries(uid, learnt.token, learnt.files, entry.mtime_ns):
            if (sop and file.id == sop) or (not sop and file.name == name):
                return replace(entry, size=file.size, version=file.version, digest=file.digest)
        raise NotFound(f"{name} of series {uid}: not in the series")

    def open_range(self, entry: Entry, start: int, stop: int) -> RangeStream:
        """See ``Archive.open_range``. NBIA gives an image by its SOPInstanceUID, from its first byte."""
        if is_document(entry.key):
            data = self._document(entry.key)
            if len(data) != entry.size or md5(data, usedforsecurity=False).hexdigest() != entry.digest:
                raise StaleContent(f"{entry.name}: has changed on the server", "open it again")
            return BytesBody(data)
        if idc.is_object(entry.key):
            return idc.open_object(self._buckets, entry, start, stop)
        uid, name, sop = _checked_key(entry.key)
        try:
            return self._image(entry, uid, sop, stop) if sop else self._member(entry, uid, name)
        except StaleContent:
            self._learner.doubt(uid)
            raise

    def open_bulk(self, files: Sequence[Entry]) -> BulkStream | None:
        """See ``Archive.open_bulk``. Files of one series that the keeper has lost: its zip again."""
        if not files or not all(entry.key.startswith(PREFIX) and entry.digest for entry in files):
            return None
        keys = [(entry, *_checked_key(entry.key)) for entry in files]
        series = {uid for _, uid, _, _ in keys}
        if len(series) != 1:
            return None
        return SeriesBulk(self._open_zip(series.pop()), {sop or name: entry for entry, _, name, sop in keys})

    def _image(self, entry: Entry, uid: str, sop: str, stop: int) -> RangeStream:
        path = f"{SERVICES}/{self._api}/getSingleImage"
        what = f"GET {entry.name} of series {uid}"

        def begin(reply: Reply) -> RangeStream:
            if reply.headers.get("Content-Type", "").lower().startswith("text/html"):
                raise self._http.page_reply(what, reply.generation)
            return checked_body(reply, entry, 0, stop, validator="")

        try:
            with _denials(what):
                return self._http.open_with(path, {"SeriesInstanceUID": uid, "SOPInstanceUID": sop}, begin)
        except ServerFailed as error:
            # A server that has no such image, or will not give it, fails over it.
            if error.status != 500 or sop in self._images(uid):
                raise
            raise NotFound(f"{what}: no longer in the series") from error

    def _images(self, uid: str) -> set[str]:
        return {row.get("sopinstanceuid", "") for row in self._rows("getSOPInstanceUIDs", {"SeriesInstanceUID": uid})}

    def _member(self, entry: Entry, uid: str, name: str) -> RangeStream:
        assert entry.size is not None
        body = self._open_zip(uid)
        found = open_member(body, name, entry.size, f"{name} of series {uid}", alone=not entry.digest)
        if found is None:
            raise NotFound(f"{name} of series {uid}: not in the series")
        return found


@contextlib.contextmanager
def _denials(what: str) -> Iterator[None]:
    """NBIA answers 400, or 403, or asks for a login, where an account may not see a series."""
    try:
        yield
    except LoginFailed:
        raise
    except OddStatus as error:
        if error.status not in (400, 460, 461, 462):
            raise
        raise AccessDenied(f"{what}: the server does not give it to this account ({error.status})", LIMITED) from error
    except AccessDenied as error:
        raise AccessDenied(str(error), LIMITED) from error


def _checked_key(key: str) -> tuple[str, str, str]:
    uid, name, sop = parse_file_key(key)
    if not _UID.fullmatch(uid) or (sop and not _UID.fullmatch(sop)):
        raise NotFound(f"{key}: no such file")
    return uid, name, sop


def _read_manifest(path: Path) -> Manifest:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST + 1)
    except OSError as exc:
        raise UsageError(f"manifest {path}: {exc.strerror}") from exc
    if len(data) > MAX_MANIFEST:
        raise UsageError(f"manifest {path}: larger than {MAX_MANIFEST >> 20} MiB", "divide its list of series")
    manifest = parse_manifest(data.decode("utf-8", "replace"), str(path))
    odd = [line for line in manifest.odd if not line.lower().startswith("series")]  # a heading is meant to be none
    if odd:
        log.warning("%s: %d lines of its list are no UIDs, such as %.80r", path, len(odd), odd[0])
    return manifest
