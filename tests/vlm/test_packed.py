"""Windows of one length attend in one call, to the same results as one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from helpers.tiny_vlms import TINY
from helpers.vlm_features import saved
from torch.nn import functional as F

from fare_hf.vlm import VlmLoss, tower_of
from fare_hf.vlm.families.packed import NAME, PACKING, pack_attention
from fare_hf.vlm.features import VlmFeatures

PACKED = [name for name in TINY if name.startswith("Qwen")]


def attended(tower: Any, features: VlmFeatures, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Features, the gradient of their square to the pixels, and the number of calls of torch's attention."""
    points, calls, inner = pixels.clone().requires_grad_(), [], F.scaled_dot_product_attention

    def counted(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(args[0].shape)
        return inner(*args, **options)

    with patch.object(F, "scaled_dot_product_attention", counted):
        found = features.embed(tower, points)
    (gradient,) = torch.autograd.grad(found.square().sum(), points)
    return found.detach(), gradient, len(calls)


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (72, 56)])
@pytest.mark.parametrize("name", PACKED)
def test_all_windows_attend_at_once_as_one_after_the_other(
    name: str, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tower, features = saved(tmp_path, TINY[name])
    assert type(tower).__name__ in PACKING and tower.config._attn_implementation == "sdpa"
    pixels = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1))
    found, gradient, calls = attended(tower, features, pixels)
    tower.set_attn_implementation("sdpa")
    monkeypatch.setattr("fare_hf.vlm.families.packed.PACKING", frozenset())
    expected, slope, others = attended(tower, features, pixels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)
    depth = len(tower.blocks)
    assert depth <= calls <= 4 * depth and calls < others >= 3 * depth


def test_other_towers_and_other_attention_are_left_alone(tmp_path: Path) -> None:
    _, tower, _ = saved(tmp_path / "qwen", TINY[PACKED[0]])
    _, other, _ = saved(tmp_path / "other", TINY["SmolVLM"])
    tower.set_attn_implementation("eager")
    pack_attention(tower)
    pack_attention(other)
    assert (tower.config._attn_implementation, other.config._attn_implementation) == ("eager", "sdpa")


def test_a_sharded_tower_is_one_too_and_nothing_of_it_is_saved(tmp_path: Path) -> None:
    """FSDP2 makes a class of its own."""
    _, tower, _ = saved(tmp_path, TINY[PACKED[0]])
    whole = type(tower)
    tower.__class__ = type("FSDPTower", (whole,), {})
    pack_attention(tower)
    assert tower.config._attn_implementation == NAME
    tower.__class__ = whole
    tower.save_pretrained(tmp_path / "again")
    assert NAME not in (tmp_path / "again" / "config.json").read_text()
    assert whole.from_pretrained(tmp_path / "again").config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", PACKED)
def test_an_attacked_model_attends_to_all_windows_too_and_says_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, pixels = TINY[name], torch.rand(3, 3, 40, 24, generator=torch.Generator().manual_seed(1))
    losses = []
    for packing in (frozenset(), PACKING):
        monkeypatch.setattr("fare_hf.vlm.families.packed.PACKING", packing)
        model = tiny.model().eval()
        loss = VlmLoss(model, tiny.processor(), tiny.prompt, ["a cat", "a red dog", "x"])
        with torch.no_grad():
            losses.append(loss(pixels))
        assert tower_of(model).config._attn_implementation == (NAME if packing else "sdpa")
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
