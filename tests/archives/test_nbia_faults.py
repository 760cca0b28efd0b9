"""Every fault that the demo knows, in every answer that TCIA's images depend on: the right bytes or an error of ours.

After it has passed, everything is right again. Files are read as a program would: listed first, then each to its end.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from hashlib import md5
from pathlib import Path

import pytest

from tests.archives.test_nbia import IN_BOTH, UNNAMED, files_of
from tests.helpers.server import DemoServer
from xnatfs.archives.nbia.archive import NbiaArchive
from xnatfs.archives.nbia.manifest import parse_manifest
from xnatfs.blocks.memory import MemoryBlocks
from xnatfs.config import Credentials, HttpConfig, ReadConfig, TciaConfig, TreeConfig
from xnatfs.demo.faults import KINDS
from xnatfs.errors import ArchiveError
from xnatfs.model import Entry
from xnatfs.reading.reader import BlockReader

ANSWERS = {  # what a fault meets -> the series that depends on it, and where that is taken from
    "/getSeriesMetadata": (UNNAMED, "nbia"),
    "/getImage": (UNNAMED, "nbia"),
    "/getSingleImage": (UNNAMED, "nbia"),
    "/idc-open-data/.*prefix": (IN_BOTH, "idc"),
    r"/idc-open-data/.*\.dcm": (IN_BOTH, "idc"),
}
SILENT = ("stall", "drip")


@pytest.fixture(autouse=True)
def _reports_are_not_the_subject() -> Iterator[None]:
    logger = logging.getLogger("xnatfs.archives.nbia.learning")
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def index(server: DemoServer, tmp_path: Path) -> Path:
    path = tmp_path / "index.csv"
    path.write_bytes(server.fetch("/idc-index.csv"))
    return path


def cases() -> Iterator[tuple[str, str, int | None]]:
    for answer in ANSWERS:
        for kind in KINDS:
            for at in (None, 3000):
                if kind in SILENT and (at is None or answer == "/getSeriesMetadata"):
                    continue  # each waits for the timeout
                yield answer, kind, at


@pytest.mark.parametrize(("answer", "kind", "at"), list(cases()))
def test_any_fault_gives_the_right_bytes_or_an_error_and_then_heals(
    server: DemoServer, index: Path, answer: str, kind: str, at: int | None
) -> None:
    uid, prefer = ANSWERS[answer]
    truth = sorted(row["md5"] for row in server.tcia_truth() if row["series"] == uid)
    manifest = parse_manifest(f"ListOfSeriesToDownload=\n{uid}", "test")
    http = HttpConfig(timeout_s=1.0, retries=1)
    tcia = TciaConfig(prefer, idc_url=server.url, idc_index=index)

    def md5_of_all() -> list[str]:
        return sorted(md5_of(entry) for entry in files_of(archive, uid))

    def md5_of(entry: Entry) -> str:
        with closing(BlockReader(archive, MemoryBlocks(1 << 20), ReadConfig(timeout_s=1.0), 1 << 20)) as reader:
            file = reader.open(entry)
            try:
                return md5(reader.pread(file, 0, entry.size or 0)).hexdigest()
            finally:
                reader.release(file)

    with closing(NbiaArchive(manifest, server.url, Credentials(), http, TreeConfig(), tcia, "test/1")) as archive:
        server.fault(answer, kind, times=None, **({} if at is None else {"at": at}))
        try:
            found = md5_of_all()
        except (ArchiveError, AssertionError) as error:
            assert isinstance(error, ArchiveError) or "is not in the tree" in str(error)
        else:
            # IDC lists no digest: bytes of the right length and version are taken for the object's.
            assert found == truth or (kind == "garbage" and prefer == "idc")
            assert len(found) == len(truth)
        server.clear_faults()
        assert md5_of_all() == truth
