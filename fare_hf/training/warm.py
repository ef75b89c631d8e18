"""Attacks that begin where the last one on the same image ended."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fare_hf.attacks import ThreatModel

__all__ = ["WarmStarts"]


class WarmStarts:
    """Keeps the sign of each sample's last perturbation (ATTA, Zheng et al. 2020, arXiv 1912.11969).

    The attack of the next epoch begins at the corner of the ball that these signs name: under linf most values of a
    perturbation end at the edge. One bit a value in the main memory of each process: 18.4 KiB an image at 224 px, 24
    GB for all of ImageNet-1k. Of use only where a sample is the same image in every epoch.

    Args:
        threat_model: a linf ball.
    """

    def __init__(self, threat_model: ThreatModel) -> None:
        self.threat_model = threat_model
        self._signs: dict[int, np.ndarray] = {}

    def begin(self, pixels: Tensor, index: Sequence[int], start: Tensor) -> Tensor:
        """Replaces rows of `start` (B, C, H, W), in place, for the samples that were attacked before."""
        rows = [row for row, number in enumerate(index) if number in self._signs]
        if rows:
            bits = np.stack([np.unpackbits(self._signs[index[row]], count=pixels[0].numel()) for row in rows])
            signs = torch.from_numpy(bits).to(pixels.device, pixels.dtype).mul_(2).sub_(1).view(-1, *pixels.shape[1:])
            start[rows] = pixels[rows] + self.threat_model.eps * signs
        return start

    def keep(self, pixels: Tensor, index: Sequence[int], adversarial: Tensor) -> None:
        """Remembers what an attack found. One copy to the host."""
        bits = np.packbits((adversarial > pixels).flatten(1).cpu().numpy(), axis=1)
        self._signs.update(zip(index, bits, strict=True))

    @property
    def nbytes(self) -> int:
        """Memory of the signs."""
        return sum(bits.nbytes for bits in self._signs.values())
