"""The lab's models, as they stand in the package: a CLIP, a LLaVA on it, and robust encoders from longer runs."""

from __future__ import annotations

from pathlib import Path

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
from fare_hf.lab.names import ENCODERS, lab_name

__all__ = ["MODELS", "encoder_folder", "load_clip", "load_llava"]

MODELS = Path(__file__).parent / "models"
TOWER = "model.vision_tower."
LANGUAGE = "language.safetensors"


def encoder_folder(name: str) -> Path:
    """Folder of `clip` (the original) or of a robust encoder such as `fare-4`, for `from_pretrained`.

    Raises:
        ValueError: if there is no such encoder.
    """
    return MODELS / lab_name(name, ("clip", *ENCODERS))


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
