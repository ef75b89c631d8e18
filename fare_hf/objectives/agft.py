"""AGFT: the attacked image is as near to each text as the original encoder has the clean one."""

from __future__ import annotations

import torch
from torch import Tensor

from fare_hf.objectives.objective import Embed
from fare_hf.objectives.tecoa import TecoaObjective

__all__ = ["AgftObjective"]


class AgftObjective(TecoaObjective):
    """AGFT: cross entropy to the original's own distribution over texts, softened; needs class names, but no labels.

    Cui et al., CVPR 2026, arXiv 2603.29410.

    Args:
        text_embeddings, logit_scale: as for `TecoaObjective`; any texts can be anchors.
        softening: factor on `logit_scale` in the original's distribution, in (0, 1]: below 1 the trained encoder,
            whose cosines shrink, is not asked for the original's certainty. The authors run their code with 0.4.

    Raises:
        ValueError: as `TecoaObjective`, or a softening outside (0, 1].

    Example:
        >>> loss = AgftObjective(torch.eye(3))
        >>> loss.targets(torch.rand(2, 3, 4, 4), None, lambda pixels: torch.ones(2, 3))
        tensor([[0.3333, 0.3333, 0.3333],
                [0.3333, 0.3333, 0.3333]])
    """

    name = "agft"
    description = (
        "AGFT: the attacked image is classified among the class names as the original encoder classifies the clean "
        "one, softened (cross entropy); no labels are used."
    )
    citation = """@inproceedings{cui2026agft,
  title     = {{AGFT}: Alignment-Guided Fine-Tuning for Zero-Shot Adversarial Robustness of Vision-Language Models},
  author    = {Cui, Yubo and Guan, Xianchao and Xiong, Zijun and Zhang, Zheng},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2026}
}"""

    needs_labels = False
    runs_original = True

    def __init__(self, text_embeddings: Tensor, logit_scale: float = 100.0, softening: float = 0.4) -> None:
        super().__init__(text_embeddings, logit_scale)
        if not 0 < softening <= 1:
            raise ValueError(f"softening {softening} is outside (0, 1]: pass 0.4, or 1 for the original's own.")
        self.softening = softening

    def settings(self) -> dict[str, object]:
        """The factors on the cosines."""
        return super().settings() | {"softening": self.softening}

    @torch.no_grad()
    def targets(self, pixels: Tensor, labels: Tensor | None, embed_original: Embed) -> Tensor:
        """(B, K): the original's probabilities of the texts for the clean images; `labels` are not looked at."""
        return (self.softening * self.logits(embed_original(pixels))).softmax(1)
