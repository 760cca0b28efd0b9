"""/__demo__/: switches, edits, the request log and the truth about every file. Never logged, slowed or made to fail."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from aiohttp import web

from xnatfs.demo.api import data_path, parse_query
from xnatfs.demo.contents import BytesContent
from xnatfs.demo.records import EVERYWHERE, Archive, Experiment, File, Holder, Project, experiment_holders
from xnatfs.demo.selection import NotFound, Router, find_file, holders

if TYPE_CHECKING:
    from xnatfs.demo.state import DemoState
    from xnatfs.demo.tcia import Tcia

LAZY_MD5_FROM = 64 * 1024 * 1024  # bytes; larger files' digests are worked out for ?md5=all only


class Control:
    """The handlers below /__demo__/."""

    def __init__(self, state: DemoState, tcia: Tcia) -> None:
        self._state = state
        self._tcia = tcia

    async def answer(self, request: web.BaseRequest, name: str, query: str) -> web.StreamResponse:
        options = parse_query(query)
        try:
            if name == "log" and request.method == "DELETE":
                return self._clear_log()
            if name == "log":
                return web.json_response(self._log())
            if name == "truth":
                truth = await asyncio.to_thread(self._truth, options)
                return web.json_response(truth)
            if name == "tcia-truth":
                return web.json_response(await asyncio.to_thread(self._tcia.truth))
            if name == "switches" and request.method == "POST":
                self._switch(await request.json())
                return web.json_response(self._switches())
            if name == "switches":
                return web.json_response(self._switches())
            if name == "issued":
                return web.json_response(list(self._state.gate.issued))
            if name == "edit" and request.method == "POST":
                return web.json_response(self._edit(await request.json()))
        except (ValueError, TypeError, KeyError, NotFound) as exc:
            return web.json_response({"error": repr(exc)}, status=400)
        return web.json_response({"error": f"no {name} here"}, status=404)

    # -- log ----------------------------------------------------------------------------------------------------------

    def _log(self) -> dict[str, Any]:
        log, counters = self._state.log, self._state.gate.counters
        return {
            "requests": [record.as_json() for record in log.records],
            "logins": counters.logins,
            "failed_logins": counters.failed_logins,
            "sessions": counters.sessions,
            "max_in_flight": log.max_in_flight,
            "in_flight": log.in_flight,
        }

    def _clear_log(self) -> web.Response:
        self._state.log.clear()
        counters = self._state.gate.counters
        counters.logins = counters.failed_logins = counters.sessions = 0
        return web.json_response({})

    # -- switches -----------------------------------------------------------------------------------------------------

    def _switches(self) -> dict[str, Any]:
        state = self._state
        return {
            "latency_s": state.switches.latency_s,
            "range": state.switches.range,
            "outage": state.switches.outage,
            "firewall_status": state.switches.firewall_status,
            "old_listings": state.switches.old_listings,
            "agreement": state.switches.agreement,
            "nbia_v4": state.switches.nbia_v4,
            "buckets": state.switches.buckets,
            "bandwidth": state.link.bytes_per_s,
            "connection_bandwidth": state.link.connection_bytes_per_s,
            "guests": state.gate.guests,
            "session_timeout_s": state.gate.session_timeout_s,
            "max_sessions": state.gate.max_sessions,
            "token_life_s": state.gate.token_life_s,
            "faults": [{"match": f.match, "kind": f.kind, "at": f.at, "times": f.times} for f in state.faults.faults],
        }

    def _switch(self, wanted: dict[str, Any]) -> None:
        state = self._state
        unknown = set(wanted) - set(self._switches()) - {"expire_sessions", "add_faults", "unlock", "passwords"}
        if unknown:
            raise ValueError(f"unknown switches: {sorted(unknown)}")
        plain = ("latency_s", "range", "outage", "firewall_status", "old_listings", "agreement", "nbia_v4", "buckets")
        for name in plain:
            if name in wanted:
                setattr(state.switches, name, wanted[name])
        for name in ("guests", "session_timeout_s", "max_sessions", "token_life_s"):
            if name in wanted:
                setattr(state.gate, name, wanted[name])
        if "bandwidth" in wanted:
            state.link.bytes_per_s = wanted["bandwidth"]
        if "connection_bandwidth" in wanted:
            state.link.connection_bytes_per_s = wanted["connection_bandwidth"]
        if "faults" in wanted:
            state.faults.replace(wanted["faults"] or [])
        if "add_faults" in wanted:
            state.faults.extend(wanted["add_faults"])
        if wanted.get("expire_sessions"):
            state.gate.expire_all()
        if "passwords" in wanted:
            state.gate.accounts.update(wanted["passwords"])
        if wanted.get("unlock"):
            state.gate.failures.clear()

    # -- edits --------------------------------------------------------------------------------------------------------

    def _edit(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Change one file, named by its listed URI.

        Keys: action (replace, grow, touch, remove, restore, unlist, add), uri, bytes_b64, keep_size (the listing
        keeps the old size), keep_digest (and the old digest), keep_mtime.
        """
        holder, file = self._named(wanted["uri"], wanted["action"])
        action = wanted["action"]
        if action in ("replace", "grow"):
            new = base64.b64decode(wanted.get("bytes_b64", ""))
            self._replace(file, file.content.read() + new if action == "grow" else new, wanted)
        elif action == "touch":
            file.mtime_s += int(wanted.get("seconds", 60))
        elif action in ("remove", "restore"):
            file.on_disk = action == "restore"
        elif action == "unlist":
            holder.resource.files.remove(file)
        elif action == "add":
            file.content = BytesContent(base64.b64decode(wanted.get("bytes_b64", "")))
            holder.resource.files.append(file)
        else:
            raise ValueError(f"unknown action {action}")
        return {"size": file.content.size, "mtime_s": file.mtime_s, "on_disk": file.on_disk}

    def _replace(self, file: File, data: bytes, wanted: dict[str, Any]) -> None:
        file.stale_size = int(file.listed_size) if wanted.get("keep_size") else None
        if wanted.get("keep_digest"):
            file.stale_digest = file.listed_digest
        elif file.stale_digest:
            file.stale_digest = None  # a blank one stays blank
        file.content = BytesContent(data)
        if not wanted.get("keep_mtime"):
            file.mtime_s += 60

    def _named(self, uri: str, action: str) -> tuple[Holder, File]:
        below = data_path(uri)
        if below is None:
            raise ValueError("a URI begins with /data")
        selection = Router(self._state.archive, EVERYWHERE).parse(below)
        found = list(holders(selection, everything=False))
        # The listed URI is not encoded: compare it as it is first.
        for holder in found:
            for file in holder.resource.files:
                if file.path == selection.path:
                    return holder, file
        if action == "add" and found:
            return found[0], File(selection.path, BytesContent(b""))
        return find_file(selection, everything=False)

    # -- truth --------------------------------------------------------------------------------------------------------

    def _truth(self, options: dict[str, str]) -> list[dict[str, Any]]:
        """Every file of the archive, of one project (?project=P) or of one experiment of it (&experiment=ID)."""
        archive = self._state.archive
        every_md5 = options.get("md5") == "all"
        wanted, experiment = options.get("project"), options.get("experiment")
        if experiment is not None:
            found = archive.experiments[experiment]
            return list(_experiment_truth(archive, archive.projects[wanted or found.project], found, every_md5))
        rows: list[dict[str, Any]] = []
        for project in archive.projects.values():
            if wanted in (None, project.id):
                rows += _project_truth(archive, project, every_md5)
        return rows


