"""LLaVA-NeXT, its form for videos, LLaVA-OneVision, Granite 4 Vision: an image as a whole and in tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_utils import select_best_resolution

from fare_hf.vlm.families.family import Family
from fare_hf.vlm.geometry import fit, resize

__all__ = ["Granite4Vision", "LlavaNext"]


class LlavaNext(Family):
    """The whole image squeezed into a square, then tiles of the image fitted into the best grid: (B, T, 3, S, S)."""

    def processed(self, settings: Any, pixels: Tensor) -> Tensor:
        if getattr(settings, "image_grid_pinpoints", None) is None:
            return super().processed(settings, pixels)
        size, crop = settings.size, getattr(settings, "crop_size", None)
        edge = size["shortest_edge"] or size["height"]
        tile = int(crop["height"] if crop is not None and crop["height"] else edge)
        rows, columns = select_best_resolution(tuple(pixels.shape[-2:]), settings.image_grid_pinpoints)
        fitted = resize(pixels, _inside(pixels, rows, columns), settings)
        top, left = (rows - fitted.shape[-2]) // 2, (columns - fitted.shape[-1]) // 2
        padded = F.pad(fitted, (left, columns - fitted.shape[-1] - left, top, rows - fitted.shape[-2] - top))
        parts = [resize(pixels, (int(edge), int(size["width"] or edge)), settings)]
        parts += [part for row in padded.split(tile, -2) for part in row.split(tile, -1)]
        return torch.stack([fit(settings, part) for part in parts], 1)

    def named_inputs(self, settings: Any, values: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        found = super().named_inputs(settings, values, pixels)
        if values.ndim == 5:
            found["image_sizes"] = torch.tensor([pixels.shape[-2:]] * len(pixels), device=pixels.device)
        return found


class Granite4Vision(LlavaNext):
    """It pairs layers of the tower with layers of the language model, and reads one more."""

    def layers_named(self, config: Any) -> list[tuple[str, int]]:
        if not config.deepstack_layer_map:
            return super().layers_named(config)
        layers = [("deepstack_layer_map", layer) for layer, _ in config.deepstack_layer_map]
        return [*layers, ("spatial_vision_layer", config.spatial_vision_layer)]

    def feature_levels(self, found: Any) -> Sequence[Any]:
        return [level for _, level in found.deepstack_features]


def _inside(pixels: Tensor, rows: int, columns: int) -> tuple[int, int]:
    """The largest size of the same shape that fits."""
    height, width = pixels.shape[-2:]
    if columns / width < rows / height:
        return min(math.ceil(height * (columns / width)), rows), columns
    return rows, min(math.ceil(width * (rows / height)), columns)
