"""Ensembles of attacks on a classifier, one after the other on who is left (Croce and Hein, ICML 2020).

`standard` is AutoAttack: APGD on the cross entropy, APGD on the targeted DLR and FAB-T towards nine classes each, and
Square. `paper` is what Robust CLIP reports: the first two. The name of what was run says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from fare_hf.attacks.apgd import apgd
from fare_hf.attacks.classifier import ClassifierLoss, Kind, LogitsFn, check_labels, predicted_classes
from fare_hf.attacks.fab import fab
from fare_hf.attacks.gradient import check_steps
from fare_hf.attacks.square import square
from fare_hf.attacks.threat_model import ThreatModel, check_pixels, check_threat_model

__all__ = ["AutoAttackResult", "Stage", "autoattack", "class_stages", "ensemble_name"]

Version = Literal["standard", "paper"]
VERSIONS = ("standard", "paper")


@dataclass(frozen=True)
class Stage:
    """One attack of an ensemble.

    Attributes:
        attack: "apgd", "fab" or "square".
        loss: what it looks at.
        rank: for targeted losses, which wrong class it pushes to: 1 is the likeliest of the clean image.
    """

    attack: Literal["apgd", "fab", "square"]
    loss: Kind
    rank: int | None = None

    @property
    def family(self) -> str:
        """ "apgd-ce", "apgd-t", "fab-t", "square": the name without the rank."""
        return self.attack if self.attack == "square" else f"{self.attack}-{'t' if self.rank else self.loss}"

    @property
    def name(self) -> str:
        """ "apgd-ce", "apgd-t1", "fab-t9", "square"."""
        return f"{self.family}{self.rank or ''}"

    def run(
        self,
        logits_of: LogitsFn,
        pixels: Tensor,
        labels: Tensor,
        others: Tensor,
        threat_model: ThreatModel,
        *,
        steps: int,
        restarts: int,
        queries: int,
        generator: torch.Generator,
        stop_fooled: bool = True,
    ) -> Tensor:
        """Points (B, C, H, W) of the threat model, fooling where it found any; arguments as for `autoattack`.

        Args:
            others: (B, K) clean logits with -inf for the labels: they rank the classes to push to.
            stop_fooled: of APGD; FAB and Square always leave fooled samples out.
        """
        targets = None if self.rank is None else others.topk(self.rank, dim=1).indices[:, -1]
        loss = ClassifierLoss(logits_of, labels, self.loss, targets=targets)
        if self.attack == "square":
            return square(loss, pixels, threat_model, queries=queries, generator=generator).pixels
        if self.attack == "fab":
            runs = {"steps": steps, "restarts": restarts}
            return fab(loss, pixels, threat_model, generator=generator, stop_fooled=True, **runs).pixels
        return apgd(
            loss, pixels, threat_model, steps=steps, restarts=restarts, generator=generator, stop_fooled=stop_fooled
        ).pixels


@dataclass(frozen=True)
class AutoAttackResult:
    """What the ensemble found.

    Attributes:
        pixels: (B, C, H, W) fp32: the point that fools, or the clean image where none was found.
        success: (B,) bool, misclassified there (also where the clean image already was).
        name: what was run, such as "apgd-ce+apgd-t9+fab-t9+square", for a report's row.
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
    version: Version = "standard",
    steps: int = 100,
    restarts: int = 1,
    target_classes: int = 9,
    queries: int = 5000,
    batch_size: int = 250,
    generator: torch.Generator | None = None,
) -> AutoAttackResult:
    """Attack a classifier with one attack after the other; whoever is fooled is out of all that follows.

    With two classes the DLR losses are undefined and left out, with three the untargeted DLR takes the place of the
    targeted one (see `class_stages`).

    Args:
        logits_of: pixels (B, C, H, W) in [0, 1] to logits (B, K).
        pixels: clean images (N, C, H, W) in [0, 1].
        labels: (N,) true classes.
        threat_model: what is allowed.
        version: "standard" or "paper".
        steps, restarts: of each run of APGD and FAB.
        target_classes: wrong classes tried by each of the targeted attacks, at most K - 1.
        queries: of Square.
        batch_size: images of a forward; survivors are packed again before each attack.
        generator: of all randomness; None is a fresh one with seed 0.

    Returns:
        Who survived each stage, and the adversarial images.

    Raises:
        TypeError, ValueError: an unknown version, wrong pixels or labels, fewer than 2 classes, bad steps.

    Example:
        >>> logits_of = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
        >>> pixels = torch.rand(2, 3, 8, 8)
        >>> labels = logits_of(pixels).argmax(1)
        >>> found = autoattack(logits_of, pixels, labels, ThreatModel("linf", "8/255"), version="paper", steps=5)
        >>> found.pixels.shape
        torch.Size([2, 3, 8, 8])
    """
    counts = {"steps": steps, "restarts": restarts, "queries": queries}
    for field, count in (*counts.items(), ("batch_size", batch_size)):
        check_steps(count, field)
    check_threat_model(threat_model)
    check_pixels(pixels)
    generator = generator or torch.Generator().manual_seed(0)
    clean = pixels.detach().float()
    with torch.no_grad():
        logits = torch.cat([logits_of(part) for part in clean.split(batch_size)])
    labels = check_labels(labels.to(logits.device), len(clean), logits.shape[1])
    stages, notes = class_stages(logits.shape[1], target_classes, version)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    success, found = predicted_classes(logits) != labels, clean.clone()
    accuracy = {"clean": (~success).double().mean().item()}
    for stage in stages:
        left = (~success).nonzero().flatten()
        for rows in left.split(batch_size) if len(left) else ():
            batch = clean[rows], labels[rows], others[rows]
            points = stage.run(logits_of, *batch, threat_model, generator=generator, **counts)  # type: ignore[arg-type]
            threat_model.check(points, clean[rows])
            with torch.no_grad():  # the prediction on what is returned decides
                fooled = predicted_classes(logits_of(points)) != labels[rows]
            found[rows[fooled]], success[rows[fooled]] = points[fooled], True
        accuracy[stage.name] = (~success).double().mean().item()
    return AutoAttackResult(found, success, ensemble_name(stages), accuracy, notes)


