"""Memory that a training step of a vision transformer needs on a device, from its shape alone.

Bytes, with P parameters of which T are trained, B images of N tokens, L blocks of width d and inner width m:

- weights 4 P, gradients 4 T, AdamW's two moments 8 T;
- the frozen original 4 P; 2 P under mixed precision, where its linear layers are kept in half precision;
- in mixed precision, the half copy of the trained encoder's weights, 2 P (the attack's shadow, then autocast's own);
- what the backward pass reads, for each token of a block (tested against what autograd saves):

  =========  ===========================================  ====================================
  precision  update, weights trained                      attack, weights frozen
  =========  ===========================================  ====================================
  fp32       32 d + 4 m (1 + a)                           24 d + 4 m a
  half       24 d + 2 m (1 + a)                           16 d + 2 m a
  =========  ===========================================  ====================================

  and 4 a head and 16 for the norms, with a = 1 for GELU and 2 for quick GELU (1 in the attack on a CLIP in half,
  unless that is in 8 bits); with activation checkpointing 4 d a block in the update, and one block as above;
- the gradients that pass through one block, 4 (2 d + m) a token, and pixels: clean, attacked, bounds, gradient.

The larger of update and attack counts. Not counted: what the device's libraries take (about 1 GB of a GPU), and
fragmentation.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from fare_hf.pretrained.encoder_families import class_tokens_of, family_of_type

__all__ = ["Memory", "block_bytes", "count_memory", "count_parameters", "token_count"]


@dataclass(frozen=True)
class Memory:
    """Bytes of a step.

    Attributes:
        weights: of the encoder and its gradients, of the original, and half copies.
        optimizer: AdamW's moments.
        update, attack: what one batch needs in either phase.
    """

    weights: int
    optimizer: int
    update: int
    attack: int

    @property
    def peak(self) -> int:
        """The most at any time."""
        return self.weights + self.optimizer + max(self.update, self.attack)


def count_memory(
    config: Any,
    batch_size: int,
    *,
    half: bool,
    checkpointing: bool = False,
    trained: float = 1.0,
    update_images: int = 1,
    parameters: int | None = None,
) -> Memory:
    """Memory of a step.

    Args:
        config: of a CLIP, SigLIP or DINOv2 vision encoder (a whole CLIP's works too).
        batch_size: images that a process takes at once.
        half: bf16 or fp16 autocast.
        checkpointing: activation checkpointing, which the update alone uses.
        trained: share of the weights that are trained.
        update_images: as for `Flops.step`.
        parameters: weights of the encoder, where they are counted already.
    """
    config = getattr(config, "vision_config", config)
    parameters = count_parameters(config) if parameters is None else parameters
    tokens = batch_size * token_count(config)
    pixels = 4 * 4 * batch_size * config.num_channels * config.image_size**2
    passing = tokens * 4 * (2 * config.hidden_size + _inner(config)) + pixels
    update, attack = (block_bytes(config, half=half, trained=flag) * tokens for flag in (True, False))
    depth = config.num_hidden_layers
    kept = depth * tokens * 4 * config.hidden_size + update if checkpointing else depth * update
    shared = parameters * (4 + (4 if not half else 2 + 2)) + round(4 * trained * parameters)
    return Memory(shared, round(8 * trained * parameters), update_images * (kept + passing), depth * attack + passing)


def block_bytes(config: Any, *, half: bool, trained: bool) -> int:
    """What autograd saves of one token in one block, besides weights."""
    width, inner = config.hidden_size, _inner(config)
    statistics = 4 * config.num_attention_heads + 16
    one = half and not trained and config.model_type == "clip_vision_model"  # see `attack_mode`
    kept = 2 if getattr(config, "hidden_act", "gelu") == "quick_gelu" and not one else 1
    if half:
        return statistics + (24 if trained else 16) * width + 2 * inner * (kept + trained)
    return statistics + (32 if trained else 24) * width + 4 * inner * (kept + trained)


def count_parameters(config: Any) -> int:
    """Weights of an encoder, with its projection where it has one; nothing is filled."""
    config = copy.deepcopy(getattr(config, "vision_config", config))
    family = family_of_type(config.model_type)
    assert family is not None
    cls: Any = family.projecting or family.plain
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in cls(config).parameters())


def token_count(config: Any) -> int:
    """Tokens of an image, the class token included where there is one."""
    return (config.image_size // config.patch_size) ** 2 + class_tokens_of(config)


def _inner(config: Any) -> int:
    return getattr(config, "intermediate_size", None) or int(config.hidden_size * config.mlp_ratio)
