"""Losses on logits for attacks on classifiers: one value per sample, larger is worse for the classifier.

All take `logits` (B, K) of any float dtype and `labels` (B,) of integers in [0, K), and return fp32 (fp64 for fp64
logits) of shape (B,). Labels are not range-checked here: that would be a host sync in every step of an attack.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Keeps the ratios finite where the top logits are equal; the value of the reference implementation.
_TINY = 1e-12


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each sample, (B,), in [0, inf)."""
    return F.cross_entropy(_wide(logits), labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest other logit minus the label's, (B,): positive exactly where the classifier is wrong.

    Raises:
        ValueError: fewer than 2 classes.
    """
    _check_classes(logits, 2, "margin")
    logits = _wide(logits)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - _pick(logits, labels)


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The target's logit minus the label's, (B,): 0 where the two classes are equally likely.

    Args:
        logits: (B, K).
        labels: (B,) true classes.
        targets: (B,) classes to push towards, other than the labels.
    """
    logits = _wide(logits)
    difference = _pick(logits, targets) - _pick(logits, labels)
    # NaN in a class that is not looked at is no prediction either.
    return torch.where(logits.detach().isnan().any(1), torch.nan, difference)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein, ICML 2020, arXiv 2003.01690), (B,).

    `-(z_y - max_{i != y} z_i) / (z_1st - z_3rd)`, unchanged when logits are shifted or scaled.

    Raises:
        ValueError: fewer than 3 classes, where it is undefined.
    """
    _check_classes(logits, 3, "dlr")
    top = _wide(logits).topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted difference of logits ratio (Croce and Hein, ICML 2020, arXiv 2003.01690), (B,).

    `-(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2)`; positive where the target beats the label.

    Args:
        logits: (B, K).
        labels: (B,) true classes.
        targets: (B,) classes to push towards, other than the labels.

    Raises:
        ValueError: fewer than 4 classes, where it is undefined.
    """
    _check_classes(logits, 4, "targeted_dlr")
    top = _wide(logits).topk(4, dim=1).values
    return targeted_margin(logits, labels, targets) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _check_classes(logits: Tensor, least: int, loss: str) -> None:
    if logits.ndim != 2 or logits.shape[1] < least:
        raise ValueError(
            f"{loss} needs logits of shape (B, K) with at least {least} classes, not {tuple(logits.shape)}: "
            "use cross_entropy for fewer classes."
        )
