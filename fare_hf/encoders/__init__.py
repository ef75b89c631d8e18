"""Vision encoders of transformers as embedding functions: load, freeze, embed, and what they cost."""

from __future__ import annotations

from fare_hf.encoders.embedding import EMBEDDINGS, embed, make_embed
from fare_hf.encoders.loading import check_encoder_type, load_complete, load_encoder
from fare_hf.encoders.modes import evaluating, freeze, freeze_unused, frozen, matmul_patch_embedding, other_forwards
from fare_hf.encoders.text import (
    check_compared,
    compared_with_texts,
    logit_bias_of,
    logit_scale_of,
    text_class_embeddings,
    text_classifier,
)

__all__ = [
    "EMBEDDINGS",
    "check_compared",
    "check_encoder_type",
    "compared_with_texts",
    "embed",
    "evaluating",
    "freeze",
    "freeze_unused",
    "frozen",
    "load_complete",
    "load_encoder",
    "logit_bias_of",
    "logit_scale_of",
    "make_embed",
    "matmul_patch_embedding",
    "other_forwards",
    "text_class_embeddings",
    "text_classifier",
]
