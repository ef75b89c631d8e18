"""Tiny random models whose towers are classes of their own, with real image processors; see `tiny_vlms`."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from helpers.tiny_llava import SIZE, SPECIAL, WORDS
from helpers.tiny_parts import CHAT, EXTRA, IDS, SIZES, ImagesOnly, Tiny, llama, make, words
from tokenizers import AddedToken
from transformers import (
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
)
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.utils import is_torchvision_available

QWEN_WORDS = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
INTERNVL_WORDS = ["<IMG_CONTEXT>", "<img>", "</img>", "<video_token>"]
PIXTRAL_WORDS = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
SMOL_WORDS = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
SMOL_WORDS += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
VOCABULARY = len(SPECIAL) + len(WORDS) + len(EXTRA) + 64


def own_words(further: list[str]) -> PreTrainedTokenizerFast:
    """The tokenizer with a family's words."""
    found = words()
    found.add_special_tokens({"additional_special_tokens": [AddedToken(t, normalized=False) for t in further]})
    return found


def ids_of(further: list[str], **names: str) -> dict[str, int]:
    """Ids by the names of a configuration."""
    tokenizer = own_words(further)
    return {name: tokenizer.convert_tokens_to_ids(word) for name, word in names.items()}


def qwen(kind: str, seed: int = 1, **vision: Any) -> Any:
    """Qwen2-VL, Qwen2.5-VL or Qwen3-VL: patches of 4 pixels, four to a token."""
    common = {"depth": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 4}
    text = {**SIZES, "num_key_value_heads": 4, "vocab_size": VOCABULARY, **IDS}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    ids = ids_of(
        QWEN_WORDS, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>",
    )  # fmt: skip
    if kind == "2":
        own = {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        return make(
            Qwen2VLForConditionalGeneration,
            Qwen2VLConfig(vision_config={**common, **own, **vision}, text_config=text, **ids),
            seed,
        )
    own = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32}
    if kind == "2.5":
        own |= {"window_size": 16, "fullatt_block_indexes": [2]}
        config = Qwen2_5_VLConfig(vision_config={**common, **own, **vision}, text_config=text, **ids)
        return make(Qwen2_5_VLForConditionalGeneration, config, seed)
    own |= {"num_position_embeddings": 64}
    text["head_dim"] = 8
    if kind == "3.5":
        linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
        text |= linear | {"linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"]}
        text["rope_parameters"] |= {"partial_rotary_factor": 1.0, "mrope_interleaved": True}
        config = Qwen3_5Config(vision_config={**common, **own, **vision}, text_config=text, **ids)
        return make(Qwen3_5ForConditionalGeneration, config, seed)
    own |= {"deepstack_visual_indexes": [0, 1]}
    return make(
        Qwen3VLForConditionalGeneration,
        Qwen3VLConfig(vision_config={**common, **own, **vision}, text_config=text, **ids),
        seed,
    )


class ImageOnlyQwen2VLProcessor(ImagesOnly, Qwen2VLProcessor):
    """`Qwen2VLProcessor` for images."""


class ImageOnlyQwen2_5_VLProcessor(ImagesOnly, Qwen2_5_VLProcessor):  # noqa: N801
    """`Qwen2_5_VLProcessor` for images."""


class ImageOnlyQwen3VLProcessor(ImagesOnly, Qwen3VLProcessor):
    """`Qwen3VLProcessor` for images."""


class ImageOnlyInternVLProcessor(ImagesOnly, InternVLProcessor):
    """`InternVLProcessor` for images."""


def qwen_processor(cls: Any) -> Any:
    """From 64 to 4096 pixels an image."""
    images = Qwen2VLImageProcessor(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 4096}
    )
    return cls(images, own_words(QWEN_WORDS), chat_template=CHAT.replace("<image>", "<|image_pad|>"))


def internvl(seed: int = 1, **vision: Any) -> InternVLForConditionalGeneration:
    """Four patches to a token, tiles."""
    own = {**SIZES, "num_hidden_layers": 3, "image_size": [SIZE, SIZE], "patch_size": [8, 8], **vision}
    text = Qwen2Config(**SIZES, num_key_value_heads=4, vocab_size=VOCABULARY, **IDS)
    ids = ids_of(INTERNVL_WORDS, image_token_id="<IMG_CONTEXT>")
    config = InternVLConfig(vision_config=own, text_config=text, image_seq_length=4, **ids)
    return make(InternVLForConditionalGeneration, config, seed)


