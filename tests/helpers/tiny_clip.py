"""A tiny random CLIP: configuration, tokenizer and image processor. Nothing is downloaded."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessor, PreTrainedTokenizerFast

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
