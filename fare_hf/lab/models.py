"""The lab's models, as they stand in the package: a CLIP, a LLaVA on it, and robust encoders from longer runs."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    CLIPModel,
    CLIPTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from fare_hf.encoders import load_encoder
from fare_hf.lab.names import MODELS, check_vlm, is_in_lab
from fare_hf.pretrained.loading import load_processor, load_vlm

__all__ = ["load_clip", "load_llava", "load_vlm_and_processor"]

TOWER = "model.vision_tower."
LANGUAGE = "language.safetensors"


def load_clip() -> tuple[CLIPModel, CLIPTokenizer]:
    """The lab's CLIP in fp32 (stored in fp16) and its tokenizer."""
    model = CLIPModel.from_pretrained(MODELS / "clip", dtype=torch.float32)
    return model.eval(), CLIPTokenizer.from_pretrained(MODELS / "clip")


def load_llava() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The lab's LLaVA in fp32 and its processor; its tower is the lab CLIP's, which is stored once."""
    folder = MODELS / "llava"
    model = LlavaForConditionalGeneration(LlavaConfig.from_pretrained(folder)).eval()
    tower = load_encoder(str(MODELS / "clip"), "tokens")
    weights = {name: tensor.float() for name, tensor in load_file(folder / LANGUAGE).items()}
    weights |= {TOWER + name: tensor for name, tensor in tower.state_dict().items()}
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    model.load_state_dict(weights)
    return model, LlavaProcessor.from_pretrained(folder)


def load_vlm_and_processor(name: str) -> tuple[Any, Any]:
    """`lab:llava`, or a vision-language model of a folder or repository, in evaluation mode, and its processor.

    Raises:
        ValueError, OSError: the lab has no such model, or as `load_vlm` and `load_processor`.
    """
    check_vlm(name)
    if is_in_lab(name):
        return load_llava()
    processor = load_processor(name)  # first: it is small
    return load_vlm(name).eval(), processor
