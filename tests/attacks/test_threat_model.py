"""Threat model: what is written is what is read, and nothing ever leaves the ball or the box."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fare_hf.attacks import ThreatModel, check_pixels, format_eps, parse_eps

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LINF = st.one_of(
    st.sampled_from([0.0, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255, 1e-3, 0.1, 1.0]), st.floats(1e-6, 1.0)
)
L2 = st.one_of(st.sampled_from([0.0, 0.1, 128 / 255, 2.0]), st.floats(1e-4, 10.0))
THREATS = st.one_of(
    st.builds(ThreatModel, st.just("linf"), LINF),
    st.builds(ThreatModel, st.just("l2"), L2),
)


def random_pixels(seed: int, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (3, 3, 5, 7)) -> Tensor:
    """Values where rounding is awkward: uniform, 8-bit levels, tiny ones, and the corners of the box."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(shape, generator=generator)
    kinds = [uniform, (uniform * 255).round() / 255, uniform**12, uniform.round(), 1 - uniform**12]
    which = torch.randint(0, len(kinds), shape, generator=generator)
    return torch.stack(kinds).gather(0, which[None])[0].to(dtype)


def assert_inside(points: Tensor, pixels: Tensor, threat_model: ThreatModel) -> None:
    """As an outsider would compute it: fp32 in torch, fp32 and fp64 in numpy, with no tolerance."""
    assert points.dtype == torch.float32
    assert (points >= 0).all() and (points <= 1).all()
    change = points - pixels.float()
    if threat_model.norm == "linf":
        assert (change.abs() <= threat_model.eps).all()
        assert change.abs().max().item() <= threat_model.eps
        wide = np.abs(points.double().numpy() - pixels.double().numpy())
        assert wide.max() <= threat_model.eps
        assert np.abs(points.numpy() - pixels.float().numpy()).max() <= threat_model.eps
    else:
        assert (change.flatten(1).norm(dim=1) <= threat_model.eps).all()
        assert change.square().sum(dim=(1, 2, 3)).sqrt().max().item() <= threat_model.eps
        wide = (points.double() - pixels.double()).numpy().reshape(len(points), -1)
        assert np.linalg.norm(wide, axis=1).max() <= threat_model.eps
    threat_model.check(points, pixels)


@given(THREATS, st.integers(0, 2**31), st.sampled_from(DTYPES), st.sampled_from([0.01, 1.0, 100.0]))
@settings(max_examples=200, deadline=None)
def test_projection_stays_in_ball_and_box(
    threat_model: ThreatModel, seed: int, dtype: torch.dtype, scale: float
) -> None:
    pixels = random_pixels(seed, dtype)
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed + 1))
    assert_inside(threat_model.project(pixels.float() + scale * noise, pixels), pixels, threat_model)


@given(THREATS, st.integers(0, 2**31), st.sampled_from(DTYPES))
@settings(max_examples=200, deadline=None)
def test_random_start_stays_in_ball_and_box(threat_model: ThreatModel, seed: int, dtype: torch.dtype) -> None:
    pixels = random_pixels(seed, dtype)
    start = threat_model.random_start(pixels, torch.Generator().manual_seed(seed))
    assert_inside(start, pixels, threat_model)
    if threat_model.eps > 1e-3:
        assert (start != pixels).flatten(1).any(1).all()


@given(st.integers(0, 2**31), LINF)
@settings(max_examples=100, deadline=None)
def test_linf_projection_is_the_nearest_point(seed: int, eps: float) -> None:
    pixels = random_pixels(seed)
    threat_model = ThreatModel("linf", eps)
    points = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    exact = torch.clamp(points.double(), pixels.double() - eps, pixels.double() + eps).clamp(0, 1)
    projected = threat_model.project(points, pixels)
    assert (projected.double() - exact).abs().max() <= 2.0**-23
    assert torch.equal(threat_model.project(projected, pixels), projected)


SMALL = st.floats(0, 1, width=32) | st.floats(0, 2.0**-6, width=32) | st.sampled_from([0.0, 2.0**-149, 1.0])


@given(st.lists(SMALL, min_size=1, max_size=20), LINF)
@settings(max_examples=200, deadline=None)
def test_linf_projection_reaches_the_last_fp32_values_inside(values: list[float], eps: float) -> None:
    pixels = torch.tensor(values).view(1, 1, 1, -1)
    radius = np.float32(eps)
    radius = Fraction(float(radius if float(radius) <= eps else np.nextafter(radius, np.float32(0))))
    for direction in (-1, 1):
        edge = ThreatModel("linf", eps).project(pixels + 3 * direction, pixels).flatten()
        beyond = torch.nextafter(edge, torch.tensor(3.0 * direction))
        for pixel, inside, outside in zip(values, edge.tolist(), beyond.tolist(), strict=True):
            assert abs(Fraction(inside) - Fraction(pixel)) <= radius
            assert inside == (0, 1)[direction > 0] or abs(Fraction(outside) - Fraction(pixel)) > radius


