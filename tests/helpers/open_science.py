"""OpenNeuro's API and OSF's, as far as our archives ask them, on an ``ObjectServer``. What they say follows
docs/api.md of OpenNeuro and the JSON:API documents of OSF; the bytes come from the server's buckets and files."""

from __future__ import annotations

import json
from hashlib import md5
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from tests.helpers.object_server import ObjectServer, Thing


def serve_snapshot(server: ObjectServer, dataset: str, tag: str, files: dict[str, bytes], **lies: int) -> None:
    """Answer for one snapshot. ``lies`` says other sizes than the files have, by name with _ for every odd sign."""
    things = {path: Thing(data) for path, data in files.items()}
    server.buckets["versions"] = things

    def answer(handler: Any) -> bool:
        asked = json.loads(handler.body)
        assert handler.headers["Content-Type"] == "application/json"
        if asked["variables"] != {"dataset": dataset, "tag": tag}:
            return bool(handler.say(200, b'{"data": {"snapshot": null}}', "application/json"))
        rows: list[dict[str, Any]] = [{"id": "t", "directory": True, "filename": "sub-01", "size": 0, "urls": []}]
        for path, thing in things.items():
            size = lies.get(path.replace("/", "_").replace("-", "_").replace(".", "_"), len(thing.data))
            url = f"{server.url}/versions/{quote(path)}?versionId=1"
            rows.append({"id": thing.etag, "directory": False, "filename": path, "size": size, "urls": [url]})
        document = {"data": {"snapshot": {"files": rows}}}
        return bool(handler.say(200, json.dumps(document).encode(), "application/json"))

    server.routes["/crn/graphql"] = answer


class OsfProject:
    """A project on a server: ``files`` by path; ``components`` by id."""

    def __init__(self, server: ObjectServer, node: str, files: dict[str, bytes], page_rows: int = 10) -> None:
        self.files = {path: Thing(data) for path, data in files.items()}
        self.components: list[tuple[str, str]] = []
        self.page_rows = page_rows
        self._server = server
        self._node = node
        server.routes[f"/v2/nodes/{node}/"] = self._api
        server.routes[f"/download/{node}/"] = self._download
        server.routes[f"/signed/{node}/"] = self._signed

    def _api(self, handler: Any) -> bool:
        path = urlsplit(handler.path).path.removeprefix(f"/v2/nodes/{self._node}/")
        if path == "children/":
            rows = [{"id": node, "attributes": {"title": title}} for node, title in self.components]
            return self._page(handler, rows)
        folder = path.removeprefix("files/osfstorage/").strip("/")
        top = bytes.fromhex(folder).decode() if folder else ""
        found: dict[str, dict[str, Any]] = {}
        for name in self.files:
            if name.startswith(top):
                first, slash, _ = name[len(top) :].partition("/")
                found.setdefault(first, self._row(top + first + slash))
        if not found and folder:
            return bool(handler.say(404, b"{}", "application/json"))
        return self._page(handler, list(found.values()))

    def _row(self, path: str) -> dict[str, Any]:
        name = path.strip("/").rpartition("/")[2]
        if path.endswith("/"):
            return {
                "id": path.encode().hex(),
                "attributes": {"name": name, "kind": "folder", "path": f"/{path.encode().hex()}/"},
            }
        thing = self.files[path]
        attributes = {
            "name": name,
            "kind": "file",
            "path": f"/{path.encode().hex()}",
            "size": len(thing.data),
            "date_modified": "2020-09-13T12:26:40.123456Z",
            "current_version": 1,
            "extra": {"hashes": {"md5": md5(thing.data).hexdigest(), "sha256": "x"}},
        }
        url = f"{self._server.url}/download/{self._node}/{path.encode().hex()}/"
        return {"id": path.encode().hex(), "attributes": attributes, "links": {"download": url}}

    def _page(self, handler: Any, rows: list[dict[str, Any]]) -> bool:
        number = int(parse_qs(urlsplit(handler.path).query).get("page", ["1"])[0])
        start, stop = (number - 1) * self.page_rows, number * self.page_rows
        path = urlsplit(handler.path).path
        after = f"{self._server.url}{path}?page={number + 1}" if stop < len(rows) else None
        document = {"data": rows[start:stop], "links": {"next": after, "meta": {"total": len(rows)}}}
        return bool(handler.say(200, json.dumps(document).encode(), "application/vnd.api+json"))

    def _download(self, handler: Any) -> bool:
        where = handler.path.rstrip("/").rpartition("/")[2]
        return bool(handler.say(302, Location=f"/signed/{self._node}/{where}?signature=s3cret"))

    def _signed(self, handler: Any) -> bool:
        assert handler.path.endswith("?signature=s3cret")
        name = bytes.fromhex(urlsplit(handler.path).path.rpartition("/")[2]).decode()
        thing = self.files.get(name)
        return bool(handler.refuse(404, "NoSuchKey") if thing is None else handler.give(thing))
