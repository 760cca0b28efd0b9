"""The demo server as tests use it: a process of its own, its switches, its request log and its truth.

Uses the standard library only, so that nothing of the code under test can hide a fault of the server.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

START_TIMEOUT_S = 20.0
SETTLE_S = 5.0  # how long the log may take to complete after the client has seen the end
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Record = dict[str, Any]


class DemoServer:
    """A running ``python -m xnatfs.demo``. Arguments are its flags: ``DemoServer(range="on", latency="20ms")``."""

    user = "demo"
    password = "demo"

    def __init__(self, context: str = "", **flags: Any) -> None:
        self._context = context
        self._flags = flags
        self._process: subprocess.Popen[str] | None = None
        self.host = str(flags.get("host", "127.0.0.1"))
        self.port = 0
        self.url = ""

    def __enter__(self) -> DemoServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # -- the process --------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        command = [sys.executable, "-m", "xnatfs.demo", "--port", str(self.port), "--die-with-parent"]
        if self._context:
            command += ["--context", self._context]
        for name, value in self._flags.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_clean_environment())
        self.url = self._first_line()
        self.port = urllib.parse.urlsplit(self.url).port or 0

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: connections break, nothing is said."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop if need be, and start on the same port with an empty log and no sessions."""
        self.stop()
        self.start()

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()

    def _first_line(self) -> str:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()), daemon=True)
        reader.start()
        reader.join(START_TIMEOUT_S)
        if not lines or not lines[0].startswith("http"):
            self.kill()
            raise RuntimeError(f"the demo server did not start (exit code {process.returncode})")
        return lines[0].strip()

    # -- control ------------------------------------------------------------------------------------------------------

    def _control(self, name: str, method: str = "GET", data: object = None) -> Any:
        url = f"http://{self.host}:{self.port}/__demo__/{name}"
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(url, data=body, method=method, headers={"Content-Type": "application/json"})
        try:
            with _DIRECT.open(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as exc:
            raise RuntimeError(f"{method} {name}: {exc.read().decode()}") from exc

    def switch(self, **switches: Any) -> None:
        """Change switches: latency_s, bandwidth, connection_bandwidth, range, guests, outage, expire_sessions=True…"""
        self._control("switches", "POST", switches)

    def switches(self) -> dict[str, Any]:
        return dict(self._control("switches"))

    def fault(self, match: str, kind: str, **more: Any) -> None:
        """Add a fault: ``match`` is searched in "path?query"; ``times`` is 1 unless given (None: always)."""
        self._control("switches", "POST", {"add_faults": [{"match": match, "kind": kind, **more}]})

    def clear_faults(self) -> None:
        self._control("switches", "POST", {"faults": []})

    def reset(self) -> None:
        """Every switch as at the start (as far as flags do not say otherwise), no faults, an empty log."""
        self._control(
            "switches",
            "POST",
            {
                "latency_s": 0.0,
                "bandwidth": None,
                "connection_bandwidth": None,
                "range": self._flags.get("range") == "on",
                "guests": self._flags.get("guests") == "on",
                "outage": False,
                "session_timeout_s": 900.0,
                "max_sessions": 1000,
                "token_life_s": 172800.0,
                "firewall_status": 500,
                "old_listings": False,
                "agreement": False,
                "nbia_v4": True,
                "buckets": False,
                "unlock": True,
                "faults": [],
            },
        )
        self.clear_log()

    def issued(self) -> list[str]:
        """Every session id and token secret handed out so far."""
        return list(self._control("issued"))

    def edit(self, action: str, uri: str, data: bytes | None = None, **more: Any) -> dict[str, Any]:
        """Change a file under a reader: action replace, grow, touch, remove, restore, unlist or add."""
        request = {"action": action, "uri": uri, **more}
        if data is not None:
            request["bytes_b64"] = base64.b64encode(data).decode()
        return dict(self._control("edit", "POST", request))

    def truth(self, project: str | None = None, md5: str = "", experiment: str = "") -> list[dict[str, Any]]:
        """Every file as each project shows it; md5 is None for large files unless ``md5="all"``.

        Args:
            experiment: An ID: its files alone, as ``project``, or its own, shows them.
        """
        query = {k: v for k, v in {"project": project, "md5": md5, "experiment": experiment}.items() if v}
        return list(self._control(f"truth?{urllib.parse.urlencode(query)}"))

    def tcia_truth(self) -> list[dict[str, Any]]:
        """Every image of the TCIA side: where it stands, its names, size and MD5."""
        return list(self._control("tcia-truth"))

    def fetch(self, path: str) -> bytes:
        """A document of the server, such as /demo.tcia and /idc-index.csv."""
        with _DIRECT.open(self.url + path, timeout=60) as answer:
            return bytes(answer.read())

    def content(self, uri: str) -> bytes:
        """A file's bytes now, asked for beside the code under test (and seen in the log)."""
        pair = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        url = f"http://{self.host}:{self.port}{self._context}{urllib.parse.quote(uri)}"
        request = urllib.request.Request(url, headers={"Authorization": f"Basic {pair}"})
        with _DIRECT.open(request, timeout=60) as answer:
            return bytes(answer.read())

    # -- log ----------------------------------------------------------------------------------------------------------

    def log(self) -> dict[str, Any]:
        """The log as it is now, requests under way included."""
        return dict(self._control("log"))

    def settled_log(self) -> dict[str, Any]:
        """The log once no request is under way (or after SETTLE_S)."""
        limit = time.monotonic() + SETTLE_S
        while True:
            log = self.log()
            if not log["in_flight"] or time.monotonic() > limit:
                return log
            time.sleep(0.01)

    def requests(self) -> list[Record]:
        """Requests for archive data (/data…, /REST…), oldest first; logins and their like are left out."""
        services = ("/data/JSESSION", "/data/auth", "/data/services")
        paths = [(r, r["path"].removeprefix(self._context)) for r in self.settled_log()["requests"]]
        return [r for r, path in paths if path.startswith(("/data", "/REST")) and not path.startswith(services)]

    def data_requests(self) -> list[Record]:
        """Requests for file content: one file's bytes, or an archive of files."""
        return [r for r in self.requests() if "/files/" in r["path"] or "format=zip" in r["query"]]

    def clear_log(self) -> None:
        self.settled_log()
        self._control("log", "DELETE")


def _clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("XNAT", "XNATFS"))}
