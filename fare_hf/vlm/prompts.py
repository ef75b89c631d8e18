"""Prompts of a LLaVA as token ids, prepared once and identical to what its processor gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

__all__ = ["check_resolution", "image_tokens", "join", "pad", "prompt_ids"]


def image_tokens(vlm: PreTrainedModel) -> int:
    """Number of placeholder tokens that one image takes in the prompt of `vlm`."""
    vision = vlm.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return patches if vlm.config.vision_feature_select_strategy == "default" else patches + 1


def check_resolution(vlm: PreTrainedModel, pixels: torch.Tensor) -> None:
    """Raise ValueError unless `pixels` are (B, 3, S, S) with the S that the vision tower reads."""
    size = vlm.config.vision_config.image_size
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size):
        raise ValueError(
            f"pixels have shape {tuple(pixels.shape)}, the vision tower reads (B, 3, {size}, {size}): resize the "
            "images with the model's processor first."
        )


def prompt_ids(vlm: PreTrainedModel, processor: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt (or prompt with its answer), the image placeholder expanded.

    Raises:
        ValueError: a prompt does not hold the image placeholder exactly once, or processor and model disagree on it.
    """
    token = processor.image_token
    index = processor.tokenizer.convert_tokens_to_ids(token)
    if index != vlm.config.image_token_id:
        raise ValueError(
            f"the processor's image token '{token}' has id {index}, the model expects {vlm.config.image_token_id}: "
            "load both from the same repository."
        )
    for prompt in prompts:
        if prompt.count(token) != 1:
            raise ValueError(f"the prompt {prompt!r} must hold '{token}' exactly once.")
    expanded = [prompt.replace(token, token * image_tokens(vlm)) for prompt in prompts]
    return processor.tokenizer(expanded)["input_ids"]


def join(prompt: str, text: str) -> str:
    """Prompt and answer with one space between them unless one of them brings white space."""
    return prompt + text if prompt[-1:].isspace() or text[:1].isspace() else f"{prompt} {text}"


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows of ids to one (B, L) tensor; returns it with its attention mask (1 = real)."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(row, dtype=torch.long)
        mask[number, place] = 1
    return ids, mask
