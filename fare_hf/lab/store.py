"""Puts trained lab models into the package, rounded to fp16: ``python -m fare_hf.lab.store clip FOLDER``.

Everything that is reported of a lab model is measured after this rounding, on what is shipped.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from .models import LANGUAGE, MODELS, TOWER


def store_clip(source: Path, folder: Path = MODELS / "clip") -> None:
    """The CLIP that `fare_hf.lab.train_clip` left in ``source``, with tokenizer and image processor."""
    CLIPModel.from_pretrained(source, dtype=torch.float16).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(source).save_pretrained(folder)
    AutoImageProcessor.from_pretrained(source).save_pretrained(folder)


def store_llava(source: Path, folder: Path = MODELS / "llava") -> None:
    """The LLaVA that `fare_hf.lab.train_llava` left: projector and language model, without the tower.

    The tower is the lab CLIP's own, which `fare_hf.lab.load_llava` puts back.
    """
    model = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    LlavaProcessor.from_pretrained(source).save_pretrained(folder)
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(TOWER)}
    kept.pop("lm_head.weight")  # tied to the token embeddings
    save_file({name: tensor.half().contiguous() for name, tensor in kept.items()}, folder / LANGUAGE)


def store_encoder(source: Path, name: str) -> None:
    """A robust encoder that `fare_hf.train` left in ``source``, with its card and the parameters of its training."""
    folder = MODELS / name
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    CLIPVisionModelWithProjection.from_pretrained(source, dtype=torch.float16).save_pretrained(folder)


def main() -> None:
    """Parses the command line and stores one model."""
    parser = argparse.ArgumentParser(description="Puts a trained lab model into the package, rounded to fp16.")
    parser.add_argument("kind", choices=["clip", "llava", "fare-2", "fare-4", "tecoa-2", "tecoa-4"])
    parser.add_argument("source", type=Path, help="folder that the training left")
    args = parser.parse_args()
    if args.kind == "clip":
        store_clip(args.source)
    elif args.kind == "llava":
        store_llava(args.source)
    else:
        store_encoder(args.source, args.kind)


if __name__ == "__main__":
    main()
