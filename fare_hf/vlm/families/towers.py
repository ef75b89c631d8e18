"""Kinds of vision towers: how each is called inside of a model, and which encoders fit it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from fare_hf.pretrained.encoder_families import ENCODER_FAMILIES, EncoderFamily
from fare_hf.vlm.geometry import merged_patches

__all__ = ["CLIP", "ENCODERS", "IDEFICS", "KINDS", "SIGLIP", "TOWERS", "TowerKind", "kind_of", "kind_typed"]


@dataclass(frozen=True)
class TowerKind:
    """One kind of tower.

    Attributes:
        tower_class: name of its class inside of a vision-language model.
        model_type: of its configuration.
        family: of the encoders that fit; None where only a tower of its own class does, of the same model.
        mean, std: how pixels of such encoders usually are normalised.
        usual: whose, in words.
        shows_layers: whether it returns its hidden states.
    """

    tower_class: str
    model_type: str
    family: EncoderFamily | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    usual: str
    shows_layers: bool = True

    @property
    def encoder(self) -> str:
        """Class of the encoders that fit."""
        return self.tower_class if self.family is None else self.family.plain.__name__

    @property
    def own(self) -> bool:
        """Whether only a tower of the same model fits, and none that is published alone."""
        return self.family is None

    @property
    def own_class(self) -> type[PreTrainedModel]:
        """Class of a tower of its own, some of which transformers keeps in their modules."""
        package = self.model_type.removesuffix("_vision")
        found: type[PreTrainedModel] = getattr(
            import_module(f"transformers.models.{package}.modeling_{package}"), self.tower_class
        )
        return found

    def side(self, config: Any) -> int:
        """Pixels a side that a tower with this configuration reads."""
        size = config.image_size
        return size if isinstance(size, int) else int(size[0])

    def inputs(self, config: Any, values: Tensor) -> dict[str, Tensor]:
        """What such a tower is given of normalised images (B, 3, H, W)."""
        return {"pixel_values": values}

    @property
    def pools_class_token(self) -> bool:
        """Whether its pooled output is that of a class token, which its training is about."""
        return self.family is not None and self.family.class_tokens == 1


CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "CLIP's usually are")
SIGLIP_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "SigLIP's usually are")

ENCODERS_OF = {family.tower: family for family in ENCODER_FAMILIES}
CLIP = TowerKind("CLIPVisionModel", "clip_vision_model", ENCODERS_OF["clip_vision_model"], *CLIP_PIXELS)
SIGLIP = TowerKind("SiglipVisionModel", "siglip_vision_model", ENCODERS_OF["siglip_vision_model"], *SIGLIP_PIXELS)
# CLIP's vision model under a name of its own, a plain module.
IDEFICS = TowerKind(
    "IdeficsVisionTransformer", "idefics_vision", ENCODERS_OF["clip_vision_model"], *CLIP_PIXELS, shows_layers=False
)


class QwenKind(TowerKind):
    """Towers that read rows of patches, of images of any shape."""

    def side(self, config: Any) -> int:
        return 4 * int(config.patch_size) * int(config.spatial_merge_size)

    def inputs(self, config: Any, values: Tensor) -> dict[str, Tensor]:
        sizes = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
        patches, grid = merged_patches(values, *sizes)
        return {"hidden_states": patches, "grid_thw": grid}


class PixtralKind(TowerKind):
    """Towers that read images of any shape in whole patches."""

    def side(self, config: Any) -> int:
        return 8 * int(config.patch_size)


HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "SmolVLM's usually are")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "InternVL's usually are")
QWEN2_VL = QwenKind("Qwen2VisionTransformerPretrainedModel", "qwen2_vl_vision", None, *CLIP_PIXELS, False)
QWEN2_5_VL = QwenKind("Qwen2_5_VisionTransformerPretrainedModel", "qwen2_5_vl_vision", None, *CLIP_PIXELS, False)
QWEN3_VL = QwenKind("Qwen3VLVisionModel", "qwen3_vl_vision", None, *HALVES, False)
QWEN3_5 = QwenKind("Qwen3_5VisionModel", "qwen3_5_vision", None, *HALVES, False)
PIXTRAL = PixtralKind("PixtralVisionModel", "pixtral", None, *CLIP_PIXELS, False)
INTERNVL = TowerKind("InternVLVisionModel", "internvl_vision", None, *IMAGENET, False)
IDEFICS3 = TowerKind("Idefics3VisionTransformer", "idefics3_vision", None, *HALVES, False)
SMOLVLM = TowerKind("SmolVLMVisionTransformer", "smolvlm_vision", None, *HALVES, False)

KINDS = (
    CLIP, SIGLIP, IDEFICS, QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_5, INTERNVL, IDEFICS3, SMOLVLM, PIXTRAL,
)  # fmt: skip
TOWERS = {kind.tower_class: kind for kind in KINDS if kind.own}
"""Classes of towers that fit the model alone that they are of, by name."""
ENCODERS = tuple(dict.fromkeys(kind.family.plain for kind in KINDS if kind.family))
"""Classes of all encoders that fit a tower."""


def kind_of(vision: Any) -> TowerKind:
    """The kind of a tower or of an encoder."""
    names = [base.__name__ for base in type(vision).__mro__]
    return next(kind for kind in KINDS if kind.tower_class in names)


def kind_typed(model_type: str) -> TowerKind | None:
    """The kind whose configuration has this type."""
    return next((kind for kind in KINDS if kind.model_type == model_type), None)
