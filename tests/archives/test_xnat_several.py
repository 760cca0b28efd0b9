"""Several listings in fewer requests: the same as one by one, or missing, never another's rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.archives.conftest import DEMO
from tests.helpers.hostile import Answer, Liar
from tests.helpers.server import DemoServer
from xnatfs.archives.xnat.archive import SEVERAL_TRIES, XnatArchive
from xnatfs.archives.xnat.files import FileRun, Files, file_runs
from xnatfs.archives.xnat.tables import Row, rows_by_experiment
from xnatfs.config import HttpConfig, TreeConfig
from xnatfs.errors import UnexpectedReply
from xnatfs.model import Entry

Connect = Callable[..., XnatArchive]


@pytest.fixture(scope="module")
def shared_server() -> Iterator[DemoServer]:
    """With more sessions than the other tests here need."""
    with DemoServer(sample="full") as server:
        yield server


def below(archive: XnatArchive, project: str, kind: str) -> list[Entry]:
    """Every directory of a project whose listing is of that kind."""
    (top,) = (e for e in archive.children(archive.root()).children["/data/projects"] if e.name == project)
    entries = [entry for group in archive.children(top).children.values() for entry in group]
    return [entry for entry in entries if entry.is_dir and entry.listing.startswith(f"{kind}:")]


@pytest.mark.parametrize(("project", "count"), [("CRAWL", 4), ("DEMO", 3), ("ODDITIES", 8)])
def test_what_is_told_of_several_is_what_is_told_of_each(
    server: DemoServer, connect: Connect, project: str, count: int
) -> None:
    archive = connect()
    sessions = below(archive, project, "experiment")[:count]
    together = archive.children_of_several(sessions)
    for session in sessions:
        if session.listing in together:
            assert together[session.listing] == archive.children(session)
    if project == "CRAWL":
        assert len(together) == count


def test_several_sessions_take_two_requests_and_one_for_each(server: DemoServer, connect: Connect) -> None:
    archive = connect()
    sessions = below(archive, "CRAWL", "experiment")[:4]
    server.clear_log()
    assert len(archive.children_of_several(sessions)) == 4
    assert len(server.requests()) == 2 + 4


def test_resources_of_subjects_take_one_request_each_where_there_are_none(server: DemoServer, connect: Connect) -> None:
    archive = connect()
    folders = below(archive, "CRAWL", "resources")[:4]
    server.clear_log()
    assert set(archive.children_of_several(folders)) == {each.listing for each in folders}
    assert len(server.requests()) == 4


def test_a_server_that_takes_no_lists_of_ids_is_asked_one_by_one_from_then_on(
    server: DemoServer, connect: Connect
) -> None:
    archive = connect()
    sessions = below(archive, "CRAWL", "experiment")[:2]
    server.fault(r"XNAT_E20000,XNAT_E20001/files", "status", status=404, times=None)
    for _ in range(SEVERAL_TRIES):
        assert archive.children_of_several(sessions) == {}
    server.clear_log()
    assert archive.children_of_several(sessions) == {}
    assert server.requests() == []
    assert archive.children(sessions[0]).id == sessions[0].listing


def test_sessions_that_go_during_a_crawl_do_not_end_lists_of_ids(server: DemoServer, connect: Connect) -> None:
    archive = connect()
    sessions = below(archive, "CRAWL", "experiment")[:2]
    for _ in range(2 * SEVERAL_TRIES):
        server.fault(r"XNAT_E20000,XNAT_E20001/files", "status", status=404)
        assert archive.children_of_several(sessions) == {}
        assert len(archive.children_of_several(sessions)) == 2


def test_a_page_in_place_of_an_answer_does_not_end_lists_of_ids_for_good(server: DemoServer, connect: Connect) -> None:
    archive = connect()
    sessions = below(archive, "CRAWL", "experiment")[:2]
    server.fault(r"XNAT_E20000,XNAT_E20001/files", "html", times=2)
    assert archive.children_of_several(sessions) == {}
    assert len(archive.children_of_several(sessions)) == 2


def file_run(uri: str, cat_id: str) -> list[FileRun]:
    return file_runs([{"URI": uri, "cat_ID": cat_id}])


def test_rows_that_are_not_surely_of_one_session_are_refused() -> None:
    files = file_run("/data/experiments/E1/scans/1/resources/7/files/a", "7")
    of_e1, of_nobody = Row({"xnat_abstractresource_id": "7"}), Row({"xnat_abstractresource_id": "8"})
    both: dict[str, set[str]] = {"E1": set(), "E2": set()}
    assert rows_by_experiment(both, files, [of_e1]) == {"E1": (files, [of_e1])}  # E2 is to be asked for
    assert rows_by_experiment(both, files, [of_e1, of_nobody]) is None
    assert rows_by_experiment({"E2": set()}, files, [of_e1]) is None
    assert rows_by_experiment({"E1": set()}, file_run("/archive/x", "7"), []) is None


def test_a_resource_without_files_belongs_to_the_session_whose_document_names_it() -> None:
    files = file_run("/data/experiments/E1/scans/1/resources/7/files/a", "7")
    full, empty = Row({"xnat_abstractresource_id": "7"}), Row({"xnat_abstractresource_id": "8"})
    told = rows_by_experiment({"E1": {"7", "8"}, "E2": set(), "E3": {"9"}}, files, [full, empty])
    assert told == {"E1": (files, [full, empty]), "E2": ([], [])}  # of E3 a resource is missing: to be asked for
    assert rows_by_experiment({"E1": {"7"}, "E2": {"8"}}, files, [full, empty]) == {"E1": (files, [full])}


def test_sessions_with_an_empty_resource_take_no_more_requests_than_others(server: DemoServer) -> None:
    def with_empty(answer: Answer) -> Answer:
        rows = answer.rows()
        return answer.with_rows([*rows, {**rows[0], "xnat_abstractresource_id": "900", "file_count": "0"}])

    def named(answer: Answer) -> Answer:
        assert isinstance(answer.body, bytes)
        document = json.loads(answer.body)
        empty = {"children": [], "data_fields": {"xnat_abstractresource_id": 900}, "meta": {}}
        document["items"][0]["children"].append({"field": "resources/resource", "items": [empty]})
        answer.body = json.dumps(document).encode()
        return answer

    with Liar(server.port) as front:
        front.lie(r"/experiments/XNAT_E20001\?", named)
        archive = XnatArchive(front.url, DEMO, HttpConfig(timeout_s=5.0), TreeConfig(), "xnatfs/test")
        sessions = below(archive, "CRAWL", "experiment")[:4]
        front.lie(r"/experiments/XNAT_E20000,.*/resources\?", with_empty)
        front.seen.clear()
        assert len(archive.children_of_several(sessions)) == 4
        assert len(front.seen) == 2 + 4
        archive.close()


def test_file_lists_are_the_same_in_any_case_with_numbers_and_nulls() -> None:
    sent = [
        {"Name": "a", "Size": "1", "URI": "/u/files/a", "cat_ID": "7", "digest": "", "collection": "D"},
        {"Name": "b", "Size": 2, "uri": "/u/files/b", "cat_ID": 7, "digest": None, "collection": "D"},
    ]
    (run,) = file_runs(sent)
    assert (run.prefix, run.resource, run.label) == ("/u", "7", "D")
    assert [*run.paths] == ["a", "b"]
    assert [*run.uris] == ["/u/files/a", "/u/files/b"]
    assert [*run.sizes] == ["1", "2"]
    assert [*run.digests] == ["", ""]
    assert file_runs([]) == []


@pytest.mark.parametrize("place", [0, 1, 2])
def test_file_lists_without_the_column_of_uris_are_refused_not_left_out(place: int) -> None:
    sent = [{"Name": name, "URI": f"/u/files/{name}"} for name in "abc"]
    del sent[place]["URI"]
    with pytest.raises(UnexpectedReply, match="uri"):
        file_runs(sent)
    with pytest.raises(UnexpectedReply, match="uri"):
        file_runs([{"Name": row["Name"]} for row in sent])


def test_files_of_two_resources_are_two_runs_and_stay_in_the_servers_order() -> None:
    sent = [{"URI": f"/r{number}/files/{name}", "cat_ID": str(number)} for number in (1, 2) for name in "ba"]
    assert [(run.resource, [*run.paths]) for run in file_runs(sent)] == [("1", ["b", "a"]), ("2", ["b", "a"])]


def test_the_files_of_a_folder_are_the_same_whether_they_are_placed_at_once_or_one_by_one() -> None:
    sent = [
        {"URI": "/r/files/a", "Size": "12", "digest": "D41D8CD98F00B204E9800998ECF8427E"},
        {"URI": "/r/files/b", "Size": "", "digest": "no digest"},
        {"URI": "/r/files/c", "Size": "007", "digest": ""},
    ]
    at_once, one_by_one = Files(), Files()
    assert at_once.add_all(*file_runs(sent))
    for row in sent:
        one_by_one.add(row["URI"][-1], row["URI"], row["Size"], row["digest"])
    md5 = sent[0]["digest"].lower()
    expected = (
        Entry("a", "/r/files/a", False, 12, 5, f"12:{md5}", digest=md5),
        Entry("b", "/r/files/b", False, None, 5, ":"),
        Entry("c", "/r/files/c", False, 7, 5, "7:"),
    )
    assert at_once.columns(5).entries() == one_by_one.columns(5).entries() == expected


@pytest.mark.parametrize("paths", [["a", "a"], ["a", "b/c"], ["a", ""]])
def test_files_that_are_not_all_of_one_directory_are_not_placed_at_once(paths: list[str]) -> None:
    (run,) = file_runs([{"URI": f"/r/files/{path}"} for path in paths])
    files = Files()
    assert not files.add_all(run)
    assert files.cells == {}
