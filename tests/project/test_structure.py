"""Structure: imports go to lower floors only, in no circle; files are short; DESIGN.md says what is where."""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers.paths import ROOT

PACKAGE = ROOT / "fare_hf"
DESIGN = (PACKAGE / "DESIGN.md").read_text()
FLOORS = {
    name: int(floor) for floor, name in re.findall(r"^\| (\d+) \| `([a-z_]+)(?:/|\.py)` \|", DESIGN, re.MULTILINE)
}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


@cache
def tree(path: Path) -> ast.Module:
    """A file, parsed once."""
    return ast.parse(path.read_text())


@cache
def imported(path: Path) -> frozenset[str]:
    """Modules of fare_hf that a file imports, at its top or inside functions; a name is followed to its module."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in FILES}
        if isinstance(node, ast.ImportFrom) and node.module in FILES:
            found |= {_home(str(node.module), alias.name) for alias in node.names}
    return frozenset(found)


def _home(module: str, name: str) -> str:
    """Where `from module import name` leads: to a module, or to where an `__init__` takes the name from."""
    if f"{module}.{name}" in FILES:
        return f"{module}.{name}"
    for node in tree(FILES[module]).body:
        if isinstance(node, ast.ImportFrom) and node.module in FILES and name in {alias.name for alias in node.names}:
            return _home(str(node.module), name)
    return module


@pytest.mark.parametrize("module", [name for name in FILES if name != "fare_hf"])
def test_imports_go_to_lower_floors_only(module: str) -> None:
    own = module.split(".")[1]
    for other in imported(FILES[module]) - {"fare_hf"}:
        below = other.split(".")[1]
        assert below == own or FLOORS[below] < FLOORS[own], f"{own} (floor {FLOORS[own]}) imports {other}"


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {name: imported(path) for name, path in FILES.items() if path.name != "__init__.py"}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)


def test_no_file_is_longer_than_400_lines() -> None:
    own = [*FILES.values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    assert {str(path): count for path in own if (count := len(path.read_text().splitlines())) > 400} == {}


def test_the_design_names_every_package_and_no_path_that_is_not_there() -> None:
    assert set(FLOORS) == {name.split(".")[1] for name in FILES if "." in name}
    named = set(re.findall(r"`([\w/]+(?:/|\.py))`", DESIGN))
    where = (PACKAGE, ROOT, *(path for path in PACKAGE.iterdir() if path.is_dir()))
    assert {name for name in named if not any((folder / name).exists() for folder in where)} == set()
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} <= {
        path.name for path in (ROOT / "tests").iterdir()
    }
