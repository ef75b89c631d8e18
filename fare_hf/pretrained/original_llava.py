"""Repositories in the format of LLaVA's own code, which transformers does not read: which one to take instead."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

__all__ = ["OriginalLlavaError", "refuse_original_llava"]

CONVERTED = {
    "llava-v1.5-7b": "llava-1.5-7b-hf",
    "llava-v1.5-13b": "llava-1.5-13b-hf",
    "llava-v1.6-vicuna-7b": "llava-v1.6-vicuna-7b-hf",
    "llava-v1.6-vicuna-13b": "llava-v1.6-vicuna-13b-hf",
    "llava-v1.6-mistral-7b": "llava-v1.6-mistral-7b-hf",
    "llava-v1.6-34b": "llava-v1.6-34b-hf",
    "llama3-llava-next-8b": "llama3-llava-next-8b-hf",
    "llava-next-72b": "llava-next-72b-hf",
    "llava-next-110b": "llava-next-110b-hf",
    "llava-next-video-7b": "LLaVA-NeXT-Video-7B-hf",
    "llava-next-video-7b-dpo": "LLaVA-NeXT-Video-7B-DPO-hf",
    "llava-onevision-qwen2-0.5b-ov": "llava-onevision-qwen2-0.5b-ov-hf",
    "llava-onevision-qwen2-7b-ov": "llava-onevision-qwen2-7b-ov-hf",
    "llava-onevision-qwen2-72b-ov": "llava-onevision-qwen2-72b-ov-hf",
    "bakllava-1": "bakLlava-v1-hf",
}
"""Name of a repository of LLaVA's authors, in lower case -> the same weights under `llava-hf/`."""


class OriginalLlavaError(ValueError):
    """A model in the format of LLaVA's own code."""


def refuse_original_llava(values: Mapping[str, Any], name: str) -> None:
    """Tell a configuration of LLaVA's own code, which names its tower `mm_vision_tower`.

    Args:
        values: content of the config.json.
        name: folder or repository that it is of.

    Raises:
        OriginalLlavaError: it is one; the repository to take is named.
    """
    if "mm_vision_tower" not in values and values.get("model_type") != "llava_llama":
        return
    names = (PurePath(str(known)).name.lower() for known in (name, values.get("_name_or_path", "")))
    same = next((CONVERTED[known] for known in names if known in CONVERTED), None)
    advice = f"take 'llava-hf/{same}', which has the same weights"
    if same is None:
        advice = (
            "take the repository of that name under 'llava-hf/' ('llava-hf/llava-1.5-7b-hf' for llava-v1.5-7b), or "
            "convert weights of your own with transformers' convert_llava_weights_to_hf.py"
        )
    raise OriginalLlavaError(
        f"'{name}' has the format of LLaVA's own code, which transformers does not read: {advice}."
    )
