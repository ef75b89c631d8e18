"""Shadow weights: what autocast would compute with, and no trace of them afterwards."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from fare_hf.encoders import embed, load_encoder
from fare_hf.encoders.float8 import check_float8, float8_linears
from fare_hf.encoders.precision import attack_mode, cast_for_good, shadow


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


def rounded(matrix: torch.Tensor) -> torch.Tensor:
    """E4M3 by its definition, row by row: 3 bits behind the leading one, exponents from -6, largest value 448."""
    scale = matrix.abs().amax(1, keepdim=True).double() / 448
    value = matrix.double() / scale
    step = torch.exp2(torch.floor(torch.log2(value.abs().clamp_min(2.0**-6))) - 3)
    return (value / step).round() * step * scale


def test_eight_bit_layers_multiply_the_rounded_factors_and_so_does_their_gradient() -> None:
    torch.manual_seed(0)
    layer, values = torch.nn.Linear(32, 48).requires_grad_(False), torch.randn(2, 5, 32, requires_grad=True)
    upstream = torch.randn(2, 5, 48)
    with float8_linears(layer):
        found = layer(values)
        (gradient,) = torch.autograd.grad(found, values, upstream.bfloat16())
    weight, flat = layer.weight, values.detach().flatten(0, 1)
    expected = rounded(flat) @ rounded(weight).T + layer.bias.bfloat16().double()
    torch.testing.assert_close(found.flatten(0, 1).double(), expected, rtol=2**-8, atol=1e-3)
    back = rounded(upstream.bfloat16().flatten(0, 1)) @ rounded(weight.T).T
    torch.testing.assert_close(gradient.flatten(0, 1).double(), back, rtol=2**-8, atol=1e-3)
    exact = flat.double() @ weight.double().T + layer.bias.double()
    assert 0.01 < ((expected - exact).norm() / exact.norm()).item() < 0.06  # so it is 8 bits that are compared
    assert found.dtype == torch.bfloat16 and gradient.dtype == torch.float32
    assert "forward" not in vars(layer) and torch.equal(
        layer(values), torch.nn.functional.linear(values, weight, layer.bias)
    )


def test_eight_bit_zeros_stay_zeros_and_small_layers_as_they_are() -> None:
    layer = torch.nn.Linear(16, 16).requires_grad_(False)
    odd = torch.nn.Linear(16, 10).requires_grad_(False)
    with float8_linears(torch.nn.ModuleList([layer, odd])):
        zero = layer(torch.zeros(3, 16))
        assert odd(torch.ones(3, 16)).dtype == torch.float32
    assert torch.equal(zero, layer.bias.bfloat16().expand(3, -1))


def test_eight_bit_attacks_are_emulated_on_a_cpu() -> None:
    check_float8(torch.device("cpu"))
