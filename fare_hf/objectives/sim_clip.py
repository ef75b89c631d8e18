"""Sim-CLIP: the embedding of the attacked image keeps the direction of the original embedding of the clean one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fare_hf.objectives.fare import FareObjective
from fare_hf.objectives.objective import wide

__all__ = ["SimClipObjective"]


class SimClipObjective(FareObjective):
    """Sim-CLIP: one minus the cosine to what the frozen original encoder gives for the clean image; needs no labels.

    Hossain and Imteaj 2024, arXiv 2407.14971. The paper's loss has two halves, each with a stop-gradient on the other
    branch. In its authors' code the clean branch is the frozen original, so that half has no gradient; what is left is
    this. For tokens (B, T, D) averaged over the T tokens.

    Example:
        >>> import torch
        >>> SimClipObjective()(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        tensor([1.])
    """

    name = "sim-clip"
    description = (
        "Sim-CLIP: the embedding of the attacked image is turned to the direction of the original encoder's embedding "
        "of the clean image (cosine); no labels are used, and lengths are free."
    )
    citation = """@article{hossain2024simclip,
  title   = {{Sim-CLIP}: Unsupervised Siamese Adversarial Fine-Tuning for Robust and Semantically-Rich
             Vision-Language Models},
  author  = {Hossain, Md Zarif and Imteaj, Ahmed},
  journal = {arXiv preprint arXiv:2407.14971},
  year    = {2024}
}"""

    def __call__(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """(B, D) or (B, T, D), twice, to (B,) in [0, 2].

        Raises:
            ValueError: shapes that differ, or neither 2 nor 3 dimensions.
        """
        self.check_shapes(embeddings, targets)
        distances = 1 - F.cosine_similarity(wide(embeddings), wide(targets), dim=-1)
        return distances if distances.ndim == 1 else distances.mean(1)
