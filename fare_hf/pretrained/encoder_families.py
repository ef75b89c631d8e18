"""The families of vision encoders that can be made robust: a row each, and nothing else knows a family by its name.

Beside the row, a family that open_clip has too needs its names there (`fare_hf.convert`), and one that vision-language
models see through needs its towers in the rows of those (`fare_hf.vlm.families`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import (
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    PreTrainedModel,
    SiglipModel,
    SiglipTextModel,
    SiglipVisionModel,
)
from transformers.core_model_loading import revert_weight_conversion

__all__ = [
    "ENCODER_FAMILIES",
    "PUBLISHED",
    "PUBLISHED_WHOLE",
    "REFUSED",
    "TEXT_TYPES",
    "TOWER_TYPES",
    "EncoderFamily",
    "class_tokens_of",
    "compared_embedding",
    "compared_width",
    "encoder_types",
    "family_of_text",
    "family_of_type",
    "named_as_saved",
]


@dataclass(frozen=True)
class EncoderFamily:
    """What differs between families.

    Attributes:
        tower: `model_type` of the vision part's configuration.
        plain: class of the vision part, for the embeddings `pooled` and `tokens`.
        whole: `model_type` of the model with both parts; None where there is none.
        text: `model_type` of the text part; None where there is none.
        projecting: class of the vision part with its projection, for `projected`; None where there is none.
        text_class: class of the text part, whose embeddings those of images are compared with.
        whole_class: class of both parts, of which a robust encoder can be published with its text encoder.
        class_tokens: tokens before those of the patches, besides registers.
        attention_pooling: whether one learned query makes the pooled output.
        any_size: whether it takes images of other sizes than its configuration's, of two sides too.
        sigmoid: whether it was trained on one pair of image and text at a time (Zhai et al. 2023, arXiv 2303.15343):
            its logits have a bias, its scale has no bound, and its texts are in lower case, padded to their full
            length and read with their padding.
        prefix: what begins the names of the tower's weights in files that every release of transformers reads; empty
            where the files have the names that transformers' own `save_pretrained` gives them.
        citation: BibTeX of its paper, for the model card.
    """

    tower: str
    plain: type[PreTrainedModel]
    whole: str | None = None
    text: str | None = None
    projecting: type[PreTrainedModel] | None = None
    text_class: type[PreTrainedModel] | None = None
    whole_class: type[PreTrainedModel] | None = None
    class_tokens: int = 1
    attention_pooling: bool = False
    any_size: bool = False
    sigmoid: bool = False
    prefix: str = "vision_model."
    citation: str = ""

    @property
    def classes(self) -> tuple[type[PreTrainedModel], ...]:
        """Of the vision part: plain, and with its projection."""
        return (self.plain, self.projecting) if self.projecting else (self.plain,)

    @property
    def compared(self) -> str | None:
        """The embedding that is compared with texts; None where there are none."""
        return "projected" if self.projecting else "pooled" if self.text_class else None

    def compares(self, class_name: str) -> bool:
        """Whether a class of the vision part, by its name, is the one whose outputs are compared with texts."""
        return self.compared is not None and class_name == self.classes[-1].__name__

    def projects(self, class_name: str) -> bool:
        """Whether a class of this family, by its name, is the one with the projection."""
        return self.projecting is not None and class_name == self.projecting.__name__


_CLIP = """@inproceedings{radford2021learning,
  title     = {Learning Transferable Visual Models From Natural Language Supervision},
  author    = {Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, Gabriel and
               Agarwal, Sandhini and Sastry, Girish and Askell, Amanda and Mishkin, Pamela and Clark, Jack and
               Krueger, Gretchen and Sutskever, Ilya},
  booktitle = {International Conference on Machine Learning},
  year      = {2021}
}"""
_SIGLIP = """@inproceedings{zhai2023sigmoid,
  title     = {Sigmoid Loss for Language Image Pre-Training},
  author    = {Zhai, Xiaohua and Mustafa, Basil and Kolesnikov, Alexander and Beyer, Lucas},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year      = {2023}
}"""
_DINOV2 = """@article{oquab2024dinov2,
  title   = {{DINOv2}: Learning Robust Visual Features without Supervision},
  author  = {Oquab, Maxime and Darcet, Timoth{\\'e}e and Moutakanni, Th{\\'e}o and others},
  journal = {Transactions on Machine Learning Research},
  year    = {2024}
}"""
_DINOV3 = """@article{simeoni2025dinov3,
  title   = {{DINOv3}},
  author  = {Sim{\\'e}oni, Oriane and Vo, Huy V. and Seitzer, Maximilian and others},
  journal = {arXiv preprint arXiv:2508.10104},
  year    = {2025}
}"""

ENCODER_FAMILIES = (
    EncoderFamily(
        "clip_vision_model",
        CLIPVisionModel,
        whole="clip",
        text="clip_text_model",
        projecting=CLIPVisionModelWithProjection,
        text_class=CLIPTextModelWithProjection,
        whole_class=CLIPModel,
        citation=_CLIP,
    ),
    EncoderFamily("dinov2", Dinov2Model, any_size=True, prefix="", citation=_DINOV2),
    EncoderFamily("dinov2_with_registers", Dinov2WithRegistersModel, any_size=True, prefix="", citation=_DINOV2),
    EncoderFamily("dinov3_vit", DINOv3ViTModel, any_size=True, prefix="", citation=_DINOV3),
    EncoderFamily(
        "siglip_vision_model",
        SiglipVisionModel,
        whole="siglip",
        text="siglip_text_model",
        text_class=SiglipTextModel,
        whole_class=SiglipModel,
        class_tokens=0,
        attention_pooling=True,
        sigmoid=True,
        citation=_SIGLIP,
    ),
)

REFUSED = dict.fromkeys(
    ("siglip2", "siglip2_vision_model"),
    "images of any aspect ratio (NaFlex), whose patches are cut before the model; the checkpoints of SigLIP 2 for one "
    "size, such as google/siglip2-base-patch16-224, are 'siglip' models",
)
"""Types that look like one of a family -> what they read instead."""

TOWER_TYPES = tuple(family.tower for family in ENCODER_FAMILIES)
TEXT_TYPES = tuple(family.text for family in ENCODER_FAMILIES if family.text)
PUBLISHED = {cls.__name__: family for family in ENCODER_FAMILIES for cls in family.classes}
"""Classes that `save_robust_encoder` takes, by name."""
PUBLISHED_WHOLE = {f.whole_class.__name__: f for f in ENCODER_FAMILIES if f.whole_class}
"""Classes that a robust encoder is published as beside its text encoder, by name."""


def encoder_types() -> list[str]:
    """Every `model_type` that a vision encoder can be loaded from, sorted."""
    return sorted({*TOWER_TYPES, *(family.whole for family in ENCODER_FAMILIES if family.whole)})


def family_of_type(model_type: object) -> EncoderFamily | None:
    """The family of a `model_type`, of the vision part or the whole; None of any other."""
    return next((family for family in ENCODER_FAMILIES if model_type in (family.tower, family.whole)), None)


def family_of_text(model_type: object) -> EncoderFamily | None:
    """The family whose text part a `model_type` holds, alone or in the whole; None where no images are compared."""
    fitting = (family for family in ENCODER_FAMILIES if family.text_class)
    return next((family for family in fitting if model_type in (family.text, family.whole)), None)


def class_tokens_of(config: Any, otherwise: int = 1) -> int:
    """Tokens before those of the patches in a vision part; `otherwise` in one of no family here."""
    family = family_of_type(config.model_type)
    return family.class_tokens + getattr(config, "num_register_tokens", 0) if family else otherwise


def named_as_saved(model: PreTrainedModel, weights: dict[str, Any]) -> dict[str, Any]:
    """Weights of a family without a `prefix` under the names that `save_pretrained` gives them; others as they are."""
    family = PUBLISHED.get(type(model).__name__)
    return weights if family is None or family.prefix else revert_weight_conversion(model, weights)


def compared_embedding(config: Any) -> str | None:
    """The embedding of a vision encoder that is compared with texts, if any; `projected` of one of no family here."""
    family = family_of_type(getattr(config, "model_type", None))
    return "projected" if family is None else family.compared


def compared_width(config: Any) -> int:
    """Numbers of an embedding that is compared with texts, by the configuration of the vision part or the whole."""
    vision = getattr(config, "vision_config", config)
    return vision.projection_dim if compared_embedding(config) == "projected" else vision.hidden_size
