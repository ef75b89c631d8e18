"""Tiny random CLIP models, on disk and in memory, that every room's tests share. Nothing is downloaded."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Read when transformers and datasets are imported: nothing of a test run lands in the user's caches.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="fare_hf_tests_")

import fixtures_vlm
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

torch.set_num_threads(1)

IMAGE_SIZE = 32
PATCH_SIZE = 8
WORDS = "this is a photo of the an cat dog bird fish tree car red green blue square circle .".split()


def tiny_clip_config() -> CLIPConfig:
    """32 px, patch 8 (16 patches), 2 vision and 2 text layers, projection 16."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = {**size, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "projection_dim": 16}
    text = {**size, "num_hidden_layers": 2, "vocab_size": len(WORDS) + 4, "max_position_embeddings": 24}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "projection_dim": 16}
    return CLIPConfig(text_config={**text, **ids}, vision_config=vision, projection_dim=16)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over `WORDS`."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<unk>", "<bos>", "<eos>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def tiny_processor() -> CLIPImageProcessor:
    """The CLIP image processor at 32 px."""
    size = {"shortest_edge": IMAGE_SIZE}
    return CLIPImageProcessor(size=size, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole `CLIPModel` with tokenizer and image processor, the layout of a CLIP repository."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    CLIPModel(tiny_clip_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def legacy_vision_folder(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vision part with projection, saved under the `vision_model.` names every release reads."""
    folder = tmp_path_factory.mktemp("vision")
    CLIPVisionModelWithProjection.from_pretrained(clip_folder).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def flat_vision_folder(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `CLIPVisionModel` built from its configuration: flat names, no projection."""
    folder = tmp_path_factory.mktemp("flat")
    torch.manual_seed(1)
    CLIPVisionModel(tiny_clip_config().vision_config).save_pretrained(folder)
    return folder


@pytest.fixture
def processor() -> CLIPImageProcessor:
    """A fresh tiny image processor."""
    return tiny_processor()


@pytest.fixture
def pixels() -> torch.Tensor:
    """Four images in [0,1], `(4, 3, 32, 32)`."""
    return torch.rand(4, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vlm() -> LlavaForConditionalGeneration:
    """A tiny random LLaVA."""
    return fixtures_vlm.llava()


@pytest.fixture(scope="module")
def proc() -> LlavaProcessor:
    """Its processor."""
    return fixtures_vlm.processor()
