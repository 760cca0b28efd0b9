"""Imports point down only, and each third-party library has its one door (docs/architecture.md, layers)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import xnatfs

ROOT = Path(xnatfs.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

FOUNDATION = {
    "archives.base",
    "blocks.base",
    "buffers",
    "callers",
    "columns",
    "config",
    "errors",
    "forks",
    "jsontext",
    "model",
    "private",
    "stats",
    "turns",
    "__version__",
}
MAY_IMPORT = {  # room -> what it may import beside itself; a name stands for everything below it
    "__init__": {"errors", "model"},
    "__main__": {"cli"},
    "cli": {"datasets", "frontends", "factory", "tree", "reading", "demo"} | FOUNDATION,
    "datasets": {"errors"},
    "frontends": {"factory", "tree", "reading"} | FOUNDATION,
    "factory": {"tree", "reading", "archives", "blocks"} | FOUNDATION,
    "tree": {"reading"} | FOUNDATION,
    "reading": FOUNDATION,
    "archives": FOUNDATION - {"blocks.base"},
    "blocks": FOUNDATION - {"archives.base"},
    "demo": {"model", "__version__"},
    "buffers": set(),
    "callers": {"errors"},
    "columns": {"model"},
    "config": set(),
    "errors": set(),
    "forks": set(),
    "jsontext": set(),
    "model": set(),
    "private": set(),
    "stats": set(),
    "turns": set(),
}
SHARED = {"archives.base", "archives.documents", "archives.http", "archives.zipstream"}
"""What an archive may import of the room ``archives``, beside what is its own."""

FAMILIES = {  # own package -> modules of another family that it may use
    "archives.xnat": set(),
    "archives.nbia": {"archives.objects.s3_listing"},  # IDC is a bucket
    "archives.objects": set(),
    "archives.memory": set(),
    "archives.kept": set(),
    "archives.http": set(),
}
ALSO = {
    # A program that opens a URL has no command line to be its main program: this door reads the settings itself, where
    # the commands read them, and through one module made for that.
    "frontends.fsspec": {"cli.library"},
}
DOORS = {  # library -> the modules that may import it
    "fuse": ("frontends.fuse", "frontends.fuse_binding"),
    "mfusepy": ("frontends.fuse", "frontends.fuse_binding"),
    "fsspec": ("frontends.fsspec", "archives.objects.fsspec"),  # the one offers its interface, the other uses it
    "diskcache": ("blocks.books",),
    "orjson": ("jsontext",),
    "pyxnat": ("archives.xnat.archive", "archives.xnat.interface"),
    "requests": (
        "archives.http.client",
        "archives.http.connections",
        "archives.http.roaming",
        "archives.http.errors",
        "archives.xnat.login",
        "archives.xnat.interface",
    ),
    "aiohttp": ("demo",),
    "pydicom": ("archives.nbia.image_names", "demo"),
    "click": ("cli",),
}


def module_name(path: Path) -> str:
    """Dotted name below ``xnatfs``: "tree.vfs", "cli", "__init__"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Absolute dotted names of everything imported anywhere in a module, in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import in line {node.lineno}"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def is_below(name: str, places: set[str] | tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    room = module_name(path).split(".")[0]
    assert room in MAY_IMPORT, f"the room {room} has no row in MAY_IMPORT"
    ours = {name.removeprefix("xnatfs.") for name in imports_of(path) if name.startswith("xnatfs.")}
    allowed = MAY_IMPORT[room] | ALSO.get(module_name(path), set()) | {room}
    assert {name for name in ours if not is_below(name, allowed)} == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_archives_do_not_know_each_other(family: str) -> None:
    ours = {
        name.removeprefix("xnatfs.")
        for path in MODULES
        if is_below(module_name(path), (family,))
        for name in imports_of(path)
        if name.startswith("xnatfs.archives")
    }
    assert ours
    assert {name for name in ours if not is_below(name, SHARED | FAMILIES[family] | {family})} == set()


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_library_is_imported_by_its_own_module_only(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imports_of(path)} & DOORS.keys()
    assert {name for name in libraries if not is_below(module_name(path), DOORS[name])} == set()


def test_the_foundation_needs_the_standard_library_only() -> None:
    foundation = [ROOT / f"{name.replace('.', '/')}.py" for name in FOUNDATION - {"__version__", "jsontext"}]
    third_party = {
        name.split(".")[0]
        for path in foundation
        for name in imports_of(path)
        if name != "xnatfs" and not name.startswith("xnatfs.")
    }
    assert third_party <= sys.stdlib_module_names


def test_every_package_says_what_it_is() -> None:
    silent = [module_name(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert silent == []
