"""Idefics: several images a prompt, which is a list of words and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from fare_hf.vlm.families.family import Family, join

__all__ = ["Idefics"]


class Idefics(Family):
    """Pixels have a dimension of images: (B, 1, 3, S, S); its model holds the resolution itself."""

    def named_inputs(self, settings: Any, values: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": values.unsqueeze(1)}

    def processor_inputs(
        self, processor: Any, prompt: str, picture: Image.Image, answer: str | None = None
    ) -> dict[str, Tensor]:
        before, after = (prompt if answer is None else join(prompt, answer)).split(self.image_token(processor))
        parts = [part for part in (before, picture, after) if not isinstance(part, str) or part.strip()]
        return dict(processor(text=[parts], return_tensors="pt"))

    def sized(self, vlm: Any, size: int) -> Sequence[tuple[Any, str, int]]:
        return [(vlm.model, "image_size", size), (vlm.model.vision_config, "image_size", size)]
