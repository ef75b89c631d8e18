"""The house: imports go to lower floors only, in no circle; files are short; DESIGN.md says what is where."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from helpers.paths import ROOT

PACKAGE = ROOT / "fare_hf"
FLOORS = {
    "numerals": 0,
    **dict.fromkeys(("attacks", "files", "finite", "objectives"), 1),
    **dict.fromkeys(("data", "pretrained"), 2),
    "encoders": 3,
    "convert": 4,
    "vlm": 5,
    "evaluation": 6,
    "hub": 7,
    "training": 8,
    "lab": 9,
    "suites": 10,
    "cli": 11,
    "train": 12,
}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(path: Path) -> set[str]:
    """Modules of fare_hf that a file imports, at its top or inside functions; a name is followed to its module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in FILES}
        if isinstance(node, ast.ImportFrom) and node.module in FILES:
            found |= {_home(str(node.module), alias.name) for alias in node.names}
    return found


def _home(module: str, name: str) -> str:
    """Where `from module import name` leads: to a module, or to where an `__init__` takes the name from."""
    if f"{module}.{name}" in FILES:
        return f"{module}.{name}"
    for node in ast.parse(FILES[module].read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module in FILES and name in {alias.name for alias in node.names}:
            return _home(str(node.module), name)
    return module


@pytest.mark.parametrize("module", [name for name in FILES if name != "fare_hf"])
def test_imports_go_to_lower_floors_only(module: str) -> None:
    own = module.split(".")[1]
    for other in imported(FILES[module]) - {"fare_hf"}:
        below = other.split(".")[1]
        assert below == own or FLOORS[below] < FLOORS[own], f"{own} (floor {FLOORS[own]}) imports {other}"
