"""One file's bytes: headers, conditions, negotiation, ranges, names, and archives of files, as XNAT answers them."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from tests.helpers.server import DemoServer

MIB = 1024 * 1024


def row_of(server: DemoServer, project: str, name: str) -> dict[str, Any]:
    return next(r for r in server.truth(project) if r["name"] == name)


def address(server: DemoServer, row: dict[str, Any]) -> str:
    """The URL of a listed file: XNAT's URI is not encoded, a client must do it."""
    base, path = row["uri"].split("/files/", 1)
    return f"{server.url}{base}/files/{quote(path)}"


def test_get_carries_length_and_date_but_no_etag(server: DemoServer, http: requests.Session) -> None:
    row = row_of(server, "DEMO", "anatomical.nii")
    answer = http.get(address(server, row))
    assert answer.headers["Content-Length"] == str(row["size"])
    assert answer.headers["Last-Modified"] == "Tue, 05 Mar 2024 10:20:30 GMT"
    assert answer.headers["Cache-Control"] == "must-revalidate"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="anatomical.nii";'
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert not {"ETag", "Accept-Ranges", "Content-Encoding"} & set(answer.headers)
    assert hashlib.md5(answer.content).hexdigest() == row["md5"]


def test_content_type_goes_by_extension(server: DemoServer, http: requests.Session) -> None:
    answer = http.get(address(server, row_of(server, "DEMO", "report.html")))
    assert answer.headers["Content-Type"] == "text/html"
    assert answer.content.startswith(b"<!DOCTYPE html>")


def test_head_has_the_headers_of_get_and_no_body(server: DemoServer, http: requests.Session) -> None:
    row = row_of(server, "DEMO", "anatomical.nii")
    answer = http.head(address(server, row))
    assert (answer.status_code, answer.headers["Content-Length"], answer.content) == (200, str(row["size"]), b"")


def test_range_is_ignored_unless_switched_on(server: DemoServer, http: requests.Session) -> None:
    row = row_of(server, "DEMO", "anatomical.nii")
    answer = http.get(address(server, row), headers={"Range": "bytes=100-199"})
    assert answer.status_code == 200
    assert len(answer.content) == row["size"]


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [("bytes=100-199", 100, 200), ("bytes=68000-", 68000, 68002), ("bytes=-5", 67997, 68002), ("bytes=0-0", 0, 1)],
)
def test_range_is_honoured_when_switched_on(
    server: DemoServer, http: requests.Session, header: str, start: int, stop: int
) -> None:
    server.switch(range=True)
    url = address(server, row_of(server, "DEMO", "anatomical.nii"))
    whole = http.get(url).content
    answer = http.get(url, headers={"Range": header})
    assert answer.status_code == 206
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/68002"
    assert answer.content == whole[start:stop]


def test_a_range_beyond_the_end_is_416(server: DemoServer, http: requests.Session) -> None:
    server.switch(range=True)
    answer = http.get(address(server, row_of(server, "DEMO", "anatomical.nii")), headers={"Range": "bytes=68002-"})
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, "bytes */68002")


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("*/*", 200),
        ("application/octet-stream", 406),
        ("application/octet-stream, */*", 200),
        ("application/json", 200),
    ],
)
def test_accept_decides_before_the_file_does(
    server: DemoServer, http: requests.Session, accept: str, status: int
) -> None:
    answer = http.get(address(server, row_of(server, "DEMO", "anatomical.nii")), headers={"Accept": accept})
    assert answer.status_code == status


def test_a_picture_is_made_of_dicom_and_of_nothing_else(server: DemoServer, http: requests.Session) -> None:
    dicom = http.get(address(server, row_of(server, "DEMO", "T1w-0001.dcm")), headers={"Accept": "image/jpeg"})
    nifti = http.get(address(server, row_of(server, "DEMO", "anatomical.nii")), headers={"Accept": "image/jpeg"})
    assert dicom.headers["Content-Type"] == "image/jpeg"
    assert dicom.content[:2] == b"\xff\xd8"
    assert nifti.status_code == 406


def test_dates_make_conditions(server: DemoServer, http: requests.Session) -> None:
    url = address(server, row_of(server, "DEMO", "anatomical.nii"))
    same, older = "Tue, 05 Mar 2024 10:20:30 GMT", "Tue, 05 Mar 2024 10:20:29 GMT"
    assert http.get(url, headers={"If-Modified-Since": same}).status_code == 304
    assert http.get(url, headers={"If-Modified-Since": older}).status_code == 200
    assert http.get(url, headers={"If-Unmodified-Since": older}).status_code == 412


