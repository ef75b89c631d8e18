"""FARE with a bound on how far the embedding of a clean image may move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from fare_hf.objectives.fare import FareObjective
from fare_hf.objectives.objective import ClassTexts

__all__ = ["BoundedFareObjective"]


class BoundedFareObjective(FareObjective):
    """FARE, and a penalty on clean embeddings further than `bound` from the original's; needs no labels.

    The constraint is LORE's, `||phi(x) - phi_orig(x)||^2 <= bound * ||phi_orig(x)||^2` (Khodabandeh et al. 2025,
    arXiv 2505.18884, equation 7), which keeps every cosine within `2 sqrt(bound)`. LORE learns a multiplier for each
    image with a network of its own; here it is one number, on what exceeds the bound.

    Args:
        bound: largest squared distance, as a share of the squared length of the original's embedding; above 0.
        multiplier: of what exceeds it, above 0.

    Raises:
        ValueError: a bound or multiplier that is not positive and finite.

    Example:
        >>> import torch
        >>> loss = BoundedFareObjective(bound=0.25, multiplier=10.0)
        >>> original, attacked, clean = torch.ones(1, 4), torch.zeros(1, 4), torch.full((1, 4), 2.0)
        >>> loss.update(attacked, original, clean)  # 4 + 10 * (4 - 0.25 * 4)
        tensor([34.])
    """

    name = "bounded-fare"
    description = (
        "FARE with LORE's bound on clean embeddings: the embedding of the attacked image is pulled to the original "
        "encoder's embedding of the clean image (squared l2 distance), and so is that of a clean image where it is "
        "further away than the bound; no labels are used."
    )
    citation = """@article{khodabandeh2025lore,
  title   = {{LORE}: Lagrangian-Optimized Robust Embeddings for Visual Encoders},
  author  = {Khodabandeh, Borna and Afzali, Amirabbas and Afsharrad, Amirhossein and Mousavi, Seyed Shahabeddin and
             Lall, Sanjay and Amini, Sajjad and Moosavi-Dezfooli, Seyed-Mohsen},
  journal = {arXiv preprint arXiv:2505.18884},
  year    = {2025}
}"""

    embeds_clean = True
    options = ("clean_bound",)

    def __init__(self, bound: float = 0.1, multiplier: float = 10.0) -> None:
        for name, value in {"bound": bound, "multiplier": multiplier}.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} {value} is not positive and finite: pass a number such as 0.1 or 10.")
        self.bound, self.multiplier = bound, multiplier

    @classmethod
    def from_training(cls, texts: ClassTexts | None, options: Mapping[str, Any]) -> Self:
        """With the bound of a training, if it says one."""
        return cls() if options["clean_bound"] is None else cls(options["clean_bound"])

    def settings(self) -> dict[str, object]:
        """The bound and its multiplier."""
        return {"clean bound": self.bound, "multiplier": self.multiplier}

    def update(self, embeddings: Tensor, targets: Tensor, clean: Tensor) -> Tensor:
        """Three times (B, D) or (B, T, D) to (B,) in [0, inf); `clean` of the encoder that is trained."""
        allowed = self.bound * self(torch.zeros_like(targets), targets)
        return self(embeddings, targets) + self.multiplier * (self(clean, targets) - allowed).relu()
