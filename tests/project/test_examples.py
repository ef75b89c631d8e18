"""Every example runs, on parts of the lab."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.environments import environment
from helpers.environments import run as run_there
from helpers.in_process import instead_of_subprocess
from helpers.paths import EXAMPLES, ROOT, TESTS
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from fare_hf import RobustnessReport
from fare_hf.evaluation.report.rows import fraction_row
from fare_hf.lab import encoder_folder, measure, recipes

TINY = measure.Budget(
    {"digits": 6}, steps=2, target_classes=1, captions=2, caption_steps=2, scenes=2, targeted=2, targeted_steps=2
)


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs an example in this process, as `python examples/NAME` does."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_example_is_run_here() -> None:
    mentioned = Path(__file__).read_text()
    assert all(f'{path.name}"' in mentioned for pattern in ("*.py", "studies/*.py") for path in EXAMPLES.glob(pattern))


def test_lab_table_measures_each_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "QUICK", TINY)
    for _ in range(2):
        run("lab_table.py", "--quick", "--output_dir", str(tmp_path), monkeypatch=monkeypatch)
    report = RobustnessReport.load(tmp_path / "report.json")
    assert {row.model for row in report.rows} >= {"CLIP", "FARE-2", "TeCoA-4", "LLaVA + CLIP", "LLaVA + FARE-4"}


@pytest.mark.slow
def test_lab_seeds_puts_the_seeds_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = {"yes-no": 2, "pope": 1}
    monkeypatch.setattr(measure, "QUICK", replace(TINY, questions=questions, question_steps=2))
    encoder = tmp_path / "seed-1" / "fare-4" / "encoder"
    shutil.copytree(encoder_folder("fare-4"), encoder)
    words = ["--quick", "--output_dir", str(tmp_path / "out"), "--trainings", f"1={tmp_path / 'seed-1'}"]
    words += ["--models", "fare-4"]
    run("lab_seeds.py", *words, monkeypatch=monkeypatch)
    cells = json.loads((tmp_path / "out" / "seeds.json").read_text())
    of = {(cell["model"], cell["task"], cell["dataset"], cell["eps"]): cell for cell in cells}
    robust = of["FARE-4", "zero-shot", "digits", "4/255"]
    assert list(robust["seeds"]) == ["0", "1"] and robust["mean"] == sum(robust["seeds"].values()) / 2
    assert {dataset for _, _, dataset, _ in of} == {"digits", "fashion", "twemoji", "yes-no", "pope", "scenes"}
    assert {dataset for _, task, dataset, _ in of if task == "captions"} == {"twemoji", "fashion", "digits", "scenes"}
    assert "above" not in (tmp_path / "out" / "seeds.md").read_text()  # nothing to compare FARE-4 with
    assert (tmp_path / "out" / "transfer.md").read_text().count("\n| ") == 7


def test_lab_seeds_compares_encoders_of_the_same_seed() -> None:
    values = {"FARE-4": {"0": 0.6, "1": 0.5, "2": 0.9}, "TeCoA-4": {"0": 0.4, "1": 0.6}, "CLIP": {"0": 0.1}}
    table = [{"task": "captions", "dataset": "d", "eps": "2/255", "model": m, "seeds": v} for m, v in values.items()]
    above = runpy.run_path(str(EXAMPLES / "lab_seeds.py"))["above"]
    assert above(table).splitlines()[2:] == ["| captions, d |  | +5.0 (-10.0 to +20.0) |  |"]
    assert above(table[:1]) == ""


def test_lab_learning_rates_trains_and_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", instead_of_subprocess)
    monkeypatch.setitem(recipes.COMMON, "per_device_train_batch_size", "4")
    words = ["--learning_rates", "1e-4", "--objectives", "tecoa", "--max_steps", "1", "--samples", "8"]
    run("lab_learning_rates.py", "--output_dir", str(tmp_path), *words, monkeypatch=monkeypatch)
    assert "tecoa lr 1e-4: zero-shot clean" in capsys.readouterr().out


def test_the_study_compares_arms_image_by_image_over_all_seeds() -> None:
    study = runpy.run_path(str(EXAMPLES / "studies" / "vlm_embeddings.py"))
    names = {"model": "m", "task": "captions", "dataset": "d", "metric": "caption accuracy"}
    seeds = {
        "original": [[True, True, True, True]],
        "projected": [[True, False, True, False], [True, False, False, False]],
        "tokens": [[True, True, True, False], [True, True, False, True]],
        "features": [[True, False, True, False], [True, False, False, False]],
    }
    rows = {arm: [[fraction_row(one, **names)] for one in each] for arm, each in seeds.items()}
    original, first, other, alike = study["together"](rows)
    assert (original["arm"], first["mean"], other["mean"]) == ("original", 0.375, 0.75)
    assert "difference" not in original and "difference" not in first
    low, high = other["interval"]
    assert other["difference"] == 0.375 and 0 <= low < 0.375 < high <= 1
    assert (alike["difference"], alike["interval"]) == (0, None)
    shown = study["table"]([first, other, alike])
    assert f"| +37.5 [{100 * low:+.1f}, {100 * high:+.1f}] |" in shown and "| +0.0 (no interval) |" in shown


@pytest.mark.slow
def test_the_study_of_embeddings_trains_measures_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", instead_of_subprocess)
    monkeypatch.setitem(recipes.COMMON, "per_device_train_batch_size", "2")
    questions = {"yes-no": 2, "pope": 1}
    monkeypatch.setattr(measure, "QUICK", replace(TINY, questions=questions, question_steps=2))
    words = ["--quick", "--output_dir", str(tmp_path), "--arms", "projected", "features", "--seeds", "0"]
    words += ["--steps", "2", "--learning_rates", "1e-3", "--validation_images", "2"]
    for _ in range(2):  # the second time nothing is trained or measured
        run("studies/vlm_embeddings.py", *words, monkeypatch=monkeypatch)
    assert capsys.readouterr().out.count("seed 0: measured") == 3
    for arm in ("projected", "features"):
        recipe = json.loads((tmp_path / arm / "lr-1e-3" / "seed-0" / "training.json").read_text())
        assert recipe["embedding"] == arm
    study = json.loads((tmp_path / "study.json").read_text())
    arms = {line["arm"]: line for line in study["figures"] if (line["task"], line["eps"]) == ("captions", "4/255")}
    assert list(arms) == ["original", "projected", "features"]
    assert arms["features"]["difference"] == arms["features"]["mean"] - arms["projected"]["mean"]
    assert "difference to projected" in (tmp_path / "study.md").read_text()


def test_image_encoder_consumer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run("image_encoder_consumer.py", monkeypatch=monkeypatch)
    assert "equal to the bit" in capsys.readouterr().out


def test_swap_lab_captions(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run("swap_lab_captions.py", "--images", "2", "--steps", "2", monkeypatch=monkeypatch)
    assert capsys.readouterr().out.count("\n| ") == 3


def test_lab_picture_draws_both_towers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "picture.png"
    run("lab_picture.py", "--images", "2", "--steps", "2", "--output", str(picture), monkeypatch=monkeypatch)
    assert str(picture) in capsys.readouterr().out
    with Image.open(picture) as drawn:  # clean, and the attack on either tower with its difference
        assert drawn.width > 5 * 160


@pytest.mark.slow
def test_merge_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run("merge_memory.py", monkeypatch=monkeypatch)
    assert "GiB: kept" in capsys.readouterr().out


def test_examples_that_need_other_packages_are_tested_elsewhere() -> None:
    assert "open_flamingo_encoder.py" in (TESTS / "vlm" / "test_open_flamingo.py").read_text()


def test_lmms_eval_lab_writes_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`test_lmms_eval_plugin.py` runs it to the end, where lmms-eval is installed."""
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    run("lmms_eval_lab.py", "--output_dir", str(tmp_path), "--images", "3", monkeypatch=monkeypatch)
    assert len(json.loads((tmp_path / "documents.json").read_text())) == 3 == len(list(tmp_path.glob("*.png")))
    assert ["vision_tower=" in " ".join(command) for command in commands] == [False, True]


SCRIPT = """
import runpy, sys
sys.argv = ["lora.py", "--output_dir", sys.argv[1], "--max_steps", "2", "--rank", "2"]
runpy.run_path(EXAMPLE, run_name="__main__")
"""


@pytest.mark.slow
def test_low_rank_updates_are_trained_and_merged(tmp_path: Path) -> None:
    """In an environment with PEFT, which is no dependency."""
    python = environment("peft", ["peft", "bitsandbytes", "psutil"], dependencies=False)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); EXAMPLE = {str(EXAMPLES / 'lora.py')!r}\n{SCRIPT}"
    run_there(python, code, str(tmp_path))
    trained = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "encoder").state_dict()
    original = CLIPVisionModelWithProjection.from_pretrained(encoder_folder("clip"), dtype=torch.float32).state_dict()
    moved = {name for name, value in trained.items() if not torch.equal(value, original[name])}
    assert trained.keys() == original.keys() and moved and all(".layers." in name for name in moved)
