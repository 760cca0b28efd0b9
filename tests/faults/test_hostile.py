"""A server that means harm: names, sizes, listings, zips, XML and redirects that no honest one would send.

What it says must not leave the tree, eat the memory, hang or stop the mount, or take the honest files with it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.matrix import BOUND_S, FAILED, TIMEOUT_S, sampled
from tests.helpers.hostile import Answer, Liar, document
from tests.helpers.mounting import Mount, mounted
from tests.helpers.outcomes import cat, ls, run_tool
from tests.helpers.server import DemoServer
from tests.helpers.truth import TrueFile, project_truth

pytestmark = pytest.mark.fuse

MIB = 1024 * 1024
SESSION = "DEMO/DEMO_001/DEMO_001_MR1"
SERIES = f"{SESSION}/scans/2-T2w/DICOM"
FILES = r"GET /data/experiments/XNAT_E00001/files"
MEMORY = 500 * MIB  # resident at most, whatever is sent; contract 4, numbers 4 and 14


@dataclass
class Front:
    """A mount of a liar, and the honest server behind it."""

    server: DemoServer
    liar: Liar
    mount: Mount

    @property
    def path(self) -> Path:
        return self.mount.path

    def peak_memory(self) -> int:
        """Bytes that the mount's process has had resident at most."""
        assert self.mount.process is not None
        status = Path(f"/proc/{self.mount.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return int(found.group(1)) * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


@pytest.fixture(scope="module")
def truth(server: DemoServer) -> dict[str, TrueFile]:
    return project_truth(server.truth("DEMO", md5="all"))


@pytest.fixture
def front(server: DemoServer, tmp_path: Path) -> Iterator[Front]:
    with (
        Liar(server.port) as liar,
        mounted(
            liar.url, tmp_path, "--timeout", f"{2 * TIMEOUT_S}s", "--metadata-ttl", "1s", user="demo", password="demo"
        ) as mount,
    ):
        yield Front(server, liar, mount)


# --- names and sizes ------------------------------------------------------------------------------------------------

NAMES = [
    "..", ".", "../../../../etc/passwd", "/etc/passwd", "a/../../b", "a//b", "./c", "nul\0byte", "new\nline", "tab\t",
    "\x1b[31mred\x1b[0m", "bell\a", "del\x7f", "c1\x9b", "\u202egnp.exe", "x" * 300, "\u5b57" * 120, "e\u0301.txt",
    "\u00e9.txt", "Case.txt", "case.txt", "CASE.TXT", " ", "-rf", "*", "$(reboot)", "`id`", "CON", "\ud800lone",
    ".xnat", "scans", "resources", "\\", "%2e%2e%2f", "?", "#", "a\r\nSet-Cookie: x=1",
]  # fmt: skip
SIZES: list[Any] = [
    10**30,
    -1,
    -(10**30),
    "abc",
    "1e3",
    "NaN",
    "0x10",
    "",
    None,
    1.5,
    [],
    {},
    True,
    "9" * 5000,
    "\u0663",
]


def assert_safe(front: Front) -> list[Path]:
    """Walk everything: every name can be a name, nothing is outside, nothing but files and folders; the files."""
    files = []
    root = os.path.realpath(front.path)
    for folder, folders, names in os.walk(front.path / SESSION):
        for name in [*folders, *names]:
            path = os.path.join(folder, name)
            assert "/" not in name and "\0" not in name and name not in (".", "..", "")
            assert len(os.fsencode(name)) <= 255
            assert os.path.realpath(path).startswith(root) and not os.path.islink(path)
            status = os.lstat(path)
            assert stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
            assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
        files += [Path(folder) / name for name in names]
    return files


def test_hostile_file_names_stay_in_their_folder_and_the_others_read(front: Front, truth: dict[str, TrueFile]) -> None:
    def change(answer: Answer) -> Answer:
        rows = answer.rows()
        model = next(row for row in rows if "/scans/1/" in row["URI"] or row["Name"].startswith("T1w"))
        base = model["URI"].rsplit("/", 1)[0]
        return answer.with_rows(rows + [{**model, "Name": name, "URI": f"{base}/{name}"} for name in NAMES])

    front.liar.lie(FILES, change)
    files = assert_safe(front)
    assert len(files) >= len([path for path in truth if path.startswith("DEMO_001/DEMO_001_MR1/")])
    for file in files:
        if file.parent.name == "DICOM" and "1-T1w" in str(file):
            outcome = cat(file, BOUND_S)
            assert outcome.code == 0 or outcome.errno
    outcome = run_tool(["find", front.path / SESSION, "-print0"], 3 * BOUND_S)
    assert outcome.code == 0, outcome.said
    assert all(line.startswith(os.fsencode(front.path / SESSION)) for line in outcome.output.split(b"\0")[:-1])
    assert_honest(front, truth)


def assert_honest(front: Front, truth: dict[str, TrueFile]) -> None:
    """An honest file of the same session is right."""
    name = "DEMO_001/DEMO_001_MR1/scans/2-T2w/DICOM/0003.dcm"
    outcome = cat(front.path / "DEMO" / name, BOUND_S)
    assert (outcome.code, len(outcome.output)) == (0, truth[name].size), outcome.said


def test_pairs_of_case_and_of_unicode_form_are_files_of_their_own(front: Front) -> None:
    pairs = [
        "Case.txt",
        "case.txt",
        unicodedata.normalize("NFC", "\u00e9.txt"),
        unicodedata.normalize("NFD", "\u00e9.txt"),
    ]

    def change(answer: Answer) -> Answer:
        rows = answer.rows()
        model = next(row for row in rows if row["Name"] == "snr.csv")
        base = model["URI"].rsplit("/", 1)[0]
        return answer.with_rows(
            [
                *rows,
                *({**model, "Name": name, "URI": f"{base}/{name}", "Size": str(n)} for n, name in enumerate(pairs, 1)),
            ]
        )

    front.liar.lie(FILES, change)
    folder = front.path / SESSION / "resources/QC/figures"
    shown = set(os.listdir(folder)) - {"snr.csv"}
    assert len(shown) == 4
    assert {"Case.txt", "case.txt"} <= shown
    assert (folder / "Case.txt").stat().st_size == 1
    assert (folder / "case.txt").stat().st_size == 2


@pytest.mark.parametrize("size", sampled({repr(size)[:20]: size for size in SIZES}, 4))
def test_an_impossible_size_is_asked_for_or_an_errno_and_never_believed(
    front: Front, truth: dict[str, TrueFile], size: Any
) -> None:
    front.liar.lie(FILES, lambda answer: answer.with_rows(
        [{**row, "Size": size} if row["Name"] == "0001.dcm" else row for row in answer.rows()]
    ))  # fmt: skip
    true = truth["DEMO_001/DEMO_001_MR1/scans/2-T2w/DICOM/0001.dcm"]
    path = front.path / SERIES / "0001.dcm"
    outcome = cat(path, BOUND_S)
    assert (
        (outcome.errno, len(outcome.output)) == (0, true.size)
        if not outcome.code
        else outcome.errno in (FAILED | {errno.ENOENT, errno.EOVERFLOW})
    )
    if not outcome.code:
        assert path.stat().st_size == true.size
    front.liar.rules.clear()
    assert_honest(front, truth)


@pytest.mark.parametrize("column", sampled({name: name for name in ("ID", "xsiType", "label", "subject_ID")}, 2))
def test_hostile_names_of_subjects_and_experiments_stay_in_the_tree(
    front: Front, truth: dict[str, TrueFile], column: str
) -> None:
    def change(answer: Answer) -> Answer:
        rows = answer.rows()
        key = next((key for key in rows[0] if key.lower() == column.lower()), column)
        return answer.with_rows(rows + [{**rows[0], "ID": f"X{n}", key: name} for n, name in enumerate(NAMES)])

    for listing in ("subjects", "experiments"):
        front.liar.lie(rf"GET /data/projects/DEMO/{listing}\?", change)
    outcome = ls(front.path / "DEMO", BOUND_S)
    # Rows of strange IDs share the first row's label, and all of that label get their ID; the second keeps its own.
    assert outcome.errno in FAILED if outcome.code else b"DEMO_002" in outcome.output.split(b"\n"), outcome
    for name in os.listdir(front.path / "DEMO") if not outcome.code else []:
        assert name not in (".", "..") and len(os.fsencode(name)) <= 255
    front.liar.rules.clear()


def test_hostile_names_of_projects_stay_in_the_tree(
    server: DemoServer, truth: dict[str, TrueFile], tmp_path: Path
) -> None:
    def change(answer: Answer) -> Answer:
        rows = answer.rows()
        return answer.with_rows(rows + [{**rows[0], "ID": name, "name": name} for name in NAMES])

    with Liar(server.port) as liar:
        liar.lie(r"GET /data/projects\?", change)
        with mounted(liar.url, tmp_path, "--timeout", f"{2 * TIMEOUT_S}s", user="demo", password="demo") as mount:
            names = os.listdir(mount.path)
            assert "DEMO" in names and len(names) == len(set(names))
            for name in names:
                assert name not in (".", "..") and len(os.fsencode(name)) <= 255
                assert os.path.realpath(mount.path / name) == str(mount.path / name)
                outcome = ls(mount.path / name, BOUND_S)
                assert outcome.errno in FAILED | {errno.ENOENT, errno.EACCES} if outcome.code else outcome.output
            assert_honest(Front(server, liar, mount), truth)


@pytest.mark.parametrize("names", ["label", pytest.param("cat_id", marks=pytest.mark.slow)])
def test_hostile_names_of_resources_stay_in_the_tree(front: Front, truth: dict[str, TrueFile], names: str) -> None:
    def change(answer: Answer) -> Answer:
        rows = answer.rows()
        model = next(row for row in rows if row["label"] == "QC")
        added = [{**model, "xnat_abstractresource_id": f"9{n}", names: name} for n, name in enumerate(NAMES)]
        return answer.with_rows(rows + added)

    front.liar.lie(r"GET /data/experiments/XNAT_E00001/resources\?", change)
    assert_walks_or_fails(front, truth)


@pytest.mark.parametrize("field", ["ID", pytest.param("type", marks=pytest.mark.slow)])
def test_hostile_names_of_scans_stay_in_the_tree(front: Front, truth: dict[str, TrueFile], field: str) -> None:
    def change(answer: Answer) -> Answer:
        assert isinstance(answer.body, bytes)
        document = json.loads(answer.body)
        (scans,) = (each for each in document["items"][0]["children"] if each["field"] == "scans/scan")
        model = scans["items"][0]
        for number, name in enumerate(NAMES):
            fields = {**model["data_fields"], "ID": f"9{number}", field: name}
            scans["items"].append({**model, "data_fields": fields})
        answer.body = json.dumps(document).encode()
        return answer

    front.liar.lie(r"GET /data/experiments/XNAT_E00001\?", change)
    assert_walks_or_fails(front, truth)


def assert_walks_or_fails(front: Front, truth: dict[str, TrueFile]) -> None:
    """The session shows all its honest files beside what is made up, or is an errno until the lie has ended."""
    honest = {path for path in truth if path.startswith("DEMO_001/DEMO_001_MR1/scans/2-T2w/")}
    outcome = ls(front.path / SESSION, BOUND_S)
    if outcome.code:
        assert outcome.errno in FAILED
    else:
        found = {str(file.relative_to(front.path / "DEMO")) for file in assert_safe(front)}
        assert honest <= found
        assert_honest(front, truth)
    front.liar.rules.clear()
    assert_soon_honest(front, truth)


def test_deep_nesting_neither_hangs_nor_ends_the_mount(front: Front, truth: dict[str, TrueFile]) -> None:
    def change(answer: Answer) -> Answer:
        rows = answer.rows()
        model = next(row for row in rows if row["Name"] == "snr.csv")
        base = model["URI"].rsplit("/", 1)[0]
        deep = [{**model, "Name": "f", "URI": f"{base}/{'d/' * depth}f"} for depth in (50, 1500, 5000)]
        return answer.with_rows(rows + deep)

    front.liar.lie(FILES, change)
    outcome = run_tool(["find", front.path / SESSION / "resources", "-type", "f", "-path", "*/d/d/*"], 6 * BOUND_S)
    assert len(outcome.output.splitlines()) == 3
    assert_honest(front, truth)


# --- listings -------------------------------------------------------------------------------------------------------


def endless(piece: bytes, total: int) -> Iterator[bytes]:
    block = piece * (MIB // len(piece) + 1)
    for _ in range(total // len(block) + 1):
        yield block


@pytest.mark.timeout(180)
@pytest.mark.parametrize("framing", ["in chunks", pytest.param("with its length", marks=pytest.mark.slow)])
def test_a_listing_of_a_gigabyte_is_an_errno_and_costs_no_memory(
    front: Front, truth: dict[str, TrueFile], framing: str
) -> None:
    gigabyte = 1 << 30
    row = b'{"ID":"XNAT_E00001","label":"DEMO_001_MR1","xsiType":"xnat:mrSessionData","subject_ID":"XNAT_S00001"},'

    def change(answer: Answer) -> Answer:
        length = None if framing == "in chunks" else gigabyte + 2 * MIB
        body = (piece for part in ([b'{"ResultSet":{"Result":['], endless(row, gigabyte)) for piece in part)
        return Answer(200, [("Content-Type", "application/json")], body, length)

    front.liar.lie(r"GET /data/projects/DEMO/experiments\?", change)
    assert ls(front.path / "DEMO", 60).errno in FAILED
    assert front.peak_memory() < MEMORY
    front.liar.rules.clear()
    assert_soon_honest(front, truth)


def assert_soon_honest(front: Front, truth: dict[str, TrueFile]) -> None:
    run_tool(["sleep", "1.2"], 5)  # a failed listing is not asked for again within a second
    assert_honest(front, truth)


DOCUMENTS: dict[str, bytes] = {
    "arrays within arrays": b"[" * 200_000,
    "objects within objects": b'{"a":' * 200_000,
    "a huge number": b'{"ResultSet":{"Result":[{"ID":' + b"9" * 200_000 + b"}]}}",
    "rows that are no objects": b'{"ResultSet":{"Result":[1,[],"x",null]}}',
    "a table of a table": b'{"ResultSet":{"Result":{"Result":[]}}}',
    "null": b"null",
    "not UTF-8": b'{"ResultSet":{"Result":[{"ID":"\xff\xfe"',
    "a byte order mark": b"\xef\xbb\xbf",
    "NUL": b"\0" * 100_000,
    "rows without names": b'{"ResultSet":{"Result":[{},{}]}}',
    "rows of lists": b'{"ResultSet":{"Result":[{"ID":[1],"label":{"a":1}}]}}',
}


@pytest.mark.parametrize("name", sampled({name: name for name in DOCUMENTS}, 3))
def test_a_document_that_is_no_listing_is_an_errno(front: Front, truth: dict[str, TrueFile], name: str) -> None:
    front.liar.lie(r"GET /data/projects/DEMO/experiments\?|" + FILES, document(DOCUMENTS[name]))
    assert ls(front.path / "DEMO", BOUND_S).errno in FAILED
    front.liar.rules.clear()
    assert_soon_honest(front, truth)


BOMB = b'<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a0 "ha">' + b"".join(
    b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 10) for n in range(1, 12)
) + b']><cat:Catalog xmlns:cat="http://nrg.wustl.edu/catalog">&a11;</cat:Catalog>'  # fmt: skip
OUTSIDE = (
    b'<?xml version="1.0"?><!DOCTYPE b [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    b'<cat:Catalog xmlns:cat="http://nrg.wustl.edu/catalog">&x;</cat:Catalog>'
)


@pytest.mark.parametrize("xml", [BOMB, OUTSIDE], ids=["a bomb", "a file of ours"])
def test_xml_entities_are_not_resolved(front: Front, truth: dict[str, TrueFile], xml: bytes) -> None:
    front.liar.lie(r"/files\?", lambda answer: Answer(500, [], b"no list"))
    front.liar.lie(r"format=xml", document(xml, "text/xml"))
    outcome = ls(front.path / SERIES, 3 * BOUND_S)
    assert outcome.errno in FAILED, outcome.output
    assert front.peak_memory() < MEMORY
    front.liar.rules.clear()
    assert_soon_honest(front, truth)


# --- zips -----------------------------------------------------------------------------------------------------------


def zip_of(members: dict[str, bytes], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return buffer.getvalue()


ZIPS: dict[str, bytes] = {
    "slip": zip_of({f"../../../../../../tmp/xnatfs-slip-{n}": b"x" * 500 for n in range(12)}, zipfile.ZIP_STORED),
    "absolute": zip_of({"/etc/xnatfs-slip": b"x" * 500}, zipfile.ZIP_STORED),
    "bomb": zip_of({f"{n:04d}.dcm": bytes(200 * MIB) for n in range(1, 3)}, zipfile.ZIP_DEFLATED),
    "other bytes": zip_of(
        {f"DEMO_001_MR1/scans/2-T2w/resources/DICOM/files/{n:04d}.dcm": b"x" * 500 for n in range(1, 13)},
        zipfile.ZIP_STORED,
    ),
    "no zip": b"PK\3\4" + b"\xff" * 3000,
}


@pytest.mark.parametrize("name", sampled({name: name for name in ZIPS}, 2))
def test_a_hostile_zip_of_a_folder_is_not_believed(
    front: Front, truth: dict[str, TrueFile], tmp_path: Path, name: str
) -> None:
    front.liar.lie("format=zip", document(ZIPS[name], "application/zip"))
    outcome = run_tool(["cp", "-r", front.path / SERIES, tmp_path / "copy"], 3 * BOUND_S)
    assert outcome.code == 0, outcome.said
    for path in (tmp_path / "copy").iterdir():
        true = truth[f"DEMO_001/DEMO_001_MR1/scans/2-T2w/DICOM/{path.name}"]
        assert true.md5 == TrueFile(path.stat().st_size, md5_of(path)).md5
    assert not list(Path("/tmp").glob("xnatfs-slip*")) and not Path("/etc/xnatfs-slip").exists()
    assert front.peak_memory() < MEMORY


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("name", sampled({name: name for name in ZIPS}, 2))
def test_a_file_out_of_a_hostile_zip_is_an_errno(front: Front, name: str) -> None:
    path = front.path / "ODDITIES/ODD_1/ODD_1_MR/resources/names/per%cent.txt"
    path.stat()
    front.liar.lie("format=zip", document(ZIPS[name], "application/zip"))
    outcome = cat(path, BOUND_S)
    assert (outcome.output, outcome.errno in FAILED | {errno.ENOENT}) == (b"", True), outcome.said
    assert front.peak_memory() < MEMORY


# --- redirects and heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", sampled({str(status): status for status in (302, 301, 303, 307, 308)}, 5))
@pytest.mark.parametrize("what", [r"/files/0001.dcm", FILES])
def test_a_redirect_to_another_origin_is_an_errno_and_tells_it_nothing(
    front: Front, truth: dict[str, TrueFile], what: str, status: int
) -> None:
    with Liar(front.server.port) as other:
        if what != FILES:
            (front.path / SERIES / "0001.dcm").stat()
        front.liar.lie(what, lambda answer: Answer(status, [("Location", f"{other.url}/data/projects")], b""))
        assert cat(front.path / SERIES / "0001.dcm", BOUND_S).errno in FAILED
        assert other.seen == []
    front.liar.rules.clear()
    assert_soon_honest(front, truth)


def test_a_redirect_of_a_zip_to_another_origin_costs_single_requests_and_tells_it_nothing(
    front: Front, truth: dict[str, TrueFile], tmp_path: Path
) -> None:
    with Liar(front.server.port) as other:
        front.liar.lie("format=zip", lambda answer: Answer(302, [("Location", f"{other.url}/data/projects")], b""))
        outcome = run_tool(["cp", "-r", front.path / SERIES, tmp_path / "copy"], 3 * BOUND_S)
        assert outcome.code == 0, outcome.said
        assert any("format=zip" in what for what, _ in front.liar.seen)
        assert other.seen == []
    copied = {path.name: md5_of(path) for path in (tmp_path / "copy").iterdir()}
    place = "DEMO_001/DEMO_001_MR1/scans/2-T2w/DICOM/"
    assert copied == {path.removeprefix(place): true.md5 for path, true in truth.items() if path.startswith(place)}


HEADS: dict[str, list[tuple[str, str]]] = {
    "a header of 200 KB": [("X-Long", "x" * 200_000)],
    "a thousand headers": [(f"X-{n}", "x") for n in range(1000)],
    "a redirect to itself": [("Location", "/data/projects")],
    "a redirect to no address": [("Location", "http://[")],
    "a redirect to no port": [("Location", "http://127.0.0.1:999999999/data/projects")],
    "a cookie of control characters": [("Set-Cookie", "JSESSIONID=\x01\x02; Path=/")],
    "nonsense as Last-Modified": [("Last-Modified", "yesterday \x01")],
}


@pytest.mark.parametrize("name", sampled({name: name for name in HEADS}, 2))
def test_a_strange_head_is_right_bytes_or_an_errno(front: Front, truth: dict[str, TrueFile], name: str) -> None:
    (front.path / SERIES / "0001.dcm").stat()
    status = 302 if "redirect" in name else 200
    front.liar.lie("/files/0001.dcm", lambda answer: Answer(status, [*answer.headers, *HEADS[name]], answer.body))
    true = truth["DEMO_001/DEMO_001_MR1/scans/2-T2w/DICOM/0001.dcm"]
    outcome = cat(front.path / SERIES / "0001.dcm", BOUND_S)
    assert outcome.errno in FAILED | {errno.EACCES} if outcome.code else len(outcome.output) == true.size
    front.liar.rules.clear()
    assert_soon_honest(front, truth)
