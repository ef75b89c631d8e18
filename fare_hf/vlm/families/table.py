"""Which vision-language models a robust tower can be swapped into: one row each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel

from fare_hf.vlm.families.refused import reason_for

__all__ = [
    "ENCODER_OF",
    "FAMILIES",
    "Family",
    "family_named",
    "family_of",
    "feature_token",
    "image_processor_of",
    "layers_read",
    "placement",
    "tower_of",
    "tower_placement",
    "towers_of",
    "unwrapped",
]

ENCODER_OF: dict[str, str] = {
    "CLIPVisionModel": "CLIPVisionModel",
    "SiglipVisionModel": "SiglipVisionModel",
    "IdeficsVisionTransformer": "CLIPVisionModel",
}
"""Class of a tower -> class of the encoders that fit it. Idefics has CLIP's vision model under a name of its own."""

CLIP, SIGLIP = "CLIPVisionModel", "SiglipVisionModel"


@dataclass(frozen=True)
class Family:
    """One family of vision-language models.

    Attributes:
        vlm_class: name of the transformers class.
        towers: paths of the vision towers inside the model, as `torch.nn.Module.get_submodule` reads them; the first
            is the one for images.
        tower_classes: the classes that such a tower may have.
        features: what is read of the tower: "layers" (the hidden states that the configuration names), "last" (the
            last hidden state before the final norm) or "normed" (after it).
        any_size: whether an encoder of another resolution fits (projector and processor count patches freely).
        any_resolution: whether the processor may cut an image into tiles, so that its size decides how many
            placeholders stand for it.
    """

    vlm_class: str
    towers: tuple[str, ...]
    tower_classes: tuple[str, ...] = (CLIP, SIGLIP)
    features: str = "layers"
    any_size: bool = True
    any_resolution: bool = False

    @property
    def tower(self) -> str:
        """Path of the tower for images."""
        return self.towers[0]


ONE = ("model.vision_tower",)

FAMILIES: tuple[Family, ...] = (
    Family("LlavaForConditionalGeneration", ONE),
    Family("LlavaNextForConditionalGeneration", ONE, any_resolution=True),
    Family("LlavaNextVideoForConditionalGeneration", ONE, any_resolution=True),
    Family("VipLlavaForConditionalGeneration", ONE, (CLIP,)),
    Family("VideoLlavaForConditionalGeneration", ("model.image_tower", "model.video_tower"), (CLIP,)),
    Family("LlavaOnevisionForConditionalGeneration", ONE, any_resolution=True),
    Family("IdeficsForVisionText2Text", ("model.vision_model",), ("IdeficsVisionTransformer",), "last"),
    Family("DeepseekVLForConditionalGeneration", ("model.vision_model",), (SIGLIP,), "normed"),
    Family("AyaVisionForConditionalGeneration", ONE, (SIGLIP,), any_resolution=True),
    Family("Cohere2VisionForConditionalGeneration", ONE, (SIGLIP,), "normed", any_resolution=True),
    Family("PaliGemmaForConditionalGeneration", ONE, (SIGLIP,), "normed"),
    # The projectors of these two pool the patches over windows that follow from their number when they are made.
    Family("Gemma3ForConditionalGeneration", ONE, (SIGLIP,), "normed", any_size=False, any_resolution=True),
    Family("Granite4VisionForConditionalGeneration", ONE, any_size=False, any_resolution=True),
)


def family_of(vlm: Any) -> Family:
    """Return the row of a vision-language model, after a look at its towers.

    Raises:
        TypeError: the model is of no family in `FAMILIES`, lacks its vision tower, or carries another kind of tower.
    """
    vlm = unwrapped(vlm)
    family = family_named([base.__name__ for base in type(vlm).__mro__], getattr(vlm, "config", None))
    for path in family.towers:
        _check_tower_class(vlm, family, path)
    return family


def family_named(names: Sequence[str], config: Any = None) -> Family:
    """Return the row with one of these class names; the first name stands for the model in messages.

    Args:
        names: of a class and of those that it inherits from.
        config: of the model, which says what kind of tower a model of no family has.

    Raises:
        TypeError: there is none; the reason is said.
    """
    for family in FAMILIES:
        if family.vlm_class in names:
            return family
    reason = reason_for(names, config)
    if reason is not None:
        raise TypeError(f"the tower of a {names[0]} cannot be swapped: {reason}.")
    known = ", ".join(family.vlm_class for family in FAMILIES)
    raise TypeError(f"{names[0]} is not a vision-language model that fare_hf knows: pass one of {known}.")


