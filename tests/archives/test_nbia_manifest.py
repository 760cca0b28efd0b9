"""Manifests as TCIA published them, and the odd ones.

Sources: tests/data/recordings/README.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from xnatfs.archives.nbia.manifest import parse_manifest
from xnatfs.errors import UsageError

RECORDED = Path(__file__).parent.parent / "data" / "recordings" / "tcia-manifests"
NBIA = "https://nbia.cancerimagingarchive.net"
COUNTS = {
    "AHOD0831-PATDIT": 10,
    "CALGB50303-108993": 14,
    "CMB-CRC_CT_small": 1,
    "CPTAC-PDA-demo": 3,
    "NBIA-Submission-Test-Data_225series_3.4gbytes": 225,
    "TCIA_CT_Lymph_Nodes_03-31-2023": 352,
}
HEADER = f"downloadServerUrl={NBIA}/nbia-download/servlet/DownloadServlet\nnoOfrRetry=4\nmanifestVersion=3.0\n"


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_manifest_names_its_server_and_every_series(name: str) -> None:
    manifest = parse_manifest((RECORDED / f"{name}.tcia").read_bytes().decode(), name)
    assert (manifest.server, manifest.retries, len(manifest.series)) == (NBIA, 4, COUNTS[name])


def test_every_published_manifest_of_the_recordings_is_read() -> None:
    assert sorted(path.stem for path in RECORDED.iterdir()) == sorted(COUNTS)


def test_a_literal_heading_in_the_list_is_no_series_and_is_not_lost() -> None:
    name = "NBIA-Submission-Test-Data_225series_3.4gbytes.tcia"
    manifest = parse_manifest((RECORDED / name).read_bytes().decode(), name)
    assert manifest.odd == ("Series ID",)


@pytest.mark.parametrize(
    "listed",
    [
        "1.2.3\r\n\r\n1.2.4\r\n",
        "1.2.3\n1.2.4",
        "1.2.3,\n1.2.4,\n",
        "\ufeff1.2.3\n1.2.4".removeprefix("\ufeff"),
        "  1.2.3  \n\t1.2.4\n\n\n",
        '"1.2.3"\n"1.2.4"\n',
        "1.2.3 1.2.4\n",
        "1.2.3\n1.2.4\n1.2.3\n",
    ],
)
def test_the_ways_to_write_a_list_are_all_read(listed: str) -> None:
    assert parse_manifest(f"{HEADER}ListOfSeriesToDownload=\n{listed}", "m").series == ("1.2.3", "1.2.4")


def test_a_byte_order_mark_other_case_and_escapes_of_java_do_no_harm() -> None:
    text = "\ufeffdownloadServerUrl=http\\://h\\:8080/x/nbia-download/servlet/DownloadServletV4\r\nLISTOFSERIESTODOWNLOAD=\r\n1.2"
    manifest = parse_manifest(text, "m")
    assert (manifest.server, manifest.series, manifest.retries) == ("http://h:8080/x", ("1.2",), None)


def test_a_wish_for_many_retries_is_cut() -> None:
    text = HEADER.replace("noOfrRetry=4", "noOfrRetry=99999") + "ListOfSeriesToDownload=\n1.2"
    assert parse_manifest(text, "m").retries == 10


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("temp", "not a TCIA manifest"),
        ("", "not a TCIA manifest"),
        ("<html></html>", "not a TCIA manifest"),
        ("databasketId=manifest-1.tcia\ntempLoc=/tmp\n", "version 1.0 keeps its list"),
        ("databasketId=manifest-1.tcia\nmanifestVersion=2.0\n", "version 2.0 keeps its list"),
        (f"{HEADER}ListOfSeriesToDownload=\n\n", "lists no series"),
        (f"{HEADER}ListOfSeriesToDownload=\nnothing here\n", "lists no series"),
    ],
)
def test_what_is_no_manifest_is_told_in_one_line(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_manifest(text, "some.tcia")
