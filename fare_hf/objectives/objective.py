"""What every objective is: a small callable with one value per sample, and what others need to know of it.

An objective is used in two steps: `targets(...)` once a batch, for what stays fixed during the attack, then
`objective(embeddings, targets) -> (B,)` at every step of the attack and once for the update. The trainer reduces it to
a scalar.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

__all__ = ["ClassTexts", "Embed", "Objective", "update_images", "wide"]

# Pixels (B, 3, H, W) in [0, 1] to embeddings (B, D), or tokens (B, T, D).
Embed = Callable[[Tensor], Tensor]


class ClassTexts(Protocol):
    """What a training knows of its classes; nothing is embedded before it is asked for."""

    def embeddings(self) -> Tensor:
        """(K, D): the class names in their templates, by the text encoder."""

    def logit_scale(self) -> float:
        """The factor on the cosines that was asked for, or else the text model's own."""

    def logit_bias(self) -> float:
        """What the text model adds to the scaled cosines."""


class Objective(ABC):
    """What is minimised, and maximised by the inner attack. A new one is a file with a subclass, and a line in
    `fare_hf.objectives`; your own need only be passed to `FareTrainer`.

    Attributes:
        name: short name for logs, cards and `--objective`, such as `fare`.
        description: a sentence or two for the model card.
        citation: BibTeX of its paper, for the model card.
        needs_labels: whether batches need `labels`.
        runs_original: whether `targets` runs the frozen original, which the cost of a training depends on.
        embeds_clean: whether `update` also reads the trained encoder's embeddings of the clean images.
        keeps_embedding: whether the trained encoder answers in the embedding space of the original.
        embeddings: on which embeddings it can work (`fare_hf.encoders.reading.READINGS`).
        options: which options of `FareConfig` it reads.
    """

    name: ClassVar[str]
    description: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    needs_labels: ClassVar[bool] = False
    runs_original: ClassVar[bool] = True
    embeds_clean: ClassVar[bool] = False
    keeps_embedding: ClassVar[bool] = True
    embeddings: ClassVar[tuple[str, ...]] = (
        "projected", "pooled", "tokens", "projected+tokens", "pooled+tokens", "features",
    )  # fmt: skip
    options: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_training(cls, texts: ClassTexts | None, options: Mapping[str, Any]) -> Self:
        """The objective of a training.

        Args:
            texts: for those that compare images with texts; None where there are none.
            options: the values of what `cls.options` names.
        """
        return cls()

    def settings(self) -> dict[str, object]:
        """What a recipe says of it besides its name."""
        return {}

    @abstractmethod
    def targets(self, pixels: Tensor, labels: Tensor | None, embed_original: Embed) -> Tensor:
        """What stays fixed while a batch is attacked, without a graph.

        Args:
            pixels: clean images (B, 3, H, W) in [0, 1].
            labels: (B,) classes, or None.
            embed_original: embeds pixels with the frozen original encoder; called only if it is needed.
        """

    @abstractmethod
    def __call__(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample, (B,), fp32 or wider: what the attack maximises."""

    def update(self, embeddings: Tensor, targets: Tensor, clean: Tensor) -> Tensor:
        """The loss of each sample, (B,), that the update minimises instead of the attack's, where `embeds_clean`.

        Args:
            embeddings: of the attacked images.
            targets: what `targets` gave.
            clean: of the clean images, by the encoder that is trained.
        """
        raise NotImplementedError


def update_images(objective: Any) -> int:
    """Images that an update embeds for each of the batch; `objective` may be one that inherits nothing."""
    return 2 if getattr(objective, "embeds_clean", False) else 1


def wide(values: Tensor) -> Tensor:
    """fp32 for half precision, where sums of squares overflow; fp32 and fp64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
