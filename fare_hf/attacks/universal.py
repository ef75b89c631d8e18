"""One perturbation for many images (Moosavi-Dezfooli et al., CVPR 2017; by projected gradients, arXiv 1811.11304)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fare_hf.attacks.gradient import AttackedLoss, LossFn, check_steps
from fare_hf.attacks.pgd import parse_step_size
from fare_hf.attacks.threat_model import ThreatModel, check_pixels, check_threat_model

__all__ = ["apply_universal", "universal_perturbation"]


def universal_perturbation(
    loss_of: Callable[[list[int]], LossFn],
    pixels: Tensor,
    threat_model: ThreatModel,
    *,
    epochs: int,
    step_size: float | str,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Maximise the mean loss over a set of images by one change that is added to all of them.

    Stochastic projected gradient ascent: each batch moves the change by one step in the steepest direction of the
    batch's summed loss. The box is held image by image (`apply_universal`), the ball by the change itself.

    Args:
        loss_of: indices of a batch -> its loss function (see `LossFn`), to be maximised.
        pixels: clean images (N, C, H, W) in [0, 1].
        threat_model: what each perturbed image must stay within.
        epochs: passes over the images, at least 1.
        step_size: length of a step in the threat model's norm, such as "1/255"; the last half of the epochs takes
            half of it.
        batch_size: images of a step.
        generator: of the order of the images; None is a fresh one with seed 0.
        start: a change (C, H, W) to begin with; None begins with none.

    Returns:
        The change (C, H, W), fp32: apply it with `apply_universal`.

    Raises:
        TypeError, ValueError: wrong pixels, epochs, step size or start; NaN losses (named by place in the batch).
    """
    check_steps(epochs, "epochs")
    check_steps(batch_size, "batch_size")
    check_threat_model(threat_model)
    check_pixels(pixels)
    length = parse_step_size(step_size, threat_model)
    clean = pixels.detach().float()
    generator = generator or torch.Generator().manual_seed(0)
    change = threat_model.shortened(torch.zeros_like(clean[:1]) if start is None else start.detach().float()[None])
    if not bool(change.isfinite().all()):
        raise ValueError("start holds NaN or infinity: pass the change that a run gave, or None.")
    if change.shape[1:] != clean.shape[1:]:
        raise ValueError(f"start has shape {tuple(change.shape[1:])}: pass {tuple(clean.shape[1:])}, as the images.")
    for epoch in range(epochs):
        rate = length if epoch < (epochs + 1) // 2 else length / 2
        order = torch.randperm(len(clean), generator=generator, device=generator.device).cpu()
        for batch in order.split(batch_size):
            points = apply_universal(clean[batch], change[0], threat_model)
            attacked = AttackedLoss(loss_of(batch.tolist()), len(batch), clean.device)
            _, _, gradient = attacked.gradient(points)
            attacked.raise_if_bad()
            change = threat_model.shortened(change + rate * threat_model.direction(gradient.sum(0, keepdim=True)))
    apply_universal(clean, change[0], threat_model)  # inside the threat model, image by image
    return change[0]


def apply_universal(pixels: Tensor, change: Tensor, threat_model: ThreatModel) -> Tensor:
    """Images (B, C, H, W) with one change (C, H, W) added, inside ball and box, fp32; ValueError for a NaN change."""
    points = threat_model.project(pixels.float() + change.to(pixels.device), pixels)
    threat_model.check(points, pixels.float())
    return points
