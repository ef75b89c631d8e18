"""The gradient-masking checks pass for an honest network and catch one that hides its gradient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation.attack_loop import attack_batch
from fare_hf.evaluation.zero_shot import classification
from fare_hf.evaluation.zero_shot.gradient_masking import check_gradient_masking

THREAT = ThreatModel("linf", "8/255")
OPTIONS = {"steps": 10, "target_classes": 2, "queries": 60, "batch_size": 25, "more": 2}


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 48), nn.Tanh(), nn.Linear(48, 8)).eval().requires_grad_(False)
    pixels = torch.rand(50, 3, 8, 8)
    return net, pixels, net(pixels).argmax(1)


def test_an_honest_network_passes() -> None:
    net, pixels, labels = problem()
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 8)).eval().requires_grad_(False)
    report = check_gradient_masking(net, pixels, labels, THREAT, surrogate=other, **OPTIONS)
    assert report.passed, report.to_markdown()
    assert [check.name for check in report.checks] == ["more steps", "black box", "wide ball", "transfer"]
    assert report.ci[0] <= report.accuracy <= report.ci[1] and 0 < report.accuracy < 1
    assert json.loads(json.dumps(report.to_dict()))["passed"] is True
    assert "ok, black box: Square with 60 queries leaves" in report.to_markdown()


class Staircase(nn.Module):
    """The same network behind 8-bit-like rounding with a gradient that points nowhere useful."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.net(((pixels * 128).round() / 128).detach())
        return hidden + 1e-6 * pixels.mean((1, 2, 3))[:, None]


def test_a_shattered_gradient_is_caught() -> None:
    net, pixels, labels = problem()
    masked = Staircase(net)
    labels = masked(pixels).argmax(1)
    report = check_gradient_masking(masked, pixels, labels, THREAT, surrogate=net, **OPTIONS)
    failed = {check.name for check in report.checks if not check.passed}
    assert not report.passed and {"black box", "wide ball", "transfer"} <= failed
    assert next(check for check in report.checks if check.name == "transfer").fooled_alone > 0
    assert "FAILED, transfer" in report.to_markdown()


def test_checks_that_were_interrupted_go_on_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after each number of batches in turn: nothing that was finished is computed again."""
    net, pixels, labels = problem()
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 8)).eval().requires_grad_(False)
    options: dict[str, Any] = {**OPTIONS, "steps": 3, "queries": 5, "target_classes": 1, "surrogate": other}
    done = [0]

    def counted(*words: Any) -> Tensor:
        if done[0] == most:
            raise KeyboardInterrupt
        done[0] += 1
        return attack_batch(*words)

    monkeypatch.setattr(classification, "attack_batch", counted)
    most = 10**9
    whole, batches = check_gradient_masking(net, pixels, labels, THREAT, **options), done[0]
    interrupted, done[0] = 0, 0
    for most in range(3, batches, 3):
        with pytest.raises(KeyboardInterrupt):
            check_gradient_masking(net, pixels, labels, THREAT, folder=tmp_path / "run", **options)
        interrupted += 1
        assert done[0] == most  # and none of those that were finished
    most = 10**9
    found = check_gradient_masking(net, pixels, labels, THREAT, folder=tmp_path / "run", **options)
    assert done[0] == batches and interrupted > 2 and found == whole
    monkeypatch.setattr(classification, "clean_pass", pytest.fail)
    assert check_gradient_masking(net, pixels, labels, THREAT, folder=tmp_path / "run", **options) == whole
    for changes, what in (
        ({"surrogate": net}, "surrogate"),
        ({"surrogate": None}, "surrogate"),
        ({"queries": 6}, "queries"),
        ({"seed": 1}, "seed"),
    ):
        with pytest.raises(ValueError, match=f"holds a run with another {what}: name another folder"):
            check_gradient_masking(net, pixels, labels, THREAT, folder=tmp_path / "run", **options | changes)
    with pytest.raises(ValueError, match="holds a run with another labels"):
        check_gradient_masking(net, pixels, labels.flip(0), THREAT, folder=tmp_path / "run", **options)
    with pytest.raises(ValueError, match="holds a run with another model"):
        check_gradient_masking(other, pixels, labels, THREAT, folder=tmp_path / "run", **options)
