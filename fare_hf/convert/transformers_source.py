"""What is read of a CLIP in the format of transformers: model, preprocessing, text tower."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CLIPModel, CLIPVisionModelWithProjection

from fare_hf.convert.checkpoints import find_file
from fare_hf.convert.spec import ClipSpec, ImageSpec
from fare_hf.convert.transformers_config import read_image_processor, read_transformers_config
from fare_hf.encoders import load_complete
from fare_hf.pretrained.configuration import load_image_processor, read_configuration

__all__ = ["clip_config", "images_of", "load_clip", "text_of"]

PREPROCESSOR = "preprocessor_config.json"


def images_of(sources: list[tuple[str | None, str | None]], spec: ClipSpec) -> ImageSpec:
    """Preprocessing of the first that has an image processor."""
    # Imported where it is needed: without torchvision the import alone says so, and this room is imported by many.
    from transformers import CLIPImageProcessor

    for name_or_path, revision in sources:
        if name_or_path is not None and find_file(name_or_path, PREPROCESSOR, revision) is not None:
            processor = load_image_processor(name_or_path, cls=CLIPImageProcessor, revision=revision or "main")
            return read_image_processor(processor, spec.vision.image_size, f"'{name_or_path}'")
    raise ValueError(
        f"'{sources[0][0]}' has no {PREPROCESSOR}, so its mean and std are unknown: add it, or name the CLIP it was "
        "fine-tuned from as base."
    )


def load_clip(name_or_path: str, revision: str | None, dtype: Any = "auto") -> tuple[Any, bool]:
    """The model and whether it is a whole CLIP."""
    options: dict[str, Any] = {"dtype": dtype, "revision": revision or "main"}
    whole = clip_config(name_or_path, revision).model_type == "clip"
    try:
        cls = CLIPModel if whole else CLIPVisionModelWithProjection
        return load_complete(cls, name_or_path, **options), whole
    except ValueError as error:
        if "visual_projection" in str(error):
            raise ValueError(
                f"'{name_or_path}' has no visual projection, which open_clip's ViT ends with: convert the encoder "
                "that kept it (CLIPVisionModelWithProjection)."
            ) from error
        raise


def clip_config(name_or_path: str, revision: str | None) -> Any:
    """The configuration of a CLIP or of its vision part; ValueError for any other model."""
    if Path(name_or_path).is_dir() and not (Path(name_or_path) / "config.json").is_file():
        raise ValueError(f"the folder '{name_or_path}' holds no config.json: it is not a model of transformers.")
    config = read_configuration(name_or_path, revision=revision or "main")
    if config.model_type not in ("clip", "clip_vision_model"):
        raise ValueError(
            f"'{name_or_path}' is a {config.model_type!r} model, not a CLIP with a ViT: only those convert."
        )
    return config


def text_of(base: str, spec: ClipSpec) -> tuple[ClipSpec, dict[str, Tensor]]:
    """The text tower of a base, for an encoder of the same embedding space."""
    model, whole = load_clip(base, None)
    if not whole:
        raise ValueError(f"the base '{base}' has no text tower: give a whole CLIP.")
    other = read_transformers_config(model.config, f"the base '{base}'")
    for name in ("embed_dim", "activation"):
        ours, theirs = getattr(spec, name), getattr(other, name)
        if ours != theirs:
            raise ValueError(f"the encoder has {name} {ours!r} and the base '{base}' {theirs!r}: give its own base.")
    text = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("vis")}
    return replace(spec, text=other.text), text
