"""Mistral 3 on Pixtral: images of any shape, no side above the largest, rounded up to whole tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fare_hf.vlm.families.family import Family
from fare_hf.vlm.geometry import resize

__all__ = ["Mistral3"]


class Mistral3(Family):
    """Its model reads the size of each image; the processor, not the image processor, knows how patches merge."""

    any_side = True

    def settings(self, processor: Any) -> Any:
        settings = super().settings(processor)
        side = int(processor.patch_size) * int(processor.spatial_merge_size)
        settings.patch_size = {"height": side, "width": side}
        return settings

    def processed(self, settings: Any, pixels: Tensor) -> Tensor:
        if not settings.do_resize:
            return pixels
        (height, width), token = pixels.shape[-2:], settings.patch_size["height"]
        most = [int(settings.size["longest_edge"] or settings.size[name]) for name in ("height", "width")]
        ratio = max(height / most[0], width / most[1], 1)
        rows, columns = (math.ceil(math.floor(side / ratio) / token) * token for side in (height, width))
        return resize(pixels, (rows, columns), settings)

    def named_inputs(self, settings: Any, values: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        sizes = torch.tensor([values.shape[-2:]] * len(values), device=values.device)
        return {"pixel_values": values, "image_sizes": sizes}
