"""Resource ids and scan keys of the sample archive: unique in a site, the same on every run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from xnatfs.demo.records import File, Reconstruction, Resource, Scan

IDS_PER_EXPERIMENT = 2000  # reserved for one experiment that is filled later


def numbers_from(first: int) -> Iterator[Numbers]:
    """Those of one experiment after the other."""
    return (Numbers(start) for start in itertools.count(first, IDS_PER_EXPERIMENT))


class Numbers:
    """Those of one experiment."""

    def __init__(self, first: int) -> None:
        self.first = first
        self._resources = itertools.count(first)
        self._scans = itertools.count(first)

    def resource(self, label: str, files: Iterable[File], side: str = "", format: str = "") -> Resource:
        return Resource(next(self._resources), label, list(files), side, format)

    def scan(self, id_: str, type_: str, xsi: str, *resources: Resource, **more: str) -> Scan:
        return Scan(next(self._scans), id_, type_, xsi, resources=list(resources), **more)

    def reconstruction(self, id_: str, type_: str, base: str, *resources: Resource) -> Reconstruction:
        return Reconstruction(next(self._scans), id_, type_, base, list(resources))
