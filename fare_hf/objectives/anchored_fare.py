"""FARE, and a term that keeps how an image compares with texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from fare_hf.objectives.agft import AgftObjective
from fare_hf.objectives.fare import FareObjective
from fare_hf.objectives.objective import ClassTexts, Embed
from fare_hf.objectives.tecoa import TecoaObjective

__all__ = ["AnchoredFareObjective"]


class AnchoredFareObjective(TecoaObjective):
    """FARE, plus how far the distribution over texts has moved; needs texts as anchors, but no labels.

    `||phi(z) - phi_orig(x)||_2^2 + w KL(p_orig(x) || p(z))`, where `p` is the softmax of the scaled cosines with the
    texts. The second term is AGFT's (Cui et al., CVPR 2026, arXiv 2603.29410) without its softening, so that both
    terms are least, and zero, at the same point: the original's embedding.

    Args:
        text_embeddings, logit_scale: as for `TecoaObjective`; any texts can be anchors.
        anchor_weight: `w`, above 0. No value was tuned.

    Raises:
        ValueError: as `TecoaObjective`, or a weight that is not positive and finite.

    Example:
        >>> loss = AnchoredFareObjective(torch.eye(3))
        >>> loss(torch.ones(1, 3), torch.ones(1, 3)), loss(torch.ones(1, 3), 2 * torch.ones(1, 3))
        (tensor([0.]), tensor([3.]))
    """

    name = "anchored-fare"
    description = (
        "FARE with text anchors: the embedding of the attacked image is pulled to the original encoder's embedding of "
        "the clean image (squared l2 distance), and its distribution over the class names to the original's "
        "(Kullback-Leibler divergence, as AGFT); no labels are used."
    )
    citation = f"{FareObjective.citation}\n{AgftObjective.citation}"

    needs_labels = False
    runs_original = True
    keeps_embedding = True
    options = (*TecoaObjective.options, "anchor_weight")

    def __init__(self, text_embeddings: Tensor, logit_scale: float = 100.0, anchor_weight: float = 1.0) -> None:
        super().__init__(text_embeddings, logit_scale)
        if not 0 < anchor_weight < float("inf"):
            raise ValueError(f"anchor_weight {anchor_weight} is not positive and finite: pass 1, or another number.")
        self.anchor_weight = anchor_weight

    @classmethod
    def from_training(cls, texts: ClassTexts | None, options: Mapping[str, Any]) -> Self:
        """Of the class names and templates of a training, with its weight if it says one."""
        assert texts is not None
        return cls(texts.embeddings(), texts.logit_scale(), options["anchor_weight"] or 1.0)

    def settings(self) -> dict[str, object]:
        """The factor on the cosines and that on the term of texts."""
        return super().settings() | {"anchor weight": self.anchor_weight}

    @torch.no_grad()
    def targets(self, pixels: Tensor, labels: Tensor | None, embed_original: Embed) -> Tensor:
        """(B, D): the original's embeddings of the clean images; `labels` are not looked at."""
        return embed_original(pixels)

    def __call__(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """(B, D), twice, to (B,) in [0, inf)."""
        mine, wanted = (self.logits(values).log_softmax(1) for values in (embeddings, targets))
        moved = F.kl_div(mine, wanted, reduction="none", log_target=True).sum(1)
        return FareObjective()(embeddings, targets) + self.anchor_weight * moved