@pytest.mark.parametrize("prefix", ["/data", "/data/archive", "/REST"])
def test_three_prefixes_lead_to_the_same_file(server: DemoServer, http: requests.Session, prefix: str) -> None:
    row = row_of(server, "DEMO", "snr.csv")
    assert http.get(server.url + row["uri"].replace("/data", prefix, 1)).content == b"scan,snr\n1,42\n"


def test_labels_and_ids_both_name_a_resource(server: DemoServer, http: requests.Session) -> None:
    base = f"{server.url}/data/projects/DEMO/subjects/DEMO_001/experiments/DEMO_001_MR1/scans/1/resources"
    row = row_of(server, "DEMO", "T1w-0001.dcm")
    by_label = http.get(f"{base}/DICOM/files/T1w-0001.dcm")
    by_id = http.get(f"{base}/{row['resource_id']}/files/T1w-0001.dcm")
    assert by_label.content == by_id.content
    assert hashlib.md5(by_id.content).hexdigest() == row["md5"]


def test_odd_names_are_reached_when_encoded_and_the_firewall_refuses_some(
    server: DemoServer, http: requests.Session
) -> None:
    rows = [r for r in server.truth("ODDITIES") if r["resource"] == "names"]
    refused = {r["path"] for r in rows if http.get(address(server, r)).status_code == 500}
    served = {r["path"] for r in rows if http.get(address(server, r)).content == f"content of {r['path']}\n".encode()}
    assert refused == {"per%cent.txt", "semi;colon.txt", "back\\slash.txt"}
    assert served == {r["path"] for r in rows} - refused - {"sub dir/deep+er/#1/x.txt"}
    deep = next(r for r in rows if r["path"].startswith("sub dir"))
    assert http.get(address(server, deep)).content == b"deep\n"


def test_a_label_with_specials_needs_the_id(server: DemoServer, http: requests.Session) -> None:
    row = next(r for r in server.truth("ODDITIES") if r["resource"] == "with space & more")
    base = f"{server.url}/data/experiments/XNAT_E00020/resources"
    assert http.get(f"{base}/{quote(row['resource'])}/files/a.txt").status_code == 404
    assert http.get(f"{base}/{row['resource_id']}/files/a.txt").content == b"label with a space\n"


def test_an_all_digit_label_is_read_as_an_id(server: DemoServer, http: requests.Session) -> None:
    assert http.get(f"{server.url}/data/experiments/XNAT_E00020/resources/2019/files/year.txt").status_code == 404


def test_a_file_gone_from_disk_is_404_with_a_page(server: DemoServer, http: requests.Session) -> None:
    answer = http.get(address(server, row_of(server, "ODDITIES", "gone.dcm")))
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "text/html")


def test_the_length_of_the_answer_beats_a_stale_listing(server: DemoServer, http: requests.Session) -> None:
    row = row_of(server, "ODDITIES", "grown.txt")
    assert (row["listed_size"], row["size"]) == ("1000", 3000)
    assert http.get(address(server, row)).headers["Content-Length"] == "3000"


def test_the_first_of_two_equal_paths_is_served(server: DemoServer, http: requests.Session) -> None:
    rows = [r for r in server.truth("ODDITIES") if r["name"] == "same.txt"]
    assert len(rows) == 2
    assert http.get(address(server, rows[0])).content == b"first\n"


def test_a_zip_is_stored_and_chunked_with_sizes_up_front(server: DemoServer, http: requests.Session) -> None:
    answer = http.get(f"{server.url}/data/experiments/XNAT_E00001/scans/1/files?format=zip")
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert "Content-Length" not in answer.headers
    truth = {r["path"]: r for r in server.truth("DEMO") if r["experiment_id"] == "XNAT_E00001" and r["item"] == "1"}
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        infos = archive.infolist()
        assert {i.compress_type for i in infos} == {zipfile.ZIP_STORED}
        assert {i.flag_bits for i in infos} == {0x800}
        assert infos[0].filename == "DEMO_001_MR1/scans/1-T1w/resources/DICOM/files/T1w-0001.dcm"
        got = {i.filename.split("/files/")[1]: hashlib.md5(archive.read(i)).hexdigest() for i in infos}
    assert got == {path: row["md5"] for path, row in truth.items()}


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        ("", "DEMO_001_MR1/scans/3-bold_rest__AP_/resources/BIDS/files/events/run-1/events.tsv"),
        ("simplified", "DEMO_001_MR1/scans/3/BIDS/events/run-1/events.tsv"),
        ("improved", "scans/3_bold_rest__AP_/BIDS/events/run-1/events.tsv"),
    ],
)
def test_structure_names_the_members(server: DemoServer, http: requests.Session, structure: str, expected: str) -> None:
    query = {"format": "zip", "structure": structure}
    answer = http.get(f"{server.url}/data/experiments/XNAT_E00001/scans/3/resources/BIDS/files", params=query)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert expected in archive.namelist()