def _project_truth(archive: Archive, project: Project, every_md5: bool) -> Iterator[dict[str, Any]]:
    for resource in project.resources:
        holder = Holder(f"/projects/{project.id}", "resources", "", "", resource)
        yield from _rows(holder, {"project": project.id}, every_md5)
    for subject in archive.subjects_of(project.id):
        names = {"project": project.id, "subject": subject.label_in(project.id), "subject_id": subject.id}
        for resource in subject.resources:
            base = f"/projects/{project.id}/subjects/{subject.id}"
            yield from _rows(Holder(base, "resources", "", "", resource), names, every_md5)
    for experiment in archive.experiments_of(project.id):
        yield from _experiment_truth(archive, project, experiment, every_md5)


def _experiment_truth(
    archive: Archive, project: Project, experiment: Experiment, every_md5: bool
) -> Iterator[dict[str, Any]]:
    subject = archive.subjects[experiment.subject]
    names = {
        "project": project.id,
        "subject": subject.label_in(project.id),
        "subject_id": subject.id,
        "experiment": experiment.label_in(project.id),
        "experiment_id": experiment.id,
        "shared": experiment.project != project.id,
    }
    labels = {assessor.id: assessor.label for assessor in experiment.images.assessors}
    for holder in experiment_holders(experiment):
        yield from _rows(holder, {**names, "item_label": labels.get(holder.item_id, "")}, every_md5)


def _rows(holder: Holder, names: dict[str, Any], every_md5: bool) -> Iterator[dict[str, Any]]:
    resource = holder.resource
    for file in resource.files:
        content = file.content
        known = every_md5 or content.md5_known or content.size <= LAZY_MD5_FROM
        yield {
            "subject": "",
            "subject_id": "",
            "experiment": "",
            "experiment_id": "",
            "item_label": "",
            "shared": False,
            **names,
            "area": holder.category,
            "item": holder.item_id,
            "item_type": holder.item_type,
            "side": resource.side,
            "resource": resource.label,
            "resource_id": resource.id,
            "path": file.path,
            "name": file.name,
            "uri": f"/data{holder.uri}/files/{file.path}",
            "size": content.size,
            "md5": content.md5() if known else None,
            "mtime_s": file.mtime_s,
            "listed_size": file.listed_size,
            "listed_digest": file.listed_digest if file.stale_digest is not None or known else None,
            "on_disk": file.on_disk,
        }
