"""Tiny random CLIP models, on disk and in memory, that all tests share. Nothing is downloaded."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Of what tests start, such as a notebook's kernel: several threads of tiny models wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Read when transformers and datasets are imported: nothing of a test run lands in the user's caches.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="fare_hf_tests_")

import pytest
import torch
from helpers import tiny_llava
from helpers.tiny_clip import IMAGE_SIZE, tiny_clip_config, tiny_processor, tiny_tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

torch.set_num_threads(1)


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
    return tiny_llava.llava()


@pytest.fixture(scope="module")
def proc() -> LlavaProcessor:
    """Its processor."""
    return tiny_llava.processor()
