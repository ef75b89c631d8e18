"""Which vision-language models a robust tower can be swapped into: one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedModel

__all__ = ["FAMILIES", "Family", "family_of", "tower_of"]


@dataclass(frozen=True)
class Family:
    """One family of vision-language models.

    Attributes:
        vlm_class: name of the transformers class.
        tower: path of the vision tower inside the model, as `torch.nn.Module.get_submodule` reads it.
        encoder_class: name of the tower's class; only encoders of this class fit.
    """

    vlm_class: str
    tower: str
    encoder_class: str


FAMILIES: tuple[Family, ...] = (Family("LlavaForConditionalGeneration", "model.vision_tower", "CLIPVisionModel"),)


def family_of(vlm: PreTrainedModel) -> Family:
    """Return the row of a vision-language model.

    Raises:
        TypeError: if the model is of no family in `FAMILIES`, or carries another kind of vision tower.
    """
    names = {base.__name__ for base in type(vlm).__mro__}
    for family in FAMILIES:
        if family.vlm_class in names:
            _check_tower_class(vlm, family)
            return family
    known = ", ".join(family.vlm_class for family in FAMILIES)
    raise TypeError(f"{type(vlm).__name__} is not a vision-language model that fare_hf knows: pass one of {known}.")


def tower_of(vlm: PreTrainedModel) -> PreTrainedModel:
    """Return the vision tower of a vision-language model (the module itself, not a copy).

    Raises:
        TypeError: as `family_of`.
    """
    return cast(PreTrainedModel, vlm.get_submodule(family_of(vlm).tower))


def _check_tower_class(vlm: PreTrainedModel, family: Family) -> None:
    """Refuse, say, a LLaVA built on SigLIP: its tower is no CLIP."""
    tower = vlm.get_submodule(family.tower)
    if type(tower).__name__ != family.encoder_class:
        raise TypeError(
            f"the vision tower of this {type(vlm).__name__} is a {type(tower).__name__}: only a tower of class "
            f"{family.encoder_class} is supported."
        )
