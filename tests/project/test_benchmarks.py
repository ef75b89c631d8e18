"""The benchmarks of the training run, in their smallest form; nothing is timed here."""

from __future__ import annotations

import json
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import EXAMPLES, ROOT
from transformers import CLIPVisionModelWithProjection

from fare_hf.lab import measure

BENCHMARKS = EXAMPLES / "benchmarks"


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a benchmark in this process."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    runpy.run_path(str(BENCHMARKS / name), run_name="__main__")


def test_step_compares_three_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each arm does its work: so many forward passes and updates, and a time for each round but the first."""
    calls: Counter[str] = Counter()
    inner, update = CLIPVisionModelWithProjection.forward, torch.optim.AdamW.step

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls["forwards"] += 1
        return inner(*args, **kwargs)

    def step(*args: Any, **kwargs: Any) -> Any:
        calls["updates"] += 1
        return update(*args, **kwargs)

    monkeypatch.setattr(CLIPVisionModelWithProjection, "forward", forward)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    output = tmp_path / "step.json"
    words = ["--model", "tiny", "--batch_size", "2", "--attack_steps", "1", "--rounds", "1", "--output", str(output)]
    run("step.py", *words, monkeypatch=monkeypatch)
    found = json.loads(output.read_text())
    assert set(found["median_seconds"]) == {"published", "bare", "trainer"}
    assert found["speed_up"] > 0 and found["environment"]["versions"]["torch"]
    assert {name: len(values) for name, values in found["seconds"].items()} == {
        "published": 1,
        "bare": 1,
        "trainer": 1,
    }
    # Two rounds: target, attack, unused clean forward, update; without the unused one; a step of the Trainer that is
    # profiled; one to find what is read; and the three phases on paper, which compute nothing.
    assert calls == {"forwards": 2 * (4 + 3 + 3) + 3 + 1 + 3, "updates": 2 * 3 + 1}
    assert found["kernels"]["milliseconds"] > 0


@pytest.mark.slow
def test_cheaper_spends_the_same_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "cheaper.json"
    words = ["--budget", "1", "--images", "32", "--samples", "4", "--seeds", "0", "--output", str(output)]
    run("cheaper.py", *words, "--arms", "10 steps", "2 steps", monkeypatch=monkeypatch)
    assert [line["steps"] for line in json.loads(output.read_text())["lines"]] == [1, 3]


@pytest.mark.slow
def test_the_cost_curve_has_a_training_for_each_budget_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "curve.json"
    words = ["--samples", "4", "--arms", "2 steps", "2 steps, first 2 of 4 blocks", "--output", str(output)]
    run("cost_curve.py", *words, "--budgets", "1", monkeypatch=monkeypatch)
    first = json.loads(output.read_text())["lines"]
    run("cost_curve.py", *words, "--budgets", "1", "2", monkeypatch=monkeypatch)
    lines = json.loads(output.read_text())["lines"]
    assert lines[:2] == first and len(lines) == 4 and lines[2]["flops"] == 2 * lines[0]["flops"]
    assert [line["steps"] for line in lines] == [3, 3, 6, 6]
    assert output.with_suffix(".md").read_text().count("(3 steps)") == 2 and output.with_suffix(".png").exists()


def test_loader_reads_files_and_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "loader.json"
    words = ["--images", "8", "--batch_size", "2", "--size", "32", "--workers", "0", "--rounds", "1"]
    run("loader.py", *words, "--output", str(output), monkeypatch=monkeypatch)
    found = json.loads(output.read_text())
    arms = [(line["kind"], line["fast"]) for line in found["rates"]]
    assert arms == [(kind, fast) for kind in ("files", "shards", "tars") for fast in (False, True)]
    assert all(line["images_per_second"] > 0 for line in found["rates"]) and found["bytes_an_image"] > 10_000


def test_decoding_compares_pixels_and_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of `FastPixels` is nearly Pillow's, and a draft of a large JPEG is not: what is compared are the pixels."""
    output = tmp_path / "decoding.json"
    words = ["--images", "1", "--rounds", "1", "--eaten", "1e6", "--output", str(output)]
    run("decoding.py", *words, monkeypatch=monkeypatch)
    found = json.loads(output.read_text())
    for size in ("500 x 375", "1600 x 1200"):
        arms = found[size]["arms"]
        assert arms["pillow"]["difference"] == {"max": 0, "mean": 0, "share": 0, "share_above_1": 0}
        assert 0 < arms["fast_images"]["difference"]["share"] < 0.02
        assert arms["fast_images"]["difference"] == arms["torch, Pillow"]["difference"]
        assert all(arm["factor"] > 0 and arm["cores"] > 8 for arm in arms.values())
    assert found["1600 x 1200"]["arms"]["pillow, draft"]["difference"]["share"] > 0.1


def test_the_page_has_the_figures_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    results, page = BENCHMARKS / "results", (ROOT / "docs" / "speed.md").read_text()
    table = runpy.run_path(str(BENCHMARKS / "on_paper.py"))["table"]
    assert table(json.loads((results / "on-paper.json").read_text())["rows"]) in page
    decoding = json.loads((results / "decoding-cpu.json").read_text())
    for name, arm in decoding["500 x 375"]["arms"].items():
        large = decoding["1600 x 1200"]["arms"][name]
        rates = f"| {arm['images_per_second']:.0f} | {large['images_per_second']:.0f} |"
        assert rates in page or name == "torch, simplejpeg", name
    for line in json.loads((results / "loader-cpu.json").read_text())["rates"]:
        assert f"{line['images_per_cpu_second']:.0f}" in page


@pytest.mark.slow
def test_a_step_on_paper_is_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "paper.json"
    run("on_paper.py", "--output", str(output), monkeypatch=monkeypatch)
    found, kept = (json.loads(path.read_text()) for path in (output, BENCHMARKS / "results" / "on-paper.json"))
    assert found["rows"] == kept["rows"]
    for row in found["rows"]:
        parts = row["products"] + row["products_waiting"] + row["others"]
        assert row["limit"] == pytest.approx(parts, abs=1e-3) and row["products_waiting"] >= 0


@pytest.mark.slow
def test_processes_compares_two_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "processes.json"
    words = ["--model", "tiny", "--batch_size", "2", "--steps", "2", "--turns", "1", "--output", str(output)]
    run("processes.py", *words, monkeypatch=monkeypatch)
    assert json.loads(output.read_text())["factor"] > 0


@pytest.mark.slow
def test_quickstart_parts_attacks_each_encoder_in_one_ball_and_in_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        measure, "QUICK", measure.Budget({}, steps=1, target_classes=1, caption_steps=1, targeted_steps=1)
    )
    output = tmp_path / "parts.json"
    run("quickstart_parts.py", "--samples", "2", "--output", str(output), monkeypatch=monkeypatch)
    found = json.loads(output.read_text())["cpu_seconds_of_an_image"]
    assert all(set(found[name]) == {"4/255", "2/255 and 4/255"} for name in ("CLIP", "FARE", "TeCoA"))
    assert all(set(found[f"LLaVA + {name}"]) == {"caption", "sentence"} for name in ("CLIP", "FARE"))
    assert all(value > 0 for part in found.values() for value in part.values())