def test_a_deflated_zip_has_data_descriptors(server: DemoServer, http: requests.Session) -> None:
    answer = http.get(f"{server.url}/data/experiments/XNAT_E00001/scans/2/files?format=zip&compression=8")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {(i.compress_type, i.flag_bits) for i in archive.infolist()} == {(zipfile.ZIP_DEFLATED, 0x808)}


def test_a_tar_opens(server: DemoServer, http: requests.Session) -> None:
    for form, flag in (("tar", "-t"), ("tar.gz", "-tz")):
        answer = http.get(f"{server.url}/data/experiments/XNAT_E00001/scans/2/files?format={form}")
        listed = subprocess.run(["tar", flag], input=answer.content, capture_output=True, check=True).stdout
        assert listed.decode().splitlines()[0] == "DEMO_001_MR1/scans/2-T2w/resources/DICOM/files/0001.dcm"


def test_a_zip_leaves_missing_files_out_and_an_empty_one_is_404(server: DemoServer, http: requests.Session) -> None:
    base = f"{server.url}/data/experiments/XNAT_E00020/resources"
    answer = http.get(f"{base}/missing/files?format=zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert [name.rsplit("/", 1)[1] for name in archive.namelist()] == ["here.txt"]
    assert http.get(f"{base}/empty/files?format=zip").status_code == 404


def test_names_that_the_firewall_refuses_can_be_had_by_zip(server: DemoServer, http: requests.Session) -> None:
    answer = http.get(f"{server.url}/data/experiments/XNAT_E00020/resources/names/files?format=zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        found = {name.split("/files/")[1]: archive.read(name) for name in archive.namelist()}
    for path in ("per%cent.txt", "semi;colon.txt", "back\\slash.txt"):
        assert found[path] == f"content of {path}\n".encode()


def test_the_large_file_is_fast_flat_and_counted(server: DemoServer) -> None:
    row = row_of(server, "BIG", "bold_1g.nii")
    command = ["curl", "-s", "-u", "demo:demo", "-o", "/dev/null", "-w", "%{speed_download}", server.url + row["uri"]]
    speeds = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    assert max(speeds) > 1.0e9  # bytes a second; 4e9 on an idle machine
    assert [r["sent"] for r in server.data_requests()] == [row["size"]] * 3
    with open(f"/proc/{server.pid}/status") as status:
        peak_kb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert peak_kb < 200_000


def test_no_two_blocks_of_the_large_file_are_equal(server: DemoServer, http: requests.Session) -> None:
    row = row_of(server, "BIG", "bold_500m.nii")
    blocks = set()
    with http.get(server.url + row["uri"], stream=True) as answer:
        for block in answer.iter_content(MIB):
            blocks.add(hashlib.md5(block).digest())
    assert len(blocks) == -(-row["size"] // MIB)


def test_the_listed_digest_of_the_hundred_megabyte_file_is_right(server: DemoServer, http: requests.Session) -> None:
    listing = http.get(f"{server.url}/data/experiments/XNAT_E00040/files?all=true").json()
    row = next(r for r in listing["ResultSet"]["Result"] if r["Name"] == "bold_100m.nii")
    digest = hashlib.md5()
    with http.get(server.url + row["URI"], stream=True) as answer:
        for block in answer.iter_content(MIB):
            digest.update(block)
    assert row["digest"] == digest.hexdigest()
    assert row["Size"] == "99942752"


def test_what_a_client_does_not_read_is_not_counted_for_long(server: DemoServer, http: requests.Session) -> None:
    row = row_of(server, "BIG", "bold_1g.nii")
    with http.get(server.url + row["uri"], stream=True) as answer:
        answer.raw.read(352)
    record = server.data_requests()[0]
    assert record["aborted"]
    assert 352 <= record["sent"] <= 8 * MIB  # requests leaves the kernel's own receive buffer as it is


def test_bandwidth_is_shared_by_all(server: DemoServer, http: requests.Session) -> None:
    server.switch(bandwidth=20e6)
    row = row_of(server, "BIG", "bold_100m.nii")
    urls = [server.url + row["uri"]] * 2
    command = ["curl", "-s", "-u", "demo:demo", "-m", "1.5", "-o", "/dev/null", "-o", "/dev/null", "--parallel", *urls]
    subprocess.run(command, check=False)
    sent = sum(r["sent"] for r in server.data_requests())
    assert 10e6 < sent < 40e6


def test_the_bandwidth_of_a_connection_is_not_shared(server: DemoServer, http: requests.Session) -> None:
    server.switch(connection_bandwidth=10e6)
    row = row_of(server, "BIG", "bold_100m.nii")
    command = ["curl", "-s", "-u", "demo:demo", "-m", "2", "-o", "/dev/null", server.url + row["uri"]]
    clients = [subprocess.Popen(command) for _ in range(3)]
    for client in clients:
        client.wait(20)
    sent = [r["sent"] for r in server.data_requests()]
    assert len(sent) == 3
    assert all(4e6 < each < 24e6 for each in sent)
    assert sum(sent) > 22e6


def test_a_connection_stays_usable_after_a_zip_and_a_large_file(server: DemoServer) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    headers = {"Authorization": "Basic ZGVtbzpkZW1v"}
    paths = ["/data/experiments/XNAT_E00001/scans/1/files?format=zip", row_of(server, "BIG", "bold_100m.nii")["uri"]]
    lengths = []
    for path in [*paths, *paths]:
        connection.request("GET", path, headers=headers)
        lengths.append(len(connection.getresponse().read()))
    connection.close()
    assert lengths[:2] == lengths[2:]
    assert [r["sent"] for r in server.data_requests()] == lengths


def test_many_clients_are_served_at_once(server: DemoServer) -> None:
    row = row_of(server, "DEMO", "anatomical.nii")
    command = ["curl", "-s", "-u", "demo:demo", "--parallel", "--parallel-max", "40"]
    for number in range(200):
        command += ["-o", "/dev/null", f"{server.url}{row['uri']}?n={number}"]
    subprocess.run(command, check=True, timeout=60)
    assert [r["sent"] for r in server.data_requests()] == [row["size"]] * 200


def test_if_range_with_another_date_gives_the_whole_file(server: DemoServer, http: requests.Session) -> None:
    server.switch(range=True)
    url = address(server, row_of(server, "DEMO", "anatomical.nii"))
    same, other = "Tue, 05 Mar 2024 10:20:30 GMT", "Tue, 05 Mar 2024 10:20:31 GMT"
    assert http.get(url, headers={"Range": "bytes=0-9", "If-Range": same}).status_code == 206
    assert http.get(url, headers={"Range": "bytes=0-9", "If-Range": other}).status_code == 200


def test_a_plain_directory_index_leads_to_the_same_bytes(
    server: DemoServer, http: requests.Session, tmp_path: Path
) -> None:
    row = row_of(server, "DEMO", "T1w-0007.dcm")
    assert 'href="BIG/"' in http.get(f"{server.url}/index/").text
    page = http.get(f"{server.url}/index/DEMO/DEMO_001_MR1/3/BIDS/")
    assert 'href="events/"' in page.text
    assert http.get(f"{server.url}/index/DEMO/DEMO_001_MR1/3/BIDS/events/run-1/events.tsv").text.startswith("onset")
    got = http.get(f"{server.url}/index/DEMO/DEMO_001_MR1/1/DICOM/T1w-0007.dcm").content
    assert hashlib.md5(got).hexdigest() == row["md5"]
    assert http.get(f"{server.url}/index/DEMO/DEMO_001_MR1/3/BIDS").content == page.content  # led there, as elsewhere
    assert http.get(f"{server.url}/index/PRIVATE/").status_code == 404
    assert http.get(f"{server.url}/index/PRIVATE").status_code == 404
    assert http.get(f"{server.url}/index").url == f"{server.url}/index/"


@pytest.mark.tools
@pytest.mark.skipif(shutil.which("rclone") is None, reason="rclone is not installed")
def test_rclone_copies_from_the_index(server: DemoServer, tmp_path: Path) -> None:
    login = "Authorization,Basic ZGVtbzpkZW1v"
    url = f"{server.url}/index/DEMO/DEMO_001_MR1/"
    command = ["rclone", "copy", ":http:", str(tmp_path), "--http-url", url, "--http-headers", login, "-q"]
    subprocess.run(command, check=True, env={**os.environ, "RCLONE_CONFIG": "/dev/null"}, timeout=60)
    truth = {r["md5"] for r in server.truth("DEMO") if r["experiment"] == "DEMO_001_MR1" and r["area"] == "scans"}
    copied = {hashlib.md5(path.read_bytes()).hexdigest() for path in tmp_path.rglob("*") if path.is_file()}
    assert copied == truth
