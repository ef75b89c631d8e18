"""The pipeline of transformers on a vision-language model with a robust tower, in one call."""

from __future__ import annotations

import os
from typing import Any

from transformers import Pipeline, PreTrainedModel, pipeline

from fare_hf.pretrained.loading import load_processor, load_vlm, vlm_configuration
from fare_hf.vlm.swap.swap import swap_vision_tower

__all__ = ["robust_pipeline"]


def robust_pipeline(
    vlm: str | os.PathLike[str],
    encoder: str | os.PathLike[str] | PreTrainedModel,
    *,
    revision: str | None = None,
    encoder_revision: str | None = None,
    dtype: Any = "auto",
    device: Any = None,
    device_map: Any = None,
) -> Pipeline:
    """Load a vision-language model, swap its tower, and return the `image-text-to-text` pipeline.

    Args:
        vlm: repository or folder of the model with its processor.
        encoder: as `swap_vision_tower` takes it; may have another resolution.
        revision: of the model on the Hub.
        encoder_revision: of the encoder on the Hub.
        dtype: of the model; "auto" is that of its files.
        device: where the pipeline runs.
        device_map: how `from_pretrained` spreads the model; the tower must not be offloaded.

    Returns:
        The pipeline; its `swap_report` says what was put in.

    Raises:
        TypeError, ValueError, RuntimeError: as `swap_vision_tower`.
        OSError: something cannot be read.
        ImportError: the model's processor needs torchvision.

    Example:
        >>> pipe = robust_pipeline("llava-hf/llava-1.5-7b-hf", "user/fare4")  # doctest: +SKIP
        >>> pipe("image.png", text="USER: <image>\\nWhat is it? ASSISTANT:")  # doctest: +SKIP
    """
    at = revision or "main"
    name = os.fspath(vlm)
    vlm_configuration(name, at)
    processor = load_processor(name, at)  # what it lacks is said before gigabytes are read
    model = load_vlm(name, at, dtype=dtype, device_map=device_map)
    report = swap_vision_tower(model, encoder, processor, revision=encoder_revision)
    made: Any = pipeline("image-text-to-text", model=model, processor=processor, device=device)
    made.swap_report = report
    return made
