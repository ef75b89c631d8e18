"""TeCoA for SigLIP: the attacked image fits the text of its class and no other, each pair judged by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor

from fare_hf.objectives.objective import ClassTexts
from fare_hf.objectives.tecoa import TecoaObjective

__all__ = ["SigmoidTecoaObjective"]


class SigmoidTecoaObjective(TecoaObjective):
    """TeCoA with the loss that SigLIP was trained on; needs labels.

    Of each image, minus the log sigmoid of the logit of its own class and of the negated logits of all others, summed
    over the K texts, where TeCoA has one softmax over them. Zhai et al., ICCV 2023, arXiv 2303.15343.

    Args:
        text_embeddings, logit_scale: as for `TecoaObjective`.
        logit_bias: added to the scaled cosines; a finite number. SigLIP's are about -16 with a scale of about 115.

    Raises:
        ValueError: as `TecoaObjective`, or a bias that is not finite.

    Example:
        >>> import torch
        >>> loss = SigmoidTecoaObjective(torch.eye(3), logit_scale=100.0, logit_bias=-50.0)
        >>> loss(torch.eye(3), torch.tensor([0, 1, 2])).max().item() < 1e-6
        True
    """

    name = "sigmoid-tecoa"
    description = (
        "TeCoA for SigLIP: the attacked image fits the embedded name of its class and none of the others (a sigmoid "
        "for each pair, with the model's scale and bias); labels are used."
    )

    def __init__(self, text_embeddings: Tensor, logit_scale: float, logit_bias: float) -> None:
        super().__init__(text_embeddings, logit_scale)
        if not -float("inf") < logit_bias < float("inf"):
            raise ValueError(f"logit_bias {logit_bias} is not finite: pass the model's own, such as -16.")
        self.logit_bias = logit_bias

    @classmethod
    def from_training(cls, texts: ClassTexts | None, options: Mapping[str, Any]) -> Self:
        """Of the class names and templates of a training, and the text model's bias."""
        assert texts is not None
        return cls(texts.embeddings(), texts.logit_scale(), texts.logit_bias())

    def settings(self) -> dict[str, object]:
        """The factor on the cosines, and what is added."""
        return super().settings() | {"logit bias": self.logit_bias}

    def __call__(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """(B, D) image embeddings and (B,) classes to (B,) in [0, inf); raises ValueError as `TecoaObjective`."""
        logits = self.logits(embeddings)
        own = F.one_hot(targets, logits.shape[1]).bool()
        return -F.logsigmoid(logits.where(own, -logits)).sum(1)

    def logits(self, embeddings: Tensor) -> Tensor:
        """(B, D) image embeddings to the scaled cosines with the bias (B, K)."""
        return super().logits(embeddings) + self.logit_bias
