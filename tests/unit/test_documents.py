"""The documents say what is so: links lead somewhere, options exist, cited tests exist, constraints pin everything."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from xnatfs.cli.options import OPTIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).parents[2]
DOCUMENTS = sorted([PROJECT / "README.md", PROJECT / "CHANGELOG.md", *(PROJECT / "docs").glob("*.md")])


def normal(requirement: str) -> str:
    """The project name of a requirement line, as PEP 503 compares names."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_constraints_pin_every_package_that_the_project_names() -> None:
    lines = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pinned if "==" not in line or "/" in line.split(";")[0]] == []
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [
        *project["project"]["dependencies"],
        *(name for extra in project["project"]["optional-dependencies"].values() for name in extra),
        *(name for group in project["dependency-groups"].values() for name in group if isinstance(name, str)),
    ]
    assert {normal(name) for name in wanted} - {normal(line) for line in pinned} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_of_a_document_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_readme_names_only_options_that_exist() -> None:
    known = {f"--{option.key}" for option in OPTIONS} | {"--check", "--help"}
    table = (PROJECT / "README.md").read_text(encoding="utf-8").split("### Options")[1].split("### Credentials")[0]
    assert set(re.findall(r"--[a-z][a-z-]+", table)) - known == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_that_a_document_cites_exist(document: Path) -> None:
    cited = re.findall(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`", document.read_text(encoding="utf-8"))
    missing = [
        (path, name)
        for path, name in cited
        if not (PROJECT / path).exists()
        or not re.search(rf"(def|class) {name}\b", (PROJECT / path).read_text(encoding="utf-8"))
    ]
    assert missing == []


def test_every_example_is_named_in_the_readme() -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    examples = [path.name for path in (PROJECT / "examples").iterdir() if path.suffix in {".py", ".sh"}]
    assert examples
    assert [name for name in examples if f"examples/{name}" not in readme] == []


def test_every_directory_of_tests_is_run_by_the_script() -> None:
    script = (PROJECT / "scripts" / "test").read_text(encoding="utf-8")
    (named,) = re.findall(r"^directories=\(tests/{(.*)}\)$", script, re.MULTILINE)
    holding_tests = {path.relative_to(PROJECT / "tests").parts[0] for path in (PROJECT / "tests").rglob("test_*.py")}
    assert sorted(named.split(",")) == sorted(holding_tests)
