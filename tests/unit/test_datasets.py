"""The table of public data sets: every row is sound, every mount can be asked for, nothing of the list is missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xnatfs.archives.base import Archive
from xnatfs.cli.sources import parse_source
from xnatfs.config import Config, Source
from xnatfs.datasets import ACCESS, Dataset, search, source_of, table
from xnatfs.errors import UsageError
from xnatfs.factory import open_archive

LISTED = (Path(__file__).parents[1] / "data" / "pediatric_list.txt").read_text(encoding="utf-8").splitlines()[1:]
ROWS = table()
MOUNTABLE = [row for row in ROWS if row.source]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xnatfs", "datasets", *words], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_whole(row: Dataset) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", row.name)
    assert row.title and row.host and row.ages and row.modalities and row.about
    assert re.fullmatch(r"https?://\S+", row.url)
    assert row.access in ACCESS
    assert bool(row.source) != bool(row.why_not)
    assert row.access in ("open", "account") if row.source else True
    assert "\t" not in "".join(vars_of(row)) and "\n" not in "".join(vars_of(row))


def vars_of(row: Dataset) -> list[str]:
    return [getattr(row, name) for name in Dataset.__slots__]


def test_names_are_one_of_a_kind() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)


def test_every_entry_of_the_pediatric_list_is_there_once() -> None:
    assert len(LISTED) > 35
    assert sorted(row.listed_as for row in ROWS if row.listed_as) == sorted(LISTED)


def test_the_hosts_that_were_asked_for_are_there() -> None:
    assert {"dhcp", "hcp-1200", "hcp-d", "tcia-lidc-idri", "tcia-pediatric-ct-seg"} <= {row.name for row in ROWS}
    assert len(search(["tcia"])) > 100


@pytest.mark.parametrize("row", MOUNTABLE, ids=lambda row: row.name)
def test_what_can_be_mounted_is_a_source_that_an_archive_takes(row: Dataset) -> None:
    words = row.command.split()
    assert words[:2] == ["xnatfs", "mount"] and words[3] == "DIR"
    source = parse_source(words[2])
    archive: Archive = open_archive(Config(source))
    assert archive.root().is_dir
    archive.close()


@pytest.mark.parametrize("row", [row for row in ROWS if not row.source], ids=lambda row: row.name)
def test_what_cannot_be_mounted_says_why(row: Dataset) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(f"dataset:{row.name}")
    assert row.why_not in str(caught.value)
    assert row.url in caught.value.hint


def test_a_path_inside_a_data_set_follows_its_own() -> None:
    assert parse_source("dataset:ixi") == Source("https", "https://www.nitrc.org/ir", "/ixi")
    assert parse_source("dataset:IXI#/S1") == Source("https", "https://www.nitrc.org/ir", "/ixi/S1")
    assert parse_source("dataset:hbn#/x").url == "s3://fcp-indi/data/Projects/HBN"
    assert parse_source("dataset:8080").url == "https://dataset:8080"  # a host of that name


def test_a_name_that_is_nearly_right_is_told() -> None:
    with pytest.raises(UsageError) as caught:
        source_of("abid-1")
    assert "abide-1" in caught.value.hint


def test_the_command_lists_searches_and_speaks_json() -> None:
    whole = run()
    assert whole.returncode == 0, whole.stderr
    lines = [line.split("\t") for line in whole.stdout.splitlines()]
    assert [line[0] for line in lines] == [row.name for row in ROWS]
    assert {len(line) for line in lines} == {7}
    found = run("fetal", "t2W")
    assert {line.split("\t")[0] for line in found.stdout.splitlines()} >= {"feta-2.1", "imagine-fetal-atlas"}
    assert "adhd" not in found.stdout
    rows = json.loads(run("--json", "hbn", "Healthy").stdout)
    assert [row["command"] for row in rows] == ["xnatfs mount dataset:hbn DIR"]


def test_a_search_without_result_fails() -> None:
    done = run("no-such-thing-at-all")
    assert done.returncode == 1
    assert "no data set matches" in done.stderr
