"""Answers /data and /xapi requests from the records, the way XNAT does. No sockets, no faults, no latency.

Runs on the event loop; what it returns is sent elsewhere.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import parse_qsl, unquote

from xnatfs.demo import documents, index, listings, schema, search, selection, tables, zips
from xnatfs.demo.auth import GUEST, Gate, Login, Refused
from xnatfs.demo.listings import QueryFailed
from xnatfs.demo.records import Archive, File, Holder, Project
from xnatfs.demo.replies import Reply, error, home_page, plain
from xnatfs.demo.search import BadSearch
from xnatfs.demo.selection import Forbidden, NotFound, Selection
from xnatfs.demo.sending import Body, Piece

VERSION = "1.8.10"
_TYPES = {
    "bmp": "image/bmp",
    "gif": "image/gif",
    "html": "text/html",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "pdf": "application/pdf",
    "png": "image/png",
    "svg": "image/svg+xml",
    "tiff": "image/tiff",
    "txt": "text/plain",
    "xml": "text/xml",
}
_OFFERED = {"application/json", "text/html", "text/xml", "application/xml", "image/jpeg"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ZIP_MARKS = (".zip!", ".zip/", ".jar!", ".jar/")
# One grey pixel, as small as a baseline JPEG gets.
_PIXEL_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQEASABIAAD/2wBDAP//////////////////////////////////////////////////////////////////////////////////////"
    "wAALCAABAAEBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAACf/EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AVN//2Q=="
)


@dataclass(slots=True)
class Question:
    """One request as the answering code sees it. ``path`` is as sent, without the context and without the query."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


def parse_query(text: str) -> dict[str, str]:
    return dict(parse_qsl(text, keep_blank_values=True))


