"""``python -m xnatfs.demo``: serves the sample archive; its URL is the first line on standard output."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys

from xnatfs.demo import bulk, sample
from xnatfs.demo.auth import Gate
from xnatfs.demo.server import DemoServer
from xnatfs.demo.state import DemoState, Switches

PARENT_POLL_S = 0.25  # asked of getppid: the kernel's own death signal also comes when only the parent's thread ends


def main() -> int:
    logging.getLogger("aiohttp.server").addFilter(_is_a_fault)
    options = _arguments().parse_args()
    try:
        return asyncio.run(_serve(options))
    except KeyboardInterrupt:
        return 0


def _is_a_fault(record: logging.LogRecord) -> bool:
    """Not a client that went away, nor a connection cut on purpose: aiohttp logs a traceback for each."""
    return not (record.exc_info and isinstance(record.exc_info[1], ConnectionError))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m xnatfs.demo", description="Serve the sample archive on loopback.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    parser.add_argument("--context", default="", help="context path, for example /xnat")
    parser.add_argument("--latency", type=_seconds, default=0.0, help="before the first byte: 20ms or 0.02")
    parser.add_argument("--bandwidth", type=float, default=None, help="bytes a second, over all connections")
    parser.add_argument("--connection-bandwidth", type=float, default=None, help="bytes a second, of each connection")
    parser.add_argument("--range", choices=("on", "off"), default="off", help="honour Range (XNAT does not)")
    parser.add_argument("--guests", choices=("on", "off"), default="off", help="let anonymous visitors in")
    parser.add_argument("--sample", choices=("small", "full"), default="small")
    parser.add_argument("--session-timeout", type=_seconds, default=900.0, help="seconds")
    parser.add_argument("--die-with-parent", action="store_true", help="end when the parent process ends")
    return parser


def _seconds(text: str) -> float:
    return float(text[:-2]) / 1000 if text.endswith("ms") else float(text.removesuffix("s"))


async def _serve(options: argparse.Namespace) -> int:
    parent = os.getppid()
    archive = sample.small() if options.sample == "small" else bulk.full()
    gate = Gate(guests=options.guests == "on", session_timeout_s=options.session_timeout)
    state = DemoState(archive, gate, Switches(latency_s=options.latency, range=options.range == "on"))
    state.link.bytes_per_s = options.bandwidth
    state.link.connection_bytes_per_s = options.connection_bandwidth
    context = "/" + options.context.strip("/") if options.context.strip("/") else ""
    server = DemoServer(state, context)
    port = await server.start(options.host, options.port)
    host = f"[{options.host}]" if ":" in options.host else options.host
    sys.stdout.write(f"http://{host}:{port}{context}\n")
    sys.stdout.flush()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    while not ended.is_set() and not (options.die_with_parent and os.getppid() != parent):
        try:
            await asyncio.wait_for(ended.wait(), PARENT_POLL_S if options.die_with_parent else None)
        except asyncio.TimeoutError:
            continue
    await server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
