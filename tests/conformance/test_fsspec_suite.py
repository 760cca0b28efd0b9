"""fsspec's own suite, as far as it is about reading.

Left out: AbstractCopyTests, AbstractPutTests, AbstractPipeTests and AbstractOpenTests (its one test opens for exclusive
writing) write to the file system under test. AbstractGetTests writes to it only to make its scenarios: here they are
made on the local disk, by the suite's own code, and served from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests import abstract

from tests.helpers.sample_tree import file_system
from tests.helpers.trees import build_vfs
from xnatfs.archives.memory import MemoryArchive, Tree
from xnatfs.frontends.fsspec import ArchiveFileSystem


def tree_of(directory: Path) -> Tree:
    return {each.name: tree_of(each) if each.is_dir() else each.read_bytes() for each in directory.iterdir()}


class _ServedFromDisk(abstract.AbstractFixtures):
    """The suite's scenarios: each is made in a local directory; what lies there is the archive."""

    @pytest.fixture
    def made(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("served")

    @pytest.fixture
    def fs(self, made: Path, request: pytest.FixtureRequest) -> Iterator[ArchiveFileSystem]:
        for wanted in request.fixturenames:
            scenario = re.fullmatch(r"fs(_bulk\w+|_glob\w+|_dir_and\w+|_10\w+)", wanted)
            if scenario:
                getattr(self, scenario[1])(LocalFileSystem(auto_mkdir=True), lambda *names: "/".join(names), str(made))
        if request.node.originalname == "test_get_directory_recursive":  # makes its own, in the test
            (made / "src").mkdir()
            (made / "src" / "file").touch()
        with file_system(build_vfs(MemoryArchive(tree_of(made), ranged=False))[0]) as fs:
            yield fs

    @pytest.fixture
    def fs_path(self) -> str:
        return "/"

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self) -> str:
        return "/source"

    fs_glob_edge_cases_files = fs_bulk_operations_scenario_0
    fs_dir_and_file_with_same_name_prefix = fs_bulk_operations_scenario_0
    fs_10_files_with_hashed_names = fs_bulk_operations_scenario_0


class TestGet(abstract.AbstractGetTests, _ServedFromDisk):
    @pytest.fixture(autouse=True)
    def _directories_are_there(self, fs: ArchiveFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
        """One test of the class makes its directory by itself. It is served already."""

        def there(path: str) -> None:
            assert fs.exists(path)

        monkeypatch.setattr(fs, "mkdir", there, raising=True)
        monkeypatch.setattr(fs, "touch", there, raising=True)
