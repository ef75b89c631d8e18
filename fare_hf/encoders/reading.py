"""How a training reads an encoder: pixels in [0,1] to what is made robust, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fare_hf.data.pixels import Normalization
from fare_hf.encoders.embedding import EMBEDDINGS, embed
from fare_hf.encoders.flops import Flops, count_flops
from fare_hf.pretrained.encoder_families import family_of_type

__all__ = ["FEATURES", "READINGS", "EncoderReading", "Reading"]

FEATURES = "features"
"""What the language model of a VLM reads of an image (`fare_hf.vlm.features`)."""
READINGS = (*EMBEDDINGS, FEATURES)


class Reading(Protocol):
    """What a training asks of the way its encoder is read; the encoder itself may be wrapped (DDP, FSDP, compiled)."""

    @property
    def embedding(self) -> str:
        """One of `READINGS`."""

    @property
    def image_side(self) -> int | None:
        """Pixels a side of the images that the encoder takes; None takes any."""

    @property
    def saved(self) -> Mapping[str, Any]:
        """Arguments of `save_robust_encoder` that follow from it."""

    def embed(self, encoder: nn.Module, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to (B, D) or (B, N, D), differentiably."""

    def grey(self, encoder: Any) -> Tensor:
        """One image, (1, 3, H, W), that the encoder can read."""

    def flops(self, encoder: Any) -> Flops:
        """Operations that one image needs."""

    def to(self, device: torch.device) -> None:
        """Puts what it holds beside the encoder on a device."""

    def facts(self) -> dict[str, Any]:
        """What besides encoder and options decides the weights, as JSON values by name."""


@dataclass(frozen=True)
class EncoderReading:
    """One of `EMBEDDINGS`, of an encoder that needs nothing beside it.

    Args:
        embedding: which.
        normalization: of its pixels.
        image_side: of the images that it takes; None takes any.
        patch_weight: as for `embed`.
    """

    embedding: str
    normalization: Normalization
    image_side: int | None = None
    patch_weight: float = 1.0
    saved: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, encoder: Any, embedding: str, processor: Any, patch_weight: float = 1.0) -> EncoderReading:
        """As the configuration of the encoder and its image processor say."""
        family = family_of_type(encoder.config.model_type)
        side = None if family and family.any_size else encoder.config.image_size
        return cls(embedding, Normalization.from_processor(processor), side, patch_weight)

    def embed(self, encoder: nn.Module, pixels: Tensor) -> Tensor:
        """The embedding of the normalised images."""
        return embed(encoder, self.normalization(pixels), self.embedding, patch_weight=self.patch_weight)

    def grey(self, encoder: Any) -> Tensor:
        """Of the size that the configuration names."""
        size = encoder.config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return torch.zeros(1, encoder.config.num_channels, height, width, device=encoder.device, dtype=encoder.dtype)

    def flops(self, encoder: Any) -> Flops:
        """By the configuration."""
        return count_flops(encoder.config, self.embedding)

    def to(self, device: torch.device) -> None:
        """Holds nothing."""

    def facts(self) -> dict[str, Any]:
        """The options say all."""
        return {}