class Api:
    """Everything below /data and /xapi. ``clock`` gives seconds since the epoch."""

    def __init__(self, archive: Archive, gate: Gate, old_listings: Callable[[], bool] = lambda: False) -> None:
        self.archive = archive
        self.gate = gate
        self._old_listings = old_listings

    def answer(self, question: Question, login: Login) -> Reply:
        """The reply to one admitted request; errors become their pages."""
        try:
            return self._route(question, login)
        except NotFound as exc:
            return error(404, str(exc))
        except Forbidden as exc:
            return error(403, str(exc))
        except Refused as exc:
            return error(401, str(exc))
        except BadSearch as exc:
            return error(400, str(exc))
        except QueryFailed as exc:
            return error(500, str(exc))

    def _route(self, question: Question, login: Login) -> Reply:
        path = question.path
        if path in ("", "/"):
            return home_page(login.user, login.user == GUEST)
        if path.startswith("/xapi/"):
            return self._xapi(path, login)
        if (path + "/").startswith(index.PREFIX):
            return self._index(question, login, path)
        below = data_path(path)
        if below is None:
            raise NotFound("The server has not found anything matching the request URI.")
        below, question = _named_token(below, question)
        service = self._services().get(below.rstrip("/"))
        if service is not None:
            return service(question, login)
        if below.rstrip("/") == "/search" and question.method == "POST":
            return _table(question, search.run(self.archive, login.user, question.body))
        if below.startswith("/search/elements"):
            return self._search(question, below)
        if question.method not in ("GET", "HEAD"):
            return error(403, "The sample archive is read-only.")
        return self._records(question, below, login)

    def _index(self, question: Question, login: Login, path: str) -> Reply:
        try:
            found = index.look_up(self.archive, login.user, path)
        except NotFound:
            if path.endswith("/"):
                raise
            index.look_up(self.archive, login.user, path + "/")  # raises where there is no such directory either
            return Reply(301, {"Location": path.rpartition("/")[2] + "/"})  # as web servers do
        return plain(found, "text/html") if isinstance(found, bytes) else _file_reply(question, *found)

    # -- services -----------------------------------------------------------------------------------------------------

    def _services(self) -> dict[str, Callable[[Question, Login], Reply]]:
        return {
            "/JSESSION": self._jsession,
            "/services/auth": self._services_auth,
            "/auth": lambda q, login: plain(f"User '{login.user}' is logged in"),
            "/version": lambda q, login: error(404, "There is no such resource in this version."),
            "/services/tokens/issue": self._issue,
            "/services/tokens/validate": self._validate,
            "/services/tokens/invalidate": self._invalidate,
        }

    def _jsession(self, question: Question, login: Login) -> Reply:
        if question.method == "DELETE":
            self.gate.drop(login.session)
            return plain("")
        return plain(login.session.id)

    def _services_auth(self, question: Question, login: Login) -> Reply:
        if question.method not in ("PUT", "POST"):
            return error(405, "Use PUT or POST.")
        form = parse_query(question.body.decode("utf-8", "replace"))
        user = self.gate.check(form.get("username", ""), form.get("password", ""))
        if login.user != user:
            login.session, login.user, login.new = self.gate.open(user), user, True
        return plain(login.session.id)

    def _issue(self, question: Question, login: Login) -> Reply:
        if login.user == GUEST:
            raise Refused("Guests get no tokens.")
        token = self.gate.issue(login.user)
        left_ms = int((time.time() + token.expires_s - time.monotonic()) * 1000)
        answer = {
            "alias": token.alias,
            "secret": token.secret,
            "xdatUserId": token.user,
            "singleUse": False,
            "estimatedExpirationTime": left_ms,
        }
        return plain(json.dumps(answer), "application/json")

    def _validate(self, question: Question, login: Login) -> Reply:
        token = self.gate.tokens.get(question.query.get("alias", ""))
        valid = token is not None and token.secret == question.query.get("secret")
        answer = {"valid": token.user} if valid and token is not None else {}
        return plain(json.dumps(answer), "application/json")

    def _invalidate(self, question: Question, login: Login) -> Reply:
        token = self.gate.tokens.get(question.query.get("alias", ""))
        if token is not None and token.secret == question.query.get("secret"):
            del self.gate.tokens[token.alias]
        return plain("")

    def _xapi(self, path: str, login: Login) -> Reply:
        if path == "/xapi/siteConfig/buildInfo":
            info = {"version": VERSION, "buildNumber": "1", "buildDate": "2024-03-05", "name": "sample"}
            return plain(json.dumps(info), "application/json")
        if path == "/xapi/siteConfig/siteId":
            return plain("SAMPLE")
        if path == "/xapi/schemas":
            return plain(json.dumps(["xdat", "xnat"]), "application/json")
        if path.startswith("/xapi/schemas/"):
            found = schema.schema(path.removeprefix("/xapi/schemas/"))
            if found is not None:
                return plain(found, "application/xml")
        raise NotFound("There is no such resource.")

    def _search(self, question: Question, below: str) -> Reply:
        name = below.removeprefix("/search/elements").strip("/")
        table = search.field_table(name) if name else search.element_table()
        if table is None:
            raise NotFound(f"{name} cannot be searched.")
        return _table(question, table)

    # -- records ------------------------------------------------------------------------------------------------------

    def _records(self, question: Question, below: str, login: Login) -> Reply:
        chosen = selection.Router(self.archive, login.user).parse(below)
        if chosen.several and question.method != "GET":
            raise NotFound("The URL names several objects.")
        if chosen.what == "file":
            return self._file(question, chosen)
        if chosen.what == "files":
            return self._files(question, chosen)
        if chosen.what == "resource":
            return self._resource(question, chosen)
        if chosen.what == "accessibility":
            assert chosen.project is not None
            return plain(chosen.project.access)
        if chosen.what == "item":
            return self._item(question, chosen)
        return _table(question, self._list(question, chosen, login.user))

    def _list(self, question: Question, chosen: Selection, user: str) -> tables.Table:
        if chosen.what == "resources":
            return listings.resource_table(selection.holders(chosen, _everything(question)))
        kind, rows = self._rows(question, chosen, user)
        return listings.arrange(kind, rows, question.query)

    def _rows(self, question: Question, chosen: Selection, user: str) -> tuple[listings.Kind, list[tables.Row]]:
        archive = self.archive
        project = chosen.project.id if chosen.project else None
        if chosen.what == "projects":
            listed = [p for p in archive.projects.values() if p.listed_for(user)]
            if question.query.get("accessible") == "true":
                listed = [p for p in listed if p.readable_by(user)]
            return listings.PROJECTS, listings.project_rows(listed)
        if chosen.what == "shares":
            return listings.PROJECTS, listings.project_rows(self._shares(chosen, user))
        if chosen.what == "subjects":
            subjects = archive.subjects_of(project) if project else list(archive.subjects.values())
            readable = [s for s in subjects if archive.subject_readable(s, user)]
            asked = [name for name in question.query.get("columns", "").split(",") if name and name != "DEFAULT"]
            return listings.SUBJECTS, listings.subject_rows(readable, project, asked)
        if chosen.what == "experiments":
            found = archive.experiments_of(project) if project else list(archive.experiments.values())
            if chosen.subject is not None:
                found = [e for e in found if e.subject == chosen.subject.id]
            readable_ones = [e for e in found if archive.experiment_readable(e, user)]
            return listings.EXPERIMENTS, listings.experiment_rows(archive, readable_ones, project)
        return self._image_rows(chosen)

    def _image_rows(self, chosen: Selection) -> tuple[listings.Kind, list[tables.Row]]:
        rows: list[tables.Row] = []
        kind = listings.SCANS
        for experiment in chosen.experiments:
            images = experiment.images
            if chosen.what == "scans":
                rows += listings.scan_rows(experiment, images)
            elif chosen.what == "assessors":
                kind = listings.ASSESSORS
                rows += listings.assessor_rows(experiment, images, selection.session_label(chosen, experiment))
            else:
                kind = listings.RECONSTRUCTIONS
                rows += listings.reconstruction_rows(experiment, images)
        return kind, rows

    def _shares(self, chosen: Selection, user: str) -> list[Project]:
        thing = chosen.experiment or chosen.subject
        assert thing is not None
        places = [self.archive.projects[p] for p in (thing.project, *thing.shares)]
        return [p for p in places if p.listed_for(user)]

    def _item(self, question: Question, chosen: Selection) -> Reply:
        item = documents.item_of(self.archive, chosen)
        form = _format(question, "xml")
        if form == "json":
            return plain(documents.to_json(item), "application/json")
        if form == "html":
            return plain(f"<html><body><p>{item['data_fields']}</p></body></html>\n", "text/html")
        return plain(documents.to_xml(item), "text/xml")

    def _resource(self, question: Question, chosen: Selection) -> Reply:
        found = list(selection.holders(chosen, _everything(question)))
        if not found:
            raise NotFound("Unable to find the resource.")
        if question.query.get("format") in ("zip", "tar", "tar.gz"):
            return self._archive_of([(h, f) for h in found for f in h.resource.files], question)
        return plain(documents.catalog_xml(found[0]), "text/xml")

    def _files(self, question: Question, chosen: Selection) -> Reply:
        pairs = selection.chosen_files(chosen, _everything(question), question.query)
        if question.query.get("format") in ("zip", "tar", "tar.gz") or "application/zip" in question.headers.get(
            "Accept", ""
        ):
            return self._archive_of(pairs, question)
        if "index" in question.query and question.query["index"].isdigit():
            place = int(question.query["index"])
            if place >= len(pairs):
                raise NotFound("Unable to find file.")
            return _file_reply(question, *pairs[place])
        if self._old_listings() and not all(file.on_disk for _, file in pairs):
            return error(500, "java.io.FileNotFoundException")
        return _table(question, listings.file_table(pairs))

    def _archive_of(self, pairs: list[tuple[Holder, File]], question: Question) -> Reply:
        members = zips.members(pairs, question.query.get("structure", ""))
        if not members:
            raise NotFound("No files were found to download.")
        form = question.query.get("format", "zip")
        if form == "zip":
            deflate = question.query.get("compression", "0") == "8"
            stream: Callable[[], Iterator[Piece]] = lambda: zips.zip_stream(members, deflate)  # noqa: E731
        else:
            stream = lambda: zips.tar_stream(members, form == "tar.gz")  # noqa: E731
        types = {"zip": "application/zip", "tar": "application/x-tar", "tar.gz": "application/x-gzip"}
        headers = {
            "Content-Type": types[form],
            "Content-Disposition": f'attachment; filename="files.{form}";',
            "Cache-Control": "must-revalidate",
        }
        return Reply(200, headers, Body(None, lambda start, stop: stream()))

    def _file(self, question: Question, chosen: Selection) -> Reply:
        try:
            if any(mark in chosen.path for mark in _ZIP_MARKS):
                return self._inside_zip(question, chosen)
            holder, file = selection.find_file(chosen, _everything(question))
        except NotFound:
            if "accept-not-found" in question.query:
                return Reply(204)
            raise
        form = question.query.get("format")
        if form in ("zip", "tar", "tar.gz"):
            return self._archive_of([(holder, file)], question)
        if question.query.get("listContents") == "true":
            rows = [{"File Name": name, "Size": str(size)} for name, size in zips.zip_listing(file.content)]
            return _table(question, tables.Table(("File Name", "Size"), rows))
        return _file_reply(question, holder, file)

    def _inside_zip(self, question: Question, chosen: Selection) -> Reply:
        mark = next(mark for mark in _ZIP_MARKS if mark in chosen.path)
        outer, _, inner = chosen.path.partition(mark)
        chosen.path = outer + mark[:-1]
        _, file = selection.find_file(chosen, _everything(question))
        data = zips.zip_member(file.content, unquote(inner))
        if data is None:
            raise NotFound("Unable to find the member.")
        whole = data
        return Reply(200, {"Content-Type": "application/octet-stream"}, Body(None, lambda a, b: iter([whole])))


