"""Shadow weights: what autocast would compute with, and no trace of them afterwards."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from fare_hf.encoders import embed, load_encoder
from fare_hf.precision import attack_mode, cast_for_good, shadow


def test_the_shadow_holds_the_numbers_that_autocast_casts_to(clip_folder: Path, pixels: torch.Tensor) -> None:
    encoder = load_encoder(str(clip_folder)).eval()
    before = dict(encoder.named_parameters())
    with torch.autocast("cpu", torch.bfloat16):
        expected = embed(encoder, pixels)
        with attack_mode(encoder, torch.bfloat16):
            inside = dict(encoder.named_parameters())
            assert not any(parameter.requires_grad for parameter in inside.values())
            found = embed(encoder, pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    cast = [name for name, parameter in inside.items() if parameter.dtype == torch.bfloat16]
    assert {name.split(".")[-2] for name in cast} >= {"fc1", "q_proj", "patch_embedding", "visual_projection"}
    assert not any("norm" in name or "embedding.weight" in name.replace("patch_embedding", "") for name in cast)
    assert all(torch.equal(inside[name], before[name].to(torch.bfloat16)) for name in cast)
    after = dict(encoder.named_parameters())
    assert all(after[name] is before[name] and after[name].requires_grad for name in before)


def test_the_parameters_come_back_after_an_exception(clip_folder: Path) -> None:
    encoder = load_encoder(str(clip_folder))
    before = list(encoder.parameters())
    with pytest.raises(RuntimeError), shadow(encoder, torch.bfloat16):
        raise RuntimeError
    assert all(one is other for one, other in zip(before, encoder.parameters(), strict=True))


def test_tied_weights_stay_tied_and_none_changes_nothing() -> None:
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    second.weight = first.weight
    module = torch.nn.Sequential(first, second)
    with shadow(module, torch.bfloat16):
        assert first.weight is second.weight and first.weight.dtype == torch.bfloat16
    with shadow(module, None):
        assert first.weight.dtype == torch.float32


def test_an_original_cast_for_good_embeds_as_before(clip_folder: Path, pixels: torch.Tensor) -> None:
    encoder = load_encoder(str(clip_folder)).eval()
    half = cast_for_good(copy.deepcopy(encoder), torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(embed(half, pixels), embed(encoder, pixels), rtol=0, atol=1e-6)
    size = [sum(p.numel() * p.element_size() for p in model.parameters()) for model in (encoder, half)]
    assert size[1] < 0.7 * size[0]
