"""What a language model reads of an image: all of it, from the vision tower and what stands behind that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fare_hf.encoders.counting import count_operations
from fare_hf.encoders.flops import Flops
from fare_hf.encoders.modes import blocks_of, depth_of, passed_over
from fare_hf.encoders.reading import FEATURES
from fare_hf.vlm.families.family import Family
from fare_hf.vlm.families.packed import pack_attention
from fare_hf.vlm.families.table import layers_read, unwrapped

__all__ = ["VlmFeatures"]


@dataclass
class VlmFeatures:
    """How a vision-language model reads its tower: a `fare_hf.encoders.reading.Reading`, as `load_vision_tower` makes.

    The blocks of the tower above the last one that is read are not computed.

    Attributes:
        vlm: repository or folder of the model.
        family: its row.
        around: the model without its tower and its language model: the projector, and what puts features together.
        settings: its image processor, as `Family.settings` gives it.
        processor: makes images of the one size that a training has.
        image_side: pixels a side of these images.
    """

    vlm: str
    family: Family
    around: Any
    settings: Any
    processor: Any
    image_side: int
    embedding: str = FEATURES
    saved: Mapping[str, Any] = field(default_factory=dict)

    def embed(self, encoder: nn.Module, pixels: Tensor) -> Tensor:
        """Features of each image, (B, N, D), of N tokens, those of its tiles and of several layers among them.

        Args:
            encoder: the tower; may be wrapped.
            pixels: (B, 3, H, W) in [0, 1], of any size that the model's processor takes.

        Raises:
            ValueError: the model left out an image, or read them differently.
        """
        inputs = self.family.inputs(self.settings, pixels)
        owner, leaf = self._place()
        tower = unwrapped(encoder)
        pack_attention(tower)
        with passed_over(self._unread(tower)):
            vars(owner)[leaf] = _Called(encoder)  # found before the modules of its owner
            try:
                found = self.around.get_image_features(inputs.pop("pixel_values"), **inputs)
            finally:
                del vars(owner)[leaf]
        return _joined(self.family.feature_levels(found), len(pixels))

    def grey(self, encoder: Any) -> Tensor:
        """One image of the training's size."""
        side = self.image_side
        return torch.zeros(1, 3, side, side, device=encoder.device, dtype=encoder.dtype)

    def flops(self, encoder: Any) -> Flops:
        """Counted while one image is read."""
        self.family.inputs(self.settings, self.grey(encoder))  # what a first resize looks up once is not counted
        return count_operations(lambda: self.embed(encoder, self.grey(encoder)))

    def depth(self, tower: Any) -> int:
        """Blocks of the tower up to the last one that is read."""
        return max(layers_read(self.around.config, self.family, depth_of(tower.config)))

    def to(self, device: torch.device) -> None:
        """The projector goes there."""
        self.around.to(device)

    def facts(self) -> dict[str, Any]:
        """The model whose language model reads the features, and their size."""
        return {"features of": self.vlm, "image side": self.image_side}

    def _place(self) -> tuple[nn.Module, str]:
        """The module that holds the tower, and its name there."""
        path, _, leaf = self.family.tower.removeprefix("model.").rpartition(".")
        return self.around.get_submodule(path), leaf

    def _unread(self, tower: Any) -> list[nn.Module]:
        """Blocks above the last one that is read, and the pooling behind them."""
        return [
            *blocks_of(tower)[1][self.depth(tower) :],
            *(part for name, part in tower.named_children() if name == "head"),
        ]


class _Called:
    """A tower at its place in the model, called through what a data-parallel run put around it."""

    def __init__(self, wrapped: nn.Module) -> None:
        self._wrapped, self._tower = wrapped, unwrapped(wrapped)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._wrapped(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tower, name)


def _joined(levels: Sequence[Any], images: int) -> Tensor:
    """Whatever shape a family gives its features in: those of each image, one after the other."""
    parts = [level if isinstance(level, Tensor) else torch.cat(list(level)) for level in levels]
    if any(len(part) % images for part in parts):
        raise ValueError(
            f"{images} images gave {len(parts[0])} parts of features: the model left out an image of one colour "
            "(all zeros after normalisation), or read them differently; take images of one size."
        )
    return torch.cat([part.reshape(images, -1, part.shape[-1]) for part in parts], 1)
