"""FARE: the embedding of the attacked image stays at the original embedding of the clean one."""

from __future__ import annotations

import torch
from torch import Tensor

from fare_hf.objectives.objective import Embed, Objective, wide

__all__ = ["FareObjective"]


class FareObjective(Objective):
    """FARE: squared l2 distance to what the frozen original encoder gives for the clean image; needs no labels.

    `||phi(z) - phi_orig(x)||_2^2`, summed over the embedding dimension, of embeddings that are not normalised; for
    tokens (B, T, D) averaged over the T tokens. Schlarmann et al., ICML 2024, arXiv 2402.12336.

    Example:
        >>> FareObjective()(torch.ones(2, 4), torch.zeros(2, 4))
        tensor([4., 4.])
    """

    name = "fare"
    description = (
        "FARE: the embedding of the attacked image is pulled to the original encoder's embedding of the clean image "
        "(squared l2 distance); no labels are used."
    )
    citation = """@inproceedings{schlarmann2024robustclip,
  title     = {Robust {CLIP}: Unsupervised Adversarial Fine-Tuning of Vision Embeddings for Robust Large
               Vision-Language Models},
  author    = {Schlarmann, Christian and Singh, Naman Deep and Croce, Francesco and Hein, Matthias},
  booktitle = {International Conference on Machine Learning},
  year      = {2024}
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
        self.check_shapes(embeddings, targets)
        distances = (wide(embeddings) - wide(targets)).square().sum(-1)
        return distances if distances.ndim == 1 else distances.mean(1)

    @staticmethod
    def check_shapes(embeddings: Tensor, targets: Tensor) -> None:
        """ValueError for shapes that differ, or that are neither (B, D) nor (B, T, D)."""
        if embeddings.shape != targets.shape or embeddings.ndim not in (2, 3):
            raise ValueError(
                f"embeddings have shape {tuple(embeddings.shape)} and targets {tuple(targets.shape)}: "
                "embed both the same way, as (B, D) or (B, T, D)."
            )
