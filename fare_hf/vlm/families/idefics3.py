"""Idefics3 and SmolVLM: an image enlarged to whole tiles, its tiles row by row, and the whole after them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fare_hf.vlm.families.family import Family
from fare_hf.vlm.geometry import resize

__all__ = ["Idefics3"]

LARGEST_SIDE = 4096
"""Of an image after its resize."""


class Idefics3(Family):
    """Images are (B, T, 3, S, S) with T tiles; without splitting the whole alone."""

    def processed(self, settings: Any, pixels: Tensor) -> Tensor:
        if settings.do_resize:
            pixels = resize(pixels, _longest(pixels, settings.size), settings)
        tile = int(settings.max_image_size["longest_edge"])
        if not settings.do_image_splitting:
            return resize(pixels, (tile, tile), settings).unsqueeze(1)
        pixels = resize(pixels, _whole_tiles(pixels, tile), settings)
        parts = [part for row in pixels.split(tile, -2) for part in row.split(tile, -1)]
        if len(parts) > 1:
            parts.append(resize(pixels, (tile, tile), settings))
        return torch.stack(parts, 1)

    def named_inputs(self, settings: Any, values: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        seen = (values.detach() != 0).flatten(2).any(2).all()
        if not seen:
            raise ValueError(
                "a tile is zero everywhere after normalisation (one colour, the mean of the image processor), which "
                "the model takes for padding and leaves out: change a pixel of it."
            )
        mask = torch.ones_like(values[:, :, 0], dtype=torch.bool)
        return {"pixel_values": values, "pixel_attention_mask": mask}


def _longest(pixels: Tensor, size: Any) -> tuple[int, int]:
    """Height and width where the longer side has the size asked for, the other one rounded up to an even number."""
    if not size["longest_edge"]:
        return int(size["height"]), int(size["width"])
    height, width = _scaled(pixels.shape[-2:], int(size["longest_edge"]))
    height, width = (height + height % 2, width) if width >= height else (height, width + width % 2)
    if max(height, width) > LARGEST_SIDE:
        height, width = _scaled((height, width), LARGEST_SIDE)
    return max(height, 1), max(width, 1)


def _scaled(sides: Sequence[int], longest: int) -> tuple[int, int]:
    """Height and width with another longer side."""
    height, width = sides
    ratio = width / height
    return (int(longest / ratio), longest) if width >= height else (longest, int(longest * ratio))


def _whole_tiles(pixels: Tensor, tile: int) -> tuple[int, int]:
    """The next whole number of tiles, the longer side first."""
    height, width = pixels.shape[-2:]
    ratio = width / height

    def up(side: float) -> int:
        return math.ceil(side / tile) * tile

    if width >= height:
        return up(int(up(width) / ratio)), up(width)
    return up(height), up(int(up(height) * ratio))
