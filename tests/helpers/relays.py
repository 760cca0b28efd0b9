"""What may stand between a client and the demo server: a TLS front, a forward proxy. Threads on loopback.

Each hands bytes through to ``target_port`` and notes what it was asked; nothing of the code under test is used.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from types import TracebackType

PIECE = 64 * 1024


class Relay:
    """Accepts on a port of its own; ``connected`` counts connections, ``heads`` holds the first lines asked."""

    def __init__(self, target_port: int, tls: ssl.SSLContext | None = None) -> None:
        self._target_port = target_port
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connected = 0
        self.heads: list[str] = []

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connected += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # ssl.SSLError is an OSError
            stack.enter_context(client)
            if self._tls is not None:
                client = stack.enter_context(self._tls.wrap_socket(client, server_side=True))
            first = self.first_bytes(client)
            server = stack.enter_context(socket.create_connection(("127.0.0.1", self._target_port)))
            server.sendall(first)
            thread = threading.Thread(target=_pump, args=(server, client), daemon=True)
            thread.start()
            _pump(client, server)
            thread.join()

    def first_bytes(self, client: socket.socket) -> bytes:
        """What the server gets before the rest is passed on as it is."""
        return b""


class ForwardProxy(Relay):
    """A proxy as in ``http://127.0.0.1:PORT``: CONNECT for https, whole URLs for http; one server behind all."""

    def first_bytes(self, client: socket.socket) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head and (piece := client.recv(PIECE)):
            head += piece
        line, _, rest = head.partition(b"\r\n")
        self.heads.append(line.decode())
        method, url, version = line.split(b" ")
        if method == b"CONNECT":
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            return b""
        path = b"/" + url.split(b"/", 3)[3]
        # One request a connection: the next one would come with a whole URL again.
        return b"%s %s %s\r\nConnection: close\r\n%s" % (method, path, version, rest.replace(b"keep-alive", b"close"))


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(PIECE):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    """A port of loopback that nobody listened on a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
