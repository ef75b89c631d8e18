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
    **dict.fromkeys(("attacks", "classes", "configuration", "console", "credentials", "documents", "finite"), 1),
    **dict.fromkeys(("folders", "foreign_code", "markup", "objectives", "pictures", "pixels"), 1),
    **dict.fromkeys(("original_llava", "weight_files"), 1),
    **dict.fromkeys(("archives", "data", "encoders", "flops", "image_folders", "loading", "memory"), 2),
    **dict.fromkeys(("sources", "validation"), 2),
    **dict.fromkeys(("float8", "precision"), 3),
    "convert": 3,
    "vlm": 4,
    "evaluation": 5,
    "hub": 6,
    "training": 7,
    "lab": 8,
    **dict.fromkeys(
        ("attack", "attack_run", "cli", "estimate", "evaluate", "lmms_eval_plugin", "suite_checks", "suites", "train"),
        9,
    ),
}

# `pixels` passes on the one check of pixels, which attacks own because they depend on torch alone.
SAME_FLOOR = {
    ("pixels", "attacks"),
    ("configuration", "documents"),
    ("configuration", "folders"),
    ("configuration", "foreign_code"),
    ("configuration", "original_llava"),
    ("configuration", "original_llava"),
    ("weight_files", "documents"),
    ("weight_files", "folders"),
    ("data", "sources"),
    ("encoders", "loading"),
    ("encoders", "validation"),
    ("loading", "validation"),
    ("sources", "archives"),
    ("sources", "image_folders"),
    ("precision", "float8"),
    ("cli", "attack"),
    ("cli", "evaluate"),
    ("console", "folders"),
    ("attack", "attack_run"),
    ("cli", "estimate"),
    ("cli", "train"),
    ("evaluate", "suite_checks"),
    ("evaluate", "suites"),
    ("suites", "suite_checks"),
    ("estimate", "train"),
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
        allowed = other == room or (room, other) in SAME_FLOOR or FLOORS[other] < FLOORS[room]
        assert allowed, f"{room} (floor {FLOORS[room]}) imports {other}"
