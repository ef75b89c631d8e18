"""The notebooks are what the files beside them say, have outputs, and run, on parts of the lab."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[dev]' installs it")
pytest.importorskip("nbclient", reason="pip install -e '.[dev]' installs it")

from tools.notebooks import FOLDER, notebook_of, run, sources  # noqa: E402

SMALL = {"STEPS": "2", "SAMPLES": "2"}
SAID = {
    "own_data": ["<table", "report.json"],
    "quickstart": ["<table", "This run:", "trainer.save_encoder()"],
    "swap_and_attack": ["<li>71 of 71 tensors changed", "of 2 say"],
}
"""What the outputs of each must hold, in any size."""
FAST = "own_data"


def small(text: str) -> str:
    """A few images and steps in place of the notebook's own."""
    for name, value in SMALL.items():
        text = re.sub(rf"^{name} = \d+", f"{name} = {value}", text, flags=re.MULTILINE)
    text = re.sub(r"^SAMPLES, STEPS = \d+, \d+", "SAMPLES, STEPS = 2, 2", text, flags=re.MULTILINE)
    return text.replace("per_device_train_batch_size=16", "per_device_train_batch_size=2")


def outputs(notebook: Any) -> str:
    """All that its cells gave, as one text."""
    found = [one for cell in notebook.cells for one in cell.get("outputs", [])]
    return "\n".join([*(one.get("text", "") for one in found), *(str(one.get("data", "")) for one in found)])


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.stem)
def test_a_notebook_is_its_file_with_outputs(path: Path) -> None:
    """Else `python -m tools.notebooks` makes it again."""
    kept = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    made = notebook_of(path.read_text())
    assert [cell.source for cell in kept.cells] == [cell.source for cell in made.cells]
    shown = outputs(kept)
    assert all(words in shown for words in [*(one for one in SAID[path.stem] if "of 2" not in one)])
    assert str(FOLDER.parents[1]) not in shown and "/home/" not in shown
    assert path.with_suffix(".ipynb").stat().st_size < 400_000


def test_every_notebook_has_its_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {path.stem for path in sources()} == SAID.keys()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == FAST else [pytest.mark.slow]) for name in sorted(SAID)]
)
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    """In a kernel of its own."""
    text = small((FOLDER / f"{name}.py").read_text())
    assert text != (FOLDER / f"{name}.py").read_text()
    found = run(notebook_of(text), tmp_path)
    assert all(cell.execution_count for cell in found.cells if cell.cell_type == "code")
    assert all(words in outputs(found) for words in SAID[name])
