"""What robust fine-tuning minimises and its inner attack maximises: one small callable each, one value per sample.

An objective is used in two steps: `targets(...)` once a batch, for what stays fixed during the attack, then
`objective(embeddings, targets) -> (B,)` at every step of the attack and once for the update. The trainer reduces it to
a scalar.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Embed", "Objective", "wide"]

# Pixels (B, 3, H, W) in [0, 1] to embeddings (B, D), or tokens (B, T, D).
Embed = Callable[[Tensor], Tensor]


class Objective(Protocol):
    """What the trainer asks of an objective; a new one is a class with these four members."""

    @property
    def name(self) -> str:
        """Short name for logs and cards, such as `fare`."""

    @property
    def citation(self) -> str:
        """BibTeX of its paper, for the model card."""

    def targets(self, pixels: Tensor, labels: Tensor | None, embed_original: Embed) -> Tensor:
        """What stays fixed while a batch is attacked, without a graph.

        Args:
            pixels: clean images (B, 3, H, W) in [0, 1].
            labels: (B,) classes, or None.
            embed_original: embeds pixels with the frozen original encoder; called only if it is needed.
        """

    def __call__(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample, (B,), fp32 or wider."""


def wide(values: Tensor) -> Tensor:
    """fp32 for half precision, where sums of squares overflow; fp32 and fp64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
