"""What a vision-language model says about images, greedily and in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from fare_hf.encoders import frozen
from fare_hf.vlm.families.table import family_of, tower_placement
from fare_hf.vlm.prompts import padding_of, prompt_rows, start_device

__all__ = ["generate_text"]


class _Finite(LogitsProcessor):
    """Of NaN, the most likely token would be the first one: an answer that nobody gave."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = str(dtype).removeprefix("torch.")

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if bool((scores.isnan() | (scores == float("inf"))).any()):
            raise ValueError(
                f"the model's logits are NaN or infinite in {self.dtype}, so that it has no answer: load it in "
                "bfloat16 or float32, and see that its weights are finite."
            )
        return scores


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
        vlm: a model of `fare_hf.vlm.families.table.FAMILIES`; its mode is restored afterwards.
        processor: its processor.
        pixels: (B, 3, H, W) in [0, 1]; resized, cropped and cut into tiles as the processor does it.
        prompt: one prompt for all images, or one per image, with the image placeholder once in each.
        max_new_tokens: at most this many tokens per answer.

    Returns:
        B answers without the prompt, special tokens and surrounding white space.

    Raises:
        ValueError: pixels of another shape, another number of prompts than images, no image placeholder; a model that
            answers NaN.

    Example:
        >>> from fare_hf.lab import load_llava, load_test_set
        >>> question = "USER: <image>\\nProvide a short caption for this image. ASSISTANT:"
        >>> answers = generate_text(*load_llava(), load_test_set("digits").pixels[:2], question)
        >>> len(answers)
        2
    """
    if not isinstance(pixels, torch.Tensor):
        raise ValueError(
            f"pixels are of type {type(pixels).__name__}: give a tensor (B, 3, H, W) in [0, 1], or pictures to "
            "robust_pipeline."
        )
    family = family_of(vlm)
    inputs = family.inputs(family.settings(processor), pixels)
    prompts = [prompt] * len(pixels) if isinstance(prompt, str) else list(prompt)
    if len(prompts) != len(pixels):
        raise ValueError(f"{len(prompts)} prompts for {len(pixels)} images: give one prompt, or one per image.")
    if not prompts:
        return []
    size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
    device, (_, dtype) = start_device(vlm), tower_placement(vlm)
    rows = prompt_rows(vlm, processor, prompts, size, left=True).to(device)
    with frozen(vlm):
        tokens = cast(Any, vlm).generate(
            input_ids=rows.ids,
            attention_mask=rows.mask,
            **rows.extras,
            **{name: value.to(device, dtype if value.is_floating_point() else None) for name, value in inputs.items()},
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=padding_of(processor),
            logits_processor=LogitsProcessorList([_Finite(vlm.dtype)]),
        )
    answers = processor.tokenizer.batch_decode(tokens[:, rows.ids.shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]
