"""Towers of a class of their own: merged into their model, and refused where they are of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_llava import encoder as clip_encoder
from helpers.tiny_vlms import TINY
from helpers.tiny_vlms_own import OWN
from transformers import AutoModelForImageTextToText, Qwen2VLImageProcessor

from fare_hf.hub import merge_vision_tower
from fare_hf.pretrained.configuration import load_image_processor
from fare_hf.vlm import swap_vision_tower, tower_of

QWEN = TINY["Qwen2_5_VL"]


@pytest.mark.parametrize("tiny", OWN, ids=lambda tiny: tiny.name)
def test_a_tower_is_merged_into_its_models_files(tiny: Any, tmp_path: Path) -> None:
    model, encoder = tiny.model(), tiny.encoder()
    model.save_pretrained(tmp_path / "vlm")
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.warns(UserWarning, match="seems to be fine-tuned from another model"):  # random, of another seed
        merged = merge_vision_tower(tmp_path / "vlm", tmp_path / "encoder", tmp_path / "out")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    found, wanted = tower_of(again).state_dict(), encoder.state_dict()
    assert found.keys() == wanted.keys() and merged.tensors == len(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    inside = {f"{model_path}." for model_path in ("model.visual", "model.vision_tower", "model.vision_model")}
    old = model.state_dict()
    others = [name for name in old if not name.startswith(tuple(inside))]
    assert others and all(torch.equal(again.state_dict()[name], old[name]) for name in others)


def test_a_tower_of_another_model_or_size_is_refused_by_name(tmp_path: Path) -> None:
    other, wider, clip = tmp_path / "qwen2", tmp_path / "wider", tmp_path / "clip"
    TINY["Qwen2VL"].encoder().save_pretrained(other)
    QWEN.encoder(intermediate_size=48).save_pretrained(wider)
    clip_encoder().save_pretrained(clip)
    model = QWEN.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="is a 'qwen2_vl_vision' model, and the vision tower a 'qwen2_5_vl_vision'"):
        swap_vision_tower(model, str(other))
    with pytest.raises(ValueError, match="is a 'clip_vision_model' model, and the vision tower a 'qwen2_5_vl_vision'"):
        swap_vision_tower(model, str(clip))
    with pytest.raises(ValueError, match="wider' has intermediate_size 48, the vision tower has 64: pass the tower"):
        swap_vision_tower(model, str(wider))
    with pytest.raises(TypeError, match="CLIPVisionModelWithProjection does not fit .* whose tower is a Qwen2"):
        swap_vision_tower(model, clip_encoder())
    with pytest.raises(TypeError, match="Qwen2_5_VisionTransformerPretrainedModel is not a CLIP vision encoder"):
        swap_vision_tower(TINY["Llava (1.5, BakLlava)"].model(), QWEN.encoder())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.save_pretrained(tmp_path / "vlm")
    with pytest.raises(ValueError, match="qwen2' is a Qwen2VisionT.*, the vision tower needs a Qwen2_5_Vision"):
        merge_vision_tower(tmp_path / "vlm", other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_qwens_processor_calls_edges_are_numbers_of_pixels(tmp_path: Path) -> None:
    Qwen2VLImageProcessor().save_pretrained(tmp_path)
    assert load_image_processor(str(tmp_path)).size["longest_edge"] == 28 * 28 * 1280