@given(st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_l2_projection_keeps_what_is_inside_and_scales_what_is_not(seed: int) -> None:
    pixels = random_pixels(seed) * 0.5 + 0.25
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    direction /= direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    threat_model = ThreatModel("l2", 0.2)
    inside = pixels + 0.1 * direction
    assert (threat_model.project(inside, pixels) - inside).abs().max() <= 2.0**-23
    projected = threat_model.project(pixels + 0.8 * direction, pixels)
    assert torch.allclose(projected, pixels + 0.2 * direction, atol=1e-5)


def test_l2_ball_holds_on_large_images() -> None:
    pixels = random_pixels(0, shape=(2, 3, 224, 224))
    for eps in (0.01, 0.5, 30.0):
        threat_model = ThreatModel("l2", eps)
        generator = torch.Generator().manual_seed(0)
        for points in (torch.rand(pixels.shape), threat_model.random_start(pixels, generator)):
            projected = threat_model.project(points, pixels)
            assert_inside(projected, pixels, threat_model)
            assert (projected - pixels).flatten(1).norm(dim=1).min() > 0.5 * eps


@given(st.integers(0, 2**31), st.sampled_from([2 / 255, 4 / 255, 8 / 255, 0.1]), st.sampled_from(DTYPES[1:]))
@settings(max_examples=100, deadline=None)
def test_linf_rounding_to_a_model_dtype_stays_inside(seed: int, eps: float, dtype: torch.dtype) -> None:
    pixels = random_pixels(seed)
    threat_model = ThreatModel("linf", eps)
    points = threat_model.random_start(pixels, torch.Generator().manual_seed(seed))
    rounded = threat_model.round_to(points, pixels, dtype)
    assert rounded.dtype == dtype
    assert_inside(rounded.float(), pixels, threat_model)
    assert (rounded.float() - points).abs().max() <= 2.0**-8


def test_plain_rounding_to_bf16_leaves_the_ball_and_is_seen() -> None:
    pixels = random_pixels(0, shape=(2, 3, 16, 16))
    threat_model = ThreatModel("linf", "4/255")
    points = threat_model.project(torch.ones_like(pixels), pixels)
    assert (threat_model.violation(points.bfloat16(), pixels) > 0).all()
    with pytest.raises(ValueError, match="leaves the threat model linf 4/255"):
        threat_model.check(points.bfloat16(), pixels)


def test_rounding_below_the_resolution_is_refused() -> None:
    pixels = torch.full((1, 3, 2, 2), 0.7)
    with pytest.raises(ValueError, match="below the resolution of torch.bfloat16"):
        ThreatModel("linf", 1e-5).round_to(pixels, pixels, torch.bfloat16)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("corner", [0.0, 1.0])
def test_random_start_is_never_the_clean_image(norm: str, corner: float) -> None:
    pixels = torch.full((64, 1, 1, 1), corner)  # half of the noise points out of the box, and is cut to nothing
    start = ThreatModel(norm, "4/255").random_start(pixels, torch.Generator().manual_seed(0))
    assert (start != pixels).all()


def test_random_start_is_uniform() -> None:
    pixels = torch.full((4, 3, 64, 64), 0.5)
    change = ThreatModel("linf", 0.1).random_start(pixels, torch.Generator().manual_seed(0)) - pixels
    histogram = torch.histc(change, 10, -0.1, 0.1) / change.numel()
    assert (histogram - 0.1).abs().max() < 0.01
    lengths = (ThreatModel("l2", 0.1).random_start(torch.full((2000, 1, 1, 2), 0.5)) - 0.5).flatten(1).norm(dim=1)
    assert abs((lengths < 0.1 * math.sqrt(0.5)).float().mean().item() - 0.5) < 0.05  # area grows with the square


def test_random_start_follows_its_generator_alone() -> None:
    pixels, threat_model = random_pixels(0), ThreatModel("linf", "4/255")
    before = torch.get_rng_state()
    first = threat_model.random_start(pixels, torch.Generator().manual_seed(5))
    assert torch.equal(first, threat_model.random_start(pixels, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, threat_model.random_start(pixels, torch.Generator().manual_seed(6)))
    assert torch.equal(threat_model.random_start(pixels), threat_model.random_start(pixels))
    assert torch.equal(before, torch.get_rng_state())


def test_projection_leaves_its_arguments_alone() -> None:
    pixels, points = random_pixels(0), torch.rand(3, 3, 5, 7)
    copies = pixels.clone(), points.clone()
    for norm in ("linf", "l2"):
        ThreatModel(norm, 0.1).project(points, pixels)
    assert torch.equal(pixels, copies[0]) and torch.equal(points, copies[1])


def test_violation_names_and_measures() -> None:
    pixels = torch.full((3, 3, 2, 2), 0.5)
    points = pixels.clone()
    points[1, 0, 0, 0] = 0.75
    points[2, 0, 0, 0] = math.nan
    for norm in ("linf", "l2"):
        threat_model = ThreatModel(norm, 0.125)
        assert threat_model.violation(points, pixels).tolist() == [0.0, 0.125, math.inf]
        with pytest.raises(ValueError, match=r"samples \[1, 2\]"):
            threat_model.check(points, pixels)
    outside_box = torch.full((1, 3, 2, 2), 1.25)
    assert ThreatModel("l2", 9.0).violation(outside_box, torch.ones(1, 3, 2, 2)).item() == 0.25
    with pytest.raises(ValueError, match="same shape"):
        threat_model.violation(points[:1], pixels)


@pytest.mark.parametrize("value", [0.5 + 0.126, 0.5 - 0.126, math.nan, math.inf])
def test_one_value_outside_is_seen_in_a_large_batch(value: float) -> None:
    pixels = torch.full((4, 3, 9, 9), 0.5)
    points = pixels + 0.125
    ThreatModel("linf", 0.125).check(points, pixels)
    points[2, 1, 4, 4] = value
    with pytest.raises(ValueError, match=r"samples \[2\]"):
        ThreatModel("linf", 0.125).check(points, pixels)


@pytest.mark.parametrize("pixel, point", [(1.0, 1.0 + 2.0**-23), (0.0, -(2.0**-149))])
def test_a_value_outside_the_box_is_seen(pixel: float, point: float) -> None:
    pixels = torch.full((1, 3, 2, 2), pixel)
    with pytest.raises(ValueError, match="leaves the threat model"):
        ThreatModel("linf", 0.125).check(torch.full((1, 3, 2, 2), point), pixels)


def test_direction_has_unit_norm_and_keeps_zero() -> None:
    gradient = torch.randn(4, 3, 5, 5) * torch.tensor([1.0, 1e-30, 1e30, 0.0]).view(-1, 1, 1, 1)
    norms = ThreatModel("l2", 1).direction(gradient).flatten(1).norm(dim=1)
    assert torch.allclose(norms, torch.tensor([1.0, 1.0, 1.0, 0.0]), atol=1e-6)
    assert torch.equal(ThreatModel("linf", 1).direction(gradient), gradient.sign())


@pytest.mark.parametrize(
    ("value", "parsed", "printed"),
    [
        ("4/255", 4 / 255, "4/255"),
        (4 / 255, 4 / 255, "4/255"),
        ("1/256", 1 / 256, "1/256"),
        (3 / 1024, 3 / 1024, "3/1024"),
        ("1/7", 1 / 7, "1/7"),
        (0.015, 0.015, "0.015"),
        (0.0625, 0.0625, "0.0625"),
        (0.0123456789, 0.0123456789, "0.0123456789"),
        ("0.5/255", 0.5 / 255, "0.5/255"),
        ("0.03", 0.03, "0.03"),
        (0, 0.0, "0"),
        ("-0", 0.0, "0"),
        ("-0/255", 0.0, "0"),
        (1, 1.0, "1"),
        ("1e-5", 1e-5, "1e-05"),
    ],
)
def test_eps_is_read_and_printed(value: float | str, parsed: float, printed: str) -> None:
    assert parse_eps(value) == parsed
    assert format_eps(parsed) == printed
    assert str(ThreatModel("linf", value)) == f"linf {printed}"


@given(st.floats(0, 1))
def test_printed_eps_reads_back_to_the_bit(eps: float) -> None:
    assert parse_eps(format_eps(eps)) == eps


def test_threat_model_is_a_value() -> None:
    threat_model = ThreatModel("linf", "4/255")
    assert str(threat_model) == "linf 4/255"
    assert threat_model == ThreatModel("linf", 4 / 255) and hash(threat_model) == hash(ThreatModel("linf", 4 / 255))
    assert threat_model.to_dict() == {"norm": "linf", "eps": "4/255"}
    assert ThreatModel.from_dict(threat_model.to_dict()) == threat_model
    assert ThreatModel("l2", 4).eps == 4.0
    with pytest.raises(AttributeError):
        threat_model.eps = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("dtype", DTYPES)
def test_good_pixels_pass(dtype: torch.dtype) -> None:
    pixels = random_pixels(0, dtype)
    before = pixels.clone()
    check_pixels(pixels)
    assert torch.equal(pixels, before)
