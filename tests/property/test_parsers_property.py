"""Whatever a server sends, a parser gives a listing with safe names or an error of ours: it never falls over.

Rows, items, catalogs, pages, headers and manifests are made up by hypothesis, close enough to real ones to get past the
first look.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xnatfs.archives.http import body
from xnatfs.archives.http import reply as reply_module
from xnatfs.archives.nbia import manifest
from xnatfs.archives.nbia import tables as nbia_tables
from xnatfs.archives.objects import index_page, openneuro, s3_listing
from xnatfs.archives.xnat import tables
from xnatfs.archives.xnat.files import file_runs, parse_size
from xnatfs.archives.xnat.tables import Item, Row
from xnatfs.config import TreeConfig
from xnatfs.errors import ArchiveError, UsageError
from xnatfs.model import Entry, Listing
from xnatfs.tree.table import Table

settings.register_profile(
    "parsers", suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None
)
fuzz = settings(settings.get_profile("parsers"))

TREE = TreeConfig()
EXPERIMENT = tables.listing_id("experiment", id="E1", project="P", label="L")

text = st.one_of(
    st.sampled_from(
        ["", "..", ".", "/", "a/b", "\0", "\n", "é", "é", "x" * 300, "-1", "9" * 30, "NaN", "scans", "1e3"]
    ),
    st.sampled_from(
        ["/data/experiments/E1/scans/3/resources/7/files/a.dcm", "/data/experiments/E1/resources/1/files/"]
    ),
    st.text(max_size=12),
)
cell = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text, st.lists(text, max_size=2))
COLUMNS = (
    *("ID", "name", "label", "URI", "Size", "digest", "xsiType", "subject_ID", "subject_label", "subject_project"),
    *("insert_date", "date", "cat_ID", "category", "cat_desc", "xnat_abstractresource_id", "collection", "project"),
    *("secondary_id", "type", "series_description", "file_name", "file_size", "file_count", "format", "content"),
)
row = st.dictionaries(st.sampled_from(COLUMNS), cell, max_size=len(COLUMNS)).map(Row)
full_row = st.fixed_dictionaries(dict.fromkeys(COLUMNS, cell)).map(Row)
rows = st.one_of(st.lists(full_row, max_size=3), st.lists(st.one_of(row, full_row), max_size=3))
json_value = st.recursive(cell, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
item = st.recursive(
    st.fixed_dictionaries({"data_fields": st.dictionaries(st.sampled_from(("ID", "type", "label", "id")), cell)}),
    lambda inner: st.fixed_dictionaries(
        {
            "data_fields": st.dictionaries(st.sampled_from(("ID", "type", "label", "id")), cell),
            "meta": st.one_of(json_value, st.fixed_dictionaries({"xsi:type": text})),
            "children": st.lists(
                st.fixed_dictionaries(
                    {
                        "field": st.sampled_from(("scans/scan", "assessors/assessor", "out/file", "in/file", "x")),
                        "items": st.lists(st.one_of(inner, json_value), max_size=3),
                    }
                ),
                max_size=3,
            ),
        }
    ),
    max_leaves=6,
)


@pytest.fixture(autouse=True)
def _rows_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row without its name or path is left out with a warning: whether one was among those made up is no matter."""
    monkeypatch.setattr(tables.log, "disabled", True)


def outcome(parse: Callable[[], Any], *allowed: type[Exception]) -> Any:
    """What the parser gives, or None when it refuses with an error that its callers know."""
    try:
        return parse()
    except (ArchiveError, *allowed):
        return None


def check(listing: Listing | None) -> None:
    """Every name is one that a file system can show, every size one that it can tell."""
    if listing is None:
        return
    for entries in listing.children.values():
        for name, entry in Table(entries).names.items():
            assert name not in ("", ".", "..")
            assert "/" not in name and "\0" not in name
            assert len(name.encode("utf-8", "surrogateescape")) <= 255
            check_entry(entry)


def check_entry(entry: Entry) -> None:
    assert entry.size is None or 0 <= entry.size < 2**63
    assert -(2**63) <= entry.mtime_ns < 2**63


@fuzz
@given(rows)
def test_projects(sent: list[Row]) -> None:
    check((outcome(lambda: tables.site_listing(sent, TREE)) or [None])[0])


@fuzz
@given(rows, rows)
def test_subjects_and_experiments(subjects: list[Row], experiments: list[Row]) -> None:
    check((outcome(lambda: tables.project_listing("P", subjects, experiments, TREE)) or [None])[0])


@fuzz
@given(item, rows, st.one_of(st.none(), rows))
def test_a_session(document: object, resources: list[Row], files: list[Row] | None) -> None:
    parsed = Item.parsed(document)
    if parsed is not None:
        made = outcome(
            lambda: tables.experiment_listing(
                EXPERIMENT, 0, parsed, resources, None if files is None else file_runs(files), TREE
            )
        )
        check((made or [None])[0])


