"""Fast adaptive boundary attack (Croce and Hein, ICML 2020, arXiv 1907.02044): the nearest image that fools.

Where APGD climbs a loss inside a ball of given radius, FAB walks along the decision boundary and makes the change
smaller and smaller. Each step goes to the boundary as the gradient shows it, inside the box, biased towards the clean
image; each fooling point is followed by a step back. As in AutoAttack, the paper's final search is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fare_hf.attacks.gradient import AttackedLoss, LossFn, check_steps, select
from fare_hf.attacks.threat_model import ThreatModel, check_pixels, check_threat_model
from fare_hf.numerals import Norm

__all__ = ["FabResult", "fab", "nearest_on_hyperplane"]

_MOST_BIAS = 0.1  # alpha_max in the paper
_OVERSHOOT = 1.05  # eta
_BACKWARD = 0.9  # beta
_ROUNDS = 8


@dataclass(frozen=True)
class FabResult:
    """What `fab` found for each sample.

    Attributes:
        pixels: (B, C, H, W) fp32, always inside the threat model: the nearest fooling point where that lies inside,
            the clean image elsewhere.
        success: (B,) bool, fooled at `pixels`.
        nearest: (B, C, H, W) fp32 in [0, 1]: the nearest fooling point, inside the ball or not; the clean image where
            none was found.
        distance: (B,) fp32, norm of the change to `nearest`; inf where none was found.
    """

    pixels: Tensor
    success: Tensor
    nearest: Tensor
    distance: Tensor


def fab(
    loss_fn: LossFn,
    pixels: Tensor,
    threat_model: ThreatModel,
    *,
    steps: int = 100,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    stop_fooled: bool = False,
) -> FabResult:
    """Look for the smallest change that fools, in the norm of the threat model.

    A step takes two forward passes and one backward pass to the pixels. The first run starts at the clean images,
    later ones at random points up to half as far away as the best point so far, or as `eps`, whichever is less. Works
    inside `torch.no_grad()`; no `param.grad` is touched.

    Args:
        loss_fn: `(B, C, H, W) fp32 in [0, 1] -> (loss, fooled)`: the loss is 0 on the boundary to be reached and rises
            towards its far side, such as `ClassifierLoss(..., "margin")`, or "targeted-margin" for FAB-T; a sample's
            result must depend on its own pixels only.
        pixels: clean images (B, C, H, W) in [0, 1]; fp16 and bf16 are cast to fp32.
        threat_model: its norm is made small; its radius says what counts as success.
        steps: steps of each run, at least 1.
        restarts: number of runs, at least 1.
        generator: source of the random starts; None is a fresh one with seed 0 (the global RNG never moves).
        stop_fooled: leave a sample out of the batch from its first fooling point inside the threat model on, at one
            host sync a step; `loss_fn` must have `select(rows)`. Without, distances go on shrinking.

    Returns:
        The nearest points that fool, (B, 3, H, W), their distances, and who was fooled.

    Raises:
        TypeError, ValueError: wrong pixels, steps or restarts; no `fooled`; a NaN loss or a NaN or infinite gradient
            (noticed at the end of a run, naming the first step and its samples).

    Example:
        >>> from fare_hf.attacks.classifier import ClassifierLoss
        >>> logits_of = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
        >>> pixels = torch.rand(2, 3, 8, 8)
        >>> loss = ClassifierLoss(logits_of, logits_of(pixels).argmax(1), "margin")
        >>> fab(loss, pixels, ThreatModel("linf", "8/255"), steps=5).pixels.shape
        torch.Size([2, 3, 8, 8])
    """
    check_steps(steps)
    check_steps(restarts, "restarts")
    check_threat_model(threat_model)
    check_pixels(pixels)
    clean = pixels.detach().float()
    generator = generator or torch.Generator().manual_seed(0)
    best = _Best(clean, threat_model)
    for run in range(restarts):
        start = clean if run == 0 else best.random_start(generator)
        left = (~best.inside()).nonzero().flatten() if stop_fooled else torch.arange(len(clean), device=clean.device)
        if len(left):
            attacked = AttackedLoss(
                select(loss_fn, left) if len(left) < len(clean) else loss_fn, len(left), clean.device
            )
            _walk(attacked, best, left, start[left], steps, stop_fooled)
    inside = best.inside()
    points = torch.where(_each(inside), best.points, clean)
    threat_model.check(points, clean)
    return FabResult(points, inside, best.points, best.distance)


class _Best:
    """The nearest fooling point of each sample so far."""

    def __init__(self, clean: Tensor, threat_model: ThreatModel) -> None:
        self.clean, self.threat_model = clean, threat_model
        self.points = clean.clone()
        self.distance = torch.full((len(clean),), torch.inf, device=clean.device)

    def keep(self, rows: Tensor, points: Tensor, fooled: Tensor) -> None:
        """Take over fooling points of some samples that are nearer than what they had."""
        distance = _length(points - self.clean[rows], self.threat_model.norm)
        better = fooled & (distance < self.distance[rows])
        self.points[rows] = torch.where(_each(better), points, self.points[rows])
        self.distance[rows] = torch.where(better, distance, self.distance[rows])

    def inside(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Which of some samples have a fooling point in the threat model; exact, not up to rounding."""
        violation = self.threat_model.violation(self.points[rows], self.clean[rows])
        return self.distance[rows].isfinite() & (violation == 0)

    def random_start(self, generator: torch.Generator) -> Tensor:
        """Random points within half the distance of the best point, or half of eps where that is less."""
        points, eps = self.threat_model.random_start(self.clean, generator), self.threat_model.eps
        share = (self.distance / eps).clamp(max=1.0) / 2 if eps > 0 else torch.zeros_like(self.distance)
        return self.clean + _each(share) * (points - self.clean)


