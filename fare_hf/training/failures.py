"""What is said of a step that went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["blame", "in_range"]


def blame(step: int, inputs: Mapping[str, Any], losses: Tensor | None) -> str:
    """The sentence for a batch that broke: the step and the `index` of the samples at fault, or of all.

    Step 0 is an evaluation.
    """
    where = f"step {step}" if step else "evaluation"
    broken = ~in_range(inputs["pixel_values"])
    if broken.any():
        samples = inputs["index"][broken].tolist()
        return f"{where}: samples with index {samples} have NaN or values outside [0, 1]; look at these images."
    bad = torch.ones_like(broken) if losses is None else ~losses.isfinite()
    return (
        f"{where}: the loss is not finite, samples with index {inputs['index'][bad].tolist()}; "
        "lower learning_rate, or look at these images."
    )


def in_range(pixels: Tensor) -> Tensor:
    """(B,) whether all values of an image are in [0, 1]; NaN is not."""
    pixels = pixels.flatten(1)
    return ((pixels >= 0) & (pixels <= 1)).all(dim=1)
