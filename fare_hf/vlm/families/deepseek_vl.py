"""DeepSeek-VL: the longer side of an image becomes the size, the shorter one is padded to a square."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fare_hf.vlm.families.family import Family
from fare_hf.vlm.geometry import resize, square

__all__ = ["DeepseekVL"]


class DeepseekVL(Family):
    """Its own resize."""

    def processed(self, settings: Any, pixels: Tensor) -> Tensor:
        if settings.do_resize:
            height, width = pixels.shape[-2:]
            scale, least = int(settings.size["height"]) / max(height, width), settings.min_size
            pixels = resize(pixels, (max(round(height * scale), least), max(round(width * scale), least)), settings)
        return square(pixels, settings.background_color) if settings.do_pad else pixels