def _walk(attacked: AttackedLoss, best: _Best, rows: Tensor, points: Tensor, steps: int, stop_fooled: bool) -> None:
    """One run for some samples, from some points."""
    for _ in range(steps):
        loss, fooled, gradient = attacked.gradient(points)
        if fooled is None:
            raise ValueError("loss_fn gives no success, which fab needs: return (loss, fooled).")
        best.keep(rows, points, fooled)
        clean = best.clean[rows]
        moved = _step(points, clean, loss, gradient, best.threat_model.norm)
        _, fooled = attacked.value(moved)
        assert fooled is not None
        best.keep(rows, moved, fooled)
        points = torch.where(_each(fooled), clean + _BACKWARD * (moved - clean), moved)
        if stop_fooled:
            left = (~best.inside(rows)).nonzero().flatten()
            if not len(left):
                break
            if len(left) < len(rows):
                attacked.keep(left)
                rows, points = rows[left], points[left]
    attacked.raise_if_bad()


def _step(points: Tensor, clean: Tensor, loss: Tensor, gradient: Tensor, norm: Norm) -> Tensor:
    """Beyond the linearised boundary: from the point itself, and a little from the clean image (algorithm 1)."""
    here, origin, normal = points.flatten(1), clean.flatten(1), gradient.flatten(1)
    there = loss + (normal * (origin - here)).sum(1)  # the linearised loss at the clean image
    both = torch.cat([here, origin]), torch.cat([normal, normal]), torch.cat([-loss, -there])
    forward, direct = nearest_on_hyperplane(*both, norm).chunk(2)
    lengths = [_length(change, norm).clamp_min(1e-8) for change in (forward, direct)]
    bias = (lengths[0] / (lengths[0] + lengths[1])).clamp_max(_MOST_BIAS)[:, None]
    moved = (1 - bias) * (here + _OVERSHOOT * forward) + bias * (origin + _OVERSHOOT * direct)
    return moved.clamp_(0, 1).view_as(points)


def nearest_on_hyperplane(points: Tensor, normal: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """The smallest change inside the box [0, 1] along which a linear function rises by `gap`.

    Coordinates move at one speed (linf), or in proportion to the normal (l2), each until it meets the box. The time it
    takes is found by Newton's method from below, exact once it knows who meets the box: the rise is concave in time,
    and `_ROUNDS` are enough but for odd cases, which end a little short. Where the box does not let the function rise
    that far, it rises as far as it can. Coordinates of zero slope stay.

    Args:
        points: (B, D) in [0, 1].
        normal: (B, D), gradient of the linear function.
        gap: (B,), by how much it is to rise; negative to fall.
        norm: which change is small.

    Returns:
        The change (B, D).
    """
    largest = normal.abs().amax(1, keepdim=True)  # squares of tiny gradients underflow in fp32
    scale = torch.where(largest > 0, largest, 1.0)
    normal, gap = normal / scale * torch.where(gap < 0, -1.0, 1.0)[:, None], gap.abs()[:, None] / scale
    slope, tiny = normal.abs(), torch.finfo(normal.dtype).tiny
    room = torch.where(normal > 0, 1 - points, points)
    speed = slope if norm == "l2" else torch.ones_like(slope)
    gains, rates = slope * room, slope * speed
    time = gap / rates.sum(1, keepdim=True).clamp_min(tiny)
    for _ in range(_ROUNDS):
        met = time * speed >= room
        missing, rate = gap - (gains * met).sum(1, keepdim=True), (rates * ~met).sum(1, keepdim=True)
        time = torch.maximum(time, torch.where(rate > 0, missing / rate.clamp_min(tiny), torch.inf))
    return torch.where(slope > 0, normal.sign() * torch.minimum(time * speed, room), 0.0)


def _length(change: Tensor, norm: Norm) -> Tensor:
    """Norm of each sample's change, (B,)."""
    return torch.linalg.vector_norm(change.flatten(1), ord=torch.inf if norm == "linf" else 2, dim=1)


def _each(values: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)
