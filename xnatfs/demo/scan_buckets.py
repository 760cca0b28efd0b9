"""The same scans as open buckets, one a project: /xnat-PROJECT/EXPERIMENT/SCAN/RESOURCE/path, PROJECT in small letters.

XNAT has nothing like it. It lets a store that honours ranges be measured on the same bytes, from the same server,
behind the same switches. Shut unless the switch ``buckets`` is on: guests would read what projects keep from them. A
file that is added or taken away after the first look is not noticed. Safe from any thread.
"""

from __future__ import annotations

import hashlib
import threading
from urllib.parse import unquote

from xnatfs.demo import bucket
from xnatfs.demo.api import Question
from xnatfs.demo.records import Archive, File, scan_holders
from xnatfs.demo.replies import Reply

PREFIX = "/xnat-"
PAGE_KEYS = 1000  # as S3


class ScanBuckets:
    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._lock = threading.Lock()
        self._buckets: dict[str, dict[str, File]] = {}  # guarded by _lock; each sorted by key

    def answer(self, question: Question) -> Reply:
        name, _, key = unquote(question.path).removeprefix(PREFIX).partition("/")
        files = self._files(name)
        if key:
            file = files.get(key)
            if file is None:
                return bucket.no_such_key()
            return bucket.whole(file.content, _etag(key, file), file.mtime_s)

        def about(key: str) -> str:
            file = files[key]
            return bucket.stored(file.content.size, _etag(key, file), file.mtime_s)

        return bucket.listing(PREFIX[1:] + name, list(files), about, question.query, PAGE_KEYS)

    def _files(self, name: str) -> dict[str, File]:
        with self._lock:
            if name not in self._buckets:
                self._buckets[name] = dict(sorted(self._found(name)))
            return self._buckets[name]

    def _found(self, name: str) -> list[tuple[str, File]]:
        project = next((p.id for p in self._archive.projects.values() if p.id.lower() == name), None)
        if project is None:
            return []
        return [
            (f"{experiment.label}/{scan.id}/{holder.resource.label}/{file.path}", file)
            for experiment in self._archive.experiments_of(project)
            for scan in experiment.images.scans
            for holder in scan_holders(experiment, scan, experiment.label)
            for file in holder.resource.files
            if file.on_disk
        ]


def _etag(key: str, file: File) -> str:
    """As that of an object that was uploaded in parts: no digest of its bytes."""
    words = f"{key} {file.content.size} {file.mtime_s}"
    return f"{hashlib.md5(words.encode(), usedforsecurity=False).hexdigest()}-1"
