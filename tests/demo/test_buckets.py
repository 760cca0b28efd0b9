"""Scans as open buckets: shut until they are opened, and then listings and objects as S3 has them."""

from __future__ import annotations

import urllib.error
import xml.etree.ElementTree as ET

import pytest
import requests

from tests.helpers.server import DemoServer

NAMESPACE = {"s3": "http://s3.amazonaws.com/doc/2006-03-01/"}


@pytest.fixture
def open_server(server: DemoServer) -> DemoServer:
    server.switch(buckets=True)
    return server


def page(server: DemoServer, query: str) -> ET.Element:
    return ET.fromstring(server.fetch(f"/xnat-demo?list-type=2&{query}"))


def texts(root: ET.Element, path: str) -> list[str]:
    return [found.text or "" for found in root.iterfind(path, NAMESPACE)]


def every_key(server: DemoServer, query: str) -> list[str]:
    """Keys and folders of all pages, in the order in which they come."""
    found, token = [], ""
    while True:
        root = page(server, f"{query}&continuation-token={token}")
        found += texts(root, "*/s3:Key") + texts(root, "*/s3:Prefix")
        (more,) = texts(root, "s3:IsTruncated")
        if more == "false":
            return found
        (token,) = texts(root, "s3:NextContinuationToken")


def scans(server: DemoServer) -> list[str]:
    rows = [row for row in server.truth("DEMO") if "/scans/" in row["uri"]]
    return sorted("/".join((r["experiment"], r["item"], r["resource"], r["path"])) for r in rows)


def test_buckets_are_shut_until_the_switch_opens_them(server: DemoServer) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        server.fetch("/xnat-demo?list-type=2")


def test_a_listing_names_every_file_of_every_scan(open_server: DemoServer) -> None:
    assert every_key(open_server, "prefix=") == scans(open_server)


def test_pages_follow_each_other_without_a_gap(open_server: DemoServer) -> None:
    assert every_key(open_server, "prefix=&max-keys=7") == scans(open_server)


def test_a_delimiter_folds_what_lies_deeper(open_server: DemoServer) -> None:
    sessions = {key.partition("/")[0] + "/" for key in scans(open_server)}
    assert sorted(every_key(open_server, "prefix=&delimiter=/&max-keys=1")) == sorted(sessions)


def test_an_object_comes_whole_or_in_part_with_its_size_and_etag(open_server: DemoServer) -> None:
    row = next(r for r in open_server.truth("DEMO") if r["name"] == "anatomical.nii")
    key = "/".join((row["experiment"], row["item"], row["resource"], row["path"]))
    root = page(open_server, f"prefix={key}")
    whole = requests.get(f"{open_server.url}/xnat-demo/{key}", timeout=10)
    part = requests.get(f"{open_server.url}/xnat-demo/{key}", headers={"Range": "bytes=100-199"}, timeout=10)
    assert [int(size) for size in texts(root, "*/s3:Size")] == [row["size"]] == [len(whole.content)]
    assert texts(root, "*/s3:ETag") == [whole.headers["ETag"]]
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert requests.get(f"{open_server.url}/xnat-demo/{key}x", timeout=10).status_code == 404
