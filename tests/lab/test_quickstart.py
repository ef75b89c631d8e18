"""The quickstart end to end, with the real launcher and a few training steps; CI runs the whole of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.in_process import instead_of_subprocess, run_command, run_main
from transformers import CLIPVisionModel

from fare_hf.evaluation.report.rows import fraction_row
from fare_hf.lab import load_test_set, measure, recipes
from fare_hf.lab.quickstart import Quickstart
from fare_hf.lab.quickstart_plan import WHOLE, Plan, TimeLeft, in_words
from fare_hf.lab.quickstart_shown import lower, proof

TINY = measure.Budget(
    {"twemoji": 16, "digits": 8}, steps=2, target_classes=1, captions=12, caption_steps=2, targeted=2, targeted_steps=2
)
NAMES = {"model": "m", "task": "t", "dataset": "d", "metric": "accuracy"}
NOISE = ("Generating", "Loading weights", "torchvision", "not sharded", "pin_memory", "Warning", "SwapReport(", "{'")


def test_quickstart_tells_its_story_and_leaves_encoder_report_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for option, value in {"per_device_train_batch_size": "8", "attack_steps": "1"}.items():
        monkeypatch.setitem(recipes.QUICK, option, value)
    run = tmp_path / "run"
    Quickstart(run, Plan(2, TINY)).run()
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
    assert re.search(r"\nstep 1: loss .*cosine clean.*; about .* left in all\nstep 2: loss .*left in all\n", said)
    assert re.search(r"=== 1/5 (?s:.*) s; about .* left in all\)\n\n=== 2/5 ", said) and " s; all is done)" in said
    for claim in (
        "the CLIP is broken",
        "FARE trained",
        "it loads",
        "it is swapped in",
        "attacked captions",
        "a sentence",
    ):
        assert re.search(f"\n    => (NOT )?shown: {claim}.*[0-9]", said), claim
    assert "=> shown: it loads" in said and "=> shown: it is swapped in" in said
    table = said.split("percent, with 95 % intervals")[1]
    assert all(f"zero-shot accuracy  {name}" in table for name in ("twemoji", "digits")) and "target forced" in table
    for file in ("encoder", "report.md", "report.json", "picture.png"):
        assert f"\n  {file}" in said and (run / file).exists()
    assert not [word for word in NOISE if word in said + bars]
    assert "2/2" in bars and "Traceback" not in bars


def test_a_training_that_stops_stops_the_quickstart_after_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It keeps memory between steps, and its log says what is left of the whole run."""
    said = (
        "import os; print('step 2: loss 2.5, more'); print(os.environ['MALLOC_TRIM_THRESHOLD_']); raise SystemExit(3)"
    )
    monkeypatch.setattr(recipes, "command", lambda *_: [sys.executable, "-c", said])
    with pytest.raises(ValueError, match="the training stopped with exit status 3"):
        Quickstart(tmp_path / "run", Plan(4)).fine_tune()
    assert re.search(r"step 2: loss 2.5, more; about .* left in all\n2000000000\n", capfd.readouterr().out)


def test_a_claim_is_shown_where_intervals_do_not_touch() -> None:
    many, some, few = (fraction_row([True] * part + [False] * (100 - part), **NAMES) for part in (90, 40, 35))
    assert lower(few, many) and not lower(many, few) and not lower(few, some)
    assert lower(replace(few, model="other"), some)  # the same samples, and never worse
    assert not lower(few, replace(few, model="other"))
    assert proof(False, "it holds", "1 %, 2 %") == "    => NOT shown: it holds (1 %, 2 %)"


def test_time_left_is_that_of_all_parts_at_the_speed_of_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", iter([100.0, 110.0, 130.0, 200.0]).__next__)
    left = TimeLeft({"first": 10, "second": 30})
    left.finish("first")
    assert left.seconds() == 30
    left.finish("second", 0.5)
    assert left.seconds() == 18  # 30 s for 25 of 40
    left.finish("second")
    assert str(left) == "all is done"


@pytest.mark.parametrize(("seconds", "words"), [(3, "10 s"), (61, "1 min"), (128, "2 min 10 s"), (3599, "60 min")])
def test_times_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_a_longer_plan_measures_more_as_far_as_sets_go_and_trains_the_rest() -> None:
    plan = Plan(100, replace(TINY, samples={"twemoji": 500, "digits": 8}))
    longer = plan.lengthened(3)
    assert longer.budget.samples == {"twemoji": 520, "digits": 24} and longer.budget.captions == 36
    costs = [sum(each.costs().values()) for each in (plan, longer)]
    assert costs[1] == pytest.approx(3 * costs[0], rel=0.01) and longer.max_steps > 300
    assert plan.lengthened(1) == plan
    assert all(len(load_test_set(name)) == count for name, count in WHOLE.items())


def test_minutes_lengthen_the_run_or_are_refused_with_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []
    monkeypatch.setattr(Quickstart, "fine_tune", lambda self: done.append(self.plan) or sys.exit())
    tiny = Plan(2, replace(TINY, samples={"twemoji": 16}))
    with pytest.raises(ValueError, match=r"minutes=0.001 is too little.*takes about .* as it is; give more"):
        Quickstart(tmp_path / "run", tiny, minutes=0.001).run()
    assert not done and not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        Quickstart(tmp_path / "run", tiny, minutes=500).run()
    assert done[0].max_steps > 1000 and done[0].budget.samples == {"twemoji": 520}
    assert (
        f"500 minutes: {done[0].max_steps} training steps; images measured: 520 of twemoji" in capsys.readouterr().out
    )


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--minutes", "x"], ["--minutes", "9", "--max_steps", "5"]])
def test_minutes_that_are_none_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command(["fare-hf", "quickstart", *words])
    assert re.search("is no number of minutes above 0|not allowed with argument --minutes", capsys.readouterr().err)


def test_a_folder_with_something_in_it_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not empty: name a new folder"):
        Quickstart(tmp_path)


@pytest.mark.parametrize("name", ["fare-2", "fare-4", "tecoa-2", "tecoa-4"])
def test_recipes_name_their_radius_and_objective(name: str) -> None:
    options = recipes.recipe(name)
    assert options["eps"] == f"{name[-1]}/255"
    assert ("objective" in options) == name.startswith("tecoa")
    assert options["dataset"] == ("lab:drawings" if name.startswith("tecoa") else "lab:images")
    command = recipes.shown(recipes.command(options, Path("out")))
    assert command.startswith("accelerate launch") and f"--eps {name[-1]}/255" in command


def test_one_command_trains_a_shipped_encoder_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", instead_of_subprocess)
    monkeypatch.setitem(recipes.COMMON, "per_device_train_batch_size", "4")
    run_main(recipes.main, ["fare-2", "--out", str(tmp_path), "--max_steps", "1"], monkeypatch)
    trained = CLIPVisionModel.from_pretrained(tmp_path / "fare-2" / "encoder")
    assert trained.config.image_size == 160
    assert "2/255" in (tmp_path / "fare-2" / "encoder" / "README.md").read_text()
