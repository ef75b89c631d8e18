"""The memory formula against what autograd saves."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from fare_hf.encoders import embed
from fare_hf.encoders.memory import block_bytes, count_memory, count_parameters, token_count
from fare_hf.encoders.precision import attack_mode

SHAPE = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "image_size": 64, "patch_size": 8}


def config_of(layers: int, activation: str = "gelu") -> CLIPVisionConfig:
    """A small encoder."""
    return CLIPVisionConfig(**SHAPE, projection_dim=32, num_hidden_layers=layers, hidden_act=activation)


def saved_bytes(config: CLIPVisionConfig, images: int, half: bool, trained: bool) -> int:
    """Bytes of all storages that autograd keeps for the backward pass, weights included."""
    encoder = CLIPVisionModelWithProjection(config)
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    pixels = torch.rand(images, 3, config.image_size, config.image_size, requires_grad=not trained)
    mode = nullcontext() if trained else attack_mode(encoder, torch.bfloat16 if half else None)
    cast = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
    with mode, cast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embed(encoder, pixels)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_a_block_saves_what_the_formula_says(activation: str, half: bool, trained: bool) -> None:
    """The slope over images and blocks, so that weights and what is outside the blocks drop out."""
    found = {
        (layers, images): saved_bytes(config_of(layers, activation), images, half, trained)
        for layers in (2, 4)
        for images in (4, 8)
    }
    slope = (found[4, 8] - found[4, 4] - found[2, 8] + found[2, 4]) / (2 * 4 * 65)
    assert slope == block_bytes(config_of(2, activation), half=half, trained=trained)


def test_parameters_and_tokens_are_those_of_the_model() -> None:
    config = config_of(3)
    assert count_parameters(config) == sum(p.numel() for p in CLIPVisionModelWithProjection(config).parameters())
    assert token_count(config) == 65
    for other in (
        SiglipVisionModel(SiglipVisionConfig(**SHAPE)),
        Dinov2Model(Dinov2Config(hidden_size=64, num_attention_heads=4)),
    ):
        assert count_parameters(other.config) == sum(p.numel() for p in other.parameters())


def test_checkpointing_and_frozen_weights_take_less() -> None:
    config = config_of(8)
    plain = count_memory(config, 16, half=False)
    assert count_memory(config, 16, half=False, checkpointing=True).update < plain.update / 3
    some = count_memory(config, 16, half=False, trained=0.25)
    assert some.optimizer == plain.optimizer // 4 and some.weights < plain.weights
