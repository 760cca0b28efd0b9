"""The parts of the benchmarks that measure nothing: verdicts, peers that cannot do a job, the table, the plots."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules, as scripts/bench imports them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure
    import memory
    import report
    import results
    import svg

    yield SimpleNamespace(measure=measure, memory=memory, report=report, results=results, svg=svg)
    memory.release()
    for name in ("measure", "memory", "report", "results", "svg"):
        sys.modules.pop(name, None)


def test_a_goal_is_met_by_the_median_and_missed_above_it(bench: SimpleNamespace) -> None:
    assert bench.measure.at_most(1, "w", "xnatfs", "s", [9.0, 1.0, 2.0], 2).verdict == "met"
    assert bench.measure.at_most(1, "w", "xnatfs", "s", [9.0, 1.0, 2.1], 2).verdict == "MISSED"
    assert bench.measure.at_least(1, "w", "xnatfs", "s", [1.9, 2.0, 2.1], 2).verdict == "met"


def test_every_sample_counts_where_a_limit_always_holds(bench: SimpleNamespace) -> None:
    assert bench.measure.at_most_always(15, "w", "xnatfs", "MiB", [1.0, 2.0, 3.0], 2).verdict == "MISSED"


def test_a_peer_that_fails_is_tried_once_and_its_row_says_why(bench: SimpleNamespace) -> None:
    series = bench.measure.Series()
    calls = []

    def work() -> float:
        calls.append(1)
        raise RuntimeError("no mount")

    for _ in range(3):
        series.attempt("peer", work)
    (row,) = series.rows(5, "w", "s", ["peer"])
    assert len(calls) == 1
    assert bench.report.cells(row)[3:] == ("-", "", "s", "", "no mount")


def test_a_goal_against_peers_that_all_failed_is_no_peer_not_met(bench: SimpleNamespace) -> None:
    series = bench.measure.Series()
    series.add("xnatfs", 1.0)
    row = bench.measure.at_least(5, "w", "xnatfs / best", "x", series.ratio("xnatfs", series.best(["peer"], True)), 1.2)
    assert (row.met, row.verdict) == (None, "no peer")


def test_a_command_that_takes_too_long_ends_with_its_children(bench: SimpleNamespace) -> None:
    with pytest.raises(bench.measure.subprocess.TimeoutExpired) as caught:
        bench.measure.run(["sh", "-c", "sleep 60 | cat"], 0.1)
    assert bench.measure.reason(caught.value) == "stopped after 0 s"


def test_rows_survive_json_and_the_block_replaces_only_what_is_between_its_marks(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    rows = [bench.measure.at_most(1, "ls | wc", "xnatfs", "requests", [3.0, 3.0], 4)]
    document = json.loads(bench.report.as_json(rows, {"cores": 2}))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{bench.report.BEGIN}\nold\n{bench.report.END}\nafter\n")
    bench.report.write_block(page, bench.report.markdown(document))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "old" not in text
    assert "| 1 | ls \\| wc | xnatfs | 3 | 3 - 3 | requests | <= 4 | met |" in text
    assert "- cores: 2" in text


def test_a_drawing_is_well_formed_and_its_points_lie_inside(bench: SimpleNamespace) -> None:
    lines = {"a < b": [(1e3, 0.2), (1e6, 200.0)], "one": [(1e3, 3.0)]}
    panel = bench.svg.Panel("find", "files", "s", lines, log_x=True, log_y=True)
    root = ET.fromstring(bench.svg.drawing([panel, panel]))
    circles = [node for node in root.iter() if node.tag.endswith("circle")]
    assert len(circles) == 2 * (2 + 1)  # two points and the key, in each panel
    assert all(0 <= float(node.get("cx", -1)) <= bench.svg.WIDTH for node in circles)
    assert all(0 <= float(node.get("cy", -1)) <= bench.svg.HEIGHT for node in circles)


def test_a_run_that_was_interrupted_goes_on_where_it_was(bench: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "20260101T000000Z.json"
    first = bench.results.Results(path, {"sizes": "small", "xnatfs": "0.1 (a)"})
    first.add("later", [bench.measure.at_most(9, "w", "xnatfs", "ms", [40.0], 35)], 12.34)
    again = bench.results.newest(tmp_path, "small").going_on_with({"sizes": "small", "xnatfs": "0.1 (b)"})
    assert again.took_s == {"later": 12.3}
    again.add("sooner", [bench.measure.at_most(1, "w", "xnatfs", "requests", [3.0], 4)], 1)
    document = bench.results.load(path)
    assert [row["number"] for row in document["rows"]] == [1, 9]
    assert document["facts"]["xnatfs"] == "0.1 (a), then 0.1 (b)"
    assert list(document["took_s"]) == ["later", "sooner"]
    assert "- time it took: 0 minutes" in bench.report.markdown(document)
    assert bench.results.newest(tmp_path, "other sizes") is None


def test_numbers_and_sources_are_chosen_and_left_out_by_name(bench: SimpleNamespace) -> None:
    wanted = bench.results.wanted
    assert bench.results.names_of("5, 6,bucket") == ["5", "6", "bucket"]
    assert wanted([5, 6], "", [], [])
    assert wanted([5, 6], "", ["6"], []) and wanted([5, 6], "bucket", ["6"], [])
    assert wanted([11], "bucket", ["bucket"], []) and not wanted([11], "", ["bucket"], [])
    assert not wanted([5, 6], "", ["7"], [])
    assert wanted([5, 6], "", [], ["5"]) and not wanted([5, 6], "", [], ["5", "6"])
    assert not wanted([11], "bucket", [], ["bucket"]) and wanted([11], "", [], ["bucket"])


def test_a_row_of_another_source_says_so_and_is_no_headline(bench: SimpleNamespace) -> None:
    bucket = bench.measure.Row(5, "cold read of 1 GB", "xnatfs", "GB/s", [9.0], source="bucket")
    xnat = bench.measure.Row(5, "cold read of 1 GB", "xnatfs", "GB/s", [0.5])
    document = json.loads(bench.report.as_json([bucket, xnat], {}))
    assert "| 5 bucket | cold read of 1 GB | xnatfs | 9 |" in bench.report.markdown(document)
    assert "| cold read of 1 GB | 0.5 GB/s |" in bench.report.headlines(document)


def test_memory_is_held_once_and_let_go(bench: SimpleNamespace) -> None:
    def mapped() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmSize")).split()[1])

    before = mapped()
    for _ in range(2):
        bench.memory.hold(600 * 10**6)
    assert 500 * 10**6 < mapped() - before < 700 * 10**6
    bench.memory.release()
    assert mapped() - before < 100 * 10**6