def class_stages(
    classes: int, target_classes: int = 9, version: Version = "paper"
) -> tuple[list[Stage], tuple[str, ...]]:
    """The stages of a version for a number of classes, and what had to be left out.

    Raises:
        ValueError: an unknown version, fewer than 2 classes, or target_classes below 1.
    """
    if version not in VERSIONS:
        raise ValueError(f"version {version!r} is unknown: pass one of {', '.join(VERSIONS)}.")
    if classes < 2:
        raise ValueError(f"there are {classes} classes: an attack on a classifier needs at least 2.")
    if target_classes < 1:
        raise ValueError(f"target_classes {target_classes} must be at least 1.")
    ranks, notes = range(1, min(target_classes, classes - 1) + 1), []
    stages = [Stage("apgd", "ce")]
    if classes == 2:
        notes.append("2 classes: no DLR (needs 3), no targeted DLR (needs 4)")
    elif classes == 3:
        notes.append("3 classes: untargeted DLR in place of the targeted one (needs 4)")
        stages.append(Stage("apgd", "dlr"))
    else:
        stages += [Stage("apgd", "targeted-dlr", rank) for rank in ranks]
    if version == "standard":
        stages += [Stage("fab", "targeted-margin", rank) for rank in ranks] + [Stage("square", "margin")]
    if len(ranks) < target_classes and any(stage.rank for stage in stages):
        notes.append(f"{classes} classes: {len(ranks)} targets, not {target_classes}")
    return stages, tuple(notes)


def ensemble_name(stages: list[Stage]) -> str:
    """ "apgd-ce+apgd-t9+fab-t9+square": targeted runs are counted."""
    groups = [(family, len(list(same))) for family, same in groupby(stages, key=lambda stage: stage.family)]
    return "+".join(f"{family}{count}" if family.endswith("-t") else family for family, count in groups)
