"""pyxnat's connection as this project uses it: for logging in and out. Imports pyxnat, so import it when it is needed.

One connection belongs to one thread.
"""

from __future__ import annotations

import pyxnat
import requests
from requests.auth import HTTPBasicAuth

from xnatfs.config import Credentials


class Interface(pyxnat.Interface):  # type: ignore[misc]  # pyxnat has no types
    """pyxnat's connection without its constructor: that one imports every derivatives plugin, pandas with them (0.9 s),
    and takes proxies from the environment. URL joining, verbs and credentials are pyxnat's own."""

    def __init__(self, server: str, credentials: Credentials, session: requests.Session) -> None:
        self._server = server
        self._user = credentials.user
        self._pwd = credentials.secret
        self._anonymous = credentials.user is None
        self._jsession = None
        self._entry = None
        self._http = session
        session.auth = None
        if credentials.user is not None:
            session.auth = HTTPBasicAuth(credentials.user.encode(), (credentials.secret or "").encode())
