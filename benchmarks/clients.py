"""Clients without a mount: curl, a plain client of the REST calls, pyxnat and xnatpy. Each call does one whole job."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
import requests.adapters
from peers import ROOT, RemoteFile

from tests.helpers.server import DemoServer, Record

CONNECTIONS = 8  # what xnatfs may use at once, too
_ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}


class Direct:
    """The REST calls done directly: one session on the server, kept connections, bodies read to their end."""

    name = "direct REST"

    def __init__(self, server: DemoServer) -> None:
        self._url = server.url
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.auth = (server.user, server.password)
        self._session.headers["Accept-Encoding"] = "identity"
        self._session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=CONNECTIONS))
        self._session.get(f"{server.url}/data/JSESSION", timeout=60).raise_for_status()

    def get(self, target: str) -> int:
        with self._session.get(self._url + target, timeout=120) as answer:
            answer.raise_for_status()
            return len(answer.content)

    def first_byte(self, target: str) -> None:
        with self._session.get(self._url + target, timeout=120, stream=True) as answer:
            answer.raise_for_status()
            next(answer.iter_content(1))

    def replay(self, records: Sequence[Record]) -> None:
        """The same GETs, as many at once as xnatfs may send."""
        paths = [
            urllib.parse.quote(record["path"], safe="/%,") for record in records
        ]  # "," as it was sent: lists of IDs
        targets = [path + (f"?{r['query']}" if r["query"] else "") for path, r in zip(paths, records, strict=True)]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(self.get, targets))


def session_cookie(server: DemoServer) -> str:
    """A session on the server: without one, every request of curl would open another."""
    request = urllib.request.Request(f"{server.url}/data/JSESSION")
    login = base64.b64encode(f"{server.user}:{server.password}".encode()).decode()
    request.add_header("Authorization", f"Basic {login}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return f"JSESSIONID={answer.read().decode().strip()}"


def curl(server: DemoServer, file: RemoteFile) -> None:
    """Fetch a file to nowhere: what the server, loopback and HTTP allow."""
    url = server.url + urllib.parse.quote(file.uri)
    command = ["curl", "-sSf", "-o", "/dev/null", "-u", f"{server.user}:{server.password}", url]
    subprocess.run(command, check=True, capture_output=True, env=_ENVIRONMENT)


def curl_guest(server: DemoServer, file: RemoteFile) -> None:
    """The same without a login."""
    command = ["curl", "-sSf", "-o", "/dev/null", server.url + urllib.parse.quote(file.uri)]
    subprocess.run(command, check=True, capture_output=True, env=_ENVIRONMENT)


def curl_first_byte(server: DemoServer, file: RemoteFile, cookie: str) -> float:
    """Seconds to the first byte, a new connection each time."""
    url = server.url + urllib.parse.quote(file.uri)
    command = ["curl", "-sSf", "-o", "/dev/null", "-b", cookie, "-w", "%{time_starttransfer}", url]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=_ENVIRONMENT).stdout)


def curl_parallel(server: DemoServer, files: Sequence[RemoteFile], cookie: str) -> None:
    """All files to nowhere, CONNECTIONS at once."""
    lines = "".join(f'url = "{server.url}{urllib.parse.quote(f.uri)}"\noutput = "/dev/null"\n' for f in files)
    command = ["curl", "-sSf", "--parallel", "--parallel-max", str(CONNECTIONS), "-b", cookie, "-K", "-"]
    subprocess.run(command, check=True, capture_output=True, input=lines.encode(), env=_ENVIRONMENT)


def curl_zip(server: DemoServer, target: str, into: Path) -> None:
    """XNAT's zip of a resource, fetched and unpacked."""
    into.mkdir(parents=True)
    archive = into / "all.zip"
    login = f"{server.user}:{server.password}"
    for command in (
        ["curl", "-sSf", "-o", str(archive), "-u", login, f"{server.url}{target}?format=zip"],
        ["unzip", "-q", str(archive), "-d", str(into)],
    ):
        subprocess.run(command, check=True, capture_output=True, env=_ENVIRONMENT)
    archive.unlink()


def api_client(
    client: str, job: str, server: DemoServer, session: tuple[str, str, str], into: Path, timeout_s: float
) -> tuple[float, int]:
    """pyxnat or xnatpy lists or downloads a session, file by file: seconds after its login, and how many files."""
    script = ROOT / "benchmarks" / "api_client.py"
    command = [sys.executable, "-W", "ignore", str(script), client, job, server.url, *session, str(into)]
    environment = {**_ENVIRONMENT, "HOME": str(into), "XNAT_USER": server.user, "XNAT_PASS": server.password}
    into.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=timeout_s)
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return said["seconds"], said["files"]
