"""Projected gradient descent (Madry et al., 2018, arXiv 1706.06083), the inner problem of FARE's training."""

from __future__ import annotations

import torch
from torch import Tensor

from fare_hf.attacks.gradient import AttackedLoss, LossFn, check_steps
from fare_hf.attacks.threat_model import ThreatModel, check_pixels, check_start, check_threat_model
from fare_hf.numerals import parse_fraction


def pgd(
    loss_fn: LossFn,
    pixels: Tensor,
    threat_model: ThreatModel,
    *,
    steps: int,
    step_size: float | str,
    generator: torch.Generator | None = None,
    random_start: bool = True,
    start: Tensor | None = None,
) -> Tensor:
    """Maximise each sample's loss by steps of fixed length, projected onto the threat model; the last iterate.

    `steps` calls of `loss_fn`, each with one backward pass to the pixels and none to the weights. Works inside
    `torch.no_grad()`. Weights that require grad cost memory, but get no `grad`: freeze them to save it.

    Args:
        loss_fn: `(B, C, H, W) fp32 in [0, 1] -> (B,)`, to be maximised; a sample's loss must depend on its own pixels
            only. Its tensor argument is updated in place afterwards: clone it to keep it. A `(loss, success)` result
            is accepted and the success not used.
        pixels: clean images (B, C, H, W) in [0, 1]; fp16 and bf16 are cast to fp32.
        threat_model: what is allowed.
        steps: number of steps, at least 1.
        step_size: length of a step in the threat model's norm, such as `"1/255"`.
        generator: source of the random start; None is a fresh one with seed 0 (the global RNG never moves).
        random_start: False starts at the clean images. FARE's objective has zero gradient there at first.
        start: where to start instead, (B, C, H, W); projected onto the threat model first.

    Returns:
        Adversarial pixels (B, C, H, W), fp32, inside the threat model.

    Raises:
        TypeError, ValueError: wrong pixels, start, steps or step size; a loss of the wrong shape; a NaN loss or a NaN
            or infinite gradient (noticed at the end, naming the first step and its samples); a result outside the
            threat model.

    Example:
        >>> loss = lambda pixels: pixels.flatten(1).sum(1)
        >>> threat = ThreatModel("linf", "4/255")
        >>> found = pgd(loss, torch.full((1, 3, 8, 8), 0.5), threat, steps=5, step_size="1/255", random_start=False)
        >>> round(float(found.max() * 255 - 127.5), 3)
        4.0
    """
    check_steps(steps)
    check_threat_model(threat_model)
    length = parse_step_size(step_size, threat_model)
    check_pixels(pixels)
    clean = pixels.detach().float()
    attacked = AttackedLoss(loss_fn, len(clean), clean.device)
    project = threat_model.projector(clean)
    if start is not None:
        check_start(start, clean)
    if start is None and random_start:
        points = threat_model.random_start(clean, generator)
    else:
        points = project((clean if start is None else start).detach().to(torch.float32, copy=True))
    for _ in range(steps):
        _, _, gradient = attacked.gradient(points)
        points = project(points.add_(threat_model.direction(gradient), alpha=length))
    attacked.raise_if_bad()
    threat_model.check(points, clean)
    return points


def parse_step_size(step_size: float | str, threat_model: ThreatModel, field: str = "step_size") -> float:
    """Read a step length such as `"1/255"`. Raises ValueError for 0, negative, NaN, or above 1 under linf."""
    length = parse_fraction(step_size, field)
    if length == 0:
        raise ValueError(f"{field} {step_size!r} is not positive: pass a length such as '1/255'.")
    if threat_model.norm == "linf" and length > 1:
        raise ValueError(f"{field} {step_size} is above 1, the range of the pixels: did you mean {length:g}/255?")
    return length
