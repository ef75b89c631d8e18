"""Shadow weights: what autocast would compute with, and no trace of them afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.utils.prune
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.modeling_clip import CLIPMLP

from fare_hf.encoders import embed, freeze, load_encoder
from fare_hf.encoders.float8 import check_float8, float8_linears, quantise
from fare_hf.encoders.precision import attack_mode, cast_for_good, shadow, sharded_attack_mode


def test_the_shadow_holds_the_numbers_that_autocast_casts_to(clip_folder: Path, pixels: torch.Tensor) -> None:
    encoder = load_encoder(str(clip_folder)).eval()
    before = dict(encoder.named_parameters())
    with torch.autocast("cpu", torch.bfloat16):
        expected = embed(encoder, pixels)
        with shadow(encoder, torch.bfloat16):
            torch.testing.assert_close(embed(encoder, pixels), expected, rtol=0, atol=1e-6)
    with attack_mode(encoder, torch.bfloat16):
        inside = dict(encoder.named_parameters())
        assert not any(parameter.requires_grad for parameter in inside.values())
    cast = [name for name, parameter in inside.items() if parameter.dtype == torch.bfloat16]
    assert {name.split(".")[-2] for name in cast} >= {"fc1", "q_proj", "patch_embedding", "visual_projection"}
    assert not any("norm" in name or "embedding.weight" in name.replace("patch_embedding", "") for name in cast)
    for name in cast:
        factor = 1.702 if ".fc1." in name else 1 / 1.702 if name.endswith("fc2.weight") else 1.0
        assert torch.equal(inside[name], (before[name] * factor).to(torch.bfloat16)), name
    after = dict(encoder.named_parameters())
    assert all(after[name] is before[name] and after[name].requires_grad for name in before)


QUICK_GELU = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}


def gradient(encoder: CLIPVisionModelWithProjection, pixels: torch.Tensor, half: bool) -> torch.Tensor:
    """Of the embedding's square to the pixels, in fp32 or as autocast to bf16 computes it."""
    points = pixels.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = embed(encoder, points).float().square().sum()
    return torch.autograd.grad(loss, points)[0].double()


def test_an_attacked_quick_gelu_is_one_operator_and_as_exact() -> None:
    """Elsewhere five with its gradient: fewer bytes are moved, and the gradient is as near to that of fp32."""
    torch.manual_seed(0)
    shape = CLIPVisionConfig(**QUICK_GELU, image_size=32, patch_size=8, projection_dim=16, hidden_act="quick_gelu")
    encoder = freeze(CLIPVisionModelWithProjection(shape))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # so that the activation is used where it bends
    pixels = torch.rand(8, 3, 32, 32)
    exact, autocast = (gradient(encoder, pixels, half) for half in (False, True))
    with attack_mode(encoder, torch.bfloat16), torch.profiler.profile() as profile:
        found = gradient(encoder, pixels, True)
    names = {event.key: event.count for event in profile.key_averages()}
    assert names["aten::silu"] == names["aten::silu_backward"] == 4 and "aten::sigmoid" not in names
    far, near = ((one - exact).norm() / exact.norm() for one in (autocast, found))
    assert 1e-4 < near < 1.2 * far < 0.1
    with sharded_attack_mode(encoder, torch.bfloat16):  # FSDP computes what DDP computes
        assert torch.equal(gradient(encoder, pixels, True), found)
    assert torch.equal(gradient(encoder, pixels, True), autocast)


def test_other_activations_and_shared_weights_are_left_alone() -> None:
    shape = CLIPVisionConfig(**QUICK_GELU, image_size=32, patch_size=8, projection_dim=16, hidden_act="quick_gelu")
    tied = CLIPVisionModelWithProjection(shape)
    first, second, *_ = (part for part in tied.modules() if isinstance(part, CLIPMLP))
    second.fc1.weight = first.fc1.weight
    usual = CLIPVisionModelWithProjection(CLIPVisionConfig(**{**shape.to_dict(), "hidden_act": "gelu"}))
    for encoder, quick in ((tied, 2), (usual, 0)):
        with attack_mode(encoder, torch.bfloat16):
            replaced = [part for part in encoder.modules() if vars(part).get("forward") is F.silu]
        assert len(replaced) == quick
        assert not any("forward" in vars(part) for part in encoder.modules())


def adapted(layer: torch.nn.Module) -> None:
    layer.register_forward_hook(lambda part, given, output: output + 0.1 * given[0][..., :1])


def pruned(layer: torch.nn.Module) -> None:
    torch.nn.utils.prune.random_unstructured(layer, "weight", 0.3)


@pytest.mark.parametrize("layer", ["fc1", "fc2"])
@pytest.mark.parametrize("change", [adapted, pruned])
def test_layers_that_something_looks_at_are_left_alone(change: Callable[[torch.nn.Module], None], layer: str) -> None:
    """A hook would see values times 1.702, and pruned weights are made anew from others."""
    torch.manual_seed(0)
    shape = CLIPVisionConfig(**QUICK_GELU, image_size=32, patch_size=8, projection_dim=16, hidden_act="quick_gelu")
    encoder, pixels = freeze(CLIPVisionModelWithProjection(shape)), torch.rand(2, 3, 32, 32)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for part in encoder.modules():
        if isinstance(part, CLIPMLP):
            change(getattr(part, layer))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = embed(encoder, pixels)
        with attack_mode(encoder, torch.bfloat16):
            found = embed(encoder, pixels)
    assert torch.equal(found, expected)


def test_the_quick_gelu_between_eight_bit_layers_stays() -> None:
    """Its factors would be lost, as the 8-bit weights are not those of the shadow."""
    shape = CLIPVisionConfig(**QUICK_GELU, image_size=32, patch_size=8, projection_dim=16, hidden_act="quick_gelu")
    encoder, pixels = freeze(CLIPVisionModelWithProjection(shape)), torch.rand(2, 3, 32, 32)
    with attack_mode(encoder, torch.bfloat16, float8=True), torch.profiler.profile() as profile:
        gradient(encoder, pixels, True)
    names = {event.key for event in profile.key_averages()}
    assert "aten::sigmoid" in names and "aten::silu" not in names


def test_the_rows_of_both_factors_lie_in_memory_as_tensor_cores_want_them() -> None:
    """A transposed weight too: a GPU refuses others, a CPU does not."""
    for matrix in (torch.rand(32, 48), torch.rand(32, 48).t(), torch.rand(1, 48).expand(32, 48)):
        values, scale = quantise(matrix)
        assert values.is_contiguous() and scale.is_contiguous() and scale.dtype == torch.float32
        assert torch.equal(values.float() * scale, quantise(matrix.clone().contiguous())[0].float() * scale)


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
    with float8_linears(layer), torch.autocast("cpu", torch.bfloat16):
        found = layer(values)
        (gradient,) = torch.autograd.grad(found, values, upstream.bfloat16())
    weight, flat = layer.weight, values.detach().flatten(0, 1)
    expected = rounded(flat) @ rounded(weight).T + layer.bias.bfloat16().double()
    torch.testing.assert_close(found.flatten(0, 1).double(), expected, rtol=2**-8, atol=1e-3)
    correct = found.flatten(0, 1) == expected.to(torch.bfloat16)  # rounded once, under autocast too
    assert correct.float().mean() > 0.99
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
