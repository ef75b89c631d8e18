"""What a swap would refuse after the model's gigabytes are loaded, refused by the two configurations alone."""

from __future__ import annotations

from pathlib import Path

from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedModel

from fare_hf.files.folders import check_model_name
from fare_hf.pretrained.configuration import read_configuration
from fare_hf.pretrained.loading import vlm_configuration
from fare_hf.vlm.families.table import family_of_config
from fare_hf.vlm.families.towers import kind_typed
from fare_hf.vlm.swap.compatibility import check_architecture

__all__ = ["check_can_be_encoder", "check_swap"]


def check_swap(vlm: str | PreTrainedModel, encoder: str) -> None:
    """Looks at the configurations of a vision-language model and of an encoder.

    Args:
        vlm: folder or repository, or the model itself.
        encoder: folder or repository.

    Raises:
        ValueError, TypeError: no model, another kind of model, towers that do not fit.
    """
    config = vlm_configuration(vlm) if isinstance(vlm, str) else vlm.config
    family = family_of_config(config)
    check_can_be_encoder(encoder)
    if Path(encoder).is_dir() and not (Path(encoder) / "config.json").is_file():
        return  # open_clip's
    try:
        given = read_configuration(encoder)
    except OSError:
        return  # the swap itself says what it is
    given = getattr(given, "vision_config", given)
    if kind_typed(given.model_type) is None:
        return  # a text encoder, another kind of tower: the swap names it
    check_architecture(config, family, config.vision_config, given, encoder, vlm if isinstance(vlm, str) else "")


def check_can_be_encoder(encoder: str) -> None:
    """Raises ValueError for a path that leads nowhere, and for a whole vision-language model."""
    check_model_name(encoder)
    try:
        config = read_configuration(encoder)
    except (OSError, ValueError):
        return  # a bare file, open_clip's format, or nothing: whoever reads it says so
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(
            f"{encoder!r} is a vision-language model ({config.model_type}), and an encoder is wanted: give a CLIP or "
            "its vision encoder (evaluate takes such a model with --vlm)."
        )
