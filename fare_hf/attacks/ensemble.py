"""Ensembles of attacks on a classifier, one after the other on who is left (Croce and Hein, ICML 2020).

`paper` is what Robust CLIP reports: APGD on the cross entropy, then APGD on the targeted DLR towards nine classes.
`standard` is AutoAttack's without FAB: these two, then Square. The name of what was run says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fare_hf.attacks.apgd import apgd
from fare_hf.attacks.classifier import ClassifierLoss, LogitsFn, check_labels
from fare_hf.attacks.gradient import check_steps
from fare_hf.attacks.square import square
from fare_hf.attacks.threat_model import ThreatModel, check_pixels, check_threat_model

__all__ = ["AutoAttackResult", "autoattack", "class_stages"]

Stage = str | int
"""A loss's name, "square", or the rank of the wrong class that the targeted DLR pushes to."""
VERSIONS = ("standard", "paper")


@dataclass(frozen=True)
class AutoAttackResult:
    """What the ensemble found.

    Attributes:
        pixels: (B, C, H, W) fp32: the point that fools, or the clean image where none was found.
        success: (B,) bool, misclassified there (also where the clean image already was).
        name: what was run, such as "apgd-ce+apgd-t9+square", for a report's row.
        accuracy: fraction of robust samples after each attack, {"clean": 0.9, "apgd-ce": 0.4, ...}.
        notes: what few classes made impossible, one sentence each.
    """

    pixels: Tensor
    success: Tensor
    name: str
    accuracy: dict[str, float]
    notes: tuple[str, ...]


def autoattack(
    logits_of: LogitsFn,
    pixels: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    version: Literal["standard", "paper"] = "standard",
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    queries: int = 5000,
    batch_size: int = 250,
    generator: torch.Generator | None = None,
) -> AutoAttackResult:
    """Attack a classifier with one attack after the other; whoever is fooled is out of all that follows.

    With two classes the DLR losses are undefined and only the cross entropy (and Square) run, with three the
    untargeted DLR takes the place of the targeted one.

    Args:
        logits_of: pixels (B, C, H, W) in [0, 1] to logits (B, K).
        pixels: clean images (N, C, H, W) in [0, 1].
        labels: (N,) true classes.
        threat_model: what is allowed.
        version: "standard" or "paper".
        steps, restarts: of each APGD run.
        targets: wrong classes tried, at most K - 1.
        queries: of Square.
        batch_size: images of a forward; survivors are packed again before each attack.
        generator: of all randomness; None is a fresh one with seed 0.

    Raises:
        TypeError, ValueError: an unknown version, wrong pixels or labels, fewer than 2 classes, bad steps.
    """
    if version not in VERSIONS:
        raise ValueError(f"version {version!r} is unknown: pass one of {', '.join(VERSIONS)}.")
    check_steps(batch_size, "batch_size")
    check_threat_model(threat_model)
    check_pixels(pixels)
    generator = generator or torch.Generator().manual_seed(0)
    clean = pixels.detach().float()
    with torch.no_grad():
        logits = torch.cat([logits_of(part) for part in clean.split(batch_size)])
    labels = check_labels(labels.to(logits.device), len(clean), logits.shape[1])
    stages, notes = class_stages(logits.shape[1], targets)
    stages = [*stages, "square"] if version == "standard" else stages
    others = logits.scatter(1, labels[:, None], -torch.inf)
    success, found = logits.argmax(1) != labels, clean.clone()
    accuracy = {"clean": (~success).double().mean().item()}
    for stage in stages:
        left = (~success).nonzero().flatten()
        for rows in left.split(batch_size) if len(left) else ():
            loss = stage_loss(stage, logits_of, labels[rows], others[rows])
            if stage == "square":
                result = square(loss, clean[rows], threat_model, queries=queries, generator=generator)
                points = result.pixels
            else:
                options = {"steps": steps, "restarts": restarts, "generator": generator, "stop_fooled": True}
                points = apgd(loss, clean[rows], threat_model, **options).pixels  # type: ignore[arg-type]
            threat_model.check(points, clean[rows])
            with torch.no_grad():  # the prediction on what is returned decides
                fooled = logits_of(points).argmax(1) != labels[rows]
            found[rows[fooled]], success[rows[fooled]] = points[fooled], True
        accuracy[stage if stage == "square" else stage_name(stage)] = (~success).double().mean().item()
    return AutoAttackResult(found, success, ensemble_name(stages), accuracy, notes)


def class_stages(classes: int, targets: int = 9) -> tuple[list[Stage], tuple[str, ...]]:
    """The white-box stages for a number of classes, and what had to be left out.

    Raises:
        ValueError: fewer than 2 classes, or targets below 1.
    """
    if classes < 2:
        raise ValueError(f"there are {classes} classes: an attack on a classifier needs at least 2.")
    if targets < 1:
        raise ValueError(f"targets {targets} must be at least 1.")
    if classes == 2:
        return ["ce"], ("2 classes: no DLR (needs 3), no targeted DLR (needs 4)",)
    if classes == 3:
        return ["ce", "dlr"], ("3 classes: untargeted DLR in place of the targeted one (needs 4)",)
    count = min(targets, classes - 1)
    note = (f"{classes} classes: {count} targets, not {targets}",) if count < targets else ()
    return ["ce", *range(1, count + 1)], note


def stage_loss(stage: Stage, logits_of: LogitsFn, labels: Tensor, others: Tensor) -> ClassifierLoss:
    """The loss of a stage; a number is the rank, in the clean logits `others` (B, K), of the class to push to."""
    if isinstance(stage, int):
        wrong = others.topk(stage, dim=1).indices[:, -1]
        return ClassifierLoss(logits_of, labels, "targeted-dlr", targets=wrong)
    return ClassifierLoss(logits_of, labels, {"ce": "ce", "dlr": "dlr", "square": "margin"}[stage])  # type: ignore[arg-type]


def stage_name(stage: Stage) -> str:
    """ "apgd-ce", "apgd-t1", "square"."""
    return "square" if stage == "square" else f"apgd-t{stage}" if isinstance(stage, int) else f"apgd-{stage}"


def ensemble_name(stages: list[Stage]) -> str:
    """ "apgd-ce+apgd-t9+square": targeted runs are counted."""
    targeted = sum(isinstance(stage, int) for stage in stages)
    plain = [stage_name(stage) for stage in stages if isinstance(stage, str) and stage != "square"]
    tail = ["square"] if "square" in stages else []
    return "+".join([*plain, *([f"apgd-t{targeted}"] if targeted else []), *tail])
