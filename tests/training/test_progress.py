"""What a training says while it runs."""

from __future__ import annotations

import pytest

from fare_hf.training.logging.progress import log_line

MEASURED = {"loss": 161.32, "attack_gain": 1.4291, "cosine_clean": 0.72861, "cosine_adversarial": 0.54456}


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        (
            {**MEASURED, "grad_norm": 95.871, "learning_rate": 1.6e-3, "images_per_second": 131.7, "epoch": 0.07},
            "step 25: loss 161.3, attack gain 1.429, cosine clean 0.729, adversarial 0.545, gradient 95.9, lr 0.0016, "
            "132 images/s",
        ),
        (
            {f"eval_{key}": value for key, value in MEASURED.items()} | {"eval_runtime": 3.0},
            "step 25 evaluation: loss 161.3, attack gain 1.429, cosine clean 0.729, adversarial 0.545",
        ),
        ({"train_runtime": 295.4, "train_loss": 102.04}, "25 steps in 295 s, mean loss 102"),
    ],
)
def test_log_lines(logs: dict[str, float], line: str) -> None:
    assert log_line(logs, 25) == line
