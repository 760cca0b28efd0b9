"""The control socket of a mount: whoever connects is told how it is doing, and that is all it does.

A unix socket beside the mount's record, in a directory of the user's own; only that user, and root, get an answer.
One thread serves it, started after the process has daemonised; a client that is slow is dropped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

CLIENT_LIMIT_S = 2.0  # for a client to take its answer
MAX_ANSWER = 1 << 20  # bytes; about 2 KB are usual

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class ControlSocket:
    """Answers at ``path`` with the JSON of what ``answer`` returns."""

    def __init__(self, path: Path, answer: Callable[[], dict[str, Any]]) -> None:
        self._path = path
        self._answer = answer
        self._listener: socket.socket | None = None

    def start(self) -> None:
        """Listen. A socket that cannot be had costs ``status`` its numbers, and nothing else."""
        try:
            self._path.unlink(missing_ok=True)  # of a process that was killed; the record's lock says so
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(self._path))
            self._path.chmod(0o600)
            listener.listen(8)
        except OSError as exc:
            log.info("no control socket at %s: %s", self._path, exc.strerror)
            return
        self._listener = listener
        threading.Thread(target=self._serve, args=(listener,), name="control", daemon=True).start()

    def close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                client.settimeout(CLIENT_LIMIT_S)
                if _user_of(client) in (os.getuid(), 0):
                    client.sendall(json.dumps(self._answer()).encode())


def ask(path: Path, limit_s: float = CLIENT_LIMIT_S) -> dict[str, Any]:
    """What the mount behind a control socket says of itself.

    Raises:
        OSError: nobody is there, or it does not answer in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(limit_s)
        client.connect(str(path))
        said = b""
        while len(said) < MAX_ANSWER and (piece := client.recv(65536)):
            said += piece
    try:
        answer: dict[str, Any] = json.loads(said)
    except ValueError:
        raise OSError(0, "it gives no answer") from None
    return answer


def _user_of(client: socket.socket) -> int:
    sent = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(sent)[1])
