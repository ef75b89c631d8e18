"""Tiny models of four more families: LLaVA-NeXT-Video, DeepSeek-VL, Command A Vision, Granite 4 Vision."""

from __future__ import annotations

from typing import Any

from helpers.tiny_llava import SIZE, vision_config
from helpers.tiny_parts import CHAT, EXTRA, IDS, PINPOINTS, SIZES, ImagesOnly, llama, make, siglip_config, words
from tokenizers import AddedToken
from transformers import (
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    Cohere2VisionProcessor,
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    DeepseekVLImageProcessor,
    DeepseekVLProcessor,
    GotOcr2ImageProcessor,
    Granite4VisionConfig,
    Granite4VisionForConditionalGeneration,
    Granite4VisionProcessor,
    LlavaNextImageProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    PreTrainedTokenizerFast,
)

COHERE = {
    "boi_token": "<|START_OF_IMG|>",
    "eoi_token": "<|END_OF_IMG|>",
    "image_token": "<image>",
    "img_line_break_token": "<|IMG_LINE_BREAK|>",
}


class ImageOnlyNextVideoProcessor(ImagesOnly, LlavaNextVideoProcessor):
    """`LlavaNextVideoProcessor` for images; videos need torchvision."""


def named_words(tokens: dict[str, str]) -> PreTrainedTokenizerFast:
    """The tokenizer with special tokens under names, as `tokenizer.image_token`."""
    found = words()
    further = [token for token in tokens.values() if token != "<image>"]
    found.add_special_tokens(
        {"additional_special_tokens": [AddedToken(t, normalized=False) for t in [*EXTRA, *further]]}
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=found.backend_tokenizer, **names, extra_special_tokens=tokens)


def next_video(**vision: Any) -> LlavaNextVideoForConditionalGeneration:
    """Any resolution; images and videos through one tower."""
    config = LlavaNextVideoConfig(
        vision_config=vision_config(**vision), text_config=llama(), image_token_index=4, video_token_index=27,
        image_grid_pinpoints=PINPOINTS, image_seq_length=16, **IDS,
    )  # fmt: skip
    return make(LlavaNextVideoForConditionalGeneration, config)


def next_images() -> LlavaNextImageProcessor:
    """Tiles of LLaVA-NeXT."""
    square = {"height": SIZE, "width": SIZE}
    return LlavaNextImageProcessor(
        size={"shortest_edge": SIZE}, crop_size=square, image_grid_pinpoints=PINPOINTS, do_pad=True
    )


def next_video_processor() -> LlavaNextVideoProcessor:
    """Its processor, for images."""
    options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return ImageOnlyNextVideoProcessor(None, next_images(), words(), chat_template=CHAT, **options)


def deepseek_vl(**vision: Any) -> DeepseekVLForConditionalGeneration:
    """SigLIP, its normed last state."""
    config = DeepseekVLConfig(
        vision_config=siglip_config(**vision), text_config=llama(), image_token_id=4, tie_word_embeddings=False, **IDS
    )
    return make(DeepseekVLForConditionalGeneration, config)


def deepseek_vl_processor() -> DeepseekVLProcessor:
    """Its processor: the longer side is fitted, the shorter one padded."""
    images = DeepseekVLImageProcessor(size={"height": SIZE, "width": SIZE})
    return DeepseekVLProcessor(images, named_words({"image_token": "<image>"}), CHAT, num_image_tokens=16)


def cohere2_vision(**vision: Any) -> Cohere2VisionForConditionalGeneration:
    """SigLIP behind a pixel shuffle and a gate."""
    text = {"model_type": "cohere2", **SIZES, "num_key_value_heads": 4, "vocab_size": 40, **IDS}
    config = Cohere2VisionConfig(
        vision_config=siglip_config(**vision), text_config=text, image_token_id=4, downsample_factor=2,
        alignment_intermediate_size=64, tie_word_embeddings=False,
    )  # fmt: skip
    return make(Cohere2VisionForConditionalGeneration, config)


class ImageOnlyCohere2VisionProcessor(Cohere2VisionProcessor):
    """`Cohere2VisionProcessor` with those tiles."""


class CohereTiles(GotOcr2ImageProcessor):
    """The tiles of `Cohere2VisionImageProcessor`, whose own class is there with torchvision only.

    What is called `patch_size` there is the number of tokens that a tile has on a side.
    """

    patch_size = 2

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return super().__call__(*arguments, **{"crop_to_patches": True, **options})


def cohere2_vision_processor() -> Cohere2VisionProcessor:
    """Its processor."""
    images = CohereTiles(size={"height": SIZE, "width": SIZE}, crop_to_patches=True, max_patches=4, patch_size=2)
    return ImageOnlyCohere2VisionProcessor(images, named_words(COHERE), chat_template=CHAT)


def granite4_vision(**vision: Any) -> Granite4VisionForConditionalGeneration:
    """Any resolution; two layers of the tower enter the language model at three of its own."""
    tower = siglip_config(**{"hidden_size": 64, **vision})
    text = {"model_type": "granite4_vision_text", **SIZES, "num_key_value_heads": 4, "vocab_size": 40, **IDS}
    config = Granite4VisionConfig(
        vision_config=tower, text_config=text, image_token_index=4, vision_feature_select_strategy="full",
        image_grid_pinpoints=PINPOINTS, downsample_rate="1/2", deepstack_layer_map=[[1, 0], [-1, 1]],
        spatial_vision_layer=-2, spatial_target_layers=[0, 0, 1, 1], image_seq_length=4,
        qformer_config={"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 32,
                        "cross_attention_frequency": 1, "use_qformer_text_input": False},
    )  # fmt: skip
    return make(Granite4VisionForConditionalGeneration, config)


def granite4_vision_processor() -> Granite4VisionProcessor:
    """Its processor."""
    options = {"patch_size": 8, "vision_feature_select_strategy": "full", "downsample_rate": "1/2"}
    return Granite4VisionProcessor(next_images(), words(), chat_template=CHAT, **options)
