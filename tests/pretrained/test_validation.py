"""Nonsense that passes for a model: published, measured, merged, trained upon or swapped in by nobody."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub import encoder, save
from helpers.tiny_clip import tiny_clip_config
from helpers.tiny_parts import siglip_encoder
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, CLIPModel, CLIPVisionModelWithProjection, LlavaConfig, LlavaOnevisionConfig

from fare_hf.cli import main as cli
from fare_hf.encoders import load_encoder
from fare_hf.hub.merge.inputs import check_encoder, opened_encoder
from fare_hf.hub.push.folder import check_loads, read_folder
from fare_hf.pretrained.validation import check_answers, check_model, check_weights, is_finite

NAN, INF = math.nan, math.inf
WEIGHT = "vision_model.encoder.layers.1.mlp.fc1.weight"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """The folder with other weights."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def check(folder: Path) -> None:
    """The encoder as a merge looks at it, for a model whose tower it fits."""
    vision = AutoConfig.from_pretrained(folder)
    kind = LlavaConfig if vision.model_type.startswith("clip") else LlavaOnevisionConfig
    vlm = kind(vision_config=getattr(vision, "vision_config", vision).to_dict())
    vlm.architectures = [kind.__name__.replace("Config", "ForConditionalGeneration")]
    with opened_encoder(folder, vlm, None, None) as encoder:
        check_encoder(encoder)


def edit(folder: Path, **changes: Any) -> Path:
    """The folder with another configuration."""
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))
    return folder


def one(value: float) -> Callable[[dict[str, Tensor]], None]:
    """One weight becomes a value."""

    def change(weights: dict[str, Tensor]) -> None:
        weights[WEIGHT][5, 7] = value

    return change


def constant(weights: dict[str, Tensor]) -> None:
    """Every image has one answer."""
    weights["visual_projection.weight"].zero_()


def overflow(weights: dict[str, Tensor]) -> None:
    """Finite weights whose answers are not."""
    for name, tensor in weights.items():
        if name.endswith(("layernorm.weight", "fc1.weight", "fc2.weight", "projection.weight")):
            tensor.fill_(1e20)


NONSENSE: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "nan": (one(NAN), "NaN or infinity in its weights"),
    "infinity": (one(INF), "NaN or infinity in its weights"),
    "-infinity": (one(-INF), "NaN or infinity in its weights"),
    "constant": (constant, "the same for different inputs"),
    "overflow": (overflow, "hold NaN or infinity, computed in float32"),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_weights_that_are_no_encoder(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    change, told = NONSENSE[kind]
    folder = rewrite(save(tmp_path / "fare4"), change)
    with pytest.raises(ValueError, match=told):  # evaluate, train, suites, swap
        load_encoder(str(folder))
    read_folder(folder, "me/x")  # of its files alone nothing is wrong
    with pytest.raises(ValueError, match=told):  # push
        check_loads(folder)
    broken = CLIPVisionModelWithProjection.from_pretrained(folder)
    with pytest.raises(ValueError, match="NaN or infinity|the same for different inputs"):  # save, publish
        save(tmp_path / "again", broken)
    assert not (tmp_path / "again").exists()
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    texts = ["--text_model", str(clip_folder), "--output_dir", str(tmp_path / "out")]
    for words in (["push", str(folder), "me/x"], ["evaluate", str(folder), *texts]):
        with pytest.raises(SystemExit, match=told):
            cli.main(words)


@pytest.mark.parametrize("kind", [kind for kind in NONSENSE if kind != "constant"])  # a tower has no projection
def test_a_merge_asks_for_answers_module_by_module(tmp_path: Path, kind: str) -> None:
    folder = save(tmp_path / "fare4")
    check(folder)
    with pytest.raises(ValueError, match="NaN or infinity"):
        check(rewrite(folder, NONSENSE[kind][0]))


@pytest.mark.parametrize("head", [True, False])
def test_a_merge_asks_a_siglip_too(tmp_path: Path, head: bool) -> None:
    siglip_encoder(vision_use_head=head).save_pretrained(tmp_path)
    check(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith("encoder.layers.0.mlp.fc1.weight"))
    weights[name][0, 0] = NAN
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="NaN or infinity"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("num_attention_heads", 2), ("hidden_act", "gelu"), ("layer_norm_eps", 1e-3)]
)
def test_what_no_weight_shows_is_held_to_what_was_saved(tmp_path: Path, field: str, value: Any) -> None:
    folder = save(tmp_path / "fare4")
    load_encoder(str(folder))
    edit(folder, **{field: value})
    for run in (
        lambda: load_encoder(str(folder)),
        lambda: read_folder(folder, "me/x"),
        lambda: check(folder),
    ):
        with pytest.raises(ValueError, match=f"has {field} .* in its config.json and was saved with"):
            run()
    record = json.loads((folder / "fare_hf.json").read_text())
    record.pop("architecture")  # as earlier versions wrote it: then nothing shows it
    (folder / "fare_hf.json").write_text(json.dumps(record))
    load_encoder(str(folder))
    (folder / "fare_hf.json").write_text(json.dumps({**record, "architecture": "ViT"}))
    with pytest.raises(ValueError, match="has the architecture 'ViT'"):
        load_encoder(str(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 63, 127])
def test_one_value_among_many_is_seen(dtype: torch.dtype, value: float, place: int) -> None:
    values = torch.linspace(-3, 3, 128).to(dtype)
    assert is_finite(values)
    values[place] = value
    assert not is_finite(values)


def test_answers_leave_no_trace(pixels: Tensor) -> None:
    model = encoder().train()
    model.vision_model.eval()
    modes, state, before = [m.training for m in model.modules()], torch.get_rng_state(), pixels.clone()
    check_model(model, "it")
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters()) and torch.equal(pixels, before)


def test_a_whole_clip_answers_texts_too() -> None:
    torch.manual_seed(0)
    clip = CLIPModel(tiny_clip_config()).eval()
    check_model(clip, "it")
    with torch.no_grad():
        clip.text_projection.weight.zero_()
    with pytest.raises(ValueError, match="answers with text_embeds that are|NaN or infinity"):
        check_model(clip, "it")


def test_what_is_not_there_is_passed_over() -> None:
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(tiny_clip_config().vision_config)
    check_weights(model, "it")
    check_answers(model, "it")
