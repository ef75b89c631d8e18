"""A tiny random LLaVA with a real processor: 32 px, patch 8 (16 image tokens), Llama of width 32."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SIZE = 32
WORDS = (
    "user assistant : describe the image in short words a an red green blue cat dog face bird of photo and .".split()
)
SPECIAL = ["<pad>", "<unk>", "<bos>", "<eos>", "<image>"]
PROMPT = "user : <image> describe the image assistant :"


def vision_config(**changes: Any) -> CLIPVisionConfig:
    """The tower's configuration; `changes` make it another architecture."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return CLIPVisionConfig(**{**sizes, "image_size": SIZE, "patch_size": 8, "projection_dim": 16, **changes})


def encoder(seed: int = 0, **changes: Any) -> CLIPVisionModelWithProjection:
    """A random encoder with projection."""
    torch.manual_seed(seed)
    return CLIPVisionModelWithProjection(vision_config(**changes)).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, begins with <bos>, as a Llama tokenizer does."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    core.add_special_tokens([AddedToken("<image>", normalized=False)])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def processor() -> LlavaProcessor:
    """Image processor and tokenizer together, as a LLaVA repository ships them."""
    images = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaProcessor(images, tokenizer(), **options)


def llava(seed: int = 1, **vision: Any) -> LlavaForConditionalGeneration:
    """A random LLaVA in eval mode, its weights large enough for answers to depend on the image."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    text = LlamaConfig(**sizes, num_key_value_heads=4, vocab_size=len(SPECIAL) + len(WORDS), **ids)
    config = LlavaConfig(vision_config=vision_config(**vision), text_config=text, image_token_id=4, **ids)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "tower" not in name:
                parameter.mul_(8.0)
    return model


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Random pixels (count, 3, 32, 32) in [0, 1]."""
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
