"""The quickstart end to end, with the real launcher and a few training steps; CI runs the whole of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.in_process import instead_of_subprocess, run_main
from transformers import CLIPVisionModel

from fare_hf.lab import measure, recipes
from fare_hf.lab.quickstart import Quickstart

TINY = measure.Budget(
    {"twemoji": 16, "digits": 8}, steps=2, target_classes=1, captions=12, caption_steps=2, targeted=2, targeted_steps=2
)
NOISE = ("Generating", "Loading weights", "torchvision", "not sharded", "pin_memory", "Warning", "SwapReport(", "{'")


def test_quickstart_tells_its_story_and_leaves_encoder_report_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for option, value in {"per_device_train_batch_size": "8", "attack_steps": "1", "logging_steps": "1"}.items():
        monkeypatch.setitem(recipes.COMMON, option, value)
    run = tmp_path / "run"
    Quickstart(run, max_steps=2, budget=TINY).run()
    check_story(run, *capfd.readouterr())
    CLIPVisionModel.from_pretrained(run / "encoder")
    assert "4/255" in (run / "encoder" / "README.md").read_text()
    assert (run / "picture.png").stat().st_size > 10_000
    report = json.loads((run / "report.json").read_text())
    assert report["schema_version"] == "1.0"
    found = {(row["model"], row["task"]) for row in report["rows"]}
    assert {("CLIP", "zero-shot"), ("FARE", "zero-shot"), ("TeCoA", "zero-shot")} <= found
    assert {(f"LLaVA + {name}", task) for name in ("CLIP", "FARE") for task in ("captions", "targeted")} <= found
    for row in report["rows"]:
        assert {"model", "task", "dataset", "metric", "value", "ci", "n", "threat_model", "attack"} <= set(row)
        assert (row["threat_model"] is None) == (row["attack"] is None)
        assert row["ci"][0] <= row["value"] <= row["ci"][1]


def check_story(run: Path, said: str, bars: str) -> None:
    """What a person reads: each stage, the command, the log, the table, where the files lie, and nothing else."""
    assert [number for number in "12345" if f"\n=== {number}/5 " in said] == list("12345")
    assert "$ accelerate launch" in said and "swap_vision_tower(llava" in said
    assert "step 2: loss " in said and "cosine clean" in said
    table = said.split("percent, with 95 % intervals")[1]
    assert all(f"zero-shot accuracy  {name}" in table for name in ("twemoji", "digits")) and "target forced" in table
    for file in ("encoder", "report.md", "report.json", "picture.png"):
        assert f"\n  {file}" in said and (run / file).exists()
    assert not [word for word in NOISE if word in said + bars]
    assert "2/2" in bars and "Traceback" not in bars


def test_a_training_that_stops_stops_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "command", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(ValueError, match="the training stopped with exit status 3"):
        Quickstart(tmp_path / "run").fine_tune()


def test_a_folder_with_something_in_it_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not empty: name a new folder"):
        Quickstart(tmp_path)


@pytest.mark.parametrize("name", ["fare-2", "fare-4", "tecoa-2", "tecoa-4"])
def test_recipes_name_their_radius_and_objective(name: str) -> None:
    options = recipes.recipe(name)
    assert options["eps"] == f"{name[-1]}/255"
    assert ("objective" in options) == name.startswith("tecoa")
    command = recipes.shown(recipes.command(options, Path("out")))
    assert command.startswith("accelerate launch") and f"--eps {name[-1]}/255" in command


def test_one_command_trains_a_shipped_encoder_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", instead_of_subprocess)
    monkeypatch.setitem(recipes.COMMON, "per_device_train_batch_size", "4")
    run_main(recipes.main, ["fare-2", "--out", str(tmp_path), "--max_steps", "1"], monkeypatch)
    trained = CLIPVisionModel.from_pretrained(tmp_path / "fare-2" / "encoder")
    assert trained.config.image_size == 160
    assert "2/255" in (tmp_path / "fare-2" / "encoder" / "README.md").read_text()
