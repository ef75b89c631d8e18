"""Swapping a robust encoder into a LLaVA: in place, verified, reversible, and refused where it would be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from helpers.tiny_llava import PROMPT, encoder, images, llava, processor
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel, CLIPVisionModelWithProjection, LlavaForConditionalGeneration

from fare_hf.data.pixels import Normalization
from fare_hf.vlm import FAMILIES, VlmLoss, family_of, generate_text, swap_vision_tower, tower_of

# Random encoders have nothing to do with each other, and the swap says so: see test_vlm_swap_checks.py.
pytestmark = pytest.mark.filterwarnings("ignore:clean images have embeddings")


def tower_features(vlm: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    values = Normalization.from_processor(processor())(pixels).to(tower_of(vlm).dtype)
    with torch.no_grad():
        return tower_of(vlm)(pixel_values=values, output_hidden_states=True).hidden_states[-2]


def encoder_features(vision: CLIPVisionModelWithProjection, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        values = Normalization.from_processor(processor())(pixels)
        return vision(pixel_values=values, output_hidden_states=True).hidden_states[-2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved encoder with projection: names with the `vision_model.` level."""
    path = tmp_path_factory.mktemp("encoder")
    encoder().save_pretrained(path)
    assert all(name.startswith(("vision_model.", "visual_")) for name in load_file(path / "model.safetensors"))
    return path


def test_the_tower_computes_what_the_encoder_computes(folder: Path) -> None:
    vlm, vision = llava(), encoder()
    others = {n: p.clone() for n, p in vlm.state_dict().items() if not n.startswith("model.vision_tower.")}
    report = swap_vision_tower(vlm, folder)
    assert torch.equal(tower_features(vlm, images(2)), encoder_features(vision, images(2)))
    assert report.probe_difference == 0.0
    assert report.tensors == len(tower_of(vlm).state_dict()) and 0 < report.changed <= report.tensors
    assert report.source == str(folder) and report.tower == "model.vision_tower"
    assert all(torch.equal(vlm.state_dict()[name], tensor) for name, tensor in others.items())


@pytest.mark.parametrize("kind", ["module", "inner", "flat folder", "folder", "string"])
def test_every_form_of_an_encoder(kind: str, folder: Path, tmp_path: Path) -> None:
    vision = encoder()
    CLIPVisionModel.from_pretrained(folder).save_pretrained(tmp_path / "loaded")
    flat = {n.removeprefix("vision_model."): t for n, t in load_file(folder / "model.safetensors").items()}
    save_file(
        {n: t for n, t in flat.items() if "visual" not in n},
        tmp_path / "loaded" / "model.safetensors",
        {"format": "pt"},
    )
    forms = {"module": vision, "inner": vision.vision_model, "flat folder": tmp_path / "loaded"}
    vlm = llava()
    swap_vision_tower(vlm, {**forms, "folder": folder, "string": str(folder)}[kind])
    assert torch.equal(tower_features(vlm, images(1)), encoder_features(vision, images(1)))


def test_a_whole_clip_folder(clip_folder: Path) -> None:
    vlm = llava()
    swap_vision_tower(vlm, clip_folder)
    expected = CLIPVisionModelWithProjection.from_pretrained(clip_folder)
    assert torch.equal(tower_features(vlm, images(1)), encoder_features(expected, images(1)))


def test_dtype_mode_gradients_hooks_and_attention_stay(folder: Path) -> None:
    vlm = llava().to(torch.bfloat16).train()
    tower = tower_of(vlm)
    tower.set_attn_implementation("eager")
    tower.requires_grad_(False)
    hook = ModelHook()
    add_hook_to_module(tower, hook)
    parameter = next(tower.parameters())
    swap_vision_tower(vlm, folder)
    assert tower_of(vlm) is tower and next(tower.parameters()) is parameter and tower._hf_hook is hook
    assert {p.dtype for p in tower.parameters()} == {torch.bfloat16}
    assert all(module.training for module in vlm.modules())
    assert not any(p.requires_grad for p in tower.parameters())
    assert all(p.requires_grad for p in vlm.model.language_model.parameters())
    assert tower.config._attn_implementation == "eager"
    assert torch.equal(tower.post_layernorm.weight, encoder().vision_model.post_layernorm.weight.bfloat16())


