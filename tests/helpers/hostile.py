"""A server that lies: passes requests on to a demo server and lets a test change, or make up, what comes back.

Threads of the tests' own process on loopback; nothing of the code under test is used.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 60.0
NOT_PASSED_ON = {"connection", "transfer-encoding", "content-length", "keep-alive", "server", "date"}


@dataclass
class Answer:
    """What goes back. A body that is no ``bytes`` is sent piece by piece until the client goes away."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes | Iterable[bytes]
    length: int | None = None  # what to claim of a body in pieces; None: sent in chunks

    def rows(self) -> list[dict[str, Any]]:
        assert isinstance(self.body, bytes)
        return list(json.loads(self.body)["ResultSet"]["Result"])

    def with_rows(self, rows: list[dict[str, Any]]) -> Answer:
        """The same listing with other rows."""
        assert isinstance(self.body, bytes)
        document = json.loads(self.body)
        document["ResultSet"]["Result"] = rows
        self.body = json.dumps(document).encode()
        return self


Change = Callable[[Answer], Answer]


@dataclass
class Liar:
    """Listens on a port of its own in front of a demo server.

    Attributes:
        rules: (regular expression for "METHOD path?query", change), the first that matches counts.
        seen: "METHOD path?query" and headers of every request, oldest first.
    """

    target_port: int
    rules: list[tuple[str, Change]] = field(default_factory=list)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def __enter__(self) -> Liar:
        liar = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    super().handle_one_request()

            def do_GET(self) -> None:
                liar._handle(self)

            do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def lie(self, match: str, change: Change) -> None:
        self.rules.insert(0, (match, change))

    def _handle(self, request: http.server.BaseHTTPRequestHandler) -> None:
        what = f"{request.command} {request.path}"
        self.seen.append((what, dict(request.headers)))
        length = int(request.headers.get("Content-Length") or 0)
        sent = request.rfile.read(length) if length else None
        answer = self._passed_on(request, sent)
        for match, change in self.rules:
            if re.search(match, what):
                answer = change(answer)
                break
        self._send(request, answer)

    def _passed_on(self, request: http.server.BaseHTTPRequestHandler, sent: bytes | None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.target_port, timeout=TIMEOUT_S)
        try:
            headers = {
                name: value for name, value in request.headers.items() if name.lower() not in ("host", "connection")
            }
            connection.request(request.command, request.path, sent, headers)
            reply = connection.getresponse()
            kept = [(name, value) for name, value in reply.getheaders() if name.lower() not in NOT_PASSED_ON]
            claimed = reply.getheader("Content-Length")
            body = reply.read()
            length = int(claimed) if request.command == "HEAD" and claimed else None
            return Answer(reply.status, kept, body, length)
        finally:
            connection.close()

    def _send(self, request: http.server.BaseHTTPRequestHandler, answer: Answer) -> None:
        request.send_response(answer.status)
        for name, value in answer.headers:
            request.send_header(name, value)
        whole = isinstance(answer.body, bytes)
        if whole and answer.length is None:
            request.send_header("Content-Length", str(len(answer.body)))  # type: ignore[arg-type]
        elif answer.length is not None:
            request.send_header("Content-Length", str(answer.length))
        else:
            request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        if request.command == "HEAD":
            return
        if isinstance(answer.body, bytes):
            request.wfile.write(answer.body)
            return
        for piece in answer.body:
            request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if answer.length is None else piece)
        if answer.length is None:
            request.wfile.write(b"0\r\n\r\n")


def document(body: bytes | Iterable[bytes], kind: str = "application/json", length: int | None = None) -> Change:
    """A change that puts another document in place of whatever came."""
    return lambda answer: Answer(200, [("Content-Type", kind)], body, length)
