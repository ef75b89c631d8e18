"""What a vision-language model says about images, greedily and in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from fare_hf.encoders import frozen
from fare_hf.pixels import Normalization
from fare_hf.vlm.families import tower_of
from fare_hf.vlm.prompts import check_resolution, pad, prompt_ids

__all__ = ["generate_text"]


@torch.no_grad()
def generate_text(
    vlm: PreTrainedModel,
    processor: Any,
    pixels: torch.Tensor,
    prompt: str | Sequence[str],
    *,
    max_new_tokens: int = 20,
) -> list[str]:
    """Greedy answers to a prompt about each image, all in one batch (prompts are padded on the left).

    Args:
        vlm: a model of `fare_hf.vlm.families.FAMILIES`; its mode is restored afterwards.
        processor: its processor.
        pixels: (B, 3, S, S) in [0, 1], at the resolution of the vision tower.
        prompt: one prompt for all images, or one per image, with the image placeholder once in each.
        max_new_tokens: at most this many tokens per answer.

    Returns:
        B answers without the prompt, special tokens and surrounding white space.

    Raises:
        ValueError: pixels of another resolution, another number of prompts than images, no image placeholder.
    """
    check_resolution(vlm, pixels)
    prompts = [prompt] * len(pixels) if isinstance(prompt, str) else list(prompt)
    if len(prompts) != len(pixels):
        raise ValueError(f"{len(prompts)} prompts for {len(pixels)} images: give one prompt, or one per image.")
    if not prompts:
        return []
    tower = tower_of(vlm)
    tokenizer = processor.tokenizer
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids, mask = pad(prompt_ids(vlm, processor, prompts), padding or 0, left=True)
    normalization = Normalization.from_processor(processor.image_processor)
    with frozen(vlm):
        tokens = cast(Any, vlm).generate(
            input_ids=ids.to(tower.device),
            attention_mask=mask.to(tower.device),
            pixel_values=normalization(pixels.to(tower.device)).to(tower.dtype),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=padding,
        )
    answers = tokenizer.batch_decode(tokens[:, ids.shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]
