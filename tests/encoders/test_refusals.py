"""What is no encoder, or has no such embedding, and the sentence that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.refusals import Refusal, table
from helpers.tiny_llava import llava
from transformers import (
    BertConfig,
    BertModel,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from fare_hf.data.pixels import Normalization
from fare_hf.encoders import embed, freeze, freeze_unused, load_encoder, logit_scale_of, text_class_embeddings
from fare_hf.encoders.float8 import check_float8
from fare_hf.encoders.reading import EncoderReading

NORMALIZATION = Normalization([0.5] * 3, [0.5] * 3)
SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.fixture
def bert(tmp_path: Path) -> str:
    BertModel(BertConfig(intermediate_size=8, vocab_size=9, **SIZE)).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def siglip(tmp_path: Path) -> str:
    SiglipVisionModel(SiglipVisionConfig(image_size=32, patch_size=8, **SIZE)).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def dinov2(tmp_path: Path) -> str:
    Dinov2Model(Dinov2Config(image_size=32, patch_size=8, **SIZE)).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def vision(clip_folder: Path, tmp_path: Path) -> str:
    CLIPModel.from_pretrained(clip_folder).vision_model.config.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def clip(clip_folder: Path) -> str:
    return str(clip_folder)


@pytest.fixture
def flat(flat_vision_folder: Path) -> str:
    return str(flat_vision_folder)


def vlm_configuration_alone(folder: Path) -> str:
    llava().config.save_pretrained(folder)
    return str(folder)


@table(
    Refusal(
        "a language model", lambda bert: load_encoder(bert), ValueError, "'bert' model, not a vision encoder or CLIP"
    ),
    Refusal(
        "a vision-language model",
        lambda tmp_path: load_encoder(vlm_configuration_alone(tmp_path), "tokens"),
        ValueError,
        "is a vision-language model (llava), and a vision encoder or CLIP is wanted (evaluate takes such a model with "
        "--vlm, and train its tower with --embedding features).",
    ),
    Refusal(
        "texts of a language model",
        lambda bert: text_class_embeddings(bert, ["cat"]),
        ValueError,
        "'bert' model without a CLIP text encoder",
    ),
    Refusal(
        "a projection of SigLIP",
        lambda siglip: load_encoder(siglip, "projected"),
        ValueError,
        "without a projection…pooled",
    ),
    Refusal(
        "a projection of DINOv2",
        lambda dinov2: load_encoder(dinov2, "projected"),
        ValueError,
        "without a projection…pooled",
    ),
    Refusal(
        "a projection without weights",
        lambda flat: load_encoder(flat, "projected"),
        ValueError,
        "no weights for 'visual_projection.weight'…embedding='pooled'",
    ),
    Refusal(
        "an unknown embedding", lambda clip: load_encoder(clip, "cls"), ValueError, "embedding='cls' is not known"
    ),
    Refusal(
        "an embedding that the class lacks",
        lambda clip, pixels: embed(load_encoder(clip, "pooled"), pixels, "projected"),
        ValueError,
        "CLIPVisionModel has no 'projected' embedding; load it with load_encoder(..., embedding='projected').",
    ),
    Refusal(
        "an encoder frozen already",
        lambda clip: freeze_unused(freeze(load_encoder(clip)), EncoderReading("projected", NORMALIZATION)),
        ValueError,
        "CLIPVisionModelWithProjection has no trainable parameter behind 'projected'; unfreeze some.",
    ),
    Refusal(
        "a logit scale of an encoder",
        lambda vision: logit_scale_of(vision),
        ValueError,
        "has no logit scale; give --logit_scale",
    ),
    Refusal(
        "no class names", lambda clip: text_class_embeddings(clip, [], ["a {}"]), ValueError, "class_names is empty"
    ),
    Refusal(
        "a template without a place",
        lambda clip: text_class_embeddings(clip, ["cat"], ["a photo"]),
        ValueError,
        "templates=['a photo'] must be a list of sentences that contain {} for the class name.",
    ),
    Refusal(
        "one template",
        lambda clip: text_class_embeddings(clip, ["cat"], "a {}"),
        ValueError,
        "templates='a {}' must be a list of sentences that contain {} for the class name.",
    ),
    Refusal(
        "eight bits on a device without them",
        lambda: check_float8(torch.device("mps")),
        ValueError,
        "compute capability 8.9 (Ada, Hopper), and 'mps' is none; use attack_bf16",
    ),
)
def test_what_is_no_encoder_is_refused_in_a_sentence(row: Refusal, request: pytest.FixtureRequest) -> None:
    row.check(request)
