"""Vision-language models: swap the tower, measure and maximise their loss, let them speak."""

from __future__ import annotations

from fare_hf.vlm.families.table import FAMILIES, Family, family_of, tower_of, tower_placement, towers_of
from fare_hf.vlm.generate import generate_text
from fare_hf.vlm.loss import VlmLoss
from fare_hf.vlm.pipelines import robust_pipeline
from fare_hf.vlm.swap.swap import SwapReport, swap_vision_tower

__all__ = [
    "FAMILIES",
    "Family",
    "SwapReport",
    "VlmLoss",
    "family_of",
    "generate_text",
    "robust_pipeline",
    "swap_vision_tower",
    "tower_of",
    "tower_placement",
    "towers_of",
]
