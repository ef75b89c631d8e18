"""Features of tiny models: the tower as it is loaded alone, and what the whole model computes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from helpers.tiny_llava import SIZE
from helpers.tiny_parts import Tiny

from fare_hf.data.pixels import to_pil
from fare_hf.vlm.features import VlmFeatures
from fare_hf.vlm.tower_files import load_vision_tower


def saved(folder: str | os.PathLike[str], tiny: Tiny) -> tuple[Any, Any, VlmFeatures]:
    """A tiny model, and its tower with its features as they are loaded from its files."""
    model = tiny.model()
    model.save_pretrained(folder)
    return model, *load_vision_tower(str(folder), processor=tiny.processor(), image_side=SIZE)


def own_features(model: Any, processor: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What the whole model makes of what its own processor makes of pictures."""
    made = processor.image_processor(to_pil(pixels), return_tensors="pt")
    made = {"pixel_values" if name == "pixel_values_images" else name: value for name, value in made.items()}
    known = ("pixel_values", "image_sizes", "image_grid_thw")
    made = {name: torch.as_tensor(value) for name, value in made.items() if name in known}
    with torch.no_grad():
        found = model.model.get_image_features(made.pop("pixel_values"), **made)
    levels = [getattr(found, "pooler_output", None), *(getattr(found, "deepstack_features", None) or ())]
    levels = [level[1] if isinstance(level[0], int) else level for level in levels if level is not None]
    tokens = [torch.cat(list(level)).flatten(0, -2).unflatten(0, (len(pixels), -1)) for level in levels]
    return torch.cat(tokens, 1)


def without_rounding(model: Any) -> Any:
    """In fp64, with norms that do not round to fp32, which would drown finite differences."""
    for parent in list(model.modules()):
        for name, part in list(parent.named_children()):
            if type(part).__name__.endswith("RMSNorm"):
                plain = torch.nn.RMSNorm(part.weight.shape, eps=1e-6)
                shift = 1 if type(part).__name__.startswith(("Gemma", "Qwen3_5")) else 0
                plain.weight.data = part.weight.data + shift
                setattr(parent, name, plain)
            if type(part).__name__ == "Cohere2LayerNorm":
                even = torch.nn.LayerNorm(part.weight.shape, eps=part.variance_epsilon, bias=False)
                even.weight = part.weight
                setattr(parent, name, even)
    return model.double()


@contextmanager
def wide_floats() -> Iterator[None]:
    """Where models ask for fp32, as Qwen's do where they rotate queries, fp64 stays what it is."""
    to = torch.Tensor.to

    def wide(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if tensor.dtype != torch.float64 or torch.float32 not in (*args, options.get("dtype")):
            return to(tensor, *args, **options)
        return tensor.contiguous()

    with patch.object(torch.Tensor, "float", lambda tensor: wide(tensor, torch.float32)):
        with patch.object(torch.Tensor, "to", wide):
            yield
