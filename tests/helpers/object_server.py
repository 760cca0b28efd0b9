"""A small server for the archives that are not XNAT: S3 buckets, index pages of a web server, with faults on demand.

Standard library only, in threads of its own process-wide port. What it says of S3 follows the ListObjectsV2 and
GetObject references; `moto`, a server that others wrote, runs the same conformance suite beside it.
"""

from __future__ import annotations

import html
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, quote_plus, unquote, urlsplit
from xml.sax.saxutils import escape

FIRST_MODIFIED_S = 1_600_000_000


@dataclass
class Thing:
    """One object or file."""

    data: bytes
    modified_s: float = FIRST_MODIFIED_S
    content_type: str = "application/octet-stream"
    encoding: str = ""  # told with it, as S3 keeps it with an object and Apache says it of a name in .gz

    @property
    def etag(self) -> str:
        return md5(self.data + str(self.modified_s).encode()).hexdigest()


@dataclass
class Fault:
    match: str
    act: Callable[[Any], bool]  # True: the request has been answered
    times: int | None = 1


@dataclass
class Asked:
    method: str
    target: str
    headers: dict[str, str] = field(repr=False)


class ObjectServer:
    """``with ObjectServer() as server``: put things into ``buckets`` and ``web``, read ``asked``, add ``faults``.

    Attributes:
        buckets: Bucket -> key -> thing; ``s3://bucket?endpoint=URL``.
        web: Path -> thing, shown as index pages below ``URL/web``; a path that ends in "/" makes an empty directory.
        ranges: Whether Range is honoured.
        etags: Whether versions have a name, or only a date.
        page_keys: Keys in one listing at most.
        routes: Further answers: called with the handler for a path that begins so; True when answered.
    """

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, Thing]] = {}
        self.web: dict[str, Thing] = {}
        self.index_style = "apache"
        self.ranges = True
        self.etags = True
        self.page_keys = 1000
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.routes: dict[str, Callable[[Any], bool]] = {}
        self.lock = threading.Lock()
        outer = self

        class Handler(_Handler):
            server_state = outer

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> ObjectServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def fill(self, bucket: str, files: dict[str, bytes]) -> None:
        self.buckets[bucket] = {key: Thing(data) for key, data in files.items()}

    def fault(self, match: str, kind: str, times: int | None = 1, **more: Any) -> None:
        """``match`` is searched in the request's path and query."""
        act = FAULTS[kind]
        self.faults.append(Fault(match, lambda handler: act(handler, **more), times))

    def reset(self) -> None:
        self.faults.clear()
        self.asked.clear()
        self.ranges, self.etags, self.page_keys, self.index_style = True, True, 1000, "apache"

    def empty(self) -> None:
        """As at the start: nothing is held, either."""
        self.reset()
        for held in (self.buckets, self.web, self.routes):
            held.clear()

    def targets(self, part: str = "") -> list[str]:
        return [asked.target for asked in self.asked if part in asked.target]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: ObjectServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.do_GET()

    def do_GET(self) -> None:
        state = self.server_state
        with state.lock:
            state.asked.append(Asked(self.command, self.path, dict(self.headers)))
            fault = next((each for each in state.faults if re.search(each.match, self.path)), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    state.faults.remove(fault)
        try:
            if fault is not None and fault.act(self):
                return
            for beginning, route in state.routes.items():
                if self.path.startswith(beginning) and route(self):
                    return
            if self.path.startswith("/web"):
                self._web()
            else:
                self._s3()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    # --- answers -----------------------------------------------------------------------------------------------

    def say(self, status: int, body: bytes = b"", content_type: str = "application/xml", **headers: str) -> bool:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        return True

    def refuse(self, status: int, code: str, **headers: str) -> bool:
        return self.say(status, f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode(), **headers)

    def give(self, thing: Thing) -> bool:
        """An object: whole or a range, under the conditions of the request."""
        etag = f'"{thing.etag}"'
        wanted = self.headers.get("If-Match")
        if wanted not in (None, etag):
            return self.refuse(412, "PreconditionFailed")
        about = {"ETag": etag, "Last_Modified": formatdate(thing.modified_s, usegmt=True), "Accept_Ranges": "bytes"}
        if not self.server_state.etags:
            del about["ETag"]
        if thing.encoding:
            about["Content_Encoding"] = thing.encoding
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found is None or not self.server_state.ranges:
            return self.say(200, thing.data, thing.content_type, **about)
        total, start = len(thing.data), int(found[1])
        stop = min(int(found[2]) + 1 if found[2] else total, total)
        if start >= total:
            return self.refuse(416, "InvalidRange")
        about["Content_Range"] = f"bytes {start}-{stop - 1}/{total}"
        return self.say(206, thing.data[start:stop], thing.content_type, **about)

    # --- S3 ----------------------------------------------------------------------------------------------------

    def _s3(self) -> bool:
        path, _, query = self.path.partition("?")
        bucket, _, key = unquote(path[1:]).partition("/")
        things = self.server_state.buckets.get(bucket)
        if things is None:
            return self.refuse(404, "NoSuchBucket")
        if key:
            thing = things.get(key)
            return self.refuse(404, "NoSuchKey") if thing is None else self.give(thing)
        asked = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
        assert asked["list-type"] == "2"
        return self.say(200, self._list(things, asked))

    def _list(self, things: dict[str, Thing], asked: dict[str, str]) -> bytes:
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        limit = min(int(asked.get("max-keys", "1000")), self.server_state.page_keys)
        after = bytes.fromhex(asked.get("continuation-token", "")).decode("utf-8")
        rows: list[str] = []
        last, more = "", False
        seen = set()
        for key in sorted(things, key=lambda key: key.encode()):
            if not key.startswith(prefix):
                continue
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            name = key if end < 0 else key[: end + 1]
            if name in seen or (after and name.encode() <= after.encode()):
                continue
            if len(rows) == limit:
                more = True
                break
            seen.add(name)
            last = name
            rows.append(self._row(name, things.get(name) if end < 0 else None))
        token = f"<NextContinuationToken>{last.encode().hex()}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<EncodingType>url</EncodingType><IsTruncated>{'true' if more else 'false'}</IsTruncated>{token}"
            f"<KeyCount>{len(rows)}</KeyCount>{''.join(rows)}</ListBucketResult>"
        ).encode()

    def _row(self, name: str, thing: Thing | None) -> str:
        shown = quote_plus(name, safe="/")
        if thing is None:
            return f"<CommonPrefixes><Prefix>{shown}</Prefix></CommonPrefixes>"
        when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(thing.modified_s))
        etag = f"<ETag>{escape(chr(34) + thing.etag + chr(34))}</ETag>" if self.server_state.etags else ""
        return (
            f"<Contents><Key>{shown}</Key><LastModified>{when}</LastModified>{etag}"
            f"<Size>{len(thing.data)}</Size></Contents>"
        )

    # --- index pages -------------------------------------------------------------------------------------------

    def _web(self) -> bool:
        web = self.server_state.web
        path = unquote(urlsplit(self.path).path.removeprefix("/web"))
        if path in web and not path.endswith("/"):
            return self.give(web[path])
        below = {key for key in web if key.startswith(path.rstrip("/") + "/")}
        if not below:
            return self.say(404, b"<html>not found</html>", "text/html")
        if not path.endswith("/"):
            return self.say(301, Location=f"/web{quote(path)}/")
        names: dict[str, Thing | None] = {}
        for key in sorted(below):
            name, slash, _ = key[len(path) :].partition("/")
            if name:
                names.setdefault(name + slash, None if slash else web[key])
        page = INDEX_STYLES[self.server_state.index_style](path, names)
        return self.say(200, page.encode(), "text/html;charset=utf-8")


