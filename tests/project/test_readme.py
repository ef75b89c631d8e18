"""The README: a training by the real launcher, the commands of CI, the shipped table. Its blocks run in test_pages."""

from __future__ import annotations

import json
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.pages import blocks, commands, stood_in
from helpers.paths import EXAMPLES, ROOT
from PIL import Image

from fare_hf import RobustnessReport

README = (ROOT / "README.md").read_text()
COMMANDS = [command for block in blocks("README.md") if block.language == "bash" for command in commands(block)]


def test_it_is_a_screen_and_a_half_with_three_snippets() -> None:
    kinds = [block.language for block in blocks("README.md")]
    assert "python" in kinds and len(COMMANDS) >= 5
    assert len(README.splitlines()) <= 130 and (ROOT / "docs/images/before-and-after.png").exists()


def test_the_first_training_runs_by_the_real_launcher(tmp_path: Path) -> None:
    (tmp_path / "path/to/images").mkdir(parents=True)
    shutil.copytree(EXAMPLES / "recipes", tmp_path / "examples" / "recipes")
    Image.effect_noise((160, 160), 90).convert("RGB").save(tmp_path / "path/to/images/0.png")
    words = stood_in(shlex.split(next(command for command in COMMANDS if command.startswith("accelerate"))))
    program = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    found = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    assert any(tmp_path.glob("*/encoder/model.safetensors"))


def test_the_test_command_is_that_of_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    makes = [command for command in COMMANDS if command.startswith("make")]
    assert makes and "make test" in makes and all(command in ci for command in makes)


LAB_TABLE = runpy.run_path(str(EXAMPLES / "lab_table.py"))


def test_the_tables_are_the_shipped_report(tmp_path: Path) -> None:
    """The short one here, the whole one in docs/results.md, as `lab_table.py` writes them."""
    report = RobustnessReport.load(ROOT / "model_cards" / "lab" / "report.json")
    results = (ROOT / "docs" / "results.md").read_text()
    assert report.to_markdown().strip() in results and report.environment["command"] in results
    assert LAB_TABLE["selection"](report) in README
    for name, text in {"README.md": README, "results.md": results}.items():
        (tmp_path / name).write_text(text)
        LAB_TABLE["write_into"](tmp_path / name, report)
        assert (tmp_path / name).read_text() == text


def test_the_short_table_holds_the_report_s_own_figures() -> None:
    report = RobustnessReport.load(ROOT / "model_cards" / "lab" / "report.json")
    line = next(line for line in README.splitlines() if line.startswith("| FARE-4 |"))
    row = next(
        r for r in report.rows if (r.model, r.dataset, str(r.threat_model)) == ("FARE-4", "twemoji", "linf 4/255")
    )
    assert line.split("|")[3].split()[0] == f"{100 * row.value:.1f}"


def test_the_differences_are_those_of_the_rows() -> None:
    """Of FARE-4 and TeCoA-4, on what fine-tuning saw and what it did not, for all figures that keep single images."""
    report = RobustnessReport.load(ROOT / "model_cards" / "lab" / "report.json")
    lines = LAB_TABLE["differences"](report).splitlines()[2:]
    assert {line.count("|") for line in lines} == {5}
    values = {(row.model, row.task, row.dataset, str(row.threat_model)): row.value for row in report.rows}
    assert {"zero-shot, digits (unseen)", "captions, fashion (unseen)", "captions, twemoji (drawings)"} <= {
        line.split(" | ")[0].removeprefix("| ") for line in lines
    }
    for line in lines:
        name, *cells = line.strip("| ").split(" | ")
        task, dataset = name.rsplit(" (", 1)[0].split(", ", 1)
        for threat, cell in zip(("None", "linf 2/255", "linf 4/255"), cells, strict=False):
            prefix = "" if task == "zero-shot" else "LLaVA + "
            change = [values[f"{prefix}{model}", task, dataset, threat] for model in ("FARE-4", "TeCoA-4")]
            assert float(cell.split()[0]) == pytest.approx(100 * (change[0] - change[1]), abs=0.051), line


def test_report_of_the_table_is_valid_json() -> None:
    report = json.loads((ROOT / "model_cards" / "lab" / "report.json").read_text())
    assert report["schema_version"] == "1.0" and len(report["rows"]) > 20
