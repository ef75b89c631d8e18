"""The loss of a classifier as an attack wants it: values, who is fooled, and a part of the batch on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fare_hf.attacks.losses import cross_entropy, dlr, margin, targeted_dlr, targeted_margin

__all__ = ["ClassifierLoss", "check_labels", "predicted_classes"]

LogitsFn = Callable[[Tensor], Tensor]
"""Pixels (B, C, H, W) in [0, 1] to logits (B, K)."""
Kind = Literal["ce", "dlr", "margin", "towards", "targeted-dlr", "targeted-margin"]
_UNTARGETED = {"ce": cross_entropy, "dlr": dlr, "margin": margin}
_TARGETED = {"targeted-dlr": targeted_dlr, "targeted-margin": targeted_margin}


class ClassifierLoss:
    """`loss_fn` of an attack on a classifier: `(pixels) -> (loss (B,), fooled (B,) bool)`, to be maximised.

    `ce`, `dlr` and `margin` push away from the labels, `targeted-dlr` and `targeted-margin` from the labels to the
    targets: all are fooled where the prediction is not the label. `towards` is minus the cross entropy of the targets
    (targeted PGD with `pgd`, targeted APGD with `apgd`) and fooled where the prediction is the target.

    Args:
        logits_of: pixels (B, C, H, W) in [0, 1] to logits (B, K); normalisation happens inside.
        labels: (B,) true classes.
        kind: which loss.
        targets: (B,) classes to push to, for `towards`, `targeted-dlr` and `targeted-margin`.

    Raises:
        ValueError: an unknown kind, or targets where there must be none, or none where there must be.
    """

    def __init__(
        self, logits_of: LogitsFn, labels: Tensor, kind: Kind = "ce", *, targets: Tensor | None = None
    ) -> None:
        if kind not in (*_UNTARGETED, "towards", *_TARGETED):
            known = ", ".join((*_UNTARGETED, "towards", *_TARGETED))
            raise ValueError(f"loss {kind!r} is unknown: pass one of {known}.")
        if (targets is None) != (kind in _UNTARGETED):
            raise ValueError(
                f"loss {kind!r} with targets {targets!r}: give targets to towards and the targeted losses only."
            )
        if targets is not None and targets.shape != labels.shape:
            raise ValueError(f"{len(targets)} targets for {len(labels)} labels: give one target an image.")
        self.logits_of, self.labels, self.kind, self.targets = logits_of, labels, kind, targets

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and who is fooled; ValueError for fewer classes than the loss is defined for (dlr 3, targeted 4)."""
        logits = self.logits_of(pixels)
        predicted = logits.detach().argmax(1)
        if self.targets is None:
            return _UNTARGETED[self.kind](logits, self.labels), predicted != self.labels
        if self.kind == "towards":
            return -cross_entropy(logits, self.targets), predicted == self.targets
        return _TARGETED[self.kind](logits, self.labels, self.targets), predicted != self.labels

    def select(self, rows: Tensor) -> ClassifierLoss:
        """The same loss for some samples."""
        targets = None if self.targets is None else self.targets[rows]
        return ClassifierLoss(self.logits_of, self.labels[rows], self.kind, targets=targets)


def predicted_classes(logits: Tensor) -> Tensor:
    """The class of the largest logit of each sample, (B,), for a verdict. One host sync.

    `argmax` takes NaN for the largest: a broken model would be right on class 0, under any attack.

    Raises:
        ValueError: logits that are NaN or +infinite, which name no class (-infinity rules a class out).
    """
    broken = ~(logits < torch.inf).all(1)
    if bool(broken.any()):
        samples = broken.nonzero().flatten().tolist()
        raise ValueError(
            f"the logits of samples {samples} of a batch hold NaN or infinity, which is no prediction: compute them "
            "in fp32, or look at the model and these inputs."
        )
    return logits.argmax(1)


def check_labels(labels: Tensor, samples: int, classes: int, field: str = "labels") -> Tensor:
    """The labels as int64 (B,). One host sync.

    Raises:
        ValueError: another number than samples, or a class outside [0, classes).
    """
    if labels.ndim != 1 or len(labels) != samples:
        raise ValueError(f"{field} have shape {tuple(labels.shape)} for {samples} images: give one class an image.")
    low, high = torch.stack(torch.aminmax(labels)).tolist()
    if not (low >= 0 and high < classes):
        raise ValueError(f"{field} span [{low}, {high}], outside the {classes} classes of the logits.")
    return labels.long()
