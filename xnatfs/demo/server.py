"""The HTTP server around the sample archive: admission, latency, faults, ranges, cookies, and sending.

aiohttp reads requests and sends heads and small bodies on one event loop; larger bodies go out in threads
(``sending.py``). What to answer is ``api.py``'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from aiohttp import web

from xnatfs.demo import scan_buckets
from xnatfs.demo.api import Api, Question, parse_query
from xnatfs.demo.auth import OPEN_PATHS, Login, Refused
from xnatfs.demo.control import Control
from xnatfs.demo.faults import apply
from xnatfs.demo.replies import AGREEMENT_PAGE, LOGIN_PAGE, Reply, error, plain
from xnatfs.demo.requestlog import Record
from xnatfs.demo.scan_buckets import ScanBuckets
from xnatfs.demo.sending import Body, ClientGone, Cut, CutShort, Sender, abort_on_close
from xnatfs.demo.state import DemoState
from xnatfs.demo.tcia import Tcia, is_tcia

SMALL_BODY = 32 * 1024  # bytes that the event loop sends itself; more goes to a thread
MAX_SENDERS = 256  # threads; each open body holds one
CONTROL = "/__demo__/"
# Spring Security's strict firewall.
_FIREWALL = re.compile(r"%25|%2f|%5c|%3b|%00|;|\\|//|/\.{1,2}(/|$)|/(%2e){1,2}(/|$)|/\.%2e|/%2e\.", re.IGNORECASE)
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class DemoServer:
    """Serves one archive under ``context`` ("" or "/xnat")."""

    def __init__(self, state: DemoState, context: str = "") -> None:
        self.state = state
        self._context = context
        self._api = Api(state.archive, state.gate, lambda: state.switches.old_listings)
        self._tcia = Tcia(lambda: state.switches.nbia_v4)
        self._buckets = ScanBuckets(state.archive)
        self._control = Control(state, self._tcia)
        self._senders = ThreadPoolExecutor(MAX_SENDERS, thread_name_prefix="send")
        self._runner: web.ServerRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port."""
        server = web.Server(self._handle, access_log=None, keepalive_timeout=75.0, max_line_size=65536)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, backlog=512, reuse_address=True)
        await site.start()
        return cast(int, self._runner.addresses[0][1])

    async def stop(self) -> None:
        self.state.link.stopping.set()
        if self._runner is not None:
            await self._runner.cleanup()
        self._senders.shutdown(wait=False, cancel_futures=True)

    # -- one request --------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        if path.startswith(CONTROL):
            return await self._control.answer(request, path.removeprefix(CONTROL).rstrip("/"), query)
        record = Record(
            0,
            request.method,
            path,
            query,
            request.headers.get("Range", ""),
            request.headers.get("User-Agent", ""),
            time.time(),
            request.remote or "",
        )
        log = self.state.log
        log.begin(record)
        try:
            return await self._answer(request, record)
        except (ConnectionError, asyncio.CancelledError):
            record.aborted = True
            raise
        finally:
            log.end(record, time.time())

    async def _answer(self, request: web.BaseRequest, record: Record) -> web.StreamResponse:
        switches = self.state.switches
        if switches.latency_s:
            await asyncio.sleep(switches.latency_s)
        if switches.outage:
            record.aborted = True
            return self._hang_up(request, reset=True)
        reply, cookies, record.user, record.session = await self._reply(request, record)
        reply = self._ranged(request, reply)
        fault = self.state.faults.take(record.method, f"{record.path}?{record.query}" if record.query else record.path)
        if fault is not None:
            record.fault = fault.kind
            reply = apply(fault, reply, record.range)
        record.status = reply.status
        if reply.dead:
            record.aborted = True
            return self._hang_up(request, reset=reply.dead == "reset")
        return await self._send(request, reply, cookies, record)

    async def _reply(self, request: web.BaseRequest, record: Record) -> tuple[Reply, list[str], str, str]:
        """The reply before faults and ranges, the Set-Cookie lines, and who asked."""
        path = record.path
        if _FIREWALL.search(path):
            return error(self.state.switches.firewall_status, "The request was rejected."), [], "", ""
        if self._context and not f"{path}/".startswith(f"{self._context}/"):
            return error(404, "There is nothing outside the context path."), [], "", ""
        path = path[len(self._context) :]
        if is_tcia(path):
            return await self._tcia_reply(request, path, record)
        if self.state.switches.buckets and path.startswith(scan_buckets.PREFIX):
            question = Question(request.method, path, parse_query(record.query), request.headers, b"")
            return await asyncio.to_thread(self._buckets.answer, question), [], "", ""
        try:
            login = self.state.gate.admit(
                path,
                request.cookies.get("JSESSIONID"),
                request.headers.get("Authorization"),
                record.user_agent,
            )
        except Refused as exc:
            return self._refusal(exc), [], "", ""
        if path.startswith("/app/"):
            return plain(LOGIN_PAGE, "text/html"), self._cookies(login), login.user, login.session.id
        if self.state.switches.agreement and not OPEN_PATHS.fullmatch(path):
            return plain(AGREEMENT_PAGE, "text/html"), self._cookies(login), login.user, login.session.id
        body = await request.read() if request.method in ("PUT", "POST") else b""
        question = Question(request.method, path, parse_query(record.query), request.headers, body)
        reply = self._api.answer(question, login)
        return reply, self._cookies(login), login.user, login.session.id

    async def _tcia_reply(
        self, request: web.BaseRequest, path: str, record: Record
    ) -> tuple[Reply, list[str], str, str]:
        """The neighbours of the XNAT server: an NBIA server and a store of buckets, which know no XNAT session."""
        body = await request.read() if request.method == "POST" else b""
        question = Question(request.method, path, parse_query(record.query), request.headers, body)
        reply, user = await asyncio.to_thread(self._tcia.answer, question)
        return reply, [], user, ""

    def _refusal(self, refused: Refused) -> Reply:
        if refused.redirect:
            return Reply(302, {"Location": f"{self._context}/app/template/Login.vm"})
        return error(401, str(refused))

    def _cookies(self, login: Login) -> list[str]:
        timeout_ms = int(self.state.gate.session_timeout_s * 1000)
        place = f"Path={self._context or '/'}"
        lines = [f'SESSION_EXPIRATION_TIME="{int(time.time() * 1000)},{timeout_ms}"; Version=1; {place}']
        if login.new:
            lines.append(f"JSESSIONID={login.session.id}; {place}; HttpOnly")
        return lines

    def _ranged(self, request: web.BaseRequest, reply: Reply) -> Reply:
        """The reply with its range cut out, where the server honours ranges and the request asks for one."""
        header = request.headers.get("Range", "")
        body = reply.body
        if (
            not (self.state.switches.range or reply.ranges)
            or reply.status != 200
            or not body.sliceable
            or body.length is None
        ):
            return reply
        reply.headers["Accept-Ranges"] = "bytes"
        found = _RANGE.fullmatch(header.strip())
        condition = request.headers.get("If-Range")
        if condition is not None and condition != reply.headers.get("Last-Modified"):
            return reply
        if not found or (not found.group(1) and not found.group(2)):
            return reply
        total = body.length
        if found.group(1):
            start = int(found.group(1))
            stop = min(int(found.group(2)) + 1, total) if found.group(2) else total
        else:
            start, stop = max(0, total - int(found.group(2))), total
        if start >= total or stop <= start:
            answer = error(416, "The range lies outside the file.")
            answer.headers["Content-Range"] = f"bytes */{total}"
            return answer
        reply.status = 206
        reply.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
        reply.whole = body
        reply.body = Body(stop - start, lambda a, b: body.pieces(start + a, start + b))
        return reply

    # -- sending ------------------------------------------------------------------------------------------------------

    def _hang_up(self, request: web.BaseRequest, reset: bool) -> web.StreamResponse:
        transport = request.transport
        if transport is not None:
            if reset:
                with contextlib.suppress(OSError):
                    abort_on_close(transport.get_extra_info("socket"))
                transport.abort()
            else:
                transport.close()
        raise ConnectionResetError("hung up on purpose")

    async def _send(
        self, request: web.BaseRequest, reply: Reply, cookies: list[str], record: Record
    ) -> web.StreamResponse:
        body = reply.body
        if not reply.framed:
            return await self._send_unframed(request, reply, cookies, record)
        small = body.length is not None and body.length <= SMALL_BODY
        bare = request.method == "HEAD" or reply.status in (204, 304)
        if bare or (small and reply.cut is None and reply.declared is None and not self.state.link.limited):
            return await self._send_small(request, reply, cookies, record, bare)
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        _set_cookies(response, cookies)
        if body.length is None:
            response.enable_chunked_encoding()
        else:
            response.content_length = body.length if reply.declared is None else reply.declared
        await response.prepare(request)
        await self._send_in_thread(request, reply, record)
        await response.write_eof()  # the last chunk, where the body goes out in chunks
        return response

    async def _send_unframed(
        self, request: web.BaseRequest, reply: Reply, cookies: list[str], record: Record
    ) -> web.StreamResponse:
        """A head of our own: aiohttp would put a body without a length in chunks. Ends with the connection."""
        transport = request.transport
        if transport is not None:
            lines = [f"{name}: {value}" for name, value in reply.headers.items()]
            lines += [f"Set-Cookie: {line}" for line in cookies]
            head = [f"HTTP/1.1 {reply.status} Unframed", *lines, "Connection: close", "", ""]
            transport.write("\r\n".join(head).encode("latin-1"))
        await self._send_in_thread(request, reply, record)
        raise ConnectionResetError("the end of the body is the end of the connection")

    async def _send_small(
        self, request: web.BaseRequest, reply: Reply, cookies: list[str], record: Record, bare: bool
    ) -> web.StreamResponse:
        if bare:
            response = web.StreamResponse(status=reply.status, headers=reply.headers)
            if request.method == "HEAD" and reply.body.length is not None:
                response.content_length = reply.body.length
            _set_cookies(response, cookies)
            await response.prepare(request)
            await response.write_eof()
            return response
        length = reply.body.length or 0
        data = b"".join(bytes(piece) for piece in reply.body.pieces(0, length))
        whole = web.Response(status=reply.status, headers=reply.headers, body=data)
        _set_cookies(whole, cookies)
        await whole.prepare(request)
        await whole.write_eof()
        record.meter.sent = len(data)
        return whole

    async def _send_in_thread(self, request: web.BaseRequest, reply: Reply, record: Record) -> None:
        """Hand the connection's socket to a thread until the body has ended or broken off."""
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client left before the body")
        cut = reply.cut
        if reply.declared is not None and cut is None:
            cut = Cut("close", reply.declared)
        while transport.get_write_buffer_size():  # the head must be out before the thread writes behind it
            await asyncio.sleep(0.001)
        sock = transport.get_extra_info("socket").dup()
        sock.setblocking(False)
        sender = Sender(sock, self.state.link, record.meter, cut)
        body = reply.body
        loop = asyncio.get_running_loop()
        try:
            pieces = body.pieces(0, body.length or 0)
            await loop.run_in_executor(self._senders, sender.run, pieces, body.length is None)
        except CutShort as exc:
            record.aborted = True
            self._hang_up(request, exc.reset)
        except ClientGone as exc:
            transport.abort()
            raise ConnectionResetError(str(exc)) from exc


def _set_cookies(response: web.StreamResponse, lines: list[str]) -> None:
    for line in lines:
        response.headers.add("Set-Cookie", line)
