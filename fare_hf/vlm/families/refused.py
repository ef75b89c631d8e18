"""Why the tower of a vision-language model that has no row in `fare_hf.vlm.families.table` cannot be swapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fare_hf.vlm.families.towers import kind_typed

__all__ = ["REFUSED", "reason_for"]

QFORMER = "its tower is EVA-CLIP's ViT-g in a class of its own, read by a Q-Former that was trained on it"
NAVIT = "its tower reads images of any shape with position codes of its own, which no CLIP or SigLIP checkpoint has"
OWN_CLASS = "its tower stands in a class of its own ({}), which is not mapped"
CODES = "it has no vision tower whose features are read: a VQ-VAE writes an image as tokens"
TIMM = "its tower is a model of timm ({}), no CLIP and no SigLIP"

REFUSED: dict[str, str] = {
    "InstructBlip": QFORMER,
    "Blip2": QFORMER,
    "Blip": OWN_CLASS.format("BlipVisionModel"),
    "Git": OWN_CLASS.format("GitVisionModel"),
    "Janus": OWN_CLASS.format("JanusVisionModel"),
    "Kosmos2": OWN_CLASS.format("Kosmos2VisionModel"),
    "Kosmos2_5": "its tower reads patches that its processor cuts out of images of any shape, no CLIP and no SigLIP",
    "Mllama": "its tower is a two-stage transformer over tiles with gates of its own, no CLIP and no SigLIP",
    "Idefics2": NAVIT,
    "Llama4": "its image processor exists for torchvision alone, and what that does is not mirrored here",
    "Lfm2Vl": NAVIT,
    "Florence2": "its tower is a DaViT, no CLIP and no SigLIP",
    "FastVlm": TIMM.format("FastViTHD"),
    "PerceptionLM": TIMM.format("Perception Encoder"),
    "DeepseekVLHybrid": "a second tower (SAM) sees the image too, and would stay as vulnerable as it is",
    "T5Gemma2": "an encoder reads the image and a decoder answers; only models with one sequence are mapped",
    "VisionEncoderDecoder": "its encoder may be of any class, and how its decoder reads it is not mapped",
    "PI0": "it writes the actions of a robot, no text",
    "Fuyu": "it has no vision tower: the language model reads patches of pixels itself",
    "Udop": "it has no vision tower: one encoder reads patches and words together",
    "Chameleon": CODES,
    "Emu3": CODES,
    "Evolla": "it reads proteins, no images",
}
"""Beginning of a class name -> why its tower cannot be swapped; the longest beginning counts."""


def reason_for(names: Sequence[str], config: Any = None) -> str | None:
    """Why a model cannot be swapped, or None where it is no vision-language model at all.

    Args:
        names: of its class and of those that it inherits from.
        config: its configuration, if it has one.
    """
    for start in sorted(REFUSED, key=len, reverse=True):
        if any(name.startswith(start) for name in names):
            return REFUSED[start]
    kind = getattr(getattr(config, "vision_config", None), "model_type", None)
    known = kind_typed(str(kind))
    if known is not None and not known.own:
        return f"its tower is a {kind!r}, but which features are read of it is not known here"
    if kind is not None:
        return f"its tower is a {kind!r}, no CLIPVisionModel and no SiglipVisionModel"
    return "its configuration names no vision tower" if _reads_images(config) else None


def _reads_images(config: Any) -> bool:
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
