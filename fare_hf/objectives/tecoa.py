"""TeCoA: the attacked image stays near the text of its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from fare_hf.objectives.objective import ClassTexts, Embed, Objective, wide

__all__ = ["TecoaObjective"]


class TecoaObjective(Objective):
    """TeCoA: cross entropy of the scaled cosines between an image and one text per class; needs labels.

    Mao et al., ICLR 2023, arXiv 2212.07016.

    Args:
        text_embeddings: (K, D), one a class, in the space of the image embeddings (of a CLIP, the projected ones);
            normalised here.
        logit_scale: factor on the cosines; 100 is CLIP's.

    Raises:
        ValueError: not 2 dimensions, fewer than 2 classes, values that are not finite, or a scale not positive.

    Example:
        >>> loss = TecoaObjective(torch.eye(3), logit_scale=100.0)
        >>> loss(torch.eye(3), torch.tensor([0, 1, 2])).max().item() < 1e-6
        True
    """

    name = "tecoa"
    description = (
        "TeCoA: the attacked image is classified among the embedded names of its classes (cross entropy); labels are "
        "used."
    )
    citation = """@inproceedings{mao2023understanding,
  title     = {Understanding Zero-shot Adversarial Robustness for Large-Scale Models},
  author    = {Mao, Chengzhi and Geng, Scott and Yang, Junfeng and Wang, Xin and Vondrick, Carl},
  booktitle = {International Conference on Learning Representations},
  year      = {2023}
}"""

    needs_labels = True
    runs_original = False
    keeps_embedding = False
    embeddings = ("projected", "pooled")
    options: ClassVar[tuple[str, ...]] = ("class_names", "templates", "logit_scale")

    def __init__(self, text_embeddings: Tensor, logit_scale: float = 100.0) -> None:
        shape = tuple(text_embeddings.shape)
        if len(shape) != 2 or shape[0] < 2:
            raise ValueError(f"text_embeddings have shape {shape}: pass (K, D), one a class, of at least 2 classes.")
        if not text_embeddings.isfinite().all():
            raise ValueError("text_embeddings hold NaN or infinite values: embed the class texts again, in fp32.")
        if not 0 < logit_scale < float("inf"):
            raise ValueError(f"logit_scale {logit_scale} is not positive and finite: pass 100, as CLIP.")
        self.text_embeddings = F.normalize(wide(text_embeddings.detach()), dim=-1)
        self.logit_scale = logit_scale

    @classmethod
    def from_training(cls, texts: ClassTexts | None, options: Mapping[str, Any]) -> Self:
        """Of the class names and templates of a training."""
        assert texts is not None
        return cls(texts.embeddings(), texts.logit_scale())

    def settings(self) -> dict[str, object]:
        """The factor on the cosines."""
        return {"logit scale": self.logit_scale}

    def targets(self, pixels: Tensor, labels: Tensor | None, embed_original: Embed) -> Tensor:
        """The labels, (B,) int64 on the device of the pixels; the original encoder is not run. One host sync.

        Raises:
            ValueError: no labels, a wrong shape, or a class that has no text.
        """
        if labels is None:
            raise ValueError(
                "TeCoA needs labels and the batch has none: pass a label column, or use the fare objective."
            )
        if labels.shape != pixels.shape[:1]:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)} for {len(pixels)} images: pass one class an image."
            )
        classes = len(self.text_embeddings)
        low, high = torch.stack(torch.aminmax(labels)).tolist()
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels span [{low}, {high}] but there are {classes} class texts: pass one text a class."
            )
        return labels.to(device=pixels.device, dtype=torch.long)

    def __call__(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """(B, D) image embeddings and (B,) classes to (B,) in [0, inf).

        Raises:
            ValueError: embeddings of another dimension than the texts'.
        """
        return F.cross_entropy(self.logits(embeddings), targets, reduction="none")

    def logits(self, embeddings: Tensor) -> Tensor:
        """(B, D) image embeddings to the scaled cosines (B, K); raises ValueError as a call does."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.text_embeddings.shape[1]:
            raise ValueError(
                f"embeddings have shape {tuple(embeddings.shape)}, class texts {tuple(self.text_embeddings.shape)}: "
                "use the embedding that is compared with texts (of a CLIP the projected one) and its own text encoder."
            )
        images = F.normalize(wide(embeddings), dim=-1)
        # Kept on the device after the first call: copying it at every attack step would be a host sync.
        self.text_embeddings = self.text_embeddings.to(images)
        return self.logit_scale * images @ self.text_embeddings.T
