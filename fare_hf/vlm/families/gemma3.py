"""Gemma 3: "pan and scan", a placeholder that is expanded to other tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fare_hf.vlm.families.family import Family
from fare_hf.vlm.geometry import fit

__all__ = ["Gemma3"]


class Gemma3(Family):
    """An image that is much longer than wide is shown as a whole and in a few pieces along its length."""

    def processed(self, settings: Any, pixels: Tensor) -> Tensor:
        if not settings.do_pan_and_scan:
            return super().processed(settings, pixels)
        parts = [fit(settings, part) for part in (pixels, *_close_ups(settings, pixels))]
        return torch.stack(parts, 1).flatten(0, 1)

    def feature_token(self, processor: Any) -> str:
        return str(processor.tokenizer.image_token)


def _close_ups(settings: Any, pixels: Tensor) -> tuple[Tensor, ...]:
    height, width = pixels.shape[-2:]
    long, short = max(height, width), min(height, width)
    least = settings.pan_and_scan_min_crop_size
    if long / short < settings.pan_and_scan_min_ratio_to_activate:
        return ()
    count = min(long // least, math.floor(long / short + 0.5))
    count = min(settings.pan_and_scan_max_num_crops, max(2, count))
    length = math.ceil(long / count)
    return () if min(length, short) < least else pixels.split(length, -1 if width >= height else -2)
