"""The TCIA side of the demo: an NBIA server, IDC's buckets, a manifest and an index, all at the XNAT server's address.

Which of them a path is for is decided here. Safe from any thread.
"""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Callable
from typing import Any

from xnatfs.demo import bucket
from xnatfs.demo.api import Question
from xnatfs.demo.nbia import PREFIX, Nbia
from xnatfs.demo.replies import Reply, plain
from xnatfs.demo.tcia_sample import SampleSeries, tcia_sample

MANIFEST = "/demo.tcia"
INDEX = "/idc-index.csv"
_OURS = (PREFIX, *(f"/{name}/" for name in bucket.BUCKETS))


def is_tcia(path: str) -> bool:
    return path.startswith(_OURS) or path in (MANIFEST, INDEX)


class Tcia:
    """Everything that ``is_tcia``. ``has_v4`` is asked at each request."""

    def __init__(self, has_v4: Callable[[], bool]) -> None:
        self._lock = threading.Lock()
        self._nbia = Nbia(self.series, has_v4)

    def series(self) -> tuple[SampleSeries, ...]:
        with self._lock:  # made once, and not by two threads
            return tcia_sample()

    def answer(self, question: Question) -> tuple[Reply, str]:
        """The reply, and the user it was for: "" for a guest."""
        if question.path.startswith(PREFIX):
            return self._nbia.answer(question)
        if question.path == MANIFEST:
            return self._manifest(question), ""
        if question.path == INDEX:
            return self._index(), ""
        return bucket.answer(question, self.series()), ""

    def _manifest(self, question: Question) -> Reply:
        host = question.headers.get("Host", "localhost")
        lines = [
            f"downloadServerUrl=http://{host}/nbia-download/servlet/DownloadServlet",
            "includeAnnotation=true",
            "noOfrRetry=4",
            "databasketId=manifest-1704103200000.tcia",
            "manifestVersion=3.0",
            "ListOfSeriesToDownload=",
            *(one.uid for one in self.series()),
        ]
        return plain("\n".join(lines) + "\n", "application/x-nbia-manifest-file")

    def _index(self) -> Reply:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["collection_id", "SeriesInstanceUID", "aws_bucket", "crdc_series_uuid", "instanceCount"])
        for one in self.series():
            if one.bucket:
                collection = one.study.collection.lower().replace(" ", "_").replace("-", "_")
                writer.writerow([collection, one.uid, one.bucket, one.folder, len(one.idc_images)])
        return plain(text.getvalue(), "text/csv")

    def truth(self) -> list[dict[str, Any]]:
        """Every image: what the tests compare with."""
        return [
            {
                "collection": one.study.collection,
                "patient": one.study.patient,
                "study": one.study.uid,
                "series": one.uid,
                "limited": one.limited,
                "name": image.name,
                "sop": image.sop,
                "size": image.content.size,
                "md5": image.content.md5(),
                "object": f"{one.bucket}/{one.folder}/{one.idc_images[n].name}" if n < len(one.idc_images) else "",
            }
            for one in self.series()
            for n, image in enumerate(one.images)
        ]
