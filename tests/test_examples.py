"""Every example runs, on parts of the lab."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import instead_of_subprocess

from fare_hf import RobustnessReport
from fare_hf.lab import measure, recipes

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = measure.Budget({"digits": 6}, steps=2, targets=1, captions=2, caption_steps=2, targeted=2, targeted_steps=2)


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs an example in this process, as `python examples/NAME` does."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_example_is_run_here() -> None:
    mentioned = Path(__file__).read_text()
    assert all(f'"{path.name}"' in mentioned for path in EXAMPLES.glob("*.py"))


def test_lab_table_measures_each_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "QUICK", TINY)
    for _ in range(2):
        run("lab_table.py", "--quick", "--output_dir", str(tmp_path), monkeypatch=monkeypatch)
    report = RobustnessReport.load(tmp_path / "report.json")
    assert {row["model"] for row in report.rows} >= {"CLIP", "FARE-2", "TeCoA-4", "LLaVA + CLIP", "LLaVA + FARE-4"}


def test_lab_learning_rates_trains_and_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", instead_of_subprocess)
    monkeypatch.setitem(recipes.COMMON, "per_device_train_batch_size", "4")
    words = ["--learning_rates", "1e-4", "--objectives", "tecoa", "--max_steps", "1", "--samples", "8"]
    run("lab_learning_rates.py", "--output_dir", str(tmp_path), *words, monkeypatch=monkeypatch)
    assert "tecoa lr 1e-4: clean" in capsys.readouterr().out
