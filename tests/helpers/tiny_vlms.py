"""Tiny random models of every family with real processors, the same words and sizes as `tiny_llava`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from helpers.tiny_llava import SIZE, SPECIAL, WORDS, llava, processor, vision_config
from helpers.tiny_parts import (
    CHAT,
    EXTRA,
    IDS,
    PINPOINTS,
    PROMPT,
    SIZES,
    ImagesOnly,
    Tiny,
    clip_encoder,
    images,
    llama,
    make,
    siglip_config,
    siglip_encoder,
    words,
)
from helpers.tiny_vlms_further import (
    cohere2_vision,
    cohere2_vision_processor,
    deepseek_vl,
    deepseek_vl_processor,
    granite4_vision,
    granite4_vision_processor,
    next_video,
    next_video_processor,
)
from helpers.tiny_vlms_own import OWN
from tokenizers import AddedToken, processors
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    IdeficsImageProcessor,
    IdeficsProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessor,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

GEMMA = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
AYA = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"]
AYA += [f"TILE_{number}" for number in range(1, 13)]


def llava_siglip(**vision: Any) -> LlavaForConditionalGeneration:
    """A LLaVA on SigLIP: all tokens, last layer."""
    config = LlavaConfig(
        vision_config=siglip_config(**vision), text_config=llama(), image_token_id=4,
        vision_feature_select_strategy="full", vision_feature_layer=-1, image_seq_length=16, **IDS,
    )  # fmt: skip
    return make(LlavaForConditionalGeneration, config)


def llava_siglip_processor() -> LlavaProcessor:
    """Its processor."""
    images = SiglipImageProcessor(size={"height": SIZE, "width": SIZE})
    options = {"patch_size": 8, "vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}
    return LlavaProcessor(images, words(), chat_template=CHAT, **options)


def llava_next(**vision: Any) -> LlavaNextForConditionalGeneration:
    """Any resolution."""
    config = LlavaNextConfig(
        vision_config=vision_config(**vision),
        text_config=llama(),
        image_token_id=4,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=16,
        **IDS,
    )
    return make(LlavaNextForConditionalGeneration, config)


def llava_next_processor() -> LlavaNextProcessor:
    """Its processor."""
    images = LlavaNextImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_grid_pinpoints=PINPOINTS
    )
    options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaNextProcessor(images, words(), chat_template=CHAT, **options)


def vip_llava(**vision: Any) -> VipLlavaForConditionalGeneration:
    """Several layers."""
    layers = [-2, -3, 1]
    config = VipLlavaConfig(
        vision_config=vision_config(**vision),
        text_config=llama(),
        image_token_id=4,
        vision_feature_layer=layers,
        image_seq_length=16,
        **IDS,
    )
    return make(VipLlavaForConditionalGeneration, config)


def video_llava(**vision: Any) -> VideoLlavaForConditionalGeneration:
    """Two towers."""
    config = VideoLlavaConfig(
        vision_config=vision_config(**vision), text_config=llama(), image_token_index=4, video_token_index=27,
        image_seq_length=16, video_seq_length=8 * 17, **IDS,
    )  # fmt: skip
    return make(VideoLlavaForConditionalGeneration, config)


class ImageOnlyVideoLlavaProcessor(ImagesOnly, VideoLlavaProcessor):
    """`VideoLlavaProcessor` for images."""


class ImageOnlyOnevisionProcessor(ImagesOnly, LlavaOnevisionProcessor):
    """`LlavaOnevisionProcessor` for images."""


def video_llava_processor() -> VideoLlavaProcessor:
    """For images; videos need torchvision."""
    images = VideoLlavaImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return ImageOnlyVideoLlavaProcessor(images, None, words(), chat_template=CHAT, **options)


def onevision(**vision: Any) -> LlavaOnevisionForConditionalGeneration:
    """SigLIP, any resolution."""
    config = LlavaOnevisionConfig(
        vision_config=siglip_config(**vision), text_config=llama(Qwen2Config), image_token_index=4,
        video_token_index=27, image_grid_pinpoints=PINPOINTS, **IDS,
    )  # fmt: skip
    return make(LlavaOnevisionForConditionalGeneration, config)


def onevision_processor() -> LlavaOnevisionProcessor:
    """For images; videos need torchvision."""
    images = LlavaOnevisionImageProcessor(size={"height": SIZE, "width": SIZE}, image_grid_pinpoints=PINPOINTS)
    options = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    return ImageOnlyOnevisionProcessor(images, words(), None, chat_template=CHAT, **options)


def idefics(**vision: Any) -> IdeficsForVisionText2Text:
    """The open Flamingo, with its resampler."""
    tower = vision_config(**vision)
    names = ("intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "hidden_act")
    fields = {name: getattr(tower, name) for name in names}
    config = IdeficsConfig(
        vocab_size=len(SPECIAL) + len(WORDS) + len(EXTRA), **SIZES, **IDS, cross_layer_interval=1, use_resampler=True,
        vision_config={"embed_dim": tower.hidden_size, **fields, "layer_norm_eps": tower.layer_norm_eps},
        perceiver_config={"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
                          "resampler_head_dim": 8},
    )  # fmt: skip
    return make(IdeficsForVisionText2Text, config)


def idefics_processor() -> IdeficsProcessor:
    """Its processor."""
    return IdeficsProcessor(IdeficsImageProcessor(image_size=SIZE), words())


def aya_words() -> PreTrainedTokenizerFast:
    """The tokenizer with the tokens of AyaVision."""
    found = words()
    found.add_special_tokens({"additional_special_tokens": [AddedToken(t, normalized=False) for t in [*EXTRA, *AYA]]})
    return found


def aya_vision_processor() -> AyaVisionProcessor:
    """Its processor: tiles in a grid of up to four, and two patches a side make one token."""
    images = GotOcr2ImageProcessor(size={"height": SIZE, "width": SIZE}, max_patches=4)
    return AyaVisionProcessor(
        images, aya_words(), patch_size=8, img_size=SIZE, downsample_factor=2, chat_template=CHAT
    )


def paligemma_words() -> PreTrainedTokenizerFast:
    """The tokenizer without the <bos> that PaliGemma's processor writes itself."""
    found = words()
    core = found.backend_tokenizer
    core.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def paligemma_processor() -> PaliGemmaProcessor:
    """Its processor."""
    images = SiglipImageProcessor(size={"height": SIZE, "width": SIZE}, image_seq_length=16)
    return PaliGemmaProcessor(images, paligemma_words(), chat_template=CHAT)


