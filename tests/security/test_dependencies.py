"""Every package that an installation brings has been looked at, and none is older than its last advisory allows."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
REVIEW = tomllib.loads((ROOT / "docs" / "dependencies.toml").read_text(encoding="utf-8"))["packages"]
OURS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(text: str, extras: set[str]) -> str | None:
    """The package that a requirement asks for here, or None where its marker says no."""
    requirement = Requirement(text)
    if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""}):
        return None
    return normal(requirement.name)


def brought() -> set[str]:
    """Everything that xnatfs and its demo need, and what those need in turn."""
    pending = [*OURS["dependencies"], *OURS["optional-dependencies"]["demo"]]
    found: set[str] = set()
    while pending:
        name = wanted(pending.pop(), set())
        if name is not None and name not in found:
            found.add(name)
            pending += metadata.requires(name) or []
    return found


def test_every_package_of_an_installation_has_been_reviewed() -> None:
    assert brought() - set(REVIEW) == set()


@pytest.mark.parametrize("name", sorted(brought()))
def test_what_is_installed_is_as_new_as_its_advisories_ask_for(name: str) -> None:
    assert Version(metadata.version(name)) >= Version(REVIEW[name]["needs"])


def test_the_pins_are_as_new_as_well() -> None:
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    old = [(name, pin) for name, pin in pins if name in REVIEW and Version(pin) < Version(REVIEW[name]["needs"])]
    assert len(pins) > 50
    assert old == []


def test_an_advisory_without_a_fix_says_why_it_does_not_reach_us() -> None:
    assert "CVE-2025-69872" in REVIEW["diskcache"]["advisories"]
    assert "refuses" in REVIEW["diskcache"]["note"]


def test_pip_audit_finds_nothing_where_its_data_can_be_had() -> None:
    audit = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "-r", "constraints.txt"]
    done = subprocess.run(audit, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    if "No module named" in done.stderr or "ConnectionError" in done.stderr or "urlopen" in done.stderr:
        pytest.skip("pip-audit or its data cannot be had here: the review above stands in for it")
    assert done.returncode == 0, done.stdout + done.stderr
