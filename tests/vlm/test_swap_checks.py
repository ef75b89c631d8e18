"""What a swap notices: other resolutions, other origins, tied towers, swaps on swaps, sources of every kind."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from helpers.open_clip_files import open_clip_state, write_open_clip
from helpers.related_encoders import related
from helpers.tiny_llava import encoder, llava, processor
from helpers.tiny_vlms import PROMPT, TINY, clip_encoder, siglip_encoder

from fare_hf.convert import convert_from_open_clip
from fare_hf.vlm import swap_vision_tower, tower_of
from fare_hf.vlm.swap.resolution import Edits

quiet = pytest.mark.filterwarnings("ignore:clean images have embeddings")


def two_layers_exchanged(new: Any) -> None:
    first, second = (new.vision_model.encoder.layers[number].state_dict() for number in (0, 1))
    first = {name: tensor.clone() for name, tensor in first.items()}
    new.vision_model.encoder.layers[0].load_state_dict(second)
    new.vision_model.encoder.layers[1].load_state_dict(first)


def queries_for_keys(new: Any) -> None:
    attention = new.vision_model.encoder.layers[1].self_attn
    attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj


def one_block_shuffled(new: Any) -> None:
    weight = new.vision_model.encoder.layers[2].mlp.fc1.weight.data
    weight.copy_(weight.flatten().roll(17).view_as(weight))


def a_block_of_zeros(new: Any) -> None:
    for parameter in new.vision_model.encoder.layers[0].parameters():
        parameter.data.zero_()


def heads_rolled(new: Any) -> None:
    weight = new.vision_model.encoder.layers[0].self_attn.v_proj.weight.data
    weight.copy_(weight.roll(8, 0))


MIX_UPS = [two_layers_exchanged, queries_for_keys, one_block_shuffled, a_block_of_zeros, heads_rolled]


def test_an_encoder_of_another_origin_is_noticed(recwarn: pytest.WarningsRecorder) -> None:
    vlm = llava()
    report = swap_vision_tower(vlm, related(vlm))
    assert report.cosine > 0.95 and not [w for w in recwarn if "clean images" in str(w.message)]
    with pytest.warns(UserWarning, match="cosine 0.0. only in the encoder"):
        assert abs(swap_vision_tower(llava(), encoder()).cosine) < 0.5


@pytest.mark.parametrize("mix_up", MIX_UPS)
def test_weights_that_are_mixed_up_are_noticed(mix_up: Any, tmp_path: Path) -> None:
    """Each of these keeps the clean embeddings of the lab's encoders above 0.6, as robust training does."""
    vlm = llava()
    new = related(vlm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with swap_vision_tower(vlm, new) as report:
            assert report.weight_cosine > 0.95
    mix_up(new)
    with pytest.warns(UserWarning, match=r"'encoder.layers.*cosine -?0\.\d\d only .* mixed up"):
        report = swap_vision_tower(vlm, new)
    assert abs(report.weight_cosine) < 0.3
    report.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swap_vision_tower(vlm, new, minimum_cosine=-1)
    with pytest.raises(ValueError, match="minimum_cosine is nan"):
        swap_vision_tower(vlm, new, minimum_cosine=float("nan"))


@quiet
def test_the_cards_base_model_is_compared_with_the_tower(tmp_path: Path) -> None:
    vlm = llava()
    original = encoder()
    original.vision_model.load_state_dict(tower_of(vlm).state_dict())
    original.save_pretrained(tmp_path / "base")
    related(vlm).save_pretrained(tmp_path / "fare4")
    (tmp_path / "fare4" / "README.md").write_text(f"---\nbase_model: {tmp_path / 'base'}\n---\n")
    report = swap_vision_tower(vlm, tmp_path / "fare4")
    assert f"; its card names {tmp_path / 'base'} as its original, whose cosine is 1.000" in str(report)
    assert report.base_model == str(tmp_path / "base") and report.base_cosine == pytest.approx(1.0, abs=1e-6)
    report.undo()
    encoder(5).save_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match="base model"):
        other = swap_vision_tower(vlm, tmp_path / "fare4")
    assert other.base_cosine is not None and other.base_cosine < 0.5 < other.cosine


