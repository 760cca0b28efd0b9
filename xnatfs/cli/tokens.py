"""The alias tokens that ``xnatfs login`` keeps: one private JSON file, written atomically. Sends nothing.

Holds no password. A file or directory that others can read is refused. Single-threaded; processes are kept apart by a
lock beside the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xnatfs.errors import CredentialsError

FORMAT = 1
LOCK_LIMIT_S = 10.0  # as long as a renewal may take before others go on without it
POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token for one server. Times are in seconds since the epoch; ``until_s`` is 0 when the server did not say."""

    server: str
    user: str
    alias: str
    secret: str = field(repr=False)
    since_s: float
    until_s: float

    @property
    def left_s(self) -> float:
        return self.until_s - time.time() if self.until_s else float("inf")

    @property
    def is_old(self) -> bool:
        """Half its life is over: whoever mounts once a day renews it each time, and never sees it end."""
        return bool(self.until_s) and self.left_s < (self.until_s - self.since_s) / 2


class TokenFile:
    """``tokens.json``: server URL -> token."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, server: str) -> StoredToken | None:
        """The token for a server, with scheme, port and context path as given.

        Raises:
            CredentialsError: others can read the file, or it is not ours.
        """
        return self._read().get(server)

    def servers(self) -> list[str]:
        return sorted(self._read())

    def put(self, token: StoredToken) -> None:
        with self.alone():
            self._write({**self._read(), token.server: token})

    def remove(self, server: str) -> None:
        with self.alone():
            self._write({name: token for name, token in self._read().items() if name != server})

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from changing the file; after ``LOCK_LIMIT_S`` go on regardless. Not to be nested.

        Raises:
            CredentialsError: the directory cannot be written.
        """
        self._make_private()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self.path.with_suffix(".lock"), flags, 0o600)
        except OSError as exc:
            raise CredentialsError(f"{self.path.parent}: cannot hold tokens: {exc.strerror}") from exc
        try:
            deadline_s = time.monotonic() + LOCK_LIMIT_S
            while time.monotonic() < deadline_s:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(POLL_S)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child forked meanwhile has it open as well
            os.close(descriptor)

    def replace(self, token: StoredToken) -> None:
        """As ``put``, by a caller that is ``alone`` already."""
        self._write({**self._read(), token.server: token})

    # --- inside ------------------------------------------------------------------------------------------------

    def _read(self) -> dict[str, StoredToken]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as exc:
            raise CredentialsError(f"{self.path}: cannot be read: {exc.strerror}") from exc
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            text = file.read()
        if stat.S_IMODE(status.st_mode) & 0o077:
            hint = f"run: chmod 600 {shlex.quote(str(self.path))}"
            raise CredentialsError(f"{self.path} holds tokens and other users can read it", hint)
        return self._parsed(text)

    def _parsed(self, text: bytes) -> dict[str, StoredToken]:
        try:
            document: dict[str, Any] = json.loads(text)
            if document["format"] != FORMAT:
                raise ValueError("another format")
            return {
                server: StoredToken(
                    server,
                    str(each["user"]),
                    str(each["alias"]),
                    str(each["secret"]),
                    float(each["since_s"]),
                    float(each["until_s"]),
                )
                for server, each in document["tokens"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            # Not chained: a JSON error carries the whole document.
            hint = f"delete it, and run: xnatfs login SERVER ({shlex.quote(str(self.path))})"
            raise CredentialsError(f"{self.path}: is not what `xnatfs login` writes", hint) from None

    def _write(self, tokens: dict[str, StoredToken]) -> None:
        content = {
            "format": FORMAT,
            "tokens": {
                server: {
                    "user": token.user,
                    "alias": token.alias,
                    "secret": token.secret,
                    "since_s": token.since_s,
                    "until_s": token.until_s,
                }
                for server, token in sorted(tokens.items())
            },
        }
        try:
            descriptor, name = tempfile.mkstemp(prefix=".tokens-", dir=self.path.parent)  # 0600
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    json.dump(content, file, indent=1)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as exc:
            raise CredentialsError(f"{self.path}: cannot be written: {exc.strerror}") from exc

    def _make_private(self) -> None:
        """Make the directory, and its missing parents, for this user alone. The config file may lie there too."""
        directory = self.path.parent
        try:
            missing = [place for place in (directory, *directory.parents) if not place.exists()]
            for place in reversed(missing):
                with contextlib.suppress(FileExistsError):
                    place.mkdir(mode=0o700)
            if stat.S_IMODE(directory.stat().st_mode) & 0o077:
                directory.chmod(0o700)
        except OSError as exc:
            raise CredentialsError(f"{directory}: cannot hold tokens: {exc.strerror}") from exc
