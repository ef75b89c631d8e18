"""What `import fare_hf` promises: a small sorted list, light to import, in rooms that only look downwards."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fare_hf

PACKAGE = Path(fare_hf.__file__).parent
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


def test_public_names_are_sorted_and_there() -> None:
    assert fare_hf.__all__ == sorted(fare_hf.__all__)
    for name in fare_hf.__all__:
        assert getattr(fare_hf, name).__doc__, name
    assert set(fare_hf.__all__) <= set(dir(fare_hf))


def test_unknown_names_raise() -> None:
    with pytest.raises(AttributeError, match="no attribute 'robustify'"):
        fare_hf.robustify  # noqa: B018


def test_attacks_need_torch_alone() -> None:
    code = "import sys, fare_hf.attacks; print([m for m in ('transformers', 'datasets', 'PIL') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def _rooms_imported(path: Path) -> set[str]:
    """Rooms of fare_hf that a file imports at its top level or inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "fare_hf":
            parts = node.module.split(".") if node.module else []
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            rooms |= {name.name.split(".")[1] for name in node.names if name.name.startswith("fare_hf.")}
    return {room for room in rooms if room in FLOORS}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_to_lower_floors_only(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for other in _rooms_imported(path):
        allowed = other == room or FLOORS[other] < FLOORS[room]
        assert allowed, f"{room} (floor {FLOORS[room]}) imports {other}"
