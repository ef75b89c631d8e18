"""AyaVision, Cohere 2 Vision and InternVL: an image stretched over a grid of tiles, and the whole after them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from fare_hf.vlm.families.family import Family
from fare_hf.vlm.geometry import resize

__all__ = ["AyaVision", "Cohere2Vision", "InternVL"]


class AyaVision(Family):
    """Tiles row by row, then the whole, one after the other in the batch: (B * T, 3, S, S)."""

    def processed(self, settings: Any, pixels: Tensor) -> Tensor:
        if not settings.crop_to_patches or settings.max_patches <= 1:
            return super().processed(settings, pixels)
        tile = int(settings.size["height"]), int(settings.size["width"])
        fewest, most = settings.min_patches, settings.max_patches
        columns, rows = _canvas(settings)(tuple(pixels.shape[-2:]), tile, fewest, most)
        large = resize(pixels, (rows * tile[0], columns * tile[1]), settings)
        parts = [part for row in large.split(tile[0], -2) for part in row.split(tile[1], -1)]
        if len(parts) > 1:
            parts.append(resize(pixels, tile, settings))
        return torch.stack(parts, 1).flatten(0, 1)

    def feature_token(self, processor: Any) -> str:
        return str(processor.img_patch_token)

    def processor_patch(self, config: Any, tower: Any) -> int:
        """A side of the pixels that are joined to one token."""
        return int(tower.patch_size * config.downsample_factor)


def _canvas(settings: Any) -> Callable[..., tuple[int, int]]:
    """How its image processor lays out tiles: Cohere's scales an image as little as it can, GOT's keeps its shape."""
    modules = (sys.modules[base.__module__] for base in type(settings).__mro__)
    own = next(module for module in modules if hasattr(module, "get_optimal_tiled_canvas"))
    return cast(Callable[..., tuple[int, int]], own.get_optimal_tiled_canvas)


class Cohere2Vision(AyaVision):
    """The same, with the placeholder itself at each place, and a processor that counts the tokens of a tile."""

    feature_token = Family.feature_token

    def processor_patch(self, config: Any, tower: Any) -> int:
        """Tokens that a tile has on a side."""
        return int(tower.image_size // super().processor_patch(config, tower))

    def scaled_fields(self, content: Mapping[str, Any], old: int, size: int) -> dict[str, Any]:
        return {"patch_size": (content.get("patch_size") or 16) * size // old}


class InternVL(AyaVision):
    """The same tiles; its tokenizer names the placeholder."""

    feature_token = Family.feature_token

    def processor_patch(self, config: Any, tower: Any) -> int:
        """Its processor counts no patches."""
        return int(tower.patch_size[0])