@quiet
def test_another_resolution_wants_the_processor() -> None:
    vlm = llava()
    with pytest.raises(ValueError, match=r"image_size 48, the vision tower has 32: pass processor="):
        swap_vision_tower(vlm, encoder(image_size=48))
    proc = TINY["Llava (1.5, BakLlava)"].processor()  # type: ignore[misc]
    report = swap_vision_tower(TINY["Llava (1.5, BakLlava)"].model(), encoder(image_size=48), proc)
    assert "resolution 32 -> 48 px" in str(report) and "image tokens 16 -> 36" in str(report)


@quiet
def test_towers_that_hold_the_encoder_already_and_swaps_on_swaps() -> None:
    vlm = llava()
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    first = swap_vision_tower(vlm, encoder(2))
    with pytest.warns(UserWarning, match="holds the weights of the encoder 'CLIPVisionModelWithProjection' already"):
        again = swap_vision_tower(vlm, encoder(2))
    assert again.changed == 0
    again.undo()
    second = swap_vision_tower(vlm, encoder(3))
    with pytest.raises(RuntimeError, match="undo that swap first"):
        first.undo()
    second.undo()
    first.undo()
    first.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in vlm.state_dict().items())


@quiet
def test_one_tower_at_both_places_of_a_video_model() -> None:
    vlm = TINY["VideoLlava"].model()
    vlm.model.video_tower = vlm.model.image_tower
    report = swap_vision_tower(vlm, clip_encoder())
    assert report.tower == "model.image_tower" and report.changed


@quiet
def test_an_encoder_with_a_block_more_than_is_read() -> None:
    """SigLIP towers are published without the last block; a fine-tuned SigLIP has it."""
    vlm, new = TINY["LlavaOnevision"].model(), siglip_encoder(num_hidden_layers=4)
    assert swap_vision_tower(vlm, new).probe_difference == 0.0


@quiet
@pytest.mark.parametrize("form", ["folder", "file"])
def test_open_clip_is_converted_on_the_fly(form: str, tmp_path: Path) -> None:
    source = write_open_clip(tmp_path / "fare")
    convert_from_open_clip(source, tmp_path / "hf", visual_only=True)
    vlm, expected = llava(), llava()
    swap_vision_tower(expected, tmp_path / "hf")
    if form == "file":  # the state dict of the vision tower alone, as RobustVLM wrote it
        visual = {n.removeprefix("visual."): t for n, t in open_clip_state().items() if n.startswith("visual.")}
        source = tmp_path / "fare.pt"
        torch.save(visual, source)
    report = swap_vision_tower(vlm, source)
    assert report.converted and "(from open_clip)" in str(report)
    assert all(torch.equal(t, expected.state_dict()[n]) for n, t in vlm.state_dict().items())


@quiet
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_device_map_hooks_and_moves_stay(dtype: torch.dtype) -> None:
    vlm = dispatch_model(llava().to(dtype), device_map={"": "cpu"}, force_hooks=True)
    hook = vlm._hf_hook
    report = swap_vision_tower(vlm, encoder(image_size=48), processor())
    assert vlm._hf_hook is hook and {p.dtype for p in tower_of(vlm).parameters()} == {dtype}
    vlm.to(torch.float32)
    report.undo()
    assert tower_of(vlm).config.image_size == 32


def test_edits_come_back_newest_first() -> None:
    class Thing:
        value = 1

    thing, edits = Thing(), Edits()
    for value in (1, 2, 3):
        edits.set(thing, "value", value)
    assert len(edits) == 2 and PROMPT
    edits.undo()
    assert thing.value == 1