def gemma3_words() -> PreTrainedTokenizerFast:
    """The tokenizer with Gemma 3's three tokens of an image under their names."""
    found = words()
    found.add_special_tokens(
        {"additional_special_tokens": [AddedToken(t, normalized=False) for t in [*EXTRA, *GEMMA.values()]]}
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=found.backend_tokenizer, **names, extra_special_tokens=GEMMA)


def gemma3_processor(**changes: Any) -> Gemma3Processor:
    """Its processor."""
    images = Gemma3ImageProcessor(size={"height": SIZE, "width": SIZE}, **changes)
    chat = CHAT.replace("<image>", GEMMA["boi_token"])
    return Gemma3Processor(images, gemma3_words(), image_seq_length=4, chat_template=chat)


def aya_vision(**vision: Any) -> AyaVisionForConditionalGeneration:
    """SigLIP behind a pixel shuffle."""
    text = llama()
    text.vocab_size += len(AYA)
    config = AyaVisionConfig(
        vision_config=siglip_config(**vision), text_config=text, image_token_index=31, vision_feature_layer=-1,
        vision_feature_select_strategy="full", downsample_factor=2, adapter_layer_norm_eps=1e-6, **IDS,
    )  # fmt: skip
    return make(AyaVisionForConditionalGeneration, config)


def paligemma(**vision: Any) -> PaliGemmaForConditionalGeneration:
    """SigLIP, its normed last state."""
    text = {"model_type": "gemma", **SIZES, "num_key_value_heads": 4, "head_dim": 8, "vocab_size": 32}
    config = PaliGemmaConfig(
        vision_config=siglip_config(**vision), text_config=text, image_token_index=4, projection_dim=32
    )
    return make(PaliGemmaForConditionalGeneration, config)


def gemma3(**vision: Any) -> Gemma3ForConditionalGeneration:
    """SigLIP, pooled to few tokens."""
    text = {**SIZES, "num_key_value_heads": 4, "head_dim": 8, "vocab_size": 32}
    config = Gemma3Config(
        text_config=text, vision_config=siglip_config(**vision), mm_tokens_per_image=4, image_token_index=31
    )
    model = make(Gemma3ForConditionalGeneration, config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zero in a new model
    return model


def llava_processor() -> LlavaProcessor:
    """`tiny_llava.processor` with the chat template."""
    found = processor()
    return LlavaProcessor(
        found.image_processor, words(), chat_template=CHAT, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


def plain_llava(**vision: Any) -> LlavaForConditionalGeneration:
    """`tiny_llava.llava` with room for all special tokens."""
    config = llava(**vision).config
    config.text_config.vocab_size = len(SPECIAL) + len(WORDS) + len(EXTRA)
    config.image_seq_length = 16
    return make(LlavaForConditionalGeneration, config)


TINY: dict[str, Tiny] = {
    tiny.name: tiny
    for tiny in (
        Tiny("Llava (1.5, BakLlava)", plain_llava, llava_processor, clip_encoder),
        Tiny("Llava on SigLIP", llava_siglip, llava_siglip_processor, siglip_encoder),
        Tiny("LlavaNext", llava_next, llava_next_processor, clip_encoder),
        Tiny("LlavaNextVideo", next_video, next_video_processor, clip_encoder),
        Tiny("VipLlava", vip_llava, llava_processor, clip_encoder),
        Tiny("VideoLlava", video_llava, video_llava_processor, clip_encoder),
        Tiny("LlavaOnevision", onevision, onevision_processor, siglip_encoder),
        Tiny("Idefics", idefics, idefics_processor, clip_encoder),
        Tiny("DeepseekVL", deepseek_vl, deepseek_vl_processor, siglip_encoder),
        Tiny("AyaVision", aya_vision, aya_vision_processor, siglip_encoder),
        Tiny("Cohere2Vision", cohere2_vision, cohere2_vision_processor, siglip_encoder),
        Tiny("PaliGemma", paligemma, paligemma_processor, siglip_encoder),
        Tiny("Gemma3", gemma3, gemma3_processor, siglip_encoder, GEMMA["boi_token"]),
        Tiny("Granite4Vision", granite4_vision, granite4_vision_processor, partial(siglip_encoder, hidden_size=64)),
        *OWN,
    )
}
"""Every family of the table."""


__all__ = ["CHAT", "PROMPT", "TINY", "Tiny", "clip_encoder", "gemma3_processor", "images", "siglip_encoder"]
