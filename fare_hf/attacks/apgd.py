"""Auto-PGD (Croce and Hein, ICML 2020, arXiv 2003.01690, algorithm 1): PGD that chooses its own step sizes.

Each sample starts with step 2 eps and momentum 0.75. At checkpoints (22 % of the steps, then ever closer, never closer
than 6 %) a sample whose loss stopped rising halves its step and goes back to its best point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fare_hf.attacks.gradient import AttackedLoss, LossFn, check_steps
from fare_hf.attacks.threat_model import ThreatModel, check_pixels

_MOMENTUM = 0.75  # alpha in the paper
_RHO = 0.75  # share of steps since the last checkpoint that must have raised the loss


@dataclass(frozen=True)
class ApgdResult:
    """What `apgd` found for each sample.

    Attributes:
        pixels: adversarial pixels (B, C, H, W), fp32, inside the threat model: the fooling point of the highest loss
            where one was found, else the point of the highest loss.
        loss: (B,) fp32, the loss at these pixels.
        success: (B,) bool, fooled at these pixels; None when `loss_fn` gives no success.
    """

    pixels: Tensor
    loss: Tensor
    success: Tensor | None


def apgd(
    loss_fn: LossFn,
    pixels: Tensor,
    threat_model: ThreatModel,
    *,
    steps: int,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
) -> ApgdResult:
    """Maximise each sample's loss with Auto-PGD, and keep its best point.

    A run makes `steps` forward-backward passes and one forward pass. Every run sees the whole batch; a sample fooled
    in one keeps its point in those that follow, and these stop once all samples are fooled. Works inside
    `torch.no_grad()`; no `param.grad` is touched.

    Args:
        loss_fn: `(B, C, H, W) fp32 in [0, 1] -> (B,)`, to be maximised, or `-> (loss, success)`; a sample's result
            must depend on its own pixels only.
        pixels: clean images (B, C, H, W) in [0, 1]; fp16 and bf16 are cast to fp32.
        threat_model: what is allowed.
        steps: steps of each run, at least 1.
        restarts: number of runs, at least 1, each from a new random start.
        generator: source of the random starts; None is a fresh one with seed 0 (the global RNG never moves).
        start: where the first run starts instead, (B, C, H, W); projected onto the threat model first.

    Raises:
        TypeError, ValueError: wrong pixels, start, steps or restarts; a loss of the wrong shape; a NaN loss or a NaN
            or infinite gradient (noticed at the end of a run, naming the first step and its samples).
    """
    check_steps(steps)
    check_steps(restarts, "restarts")
    check_pixels(pixels)
    clean = pixels.detach().float()
    generator = generator or torch.Generator().manual_seed(0)
    best: _Best | None = None
    for run in range(restarts):
        given = start if run == 0 else None
        first = threat_model.random_start(clean, generator) if given is None else threat_model.project(given, clean)
        found = _run(AttackedLoss(loss_fn, len(clean), clean.device), clean, first, threat_model, steps)
        if best is None:
            best = found
        else:
            best.take_unless_fooled(found)
        if best.success is not None and run + 1 < restarts and bool(best.success.all()):
            break
    assert best is not None
    return ApgdResult(best.pixels, best.loss, best.success)


def checkpoints(steps: int) -> list[int]:
    """The steps after which step sizes are reviewed: the paper's `ceil(p_j * steps)`, 0 not included.

    `p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06)`, in whole percent to be exact.
    """
    percents = [0, 22]
    while percents[-1] < 100:
        percents.append(percents[-1] + max(percents[-1] - percents[-2] - 3, 6))
    return sorted({-(-percent * steps // 100) for percent in percents[1:] if percent <= 100})


@dataclass
class _Best:
    """The best point of each sample by fooling first, then loss."""

    pixels: Tensor
    loss: Tensor
    success: Tensor | None

    def update(self, points: Tensor, loss: Tensor, success: Tensor | None) -> None:
        better = loss > self.loss
        if success is not None and self.success is not None:
            better = (success & ~self.success) | ((success == self.success) & better)
        self._take(better, points, loss, success)

    def take_unless_fooled(self, other: _Best) -> None:
        """Merge a later run. What is fooled stays: when the others are must not change a sample."""
        better = other.loss > self.loss
        if other.success is not None and self.success is not None:
            better = ~self.success & (other.success | better)
        self._take(better, other.pixels, other.loss, other.success)

    def _take(self, mask: Tensor, points: Tensor, loss: Tensor, success: Tensor | None) -> None:
        self.pixels = torch.where(_each(mask), points, self.pixels)
        self.loss = torch.where(mask, loss, self.loss)
        if success is not None and self.success is not None:
            self.success = torch.where(mask, success, self.success)


class _StepSizes:
    """Per-sample step sizes, halved at checkpoints by conditions 1 and 2 of the paper."""

    def __init__(self, loss: Tensor, eps: float, steps: int) -> None:
        self.sizes = torch.full_like(loss, 2 * eps)
        self._reviews = set(checkpoints(steps))
        self._last_review = 0
        self._rises = torch.zeros_like(loss)
        self._last_loss = loss
        self._last_best = loss
        # The paper's condition 2 compares with the step size of the checkpoint before, and there is none at first.
        self._just_halved = torch.ones_like(loss, dtype=torch.bool)

    def review(self, step: int, loss: Tensor, best_loss: Tensor) -> Tensor | None:
        """Count a step; at a checkpoint, halve where due and return the mask (B,) of samples to send back."""
        self._rises += loss > self._last_loss
        self._last_loss = loss
        if step not in self._reviews:
            return None
        few_rises = self._rises < _RHO * (step - self._last_review)
        stuck = ~self._just_halved & (best_loss <= self._last_best)
        halved = few_rises | stuck
        self.sizes = torch.where(halved, self.sizes / 2, self.sizes)
        self._just_halved, self._last_best, self._last_review = halved, best_loss, step
        self._rises = torch.zeros_like(self._rises)
        return halved


def _run(attacked: AttackedLoss, clean: Tensor, points: Tensor, threat_model: ThreatModel, steps: int) -> _Best:
    """One run from `points`. `peak` is the paper's x_max (by loss alone); `best` prefers points that fool."""
    project = threat_model.projector(clean)
    loss, success, gradient = attacked.gradient(points)
    peak_points, peak_gradient, peak_loss = points, gradient, loss
    best = _Best(points, loss, success)
    schedule = _StepSizes(loss, threat_model.eps, steps)
    previous = points
    for step in range(1, steps + 1):
        moved = project(points + _each(schedule.sizes) * threat_model.direction(gradient))
        if step > 1:
            moved = project(points + _MOMENTUM * (moved - points) + (1 - _MOMENTUM) * (points - previous))
        previous, points = points, moved
        if step == steps:  # nothing follows that would need the gradient
            best.update(points, *attacked.value(points))
            break
        loss, success, gradient = attacked.gradient(points)
        best.update(points, loss, success)
        higher = _each(loss > peak_loss)
        peak_points = torch.where(higher, points, peak_points)
        peak_gradient = torch.where(higher, gradient, peak_gradient)
        peak_loss = torch.maximum(loss, peak_loss)
        halved = schedule.review(step, loss, peak_loss)
        if halved is not None:
            points = torch.where(_each(halved), peak_points, points)
            gradient = torch.where(_each(halved), peak_gradient, gradient)
    attacked.raise_if_bad()
    return best


def _each(values: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)