def _apache(path: str, names: dict[str, Thing | None]) -> str:
    rows = "".join(
        f'<tr><td><a href="{quote(name)}">{html.escape(name)}</a></td><td align="right">2020-09-13 12:26  </td>'
        f'<td align="right">{"  - " if thing is None else f"{len(thing.data) / 1024:.1f}K"}</td></tr>\n'
        for name, thing in names.items()
    )
    return (
        f"<html><head><title>Index of {html.escape(path)}</title></head><body><table>"
        '<tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=S;O=A">Size</a></th></tr>'
        f'<tr><td><a href="/web/">Parent Directory</a></td></tr>\n{rows}</table></body></html>'
    )


def _nginx(path: str, names: dict[str, Thing | None]) -> str:
    lines = ['<a href="../">../</a>']
    for name, thing in names.items():
        shown = name if len(name) <= 50 else name[:47] + "..>"
        size = "-" if thing is None else str(len(thing.data))
        lines.append(f'<a href="{quote(name)}">{html.escape(shown)}</a>{" " * 20}13-Sep-2020 12:26{size:>20}')
    text = "\r\n".join(lines)
    title = html.escape(f"Index of {path}")
    return f"<html>\r\n<head><title>{title}</title></head><body><h1>{title}</h1><hr><pre>{text}</pre></body></html>"


INDEX_STYLES: dict[str, Callable[[str, dict[str, Thing | None]], str]] = {"apache": _apache, "nginx": _nginx}


# --- faults -----------------------------------------------------------------------------------------------------------


def _status(handler: _Handler, status: int = 503, code: str = "SlowDown", **headers: str) -> bool:
    return handler.refuse(status, code, **headers)


def _html(handler: _Handler) -> bool:
    return handler.say(200, b"<!DOCTYPE html><html><body>Sign in to the network</body></html>", "text/html")


def _empty(handler: _Handler) -> bool:
    return handler.say(200, b"")


def _short(handler: _Handler, at: int = 1000) -> bool:
    """The right length in the header, and then too few bytes."""

    class Cut:
        left = at

        def write(self, data: bytes) -> None:
            if data.startswith(b"HTTP/1.1"):
                handler_wfile.write(data)
                return
            handler_wfile.write(data[: self.left])
            self.left = 0
            handler.close_connection = True

        def flush(self) -> None:
            handler_wfile.flush()

    handler_wfile, handler.wfile = handler.wfile, Cut()  # type: ignore[assignment]
    try:
        handler._s3() if not handler.path.startswith("/web") else handler._web()
    finally:
        handler.wfile = handler_wfile
    return True


def _wrong_range(handler: _Handler, etag: str = "?", said: str = "bytes 5000-5099/10240") -> bool:
    """A 206 that begins elsewhere."""
    return handler.say(206, b"x" * 100, Content_Range=said, ETag=f'"{etag}"')


def _raw(handler: _Handler, body: bytes = b"", content_type: str = "application/xml") -> bool:
    return handler.say(200, body, content_type)


FAULTS: dict[str, Callable[..., bool]] = {
    "status": _status,
    "html": _html,
    "empty": _empty,
    "short": _short,
    "wrong_range": _wrong_range,
    "raw": _raw,
}


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        yield server