def internvl_processor() -> Any:
    """At most three tiles."""
    tokenizer = own_words(INTERNVL_WORDS)
    for name, word in zip(
        ("context_image_token", "start_image_token", "end_image_token", "video_token"), INTERNVL_WORDS, strict=True
    ):
        setattr(tokenizer, name, word)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(word))
    images = GotOcr2ImageProcessor(size={"height": SIZE, "width": SIZE}, max_patches=3)
    chat = CHAT.replace("<image>", "<IMG_CONTEXT>")
    return ImageOnlyInternVLProcessor(images, tokenizer, image_seq_length=4, chat_template=chat)


def idefics3(cls: Any, kind: Any, seed: int = 1, **vision: Any) -> Any:
    """Idefics3 or SmolVLM: four patches to a token."""
    own = {**SIZES, "num_hidden_layers": 3, "image_size": SIZE, "patch_size": 8, **vision}
    ids = ids_of(SMOL_WORDS, image_token_id="<image>")
    text = llama().to_dict() | {"vocab_size": VOCABULARY}
    return make(cls, kind(vision_config=own, text_config=text, scale_factor=2, **ids, pad_token_id=0), seed)


def idefics3_processor(cls: Any, images: Any) -> Any:
    """Two tiles on the longer side."""
    made = images(size={"longest_edge": 2 * SIZE}, max_image_size={"longest_edge": SIZE})
    return cls(made, own_words(SMOL_WORDS), image_seq_len=4, chat_template=CHAT)


def mistral3(seed: int = 1, **vision: Any) -> Mistral3ForConditionalGeneration:
    """Patches of 4 pixels, four to a token."""
    own = {**SIZES, "num_hidden_layers": 3, "image_size": SIZE, "patch_size": 4, **vision}
    text = llama().to_dict() | {"vocab_size": VOCABULARY, "model_type": "mistral", "head_dim": 8}
    ids = ids_of(PIXTRAL_WORDS, image_token_index="[IMG]")
    config = Mistral3Config(vision_config=own, text_config=text, spatial_merge_size=2, vision_feature_layer=-1, **ids)
    return make(Mistral3ForConditionalGeneration, config, seed)


def pixtral_processor() -> Any:
    """The real one: its module asks for torchvision, for a function that the PIL form has too."""
    beside = "transformers.models.pixtral.image_processing_pixtral"
    stand_in = {} if is_torchvision_available() else {beside: image_processing_pil_pixtral}
    with patch.dict(sys.modules, stand_in):
        cls = import_module("transformers.models.pixtral.processing_pixtral").PixtralProcessor
    cls = type("ImageOnlyPixtralProcessor", (ImagesOnly, cls), {})
    images = PixtralImageProcessor(patch_size={"height": 8, "width": 8}, size={"longest_edge": 64})
    options = {"patch_size": 4, "spatial_merge_size": 2, "chat_template": CHAT.replace("<image>", "[IMG]")}
    return cls(images, own_words(PIXTRAL_WORDS), **options)


def _tower(model: Any, path: str, seed: int = 0, **vision: Any) -> Any:
    """Another random tower of the family."""
    vision.pop("image_size", None)
    with torch.no_grad():
        return model(seed=seed + 7, **vision).get_submodule(path)


def _tiny(name: str, model: Any, processor: Any, path: str, image: str) -> Tiny:
    return Tiny(name, model, processor, partial(_tower, model, path), image)


IDEFICS3 = partial(idefics3, Idefics3ForConditionalGeneration, Idefics3Config)
SMOLVLM = partial(idefics3, SmolVLMForConditionalGeneration, SmolVLMConfig)
PAD = "<|image_pad|>"
OWN = [
    _tiny("Qwen2VL", partial(qwen, "2"), partial(qwen_processor, ImageOnlyQwen2VLProcessor), "model.visual", PAD),
    _tiny(
        "Qwen2_5_VL", partial(qwen, "2.5"), partial(qwen_processor, ImageOnlyQwen2_5_VLProcessor), "model.visual", PAD
    ),
    _tiny("Qwen3VL", partial(qwen, "3"), partial(qwen_processor, ImageOnlyQwen3VLProcessor), "model.visual", PAD),
    _tiny("Qwen3_5", partial(qwen, "3.5"), partial(qwen_processor, ImageOnlyQwen3VLProcessor), "model.visual", PAD),
    _tiny("Mistral3", mistral3, pixtral_processor, "model.vision_tower", "[IMG]"),
    _tiny("InternVL", internvl, internvl_processor, "model.vision_tower", "<IMG_CONTEXT>"),
    _tiny(
        "Idefics3",
        IDEFICS3,
        partial(idefics3_processor, Idefics3Processor, Idefics3ImageProcessor),
        "model.vision_model",
        "<image>",
    ),
    _tiny(
        "SmolVLM",
        SMOLVLM,
        partial(idefics3_processor, Idefics3Processor, SmolVLMImageProcessor),
        "model.vision_model",
        "<image>",
    ),
]
