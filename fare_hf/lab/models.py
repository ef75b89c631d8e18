"""The lab's models, as they stand in the package: a CLIP, a LLaVA on it, and a SmolVLM with a tower of its own."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    CLIPModel,
    CLIPTokenizer,
    Idefics3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from fare_hf.encoders import load_encoder
from fare_hf.lab.names import LLAVA, MODELS, check_vlm, is_in_lab
from fare_hf.pretrained.loading import load_processor, load_vlm
from fare_hf.pretrained.weight_files import SINGLE

__all__ = ["load_clip", "load_llava", "load_smolvlm", "load_vlm_and_processor"]

TOWER = "model.vision_tower."
LANGUAGE = "language.safetensors"
LLAMA, ITS_LLAMA = "model.language_model.", "model.text_model."
WORDS = "embed_tokens.weight"
"""Of the language model; those that the SmolVLM alone has are stored with its tower."""


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


def load_smolvlm() -> tuple[SmolVLMForConditionalGeneration, Idefics3Processor]:
    """The lab's SmolVLM in fp32 and its processor; its language model is the lab LLaVA's, which is stored once."""
    folder = MODELS / "smolvlm"
    model = SmolVLMForConditionalGeneration(SmolVLMConfig.from_pretrained(folder)).eval()
    language = load_file(MODELS / "llava" / LANGUAGE)
    weights = {ITS_LLAMA + name.removeprefix(LLAMA): language[name] for name in language if name.startswith(LLAMA)}
    own = load_file(folder / SINGLE)
    weights[ITS_LLAMA + WORDS] = torch.cat([weights[ITS_LLAMA + WORDS], own.pop(ITS_LLAMA + WORDS)])
    weights["lm_head.weight"] = weights[ITS_LLAMA + WORDS]
    model.load_state_dict({name: tensor.float() for name, tensor in (weights | own).items()})
    return model, Idefics3Processor.from_pretrained(folder)


def load_vlm_and_processor(name: str) -> tuple[Any, Any]:
    """`lab:llava`, `lab:smolvlm`, or a model of a folder or repository, in evaluation mode, and its processor.

    Raises:
        ValueError, OSError: the lab has no such model, or as `load_vlm` and `load_processor`.
    """
    check_vlm(name)
    if is_in_lab(name):
        return load_llava() if name == LLAVA else load_smolvlm()
    processor = load_processor(name)  # first: it is small
    return load_vlm(name).eval(), processor
