"""The quickstart end to end, with the real launcher and a few training steps; CI runs the whole of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CLIPVisionModel

from fare_hf.lab import measure, recipes
from fare_hf.lab.quickstart import Quickstart

TINY = measure.Budget(
    {"twemoji": 24, "digits": 12}, steps=4, targets=1, captions=16, caption_steps=2, targeted=4, targeted_steps=2
)


def test_quickstart_leaves_encoder_report_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Quickstart(tmp_path / "run", max_steps=2, budget=TINY).run()
    said = capsys.readouterr().out
    assert "accelerate launch" in said and "swap_vision_tower(llava" in said
    CLIPVisionModel.from_pretrained(tmp_path / "run" / "encoder")
    assert "4/255" in (tmp_path / "run" / "encoder" / "README.md").read_text()
    assert (tmp_path / "run" / "report.md").exists()
    assert (tmp_path / "run" / "picture.png").stat().st_size > 10_000
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["schema_version"] == "1.0"
    found = {(row["model"], row["task"]) for row in report["rows"]}
    assert {("CLIP", "zero-shot"), ("FARE", "zero-shot"), ("TeCoA", "zero-shot")} <= found
    assert {(f"LLaVA + {name}", task) for name in ("CLIP", "FARE") for task in ("captions", "targeted")} <= found
    for row in report["rows"]:
        assert {"model", "task", "dataset", "metric", "value", "ci", "n", "threat_model", "attack"} <= set(row)
        assert (row["threat_model"] is None) == (row["attack"] is None)
        assert row["ci"][0] <= row["value"] <= row["ci"][1]


def test_a_folder_with_something_in_it_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="not an empty folder"):
        Quickstart(tmp_path)


@pytest.mark.parametrize("name", ["fare-2", "fare-4", "tecoa-2", "tecoa-4"])
def test_recipes_name_their_radius_and_objective(name: str) -> None:
    options = recipes.recipe(name)
    assert options["eps"] == f"{name[-1]}/255"
    assert ("objective" in options) == name.startswith("tecoa")
    command = recipes.shown(recipes.command(options, Path("out")))
    assert command.startswith("accelerate launch") and f"--eps {name[-1]}/255" in command


def test_unknown_recipes_are_named() -> None:
    with pytest.raises(ValueError, match="no robust encoder 'fare-8'"):
        recipes.recipe("fare-8")
