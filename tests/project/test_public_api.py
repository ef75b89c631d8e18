"""What `import fare_hf` promises: a small sorted list, light to import."""

from __future__ import annotations

import ast
import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fare_hf


def test_public_names_are_sorted_and_there() -> None:
    assert fare_hf.__all__ == sorted(fare_hf.__all__)
    for name in fare_hf.__all__:
        assert getattr(fare_hf, name).__doc__, name
    assert set(fare_hf.__all__) <= set(dir(fare_hf))


def test_unknown_names_raise() -> None:
    with pytest.raises(AttributeError, match="no attribute 'robustify'"):
        fare_hf.robustify  # noqa: B018


def test_importing_the_package_imports_nothing_large() -> None:
    """Nor do the names of the lab, and what a folder of checkpoints holds."""
    modules = "fare_hf, fare_hf.lab.names, fare_hf.training.checkpointing.output_folder"
    code = f"import sys, {modules}; print([m for m in ('torch', 'numpy', 'transformers', 'PIL') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


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


@pytest.mark.parametrize("name", fare_hf.__all__)
def test_a_public_name_has_an_example_that_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs the Hub is skipped inside the example; an example of nothing but that is of the Hub's functions."""
    monkeypatch.chdir(tmp_path)
    public = getattr(fare_hf, name)
    (found,) = (test for test in doctest.DocTestFinder(recurse=False).find(public, name))
    torch.manual_seed(0)
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(found)
    assert result.failed == 0 and found.examples
    ran = [example for example in found.examples if doctest.SKIP not in example.options]
    assert ran or name in {"merge_vision_tower", "push_robust_encoder", "robust_pipeline"}


@pytest.mark.parametrize("name", [name for name in fare_hf.__all__ if inspect.isfunction(getattr(fare_hf, name))])
def test_a_public_function_says_what_it_takes_returns_and_raises(name: str) -> None:
    text = inspect.getdoc(getattr(fare_hf, name)) or ""
    assert [part for part in ("Args:", "Returns:", "Raises:", "Example:") if part not in text] == []
