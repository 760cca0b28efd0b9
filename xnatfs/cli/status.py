"""``xnatfs status``: the mounts of this user and how they are doing, asked over their control sockets.

Touches no mount and no server, so that it answers while they hang. Shows no secret. Main thread; ``report`` runs in the
process that serves a mount, on its control thread.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import click

from xnatfs.cli import daemon
from xnatfs.cli.options import MountPoint
from xnatfs.cli.text import one_line, size_text, span_text
from xnatfs.config import Config
from xnatfs.errors import XnatfsError
from xnatfs.stats import Stats


@click.command()
@click.argument("mountpoint", required=False, type=MountPoint())
@click.option("--json", "as_json", is_flag=True, help="All of it, as one JSON array.")
def status(mountpoint: Path | None, as_json: bool) -> int:
    """Show what is mounted and how it is doing.

    Server, user, session, requests, bytes, how much came from the cache, and the last errors; of MOUNTPOINT, or of all
    mounts of this user.
    """
    from xnatfs.frontends.mountpoint import resolve

    wanted = None if mountpoint is None else resolve(mountpoint)
    found = [_state(record) for record in daemon.recorded(os.getuid()) if wanted in (None, record.mountpoint)]
    states = [state for state in found if state is not None]
    if wanted is not None and not states:
        raise XnatfsError(f"status {mountpoint}: nothing of ours is mounted there")
    if as_json:
        click.echo(json.dumps(states, indent=1))
    elif not states:
        click.echo("Nothing is mounted.")
    else:
        click.echo("\n\n".join("\n".join(_lines(state)) for state in states))
    return 0


class RecentMessages(logging.Handler):
    """Keeps the last warnings and errors of the log among a mount's failures."""

    def __init__(self, stats: Stats) -> None:
        super().__init__(logging.WARNING)
        self._stats = stats

    def listen(self) -> None:
        logging.getLogger("xnatfs").addHandler(self)

    def close(self) -> None:
        logging.getLogger("xnatfs").removeHandler(self)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        self._stats.failed(record.getMessage())


def report(config: Config, mountpoint: Path, stats: Stats) -> dict[str, Any]:
    """What a mount says of itself. Bytes and seconds; None where a thing is not known."""
    now = time.time()
    pieces = stats.hits + stats.misses
    credentials = config.credentials
    return {
        "mountpoint": str(mountpoint),
        "server": config.source.url,
        "inside": config.source.inside,
        "pid": os.getpid(),
        "state": "mounted",
        "up_s": round(now - stats.started_s, 1),
        "user": None if credentials.is_token else credentials.user,
        "credentials": credentials.origin,
        "offline": config.listing.offline,
        "away_s": round(now - stats.away_since_s, 1) if stats.away_since_s else None,
        "listings_age_s": round(now - stats.listings_of_s, 1) if stats.listings_of_s else None,
        "session_age_s": round(now - stats.session_since_s, 1) if stats.session_since_s else None,
        "session_left_s": round(stats.session_until_s - now, 1) if stats.session_until_s else None,
        "requests": stats.requests,
        "retries": stats.retries,
        "logins": stats.logins,
        "in_flight": stats.gauge("in_flight"),
        "transfers": stats.gauge("transfers"),
        "bulk_streams": stats.bulk_streams,
        "bulk_members": stats.bulk_members,
        "received_bytes": stats.received_bytes,
        "read_bytes": stats.read_bytes,
        "hit_rate": round(stats.hits / pieces, 4) if pieces else None,
        "cache_directory": str(config.cache.directory) if config.cache.directory is not None else None,
        "cache_bytes": stats.gauge("cache_bytes"),
        "cache_limit_bytes": config.cache.limit_bytes,
        "errors": [{"at_s": round(at_s, 3), "message": message} for at_s, message in list(stats.errors)],
    }


def _state(record: daemon.Recorded) -> dict[str, Any] | None:
    """A mount as it is; None for the record of one that is gone."""
    from xnatfs.cli.control import ask
    from xnatfs.frontends.mountpoint import OWN_TYPE, find_mount

    bare = {"mountpoint": str(record.mountpoint), "server": record.server, "pid": record.pid}
    if record.alive:
        try:
            return ask(record.socket)
        except OSError as exc:
            if not record.socket.with_suffix(".json").exists():
                return None  # unmounted meanwhile
            return {**bare, "state": "silent", "why": str(exc.strerror or exc)}
    mounted = find_mount(record.mountpoint)
    if mounted is None or mounted.fs_type != OWN_TYPE or mounted.device != record.device:
        daemon.forget(record)
        return None
    return {**bare, "state": "dead"}


def _lines(state: dict[str, Any]) -> list[str]:
    head = f"{state['mountpoint']}  {state['server']}{_inside(state)}"
    if state["state"] == "dead":
        return [f"{head}  DEAD: its process ({state['pid']}) is gone", f"  run: xnatfs umount {state['mountpoint']}"]
    if state["state"] == "silent":
        return [f"{head}  its process ({state['pid']}) does not say how it is: {state['why']}"]
    lines = [head, f"  {_who(state)}; mounted for {span_text(state['up_s'])} by process {state['pid']}"]
    if state["offline"]:
        lines.append("  offline: the server is asked nothing, stored listings are shown whatever their age")
    if state["away_s"] is not None:
        age = state["listings_age_s"]
        shown = "" if age is None else f"; listings shown are up to {span_text(age)} old"
        lines.append(f"  the server has not answered for {span_text(state['away_s'])}{shown}")
    if state["session_age_s"] is not None:
        left = state["session_left_s"]
        ends = "" if left is None else f", ends in {span_text(left)} unless used" if left > 0 else ", over"
        lines.append(f"  session {span_text(state['session_age_s'])} old{ends}")
    lines.append(
        f"  {state['requests']} requests, {state['retries']} of them again, {state['logins']} logins; "
        f"{state['in_flight']} under way; {size_text(state['received_bytes'])} received"
    )
    if state["bulk_streams"]:
        lines.append(f"  {state['bulk_members']} files out of {state['bulk_streams']} zips of folders")
    share = "" if state["hit_rate"] is None else f", {state['hit_rate']:.0%} from the cache"
    lines.append(f"  {size_text(state['read_bytes'])} read{share}")
    if state["cache_directory"] is not None and state["cache_bytes"] is not None:
        used, limit = size_text(state["cache_bytes"]), size_text(state["cache_limit_bytes"])
        lines.append(f"  cache: {used} of {limit} in {state['cache_directory']}")
    for error in state["errors"][-3:]:
        lines.append(f"  {span_text(time.time() - error['at_s'])} ago: {one_line(error['message'])}")
    return lines


def _inside(state: dict[str, Any]) -> str:
    return "" if state.get("inside", "/") == "/" else f"#{state['inside']}"


def _who(state: dict[str, Any]) -> str:
    if state["user"] is None:
        return "as a guest" if state["credentials"] in ("anonymous", "--anonymous") else f"by {state['credentials']}"
    return f"as {state['user']} ({state['credentials']})"