@fuzz
@given(json_value)
def test_a_document_that_is_no_item(document: object) -> None:
    Item.parsed(document)


@fuzz
@given(rows, rows)
def test_resources_inputs_and_files(resources: list[Row], sent: list[Row]) -> None:
    files = outcome(lambda: file_runs(sent)) or []
    owner = tables.listing_id("resources", owner="/data/projects/P")
    check(outcome(lambda: tables.resources_listing(owner, 0, resources, files, TREE)))
    check(outcome(lambda: tables.inputs_listing(tables.listing_id("inputs", owner="/data/x"), 0, files, TREE)))
    check(outcome(lambda: tables.files_listing(tables.listing_id("files", owner="/data/x/resources/1"), 0, files)))


@fuzz
@given(st.one_of(st.binary(max_size=80), text.map(lambda each: f"<Catalog><entry URI='{each}'/></Catalog>".encode())))
def test_a_catalog(document: bytes) -> None:
    outcome(lambda: tables.catalog_files("/data/experiments/E1/resources/1", document), ValueError)


@pytest.mark.parametrize(
    "entity", ['<!DOCTYPE c [<!ENTITY a "aaaa">]><c>&a;</c>', '<!DOCTYPE c SYSTEM "file:///etc/passwd"><c/>']
)
def test_a_catalog_with_a_document_type_is_refused_before_anything_is_expanded(entity: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)document type|doctype|entit"):
        tables.catalog_files("/data/experiments/E1/resources/1", entity.encode())


@fuzz
@given(st.dictionaries(st.sampled_from(("Content-Range", "Content-Length", "Last-Modified", "ETag")), text))
def test_headers_of_a_range(headers: dict[str, str]) -> None:
    for status in (200, 206):
        reply: Any = SimpleNamespace(status=status, headers=headers, url="http://h/f", generation=0)
        outcome(partial(body.content_range, reply, "GET f"))
        outcome(partial(reply_module.content_length, reply))


@fuzz
@given(
    st.one_of(text, st.text(alphabet="MonTueJan 0123456789:,GMT+-", max_size=40)),
    st.one_of(text, st.text(alphabet='abc=;,"\\ \t', max_size=30)),
)
def test_dates_and_cookies(date: str, cookie: str) -> None:
    assert -(2**63) <= body.http_time_ns(date) < 2**63
    assert isinstance(reply_module.parse_set_cookie(cookie), dict)
    assert parse_size(date) is None or 0 <= int(date) < 2**63
    assert isinstance(tables.item_time_ns(Row({"insert_date": date, "date": cookie})), int)


@fuzz
@given(st.one_of(st.binary(max_size=60), json_value.map(lambda each: json.dumps(each).encode())))
def test_tables_of_nbia(data: bytes) -> None:
    for found in outcome(lambda: nbia_tables.parse_rows(data, "getSeries")) or ():
        outcome(partial(nbia_tables.series_of, found))


@fuzz
@given(
    st.text(max_size=200), st.sampled_from(("", "downloadServerUrl=https://h/x\n", "ListOfSeriesToDownload=\n1.2.3\n"))
)
def test_manifests(words: str, start: str) -> None:
    outcome(lambda: manifest.parse_manifest(start + words, "m.tcia"), UsageError)


@fuzz
@given(st.lists(st.tuples(text, text), max_size=4), st.text(max_size=40))
def test_index_pages(links: list[tuple[str, str]], noise: str) -> None:
    page = "<title>Index of /d</title>" + "".join(f'<a href="{href}">{name}</a>{noise}' for href, name in links)
    for entry in outcome(lambda: index_page.entries_of(page, "http://h/d/", "GET /d/")) or ():
        check_entry(entry)
        assert entry.key.startswith("/d/")


@fuzz
@given(st.one_of(st.binary(max_size=60), st.tuples(text, text, text)))
def test_pages_of_buckets(sent: bytes | tuple[str, str, str]) -> None:
    if isinstance(sent, tuple):
        key, size, date = ("".join(c for c in each if c.isprintable() and c not in "<&") for each in sent)
        contents = f"<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{date}</LastModified></Contents>"
        sent = f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>".encode()
    page = outcome(lambda: s3_listing.parse_page(sent, "list"))
    if page is not None:
        check(Listing("x", s3_listing.directories("", [page], None)))


@fuzz
@given(st.lists(st.dictionaries(st.sampled_from(("filename", "size", "directory", "id", "urls", "key")), json_value)))
def test_snapshots_of_openneuro(sent: list[dict[str, Any]]) -> None:
    made = outcome(lambda: openneuro.snapshot_tree(sent, "x", "snapshot"))
    if made is not None:
        check(Listing("x", made))
