"""The same scans as a plain web directory: /index/PROJECT/EXPERIMENT/SCAN/RESOURCE/path.

XNAT has nothing like it. It lets tools that know only directory pages (rclone's http backend, httpdirfs) be measured on
the same bytes, from the same server, behind the same switches.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from urllib.parse import quote, unquote

from xnatfs.demo.records import Archive, Experiment, File, Holder, scan_holders
from xnatfs.demo.selection import NotFound

PREFIX = "/index/"


def look_up(archive: Archive, user: str, path: str) -> bytes | tuple[Holder, File]:
    """The page of a directory (its path ends in "/"), or one file.

    Raises:
        NotFound
    """
    parts = [unquote(part) for part in path.removeprefix(PREFIX).split("/")]
    names, last = parts[:-1], parts[-1]
    if not names and not last:
        return _page(f"{p.id}/" for p in archive.projects.values() if p.readable_by(user))
    project = archive.projects.get(names[0]) if names else None
    if project is None or not project.readable_by(user):
        raise NotFound("There is no such directory.")
    if len(names) == 1 and not last:
        return _page(f"{e.label_in(project.id)}/" for e in archive.experiments_of(project.id))
    experiment = archive.find_experiment(names[1], project.id) if len(names) > 1 else None
    if experiment is None:
        raise NotFound("There is no such directory.")
    return _below(experiment, names[2:], last)


def _below(experiment: Experiment, names: list[str], last: str) -> bytes | tuple[Holder, File]:
    scans = experiment.images.scans
    if not names and not last:
        return _page(f"{scan.id}/" for scan in scans)
    scan = next((s for s in scans if names and s.id == names[0]), None)
    if scan is None:
        raise NotFound("There is no such directory.")
    holders = list(scan_holders(experiment, scan, experiment.label))
    if len(names) == 1 and not last:
        return _page(f"{holder.resource.label}/" for holder in holders)
    holder = next((h for h in holders if len(names) > 1 and h.resource.label == names[1]), None)
    if holder is None:
        raise NotFound("There is no such directory.")
    inside = "".join(f"{name}/" for name in names[2:])
    files = [f for f in holder.resource.files if f.on_disk and f.path.startswith(inside)]
    if last:
        file = next((f for f in files if f.path == inside + last), None)
        if file is None:
            raise NotFound("There is no such file.")
        return holder, file
    tails = (f.path[len(inside) :].partition("/") for f in files)
    return _page(dict.fromkeys(name + slash for name, slash, _ in tails))


def _page(names: Iterable[str]) -> bytes:
    lines = "".join(f'<a href="{quote(name)}">{html.escape(name)}</a>\n' for name in names)
    return f"<html><body><pre>\n{lines}</pre></body></html>\n".encode()
