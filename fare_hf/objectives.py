"""What robust fine-tuning minimises and its inner attack maximises: one small callable each, one value per sample.

An objective is used in two steps: `targets(...)` once a batch, for what stays fixed during the attack, then
`objective(embeddings, targets) -> (B,)` at every step of the attack and once for the update. The trainer reduces it to
a scalar.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FareObjective", "Objective", "TecoaObjective", "objective_facts"]

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


class FareObjective:
    """FARE: squared l2 distance to what the frozen original encoder gives for the clean image; needs no labels.

    `||phi(z) - phi_orig(x)||_2^2`, summed over the embedding dimension, of embeddings that are not normalised; for
    tokens (B, T, D) averaged over the T tokens. Schlarmann et al., ICML 2024, arXiv 2402.12336.
    """

    name = "fare"
    citation = """@inproceedings{schlarmann2024robustclip,
    title = {Robust {CLIP}: Unsupervised Adversarial Fine-Tuning of Vision Embeddings for Robust Large
        Vision-Language Models},
    author = {Schlarmann, Christian and Singh, Naman Deep and Croce, Francesco and Hein, Matthias},
    booktitle = {International Conference on Machine Learning},
    year = {2024},
}"""

    @torch.no_grad()
    def targets(self, pixels: Tensor, labels: Tensor | None, embed_original: Embed) -> Tensor:
        """The original's embeddings of the clean images; `labels` are not looked at."""
        return embed_original(pixels)

    def __call__(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """(B, D) or (B, T, D), twice, to (B,) in [0, inf).

        Raises:
            ValueError: shapes that differ, or neither 2 nor 3 dimensions.
        """
        if embeddings.shape != targets.shape or embeddings.ndim not in (2, 3):
            raise ValueError(
                f"embeddings have shape {tuple(embeddings.shape)} and targets {tuple(targets.shape)}: "
                "embed both the same way, as (B, D) or (B, T, D)."
            )
        distances = (_wide(embeddings) - _wide(targets)).square().sum(-1)
        return distances if distances.ndim == 1 else distances.mean(1)


class TecoaObjective:
    """TeCoA: cross entropy of the scaled cosines between an image and one text per class; needs labels.

    Mao et al., ICLR 2023, arXiv 2212.07016.

    Args:
        text_embeddings: (K, D), one a class, in the space of the projected image embeddings; normalised here.
        logit_scale: factor on the cosines; 100 is CLIP's.

    Raises:
        ValueError: not 2 dimensions, fewer than 2 classes, values that are not finite, or a scale not positive.
    """

    name = "tecoa"
    citation = """@inproceedings{mao2023understanding,
    title = {Understanding Zero-shot Adversarial Robustness for Large-Scale Models},
    author = {Mao, Chengzhi and Geng, Scott and Yang, Junfeng and Wang, Xin and Vondrick, Carl},
    booktitle = {International Conference on Learning Representations},
    year = {2023},
}"""

    def __init__(self, text_embeddings: Tensor, logit_scale: float = 100.0) -> None:
        shape = tuple(text_embeddings.shape)
        if len(shape) != 2 or shape[0] < 2:
            raise ValueError(f"text_embeddings have shape {shape}: pass (K, D), one a class, of at least 2 classes.")
        if not text_embeddings.isfinite().all():
            raise ValueError("text_embeddings hold NaN or infinite values: embed the class texts again, in fp32.")
        if not 0 < logit_scale < float("inf"):
            raise ValueError(f"logit_scale {logit_scale} is not positive and finite: pass 100, as CLIP.")
        self.text_embeddings = F.normalize(_wide(text_embeddings.detach()), dim=-1)
        self.logit_scale = logit_scale

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
        """(B, D) projected embeddings and (B,) classes to (B,) in [0, inf).

        Raises:
            ValueError: embeddings of another dimension than the texts'.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.text_embeddings.shape[1]:
            raise ValueError(
                f"embeddings have shape {tuple(embeddings.shape)}, class texts {tuple(self.text_embeddings.shape)}: "
                "use the projected embedding with its own text encoder."
            )
        return F.cross_entropy(self.logits(embeddings), targets, reduction="none")

    def logits(self, embeddings: Tensor) -> Tensor:
        """(B, D) projected embeddings to the scaled cosines (B, K)."""
        images = F.normalize(_wide(embeddings), dim=-1)
        # Kept on the device after the first call: copying it at every attack step would be a host sync.
        self.text_embeddings = self.text_embeddings.to(images)
        return self.logit_scale * images @ self.text_embeddings.T


def objective_facts(objective: Any) -> dict[str, str]:
    """What cards, recipes and checkpoints say of an objective: `objective`, its name.

    Of one that is not of this module also `objective is`, the first paragraph of its class's docstring, and
    `objective citation`. Its name is its class's, unless that gives a name itself: a subclass is not what it is made
    of.
    """
    kind = type(objective)
    if kind in (FareObjective, TecoaObjective):
        return {"objective": objective.name}
    own = vars(objective).get("name", vars(kind).get("name"))
    named = isinstance(own, str) and own not in (FareObjective.name, TecoaObjective.name)
    said = inspect.cleandoc(vars(kind).get("__doc__") or "").split("\n\n")[0]
    facts = {"objective": own if named else kind.__name__, "objective is": " ".join(said.split())}
    citation = vars(kind).get("citation")
    return facts | ({"objective citation": citation} if isinstance(citation, str) else {})


def _wide(values: Tensor) -> Tensor:
    """fp32 for half precision, where sums of squares overflow; fp32 and fp64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