def tower_of(vlm: PreTrainedModel) -> PreTrainedModel:
    """Return the vision tower for images (the module itself, not a copy).

    Raises:
        TypeError: as `family_of`.
    """
    return next(iter(towers_of(vlm).values()))


def towers_of(vlm: PreTrainedModel) -> dict[str, Any]:
    """Return all vision towers by their paths; a module that stands at two places appears once.

    Raises:
        TypeError: as `family_of`.
    """
    found: dict[str, Any] = {}
    for path in family_of(vlm).towers:
        tower = unwrapped(unwrapped(vlm).get_submodule(path))
        if not any(tower is other for other in found.values()):
            found[path] = tower
    return found


def unwrapped(module: Any) -> Any:
    """The module inside of what `torch.compile`, data parallelism or PEFT put around it: the weights are its own."""
    if not isinstance(module, torch.nn.Module):
        return module
    inner: Any = extract_model_from_parallel(module, keep_torch_compile=False)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def placement(module: torch.nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a tower's first weight (the tower of Idefics, a plain module, states neither)."""
    parameter = next(module.parameters())
    return parameter.device, parameter.dtype


def tower_placement(vlm: Any) -> tuple[torch.device, torch.dtype]:
    """`placement` of the vision tower: where images go, and in which precision they are seen."""
    return placement(tower_of(vlm))


def layers_read(config: Any, family: Family, layers: int) -> tuple[int, ...]:
    """Indices into the hidden states (0 is the embedding, `layers` the last) that the language model gets to see.

    Args:
        config: of the vision-language model.
        family: its row.
        layers: blocks of its tower.

    Raises:
        ValueError: the configuration names no layer, or one that the tower does not have.
    """
    if family.features != "layers":
        return (layers,)
    found = []
    for name, layer in _layers_named(config):
        index = layer if layer >= 0 else layers + 1 + layer
        if not 0 <= index <= layers:
            raise ValueError(
                f"the configuration's {name} {layer} is not among the hidden states of a tower with "
                f"{layers} layers: correct the configuration."
            )
        found.append(index)
    if not found:
        raise ValueError("the configuration's vision_feature_layer is empty: name the layers that are read.")
    return tuple(found)


def _layers_named(config: Any) -> list[tuple[str, int]]:
    """Field and layer; Granite 4 pairs layers of the tower with layers of the language model, and reads one more."""
    pairs = getattr(config, "deepstack_layer_map", None)
    if pairs:
        layers = [("deepstack_layer_map", layer) for layer, _ in pairs]
        return [*layers, ("spatial_vision_layer", config.spatial_vision_layer)]
    named = config.vision_feature_layer
    return [("vision_feature_layer", layer) for layer in ([named] if isinstance(named, int) else named)]


def image_processor_of(processor: Any) -> Any:
    """The image processor inside a processor.

    Raises:
        TypeError: it has none.
    """
    images = getattr(processor, "image_processor", None)
    if images is None:
        raise TypeError(
            f"{type(processor).__name__} is not the processor of a vision-language model: load it with "
            "AutoProcessor.from_pretrained from the model's repository."
        )
    return images


def feature_token(processor: Any) -> str:
    """The token at whose places the language model reads an image: the placeholder, or what it is expanded to."""
    if getattr(processor, "img_patch_token", None):  # AyaVision
        return processor.img_patch_token
    if getattr(processor, "boi_token", None):  # Gemma 3
        return processor.tokenizer.image_token
    return getattr(processor, "image_token", None) or "<image>"


def _check_tower_class(vlm: Any, family: Family, path: str) -> None:
    """Refuse models without a tower, and those whose tower is neither CLIP nor SigLIP."""
    try:
        tower = unwrapped(vlm.get_submodule(path))
    except AttributeError:
        tower = None
    if tower is None:
        raise TypeError(f"this {type(vlm).__name__} has no vision tower at '{path}': load the whole model.")
    if type(tower).__name__ not in family.tower_classes:
        raise TypeError(
            f"the vision tower of this {type(vlm).__name__} is a {type(tower).__name__}: only a tower of class "
            f"{' or '.join(family.tower_classes)} is supported."
        )
