"""Features that language models read: equal to the model's own, differentiable, of the tower's files alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_llava import llava
from helpers.tiny_llava import processor as llava_processor
from helpers.tiny_vlms import TINY, images
from helpers.vlm_features import saved, wide_floats, without_rounding
from safetensors import safe_open

from fare_hf.encoders import frozen
from fare_hf.encoders.counting import count_operations
from fare_hf.vlm import tower_weights
from fare_hf.vlm.tower_files import features_family, load_vision_tower

READ = [name for name in TINY if name != "Idefics"]


@pytest.mark.parametrize("name", READ)
def test_gradients_are_finite_differences(name: str, tmp_path: Path) -> None:
    _, tower, features = saved(tmp_path, TINY[name])
    without_rounding(tower)
    without_rounding(features.around)
    pixels = images(1, seed=4).double().mul(0.5).add(0.25)
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(3)).double()

    def loss(points: torch.Tensor) -> torch.Tensor:
        return features.embed(tower, points).square().sum()

    with frozen(tower), wide_floats():
        point = pixels.clone().requires_grad_()
        slope = (torch.autograd.grad(loss(point), point)[0] * direction).sum()
        h = 1e-5
        difference = (loss(pixels + h * direction) - loss(pixels - h * direction)) / (2 * h)
    assert slope.abs() > 1e-6
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-8)


def test_blocks_above_the_last_one_that_is_read_are_not_computed(tmp_path: Path) -> None:
    _, tower, features = saved(tmp_path, TINY["Llava (1.5, BakLlava)"])
    pixels = images(2)
    expected = features.embed(tower, pixels)
    counted = features.flops(tower)
    inputs = features.family.inputs(features.settings, pixels[:1])
    whole = count_operations(lambda: tower(**inputs))
    blocks = tower.encoder.layers
    assert len(blocks) == 3  # of which the language model reads the output of the second
    projector = 2 * 2 * 16 * 32 * 32
    assert (whole.linear - (counted.linear - projector)) * 3 == whole.linear
    assert counted.attention * 3 == whole.attention * 2
    for parameter in blocks[2].parameters():
        parameter.data.fill_(torch.nan)
    assert torch.equal(features.embed(tower, pixels), expected)
    assert "forward" not in vars(blocks[2]) and "vision_tower" not in vars(features.around)
    assert tower(**inputs).last_hidden_state.isnan().all()  # as it is, outside


def test_the_pooling_of_a_siglip_is_not_computed(tmp_path: Path) -> None:
    tiny = TINY["Llava on SigLIP"]
    _, tower, features = saved(tmp_path, replace(tiny, model=partial(tiny.model, vision_use_head=True)))
    calls: list[int] = []
    tower.head.attention.register_forward_hook(lambda *_: calls.append(1))
    features.embed(tower, images(1))
    assert not calls
    tower(images(1))
    assert calls == [1]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = llava()
    model.model.multi_modal_projector.linear_1.weight.data[0, 0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="NaN or infinity in its weights 'multi_modal_projector.linear_1.weight'"):
        load_vision_tower(str(tmp_path), processor=llava_processor())


def test_the_tower_alone_is_read_and_the_language_models_files_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llava().save_pretrained(tmp_path, max_shard_size="30KB")
    tensors: list[str] = []

    class Opened:
        """A file that notes which tensors are read."""

        def __init__(self, path: Path, framework: str) -> None:
            self.inner = safe_open(path, framework=framework)

        def __enter__(self) -> Opened:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def get_tensor(self, name: str) -> torch.Tensor:
            tensors.append(name)
            return self.inner.get_tensor(name)

    monkeypatch.setattr(tower_weights, "safe_open", Opened)
    holding = {}
    for path in sorted(tmp_path.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            holding[path] = list(file.keys())
    needless = [path for path, names in holding.items() if all("language_model" in name for name in names)]
    assert len(needless) > 2
    for path in needless:
        path.unlink()
    tower, features = load_vision_tower(str(tmp_path), processor=llava_processor())
    assert not [name for name in tensors if "language_model" in name or "lm_head" in name]
    kept = {name for names in holding.values() for name in names if "vision_tower" in name or "projector" in name}
    assert set(tensors) == kept and len(tensors) == len(kept)
    assert not [name for name, _ in features.around.named_parameters() if "projector" not in name]
    assert all(parameter.requires_grad for parameter in tower.parameters())


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda folder: [path.unlink() for path in folder.glob("*.safetensors")], "has no model.safetensors: only"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "is cut off or no safetensors file"),
        (
            lambda folder: (folder / "config.json").write_text(
                (folder / "config.json").read_text().replace('"intermediate_size": 64', '"intermediate_size": 48')
            ),
            "holds 'vision_tower.encoder.layers.0.mlp.fc1.*weights and configuration are of different models",
        ),
    ],
)
def test_damaged_files_are_refused_in_a_sentence(change: Any, fault: str, tmp_path: Path) -> None:
    llava().save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=fault):
        load_vision_tower(str(tmp_path), processor=llava_processor())


def test_what_has_no_features_is_refused_before_weights_are_looked_for(tmp_path: Path, clip_folder: Path) -> None:
    with pytest.raises(ValueError, match="has to be a vision-language model .*is a 'clip.* for an encoder alone"):
        features_family(str(clip_folder))
    TINY["Idefics"].model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be asked for: its model has no get_image_features"):
        features_family(str(tmp_path))