def _named_token(below: str, question: Question) -> tuple[str, Question]:
    """Token services take alias and secret from the query or, as XNAT's own routes have it, from the path."""
    parts = below.split("/")  # "", services, tokens, validate|invalidate, alias, secret
    if len(parts) != 6 or parts[1:3] != ["services", "tokens"]:
        return below, question
    query = {**question.query, "alias": unquote(parts[4]), "secret": unquote(parts[5])}
    return "/".join(parts[:4]), replace(question, query=query)


def data_path(path: str) -> str | None:
    """What follows /data, /data/archive or /REST (with or without archive); None for other paths."""
    for prefix in ("/data/archive", "/REST/archive", "/data", "/REST"):
        if path == prefix or path.startswith(prefix + "/"):
            return path[len(prefix) :]
    return None


def _everything(question: Question) -> bool:
    return question.query.get("all") == "true"


def _accepted(question: Question) -> list[str]:
    return [part.split(";")[0].strip() for part in question.headers.get("Accept", "*/*").split(",") if part.strip()]


def _format(question: Question, default: str) -> str:
    """json, csv, xml or html: ``format=`` first, then Accept, then the default; "" when nothing fits (406)."""
    wanted = question.query.get("format")
    if wanted in tables.RENDERERS:
        return wanted
    names = {"application/json": "json", "text/csv": "csv", "text/xml": "xml", "application/xml": "xml"}
    names |= {"text/html": "html", "*/*": default, "text/*": "html"}
    for accepted in _accepted(question):
        if accepted in names:
            return names[accepted]
    return ""


