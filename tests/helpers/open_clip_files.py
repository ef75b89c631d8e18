"""A tiny random CLIP in the files of open_clip, made without the package."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from helpers.tiny_clip import tiny_tokenizer
from safetensors.torch import save_file

from fare_hf.convert.names import open_clip_shapes
from fare_hf.convert.open_clip_config import read_open_clip_config

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 8, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 24, "vocab_size": 23, "width": 32, "heads": 4, "layers": 2, "mlp_ratio": 2.0},
}
PREPROCESS: dict[str, Any] = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def random_state(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of the configuration, scaled so that no layer is without effect."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in open_clip_shapes(read_open_clip_config(config, "test")).items():
        noise = torch.randn(shape, generator=generator)
        if "ln_" in name and name.endswith("weight"):
            state[name] = 1 + 0.1 * noise
        else:
            state[name] = noise * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
    return state


@cache
def open_clip_state() -> dict[str, torch.Tensor]:
    """The weights of `write_open_clip`."""
    return random_state(CONFIG)


def write_open_clip(
    folder: Path,
    *,
    quick_gelu: bool | None = True,
    dtype: torch.dtype = torch.float32,
    preprocess: dict[str, Any] | None = None,
) -> Path:
    """Write configuration, weights and tokenizer as open_clip publishes them; None leaves quick_gelu out."""
    folder.mkdir(exist_ok=True)
    model = {name: value for name, value in CONFIG.items() if name != "quick_gelu"}
    if quick_gelu is not None:
        model["quick_gelu"] = quick_gelu
    content = {"model_cfg": model, "preprocess_cfg": preprocess or PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file({n: t.to(dtype) for n, t in open_clip_state().items()}, folder / "open_clip_model.safetensors")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tokenizer_files(folder: Path) -> list[str]:
    """Names of the tokenizer's files in a folder."""
    return [
        path.name for path in folder.iterdir() if path.name.startswith(("tokenizer", "special", "vocab", "merges"))
    ]
