"""Processors as evaluations need them: what pixels are attacked; what older repositories leave to configurations."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from PIL import Image
from torch import Tensor

from fare_hf.data.pixels import StoredPixels
from fare_hf.pretrained.encoder_families import class_tokens_of
from fare_hf.vlm.families.family import Family, image_settings
from fare_hf.vlm.geometry import check_processor

__all__ = ["attacked_pixels", "complete_processor", "completed_file", "missing_fields"]

CLASS_TOKEN = "num_additional_image_tokens"
SIDES = ((96, 48), (48, 96))
"""Of two images that are cut, or stay, in different ways."""


def attacked_pixels(processor: Any) -> Any:
    """What makes the pixels of an image that are attacked, as an image processor does.

    A processor that makes one picture of one size of every image, as LLaVA's, is taken itself: radii are of pixels as
    its tower reads them. Where it cuts an image into tiles, or where the size follows from the image (Qwen's,
    InternVL, SmolVLM, LLaVA-NeXT), the pixels are those of the image's file; the model's family resizes and cuts them
    in every step of an attack.

    Args:
        processor: of a vision-language model.

    Raises:
        ValueError: it resizes or rescales as nothing here does.
        TypeError: it is no processor of a vision-language model.
    """
    settings = image_settings(processor)
    check_processor(settings)
    made = [settings(images=Image.new("RGB", sides, "grey"), return_tensors="pt") for sides in SIDES]
    if any(isinstance(values, Tensor) or "pixel_values" not in values for values in made):  # Idefics, VideoLlava
        return StoredPixels()
    wide, high = (tuple(values["pixel_values"].shape) for values in made)
    return settings if wide == high and len(wide) == 4 and wide[:2] == (1, 3) else StoredPixels()


def complete_processor(family: Family, config: Any, processor: Any) -> dict[str, Any]:
    """Give a processor what it lacks to count the tokens of an image; said in a warning, and only once.

    Args:
        family: row of the vision-language model.
        config: of the model.
        processor: its processor, changed in place.

    Returns:
        The fields that were filled, with their values.
    """
    own = vars(processor)
    found = missing_fields(config, {name: own[name] for name in family.counts if name in own})
    for name, value in found.items():
        setattr(processor, name, value)
    if found:
        words = ", ".join(f"{name} {value!r}" for name, value in found.items())
        warnings.warn(
            f"the processor does not say how many tokens stand for an image: {words} was taken from the model's "
            "configuration; save the processor to keep it.",
            UserWarning,
            stacklevel=3,
        )
    return found


def missing_fields(config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Which of a processor's fields the model's configuration has to fill, with their values.

    No additional token counts as not given where the tower has a class token: it is the default of transformers.

    Args:
        config: of the vision-language model.
        given: field -> value or None, of those that the processor takes.
    """
    vision = getattr(config, "vision_config", None)
    if vision is None or not given:
        return {}
    values = {
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
        CLASS_TOKEN: class_tokens_of(vision, 0),
        "num_image_tokens": (int(vision.image_size) // int(vision.patch_size)) ** 2,
    }
    absent = [name for name, value in given.items() if value is None or (name == CLASS_TOKEN and value == 0)]
    return {name: values[name] for name in absent if values[name] not in (None, given[name])}


def completed_file(family: Family, config: Any, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The `processor_config.json` that a repository should have.

    Args:
        family: row of the vision-language model.
        config: of the model.
        files: content of its `processor_config.json`, `preprocessor_config.json` and `tokenizer_config.json`, those
            that it has.

    Returns:
        The content, or None where nothing is lacking, or no file says what class the processor is of.
    """
    own = files.get("processor_config.json", {})
    kind = next((content["processor_class"] for content in files.values() if content.get("processor_class")), None)
    found = missing_fields(config, {name: own.get(name) for name in family.counts})
    return {**own, "processor_class": kind, **found} if found and kind else None
