"""The small form of examples/benchmarks/attack_parity.py: as strong as pyautoattack."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from helpers.paths import EXAMPLES

SCRIPT = EXAMPLES / "benchmarks" / "attack_parity.py"


def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[dict]:
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *words, "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code == 0
    found = json.loads((tmp_path / "parity.json").read_text())["lines"]
    assert (tmp_path / "parity.md").read_text().count("\n| ") == len(found) + 1
    return found


def test_robust_accuracy_is_never_higher_than_the_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--models", "dense", "--samples", "500", "--steps", "15", "--target_classes", "2", "--queries", "20"]
    found = lines(tmp_path, monkeypatch, *words, "--eps", "4/255", "8/255")
    assert [line["threat_model"] for line in found] == ["linf 4/255", "linf 8/255"]
    assert all(line["within"] and line["attack"] == "apgd-ce+apgd-t2+fab-t2+square" for line in found)
    assert any(0.02 < line["pyautoattack"] < 0.98 for line in found)  # a problem on which attacks differ


@pytest.mark.slow
def test_lab_encoders_and_l2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--models", "convolutions", "fare-4", "--norms", "linf", "l2", "--samples", "52", "--steps", "5"]
    found = lines(tmp_path, monkeypatch, *words, "--target_classes", "1", "--queries", "10", "--version", "paper")
    assert len(found) == 12 and {line["attack"] for line in found} == {"apgd-ce+apgd-t1"}


def test_the_kept_results_are_within_the_tolerance() -> None:
    for name, models in (("lab", 5), ("random", 3)):
        content = json.loads((SCRIPT.parent / "results" / f"parity-{name}.json").read_text())
        assert len({line["model"] for line in content["lines"]}) == models and len(content["lines"]) >= 3 * models
        assert all(line["fare_hf"] <= line["pyautoattack"] + 0.002 + 1e-9 for line in content["lines"])


def test_throughput_is_measured_in_one_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    words = ["--images", "2", "--steps", "1", "--batch_sizes", "1", "2"]
    monkeypatch.setattr(sys, "argv", ["vlm_throughput.py", *words])
    runpy.run_path(str(SCRIPT.with_name("vlm_throughput.py")), run_name="__main__")
    found = json.loads(capsys.readouterr().out)["arms"]
    assert [line["batch_size"] for line in found] == [1, 2] and found[0]["factor"] == 1.0
