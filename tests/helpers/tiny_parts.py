"""What the tiny models of `tiny_vlms` have in common: words, sizes, towers, encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from helpers.tiny_llava import SIZE, SPECIAL, WORDS, tokenizer, vision_config
from tokenizers import AddedToken
from transformers import (
    CLIPVisionModelWithProjection,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
EXTRA = ["<video>", "<fake_token_around_image>"]
PINPOINTS = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE]]
PROMPT = "user : <image> describe the image assistant :"
CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}assistant :"
)


@dataclass(frozen=True)
class Tiny:
    """How to make one family: its model, processor and encoder; `size` is the tower's resolution."""

    name: str
    model: Callable[..., Any]
    processor: Callable[[], Any]
    encoder: Callable[..., Any]
    image: str = "<image>"

    @property
    def prompt(self) -> str:
        """A prompt with one image."""
        return PROMPT.replace("<image>", self.image)


def words() -> PreTrainedTokenizerFast:
    """The tokenizer with the special tokens of most families."""
    found = tokenizer()
    found.add_special_tokens({"additional_special_tokens": [AddedToken(t, normalized=False) for t in EXTRA]})
    return found


def clip_encoder(seed: int = 0, **changes: Any) -> CLIPVisionModelWithProjection:
    """A random CLIP encoder."""
    torch.manual_seed(seed)
    return CLIPVisionModelWithProjection(vision_config(**changes)).eval()


def siglip_config(**changes: Any) -> SiglipVisionConfig:
    """As small as `tiny_llava.vision_config`."""
    sizes = {**SIZES, "num_hidden_layers": 3, "image_size": SIZE, "patch_size": 8, "vision_use_head": False}
    return SiglipVisionConfig(**{**sizes, **changes})


def siglip_encoder(seed: int = 0, **changes: Any) -> SiglipVisionModel:
    """A random SigLIP encoder, with its head."""
    torch.manual_seed(seed)
    return SiglipVisionModel(siglip_config(**{"vision_use_head": True, **changes})).eval()


def make(cls: Any, config: Any, seed: int = 1) -> Any:
    """A random model whose answers depend on the image."""
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "tower" not in name and "vision_model" not in name:
                parameter.mul_(8.0)
            if "alpha" in name:  # the gates of Idefics are closed at first
                parameter.fill_(1.0)
    return model


def llama(cls: type = LlamaConfig, **changes: Any) -> Any:
    return cls(**SIZES, num_key_value_heads=4, vocab_size=len(SPECIAL) + len(WORDS) + len(EXTRA), **IDS, **changes)


class ImagesOnly:
    """A processor without its video processor, which needs torchvision."""

    def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
        """Takes None for the video processor."""
        return None if name == "video_processor" else super().check_argument_for_proper_class(name, argument)  # type: ignore[misc]


def images(count: int, height: int = SIZE, width: int = SIZE, seed: int = 0) -> torch.Tensor:
    """Random pixels in [0, 1]."""
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
