"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: images of any shape as rows of patches, in the order in which they are merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fare_hf.vlm.families.family import Family
from fare_hf.vlm.geometry import merged_patches, resize

__all__ = ["QwenVL"]


class QwenVL(Family):
    """Sides are rounded to whole tokens; a picture is a video of `temporal_patch_size` equal frames."""

    any_side = True

    def processed(self, settings: Any, pixels: Tensor) -> Tensor:
        if not settings.do_resize:
            return pixels
        # Imported where it is needed: its module asks for torchvision in some versions of transformers.
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        (height, width), token = pixels.shape[-2:], settings.patch_size * settings.merge_size
        fewest, most = settings.size["shortest_edge"], settings.size["longest_edge"]
        return resize(pixels, smart_resize(height, width, token, fewest, most), settings)

    def named_inputs(self, settings: Any, values: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        sizes = settings.patch_size, settings.merge_size, settings.temporal_patch_size
        patches, grid = merged_patches(values, *sizes)
        return {"pixel_values": patches, "image_grid_thw": grid}

    def feature_levels(self, found: Any) -> Sequence[Any]:
        return [found.pooler_output, *(getattr(found, "deepstack_features", None) or ())]
