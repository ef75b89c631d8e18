"""Operations: the formulas against torch's own counter, on real models without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.utils.import_utils import enable_tf32

from fare_hf.encoders import embed, freeze
from fare_hf.encoders.flops import Flops, count_flops, peak_flops

SIZE = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 40, "patch_size": 8}
WIDE = {**SIZE, "intermediate_size": 80}
ENCODERS = [
    (CLIPVisionModelWithProjection, CLIPVisionConfig(**WIDE, projection_dim=24), "projected"),
    (CLIPVisionModel, CLIPVisionConfig(**WIDE), "pooled"),
    (SiglipVisionModel, SiglipVisionConfig(**WIDE), "pooled"),
    (SiglipVisionModel, SiglipVisionConfig(**WIDE, vision_use_head=False), "tokens"),
    (Dinov2Model, Dinov2Config(**SIZE, mlp_ratio=4), "pooled"),
    (Dinov2Model, Dinov2Config(**SIZE, use_swiglu_ffn=True), "pooled"),
    (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**SIZE), "tokens"),
    (DINOv3ViTModel, DINOv3ViTConfig(**WIDE, num_register_tokens=4), "pooled"),
    (CLIPVisionModelWithProjection, CLIPVisionConfig(**WIDE, projection_dim=24), "projected+tokens"),
    (SiglipVisionModel, SiglipVisionConfig(**WIDE), "pooled+tokens"),
    (DINOv3ViTModel, DINOv3ViTConfig(**WIDE, use_gated_mlp=True), "tokens"),
]


def measure(encoder: torch.nn.Module, embedding: str, images: int, pixels_wanted: bool) -> tuple[int, int]:
    """What torch counts in a forward and in its backward pass."""
    pixels = torch.empty(images, 3, 40, 40, device="meta", requires_grad=pixels_wanted)
    with FlopCounterMode(display=False) as forward:
        value = embed(encoder, pixels, embedding, -1).sum()
    with FlopCounterMode(display=False) as backward:
        value.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize(("cls", "config", "embedding"), ENCODERS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_formulas_are_what_torch_counts(cls: Any, config: Any, embedding: str) -> None:
    config._attn_implementation = "eager"  # matrix products, which the counter sees on any device
    with torch.device("meta"):
        encoder = cls(config)
    flops = count_flops(config, embedding, layer=-1)
    assert measure(encoder, embedding, 2, False) == (2 * flops.forward, 2 * flops.to_weights)
    forward, backward = measure(freeze(encoder), embedding, 2, True)
    assert forward == 2 * flops.forward
    # The learned query of SigLIP's pooling head needs no gradient, which the formula counts.
    assert backward == pytest.approx(2 * flops.to_pixels, rel=2e-3 if config.model_type.startswith("siglip") else 0)


def test_the_papers_run_is_ten_exaflop() -> None:
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=768,
    )
    flops = count_flops(config)
    assert flops.forward == pytest.approx(162e9, rel=0.01)
    assert 20_000 * 128 * flops.step(10) == pytest.approx(10e18, rel=0.04)


def test_a_step_is_the_sum_of_its_passes() -> None:
    flops = Flops(patches=1, linear=10, attention=100)
    assert flops.step(2) == 111 + 2 * (111 + 211) + 111 + 221
    assert flops.step(2, clean_target=False) == flops.step(2) - 111


def test_tokens_leave_out_the_layers_behind_them() -> None:
    config = CLIPVisionConfig(**WIDE)
    all_layers = count_flops(config, "pooled")
    assert 3 * count_flops(config, "tokens", -2).linear == 2 * all_layers.linear
    assert count_flops(config, "tokens", 3) == count_flops(config, "tokens", -1) == all_layers
    with pytest.raises(ValueError, match="layer=4 is outside the 4 hidden states"):
        count_flops(config, "tokens", 4)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA Unheard Of", None),
    ],
)
def test_devices_are_found_by_name(name: str, tera: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0)) == (None if tera is None else tera * 1e12)


@pytest.fixture
def tf32_as_before() -> Iterator[None]:
    """Puts back what a test allows."""
    torch.set_float32_matmul_precision("highest")
    before = torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def allow_as_transformers() -> None:
    """What `TrainingArguments` does for `tf32=True` and for `torch_compile=True` on a GPU."""
    torch.backends.cuda.matmul.fp32_precision = "none"  # as a process begins
    enable_tf32.__wrapped__(True)


ALLOWING: dict[str, Callable[[], Any]] = {
    "set_float32_matmul_precision": partial(torch.set_float32_matmul_precision, "high"),
    "allow_tf32": partial(setattr, torch.backends.cuda.matmul, "allow_tf32", True),
    "fp32_precision": partial(setattr, torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "transformers": allow_as_transformers,
}


@pytest.mark.usefixtures("tf32_as_before")
@pytest.mark.parametrize("way", [None, *ALLOWING])
def test_the_peak_in_fp32_is_not_that_of_half_precision(way: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A utilisation over the peak in half precision would be 16 times too low on an A100."""
    ALLOWING.get(way or "", lambda: None)()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert peak_flops(torch.device("cuda", 0), half=False) == (19.5e12 if way is None else 156e12)
    assert peak_flops(torch.device("cuda", 0)) == 312e12


def test_a_cpu_has_no_peak() -> None:
    assert peak_flops(torch.device("cpu")) is None
