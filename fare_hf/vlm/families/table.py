"""Which vision-language models a robust tower can be swapped into: one row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel

from fare_hf.vlm.families.aya_vision import AyaVision, Cohere2Vision, InternVL
from fare_hf.vlm.families.deepseek_vl import DeepseekVL
from fare_hf.vlm.families.family import COUNTS, Family
from fare_hf.vlm.families.gemma3 import Gemma3
from fare_hf.vlm.families.idefics import Idefics
from fare_hf.vlm.families.idefics3 import Idefics3
from fare_hf.vlm.families.llava_next import Granite4Vision, LlavaNext
from fare_hf.vlm.families.mistral3 import Mistral3
from fare_hf.vlm.families.paligemma import PaliGemma
from fare_hf.vlm.families.qwen_vl import QwenVL
from fare_hf.vlm.families.refused import reason_for
from fare_hf.vlm.families.towers import (
    CLIP,
    IDEFICS,
    IDEFICS3,
    INTERNVL,
    PIXTRAL,
    QWEN2_5_VL,
    QWEN2_VL,
    QWEN3_5,
    QWEN3_VL,
    SIGLIP,
    SMOLVLM,
    TowerKind,
)

__all__ = [
    "FAMILIES",
    "Family",
    "family_named",
    "family_of",
    "family_of_config",
    "layers_read",
    "placement",
    "tower_of",
    "tower_placement",
    "towers_of",
    "unwrapped",
]


def _own(row: type[Family], vlm_class: str, tower: str, kind: TowerKind, features: str = "normed") -> Family:
    """A row whose tower is of its own class, made for images of one size or of any."""
    return row(vlm_class, (tower,), (kind,), features, any_size=False, any_resolution=True, keeps_prefix=False)


FAMILIES: tuple[Family, ...] = (
    Family("LlavaForConditionalGeneration", counts=COUNTS),
    LlavaNext("LlavaNextForConditionalGeneration", counts=COUNTS, any_resolution=True),
    LlavaNext("LlavaNextVideoForConditionalGeneration", counts=COUNTS, any_resolution=True),
    Family("VipLlavaForConditionalGeneration", kinds=(CLIP,), counts=COUNTS),
    Family("VideoLlavaForConditionalGeneration", ("model.image_tower", "model.video_tower"), (CLIP,)),
    LlavaNext(
        "LlavaOnevisionForConditionalGeneration",
        counts=("num_image_tokens", "vision_feature_select_strategy"),
        any_resolution=True,
    ),
    Idefics("IdeficsForVisionText2Text", ("model.vision_model",), (IDEFICS,), "last", keeps_prefix=False),
    DeepseekVL("DeepseekVLForConditionalGeneration", ("model.vision_model",), (SIGLIP,), "normed"),
    AyaVision("AyaVisionForConditionalGeneration", kinds=(SIGLIP,), any_resolution=True),
    Cohere2Vision("Cohere2VisionForConditionalGeneration", kinds=(SIGLIP,), features="normed", any_resolution=True),
    PaliGemma("PaliGemmaForConditionalGeneration", kinds=(SIGLIP,), features="normed", keeps_prefix=False),
    # The projectors of these two pool the patches over windows that follow from their number when they are made.
    Gemma3(
        "Gemma3ForConditionalGeneration",
        kinds=(SIGLIP,),
        features="normed",
        any_size=False,
        any_resolution=True,
        keeps_prefix=False,
    ),
    Granite4Vision("Granite4VisionForConditionalGeneration", any_size=False, any_resolution=True),
    # From here on towers of their own, in whose place only a tower of the same model fits.
    _own(QwenVL, "Qwen2VLForConditionalGeneration", "model.visual", QWEN2_VL),
    _own(QwenVL, "Qwen2_5_VLForConditionalGeneration", "model.visual", QWEN2_5_VL),
    _own(QwenVL, "Qwen3VLForConditionalGeneration", "model.visual", QWEN3_VL),
    _own(QwenVL, "Qwen3_5ForConditionalGeneration", "model.visual", QWEN3_5),
    _own(InternVL, "InternVLForConditionalGeneration", "model.vision_tower", INTERNVL, "layers"),
    _own(Idefics3, "Idefics3ForConditionalGeneration", "model.vision_model", IDEFICS3),
    _own(Idefics3, "SmolVLMForConditionalGeneration", "model.vision_model", SMOLVLM),
    _own(Mistral3, "Mistral3ForConditionalGeneration", "model.vision_tower", PIXTRAL, "layers"),
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


def family_of_config(config: Any) -> Family:
    """Return the row of the model that a configuration describes.

    Raises:
        TypeError: as `family_named`.
    """
    return family_named(config.architectures or [type(config).__name__], config)


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
    for name, layer in family.layers_named(config):
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
