"""Putting the original's text encoder beside a robust vision encoder: a whole CLIP or SigLIP again."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from fare_hf.convert.checkpoints import names_repository
from fare_hf.encoders import load_complete
from fare_hf.files.documents import read_object
from fare_hf.pretrained.encoder_families import PUBLISHED
from fare_hf.pretrained.loading import load_tokenizer

__all__ = ["save_tokenizer", "whole_clip"]

# How a tokenizer was loaded here, which its configuration would tell everybody who loads it from the Hub.
LOADING = ("is_local", "local_files_only", "name_or_path")
# The name that transformers 5 gives a tokenizer without a class of its own, and the one that 4.x knows too.
NAMES = {"TokenizersBackend": "PreTrainedTokenizerFast"}


def whole_clip(encoder: PreTrainedModel, original: str) -> tuple[Any, Any]:
    """The original CLIP or SigLIP with the robust vision encoder, in the encoder's dtype, and its tokenizer.

    Args:
        encoder: whose outputs are compared with texts: a `CLIPVisionModelWithProjection` or `SiglipVisionModel`.
        original: folder or repository of the CLIP that was fine-tuned.

    Raises:
        ValueError: the encoder has no projection, or the original no text encoder, tokenizer, or another shape.
    """
    class_name = type(encoder).__name__
    family = PUBLISHED.get(class_name)
    if family is None or not family.compares(class_name):
        raise ValueError(f"{class_name} has no projection, which a text encoder needs: publish it without one.")
    clip, tokenizer = _load(family.whole_class, original, next(encoder.parameters()).dtype)
    own = clip.state_dict()
    named = encoder.state_dict().items()
    weights = {name if name in own else f"vision_model.{name}": tensor for name, tensor in named}
    for name, tensor in weights.items():
        if name not in own or own[name].shape != tensor.shape:
            raise ValueError(f"{original!r} has no {name!r} of the encoder's shape: name the CLIP it was made from.")
    clip.load_state_dict({**own, **weights})
    vision: Any = copy.deepcopy(encoder.config)
    # Written by Trainer, of the vision class alone, and where the encoder lay on this machine.
    vision.__dict__.pop("use_cache", None)
    vision.architectures, vision._name_or_path = None, ""
    clip.config.vision_config = vision
    return clip.eval(), tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes a tokenizer as both majors of transformers load it, without how it was loaded here."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = {key: value for key, value in read_object(path).items() if key not in LOADING}
    config["tokenizer_class"] = NAMES.get(config["tokenizer_class"], config["tokenizer_class"])
    read = ("input_ids", "attention_mask")  # a CLIP takes no others, a SigLIP no mask
    config["model_input_names"] = [name for name in read if name in tokenizer.model_input_names]
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _load(cls: Any, original: str, dtype: torch.dtype) -> tuple[Any, Any]:
    if not Path(original).is_dir() and not names_repository(original):
        raise ValueError(f"{original!r} is no folder here and no name of a repository: name the original CLIP.")
    try:
        clip: Any = load_complete(cls, original, dtype=dtype)
        tokenizer = load_tokenizer(original)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{original!r} is no CLIP with a tokenizer ({first}): name the original.") from None
    return clip, tokenizer
