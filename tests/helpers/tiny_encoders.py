"""Tiny random encoders besides CLIP, written as their repositories on the Hub have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from helpers.tiny_clip import IMAGE_SIZE, PATCH_SIZE, WORDS, tiny_tokenizer
from helpers.tiny_parts import IDS
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

__all__ = ["COLOURS", "DINOS", "SIZES", "write_dino", "write_images", "write_siglip"]

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}


def write_siglip(folder: Path, seed: int = 0) -> SiglipModel:
    """A whole SigLIP with tokenizer and image processor; its weights are large, so that its answers differ."""
    torch.manual_seed(seed)
    text = {**SIZES, "vocab_size": len(WORDS) + 4, "max_position_embeddings": 64, "projection_size": 32, **IDS}
    vision = {**SIZES, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():
        model.logit_scale.fill_(4.8)  # exp(4.8) is 121.5, more than a CLIP's 100
        model.logit_bias.fill_(-16.0)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_input_names": ["input_ids"]}))  # as published
    SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(folder)
    return model


SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
DINOS: dict[str, tuple[Any, Any]] = {
    "dinov2": (Dinov2Model, Dinov2Config(**SMALL, mlp_ratio=2)),
    "dinov2_with_registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**SMALL, mlp_ratio=2)),
    "dinov3_vit": (DINOv3ViTModel, DINOv3ViTConfig(**SMALL, intermediate_size=64, num_register_tokens=4)),
}
"""Kind -> class and configuration."""


def write_dino(folder: Path, kind: str = "dinov2", seed: int = 0) -> PreTrainedModel:
    """A DINO with its image processor."""
    torch.manual_seed(seed)
    cls, config = DINOS[kind]
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    BitImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(folder)
    return model


def write_images(folder: Path, **splits: int) -> Path:
    """Noisy images of three colours, a folder a class: `write_images(folder, train=4)` has 12 in `train/`."""
    noise = torch.Generator().manual_seed(0)
    for split, count in splits.items():
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                values: Any = torch.tensor(colour) + 40 * torch.randn(IMAGE_SIZE, IMAGE_SIZE, 3, generator=noise)
                pixels = values.clamp(0, 255).byte().numpy()
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder
