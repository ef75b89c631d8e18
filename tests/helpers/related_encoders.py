"""Encoders that are near a tower."""

from __future__ import annotations

from typing import Any

import torch
from helpers.tiny_llava import encoder

from fare_hf.vlm import tower_of


def related(vlm: Any, seed: int = 0, scale: float = 0.01) -> Any:
    """An encoder that is nearly the tower, as a fine-tuned one is."""
    new = encoder(seed)
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: tensor + scale * torch.randn(tensor.shape, generator=generator) * tensor.std().nan_to_num()
        for name, tensor in tower_of(vlm).state_dict().items()
    }
    new.vision_model.load_state_dict(state)
    return new
