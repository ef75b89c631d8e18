"""Repositories from before today's names: processors without a patch size, and LLaVA's own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fixtures_vlm
import pytest
import torch
from fixtures_vlm import llava
from test_hub_merge import write_encoder, write_vlm

from fare_hf import cli
from fare_hf.hub import merge_vision_tower
from fare_hf.vlm import VlmLoss, generate_text, swap_vision_tower

COUNTED = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
PROMPT = "<image> this is"


def older_processor() -> Any:
    """As it comes from a repository without a processor_config.json."""
    found = fixtures_vlm.processor()
    found.patch_size, found.vision_feature_select_strategy, found.num_additional_image_tokens = None, None, 0
    return found


def test_what_it_lacks_is_the_configurations_and_said(pixels: torch.Tensor) -> None:
    """Was `TypeError: unsupported operand type(s) for //: 'int' and 'NoneType'`."""
    vlm, right = llava(), fixtures_vlm.processor()
    expected = VlmLoss(vlm, right, PROMPT, ["cat"] * len(pixels))(pixels)
    older = older_processor()
    with pytest.warns(UserWarning, match="patch_size 8, vision_feature_select_strategy 'default' and .* 1 are taken"):
        found = VlmLoss(vlm, older, PROMPT, ["cat"] * len(pixels))(pixels)
    first = [value[0] if isinstance(value, tuple) else value for value in (found, expected)]
    assert torch.equal(*first) and first[0].isfinite().all()
    assert [getattr(older, name) for name in COUNTED] == [getattr(right, name) for name in COUNTED]


def test_a_swap_and_answers_take_it_too(tmp_path: Path, pixels: torch.Tensor) -> None:
    vlm, encoder = llava(), write_encoder(tmp_path / "encoder")
    with pytest.warns(UserWarning, match="says no patch_size"):
        report = swap_vision_tower(vlm, encoder, older_processor())
    assert report.image_tokens[0] == report.image_tokens[1] > 0
    with pytest.warns(UserWarning, match="says no patch_size"):
        answers = generate_text(vlm, older_processor(), pixels, PROMPT, max_new_tokens=2)
    assert answers == generate_text(vlm, fixtures_vlm.processor(), pixels, PROMPT, max_new_tokens=2)


@pytest.mark.parametrize("saved", [None, {"patch_size": None, "vision_feature_select_strategy": None}])
def test_a_merge_says_it(saved: dict[str, Any] | None, tmp_path: Path) -> None:
    vlm, encoder = write_vlm(tmp_path / "llava"), write_encoder(tmp_path / "encoder")
    content = json.loads((vlm / "processor_config.json").read_text())
    images = content.pop("image_processor", None)
    if images is not None:
        (vlm / "preprocessor_config.json").write_text(json.dumps(images))
    (vlm / "processor_config.json").unlink()
    if saved is not None:
        (vlm / "processor_config.json").write_text(json.dumps(saved))
    with pytest.warns(UserWarning, match="no patch_size in a processor_config.json.* to 8, .* 'default'"):
        merge_vision_tower(vlm, encoder, tmp_path / "out")


@pytest.mark.parametrize("kind", ["llava", "llava_llama"])
@pytest.mark.parametrize("command", ["swap", "merge"])
def test_a_repository_of_llavas_own_format_is_named(kind: str, command: str, tmp_path: Path) -> None:
    (tmp_path / "llava").mkdir()
    values = {"model_type": kind, "architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": "openai/clip-vit"}
    (tmp_path / "llava" / "config.json").write_text(json.dumps(values))
    words = [command, str(tmp_path / "llava"), str(write_encoder(tmp_path / "encoder")), str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="original LLaVA repository .* such as llava-hf/llava-1.5-7b-hf"):
        cli.main(words)
