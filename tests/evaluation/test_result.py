"""One result for all evaluations: rows, an outcome for each sample of each row, and a report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_llava import PROMPT, encoder, images

from fare_hf.attacks import ThreatModel
from fare_hf.data.pixels import Normalization, quantize
from fare_hf.evaluation import (
    Cider,
    Evaluation,
    RobustnessReport,
    check_gradient_masking,
    clean_drift,
    evaluate_captions,
    evaluate_stealth,
    evaluate_targeted,
    evaluate_transfer,
    evaluate_universal_text,
    evaluate_vlm,
    evaluate_zero_shot,
    retrieval_recall,
)

BALL = ThreatModel("linf", "16/255")
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TEXTS = torch.eye(16)[:3]
NAMES: dict[str, Any] = {"model": "m", "dataset": "d"}
TEXT: dict[str, Any] = {**NAMES, "prompt": PROMPT, "steps": 2, "max_new_tokens": 3}


def logits(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.mean((2, 3)) @ torch.eye(3)


EVALUATIONS: dict[str, Callable[[Any, Any, Path], Evaluation]] = {
    "zero-shot": lambda vlm, proc, folder: evaluate_zero_shot(
        encoder(), TEXTS, images(4), [0, 1, 2, 0], normalization=HALF, threat_models=[BALL], steps=2, **NAMES
    ),
    "masking": lambda vlm, proc, folder: check_gradient_masking(
        logits, images(4), logits(images(4)).argmax(1), BALL, steps=2, queries=5, target_classes=1
    ),
    "drift": lambda vlm, proc, folder: clean_drift(encoder(), encoder(), images(4), normalization=HALF, **NAMES),
    "retrieval": lambda vlm, proc, folder: retrieval_recall(torch.eye(4), torch.eye(4), range(4), at=[1], **NAMES),
    "captions": lambda vlm, proc, folder: evaluate_captions(
        vlm, proc, images(4), ["cat"] * 4, threat_models=[BALL], **TEXT
    ),
    "targeted": lambda vlm, proc, folder: evaluate_targeted(vlm, proc, images(4), "cat", threat_models=[BALL], **TEXT),
    "stealth": lambda vlm, proc, folder: evaluate_stealth(
        vlm, proc, quantize(images(4)), "cat", BALL, folder=folder, **TEXT
    ),
    "transfer": lambda vlm, proc, folder: evaluate_transfer(
        {"A": logits}, {"B": logits}, images(4), torch.tensor([0, 1, 2, 0]), BALL, dataset="d", steps=2
    ),
    "universal": lambda vlm, proc, folder: evaluate_universal_text(
        vlm, proc, images(4), ["cat"], [PROMPT], BALL, refused=lambda text: True, epochs=1, **NAMES
    ),
    "vlm": lambda vlm, proc, folder: evaluate_vlm(
        vlm, proc, images(4), PROMPT, Cider([["a cat"]] * 4), threat_models=[BALL], task="t", steps=2, **NAMES
    ),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_gives_rows_outcomes_and_a_report(name: str, vlm, proc, tmp_path: Path) -> None:
    found = EVALUATIONS[name](vlm, proc, tmp_path / "run")
    assert isinstance(found, Evaluation) and len(found.rows) == len(found.outcomes) >= 1
    for row, outcomes in zip(found.rows, found.outcomes, strict=True):
        assert len(outcomes) == row.n and sum(outcomes) / row.n == pytest.approx(row.value)
        assert row.outcomes is None or outcomes == [float(outcome) for outcome in row.outcomes]
    report = found.report()
    assert isinstance(report, RobustnessReport) and report.rows == found.rows
    assert report.environment["seed"] == 0 and "torch" in report.environment["versions"]