def _table(question: Question, table: tables.Table) -> Reply:
    form = _format(question, "json")
    if not form:
        return error(406, "None of the offered formats is acceptable.")
    content_type, render = tables.RENDERERS[form]
    return plain(render(table), content_type)


def _file_reply(question: Question, holder: Holder, file: File) -> Reply:
    """One file's bytes, or its picture, or 304, 406, 412."""
    wanted = question.query.get("format") or ""
    accepted = _accepted(question)
    if wanted == "image/jpeg" or accepted == ["image/jpeg"]:
        if file.name.lower().endswith(".dcm"):
            return plain(_PIXEL_JPEG, "image/jpeg")
        if not file.name.lower().endswith((".jpg", ".jpeg")):
            return error(406, "There is no picture of this file.")
    if accepted and not any(a in _OFFERED or a in ("*/*", "text/*", "image/*", "application/*") for a in accepted):
        return error(406, "None of the offered formats is acceptable.")
    extension = file.name.rsplit(".", 1)[-1].lower() if "." in file.name else ""
    name = file.name.encode("ascii", "replace").decode().replace('"', "'")
    headers = {
        "Content-Type": _TYPES.get(extension, "application/octet-stream"),
        "Last-Modified": formatdate(file.mtime_s, usegmt=True),
        "Cache-Control": "must-revalidate",
        "Content-Disposition": f'attachment; filename="{_CONTROL.sub(" ", name)}";',  # as Tomcat does
        "Vary": "Accept-Charset, Accept-Encoding, Accept-Language, Accept",
    }
    if _since(question.headers.get("If-Unmodified-Since"), file.mtime_s) is False:
        return error(412, "The file has been modified.")
    if _since(question.headers.get("If-Modified-Since"), file.mtime_s) is True:
        return Reply(304, {k: v for k, v in headers.items() if k != "Content-Type"})
    content = file.content
    return Reply(200, headers, Body(content.size, content.pieces, sliceable=True))


def _since(header: str | None, mtime_s: int) -> bool | None:
    """True when the file is no newer than the header's date, None without a usable date."""
    if not header:
        return None
    try:
        return mtime_s <= parsedate_to_datetime(header).timestamp()
    except ValueError:
        return None