def test_undo_and_context_manager(folder: Path) -> None:
    vlm = llava()
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    with swap_vision_tower(vlm, folder) as report:
        assert torch.equal(tower_features(vlm, images(1)), encoder_features(encoder(), images(1)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vlm.state_dict().items())
    report.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in vlm.state_dict().items())
    with pytest.raises(KeyError), swap_vision_tower(vlm, folder):
        raise KeyError
    assert all(torch.equal(tensor, before[name]) for name, tensor in vlm.state_dict().items())


def test_answers_and_losses_follow_the_tower(folder: Path) -> None:
    vlm, proc, pixels = llava(), processor(), images(4)
    loss = VlmLoss(vlm, proc, PROMPT, ["a red cat"] * 4)
    with torch.no_grad():
        before = loss(pixels)
        with swap_vision_tower(vlm, folder):
            swapped = loss(pixels)
            said = generate_text(vlm, proc, pixels, PROMPT, max_new_tokens=4)
        assert torch.equal(loss(pixels), before)
    assert not torch.allclose(swapped, before)
    assert len(said) == 4


def test_the_saved_vlm_holds_the_new_tower(folder: Path, tmp_path: Path) -> None:
    vlm = llava()
    swap_vision_tower(vlm, folder)
    vlm.save_pretrained(tmp_path)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(tower_features(again, images(1)), encoder_features(encoder(), images(1)))


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"hidden_size": 64}, "hidden_size", "64"),
        ({"intermediate_size": 48}, "intermediate_size", "48"),
        ({"num_hidden_layers": 2}, "num_hidden_layers", "2"),
        ({"num_attention_heads": 2}, "num_attention_heads", "2"),
        ({"image_size": 64}, "image_size", "64"),
        ({"patch_size": 16}, "patch_size", "16"),
        ({"hidden_act": "gelu"}, "hidden_act", "'gelu'"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps", "1e-06"),
    ],
)
def test_another_architecture_is_refused(changes: dict, field: str, value: str) -> None:
    vlm = llava()
    before = tower_of(vlm).state_dict()["embeddings.class_embedding"].clone()
    with pytest.raises(ValueError, match=f"has {field} {value}, the vision tower has"):
        swap_vision_tower(vlm, encoder(**changes))
    assert torch.equal(tower_of(vlm).state_dict()["embeddings.class_embedding"], before)


def test_another_projection_is_no_other_architecture() -> None:
    new, vlm = encoder(projection_dim=24), llava()
    swap_vision_tower(vlm, new)
    patches = "embeddings.patch_embedding.weight"
    wanted = next(value for name, value in new.state_dict().items() if name.endswith(patches))
    assert torch.equal(vlm.model.vision_tower.get_parameter(patches), wanted)


def test_a_language_model_in_four_bits_is_no_hindrance(folder: Path) -> None:
    vlm = llava()
    vlm.is_quantized = True
    assert swap_vision_tower(vlm, folder).changed


def test_a_tower_that_computes_something_else_is_undone(folder: Path) -> None:
    vlm = llava()
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    tower_of(vlm).pre_layrnorm.register_forward_hook(lambda module, args, output: output * 1.5)
    with pytest.raises(RuntimeError, match="the old weights were put back"):
        swap_vision_tower(vlm, folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vlm.state_dict().items())


def test_the_table_of_families() -> None:
    assert family_of(llava()) in FAMILIES
    assert len({family.vlm_class for family in FAMILIES}) == len(FAMILIES)
