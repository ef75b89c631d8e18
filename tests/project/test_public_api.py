"""What `import fare_hf` promises: a small sorted list, light to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fare_hf


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


def test_type_checkers_are_told_the_same_names() -> None:
    tree = ast.parse(Path(fare_hf.__file__).read_text())
    told = {
        alias.name: str(node.module).removeprefix("fare_hf.")
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == {name: fare_hf._HOMES[name] for name in fare_hf.__all__}
