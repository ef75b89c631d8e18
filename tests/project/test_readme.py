"""The README: a training by the real launcher, the commands of CI, the shipped table. Its blocks run in test_pages."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

from helpers.pages import blocks, commands, stood_in
from helpers.paths import ROOT
from PIL import Image

from fare_hf import RobustnessReport

README = (ROOT / "README.md").read_text()
COMMANDS = [command for block in blocks("README.md") if block.language == "bash" for command in commands(block)]


def test_there_are_snippets() -> None:
    assert len([block for block in blocks("README.md") if block.language == "python"]) >= 2 and len(COMMANDS) >= 5


def test_the_first_training_runs_by_the_real_launcher(tmp_path: Path) -> None:
    (tmp_path / "path/to/images").mkdir(parents=True)
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


def test_the_table_is_the_shipped_report() -> None:
    table = README.split("<!-- lab-table:begin -->")[1].split("<!-- lab-table:end -->")[0]
    report = RobustnessReport.load(ROOT / "model_cards" / "lab" / "report.json")
    assert report.to_markdown().strip() in table
    assert report.environment["command"] in table


def test_report_of_the_table_is_valid_json() -> None:
    report = json.loads((ROOT / "model_cards" / "lab" / "report.json").read_text())
    assert report["schema_version"] == "1.0" and len(report["rows"]) > 20
