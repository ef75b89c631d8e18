"""Kinds of vision towers: how each is called inside of a model, and which encoders fit it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from fare_hf.pretrained.encoder_families import ENCODER_FAMILIES, EncoderFamily

__all__ = ["CLIP", "ENCODERS", "IDEFICS", "KINDS", "SIGLIP", "TowerKind", "kind_of", "kind_typed"]


@dataclass(frozen=True)
class TowerKind:
    """One kind of tower.

    Attributes:
        tower_class: name of its class inside of a vision-language model.
        model_type: of its configuration.
        family: of the encoders that fit.
        mean, std: how pixels of such encoders usually are normalised.
        usual: whose, in words.
        shows_layers: whether it returns its hidden states.
    """

    tower_class: str
    model_type: str
    family: EncoderFamily
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    usual: str
    shows_layers: bool = True

    @property
    def encoder(self) -> type[PreTrainedModel]:
        """Class of the encoders that fit."""
        return self.family.plain

    @property
    def pools_class_token(self) -> bool:
        """Whether its pooled output is that of a class token, which its training is about."""
        return self.family.class_tokens == 1


CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "CLIP's usually are")
SIGLIP_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "SigLIP's usually are")

ENCODERS_OF = {family.tower: family for family in ENCODER_FAMILIES}
CLIP = TowerKind("CLIPVisionModel", "clip_vision_model", ENCODERS_OF["clip_vision_model"], *CLIP_PIXELS)
SIGLIP = TowerKind("SiglipVisionModel", "siglip_vision_model", ENCODERS_OF["siglip_vision_model"], *SIGLIP_PIXELS)
# CLIP's vision model under a name of its own, a plain module.
IDEFICS = TowerKind(
    "IdeficsVisionTransformer", "idefics_vision", ENCODERS_OF["clip_vision_model"], *CLIP_PIXELS, shows_layers=False
)

KINDS = (CLIP, SIGLIP, IDEFICS)
ENCODERS = tuple(dict.fromkeys(kind.encoder for kind in KINDS))
"""Classes of all encoders that fit a tower."""


def kind_of(vision: Any) -> TowerKind:
    """The kind of a tower or of an encoder."""
    names = [base.__name__ for base in type(vision).__mro__]
    return next(kind for kind in KINDS if kind.tower_class in names)


def kind_typed(model_type: str) -> TowerKind | None:
    """The kind whose configuration has this type."""
    return next((kind for kind in KINDS if kind.model_type == model_type), None)
