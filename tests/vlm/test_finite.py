"""NaN and infinity pass no comparison around a vision-language model: swaps, losses, answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.related_encoders import related
from helpers.tiny_llava import PROMPT, encoder, images, llava, processor
from helpers.tiny_vlms import TINY, clip_encoder
from torch.nn.modules.module import register_module_forward_hook

from fare_hf.encoders import load_encoder
from fare_hf.vlm import VlmLoss, generate_text, swap_vision_tower, tower_of, towers_of
from fare_hf.vlm.swap.compatibility import check_normalization, weight_cosine
from fare_hf.vlm.swap.proof import mean_cosine, probe_states, tower_difference, twin_of

NAN, INF = math.nan, math.inf
quiet = pytest.mark.filterwarnings("ignore:clean images have embeddings", "ignore:'.*' has cosine")


def overflowing(factor: float, **changes: Any) -> Any:
    """An encoder of finite weights whose activations are not."""
    new = encoder(**changes)
    for layer in new.vision_model.encoder.layers[:2]:
        layer.mlp.fc2.bias.data.fill_(factor)
    return new


def state_of(vlm: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in vlm.state_dict().items()}


@quiet
@pytest.mark.parametrize(
    ("dtype", "factor", "advice"),
    [
        (torch.float16, 5e4, "in float16, though its weights are finite: load the model in bfloat16 or float32"),
        (torch.float32, 3e38, "in float32, though its weights are finite: take a checkpoint whose training"),
        (torch.bfloat16, 3e38, "in bfloat16, though its weights are finite: take a checkpoint whose training"),
    ],
)
@pytest.mark.parametrize("size", [32, 48])
def test_finite_weights_whose_activations_overflow_are_refused(
    dtype: torch.dtype, factor: float, advice: str, size: int
) -> None:
    vlm = llava().to(dtype)
    before = state_of(vlm)
    with pytest.raises(ValueError, match=f"makes NaN or infinity of a probe image {advice}"):
        swap_vision_tower(vlm, overflowing(factor, image_size=size), processor())
    assert all(torch.equal(tensor, before[name]) for name, tensor in vlm.state_dict().items())
    assert tower_of(vlm).config.image_size == 32


@quiet
def test_the_dtype_that_is_named_works() -> None:
    swap_vision_tower(llava().to(torch.bfloat16), overflowing(5e4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_weights_that_are_not_finite_are_refused(dtype: torch.dtype, value: float) -> None:
    new = encoder()
    new.vision_model.encoder.layers[1].mlp.fc1.weight.data[3, 4] = value
    with pytest.raises(ValueError, match="'encoder.layers.1.mlp.fc1.weight' .* hold NaN or infinity"):
        swap_vision_tower(llava().to(dtype), new)


def test_a_finite_weight_that_fp16_cannot_hold_is_no_fault_of_training() -> None:
    new = encoder()
    new.vision_model.post_layernorm.bias.data[3] = 1e5
    with pytest.raises(ValueError, match=r"hold 1e\+05, which float16 cannot hold: use bfloat16 or float32\.$"):
        swap_vision_tower(llava().half(), new)


def nan_in_the_middle(tower: Any) -> None:
    tower.encoder.layers[1].register_forward_hook(lambda module, args, output: torch.full_like(output, NAN))


def nan_at_one_value(tower: Any) -> None:
    def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[0, 3, 5] = NAN
        return output

    tower.encoder.layers[2].register_forward_hook(hook)


@quiet
@pytest.mark.parametrize("hook", [nan_in_the_middle, nan_at_one_value])
@pytest.mark.parametrize("family", ["Llava (1.5, BakLlava)", "VideoLlava", "Idefics"])
def test_a_tower_that_computes_nan_is_put_back(hook: Callable[[Any], None], family: str) -> None:
    tiny = TINY[family]
    vlm = tiny.model()
    before = state_of(vlm)
    hook(list(towers_of(vlm).values())[-1])
    with pytest.raises(RuntimeError, match="differs from the encoder .* by nan on a probe image: the old weights"):
        swap_vision_tower(vlm, tiny.encoder())
    assert all(torch.equal(tensor, before[name]) for name, tensor in vlm.state_dict().items())


def test_what_the_tower_returns_is_compared_too() -> None:
    """PaliGemma reads the output of SigLIP after its norm, which no hidden state shows."""
    tiny = TINY["PaliGemma"]
    vlm = tiny.model()
    tower = tower_of(vlm)
    swap_vision_tower(vlm, tiny.encoder(), minimum_cosine=-1)
    expected = probe_states(twin_of(getattr(tiny.encoder(), "vision_model", tiny.encoder()), tower), tower, "x")
    assert tower_difference(tower, expected)[0] == 0.0
    tower.post_layernorm.register_forward_hook(lambda module, args, output: output + 1)
    difference, allowed = tower_difference(tower, expected)
    assert difference == pytest.approx(1.0) and difference > allowed


@quiet
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_model_that_answers_nan_is_no_proof(value: float) -> None:
    vlm, proc = llava(), processor()
    vlm.lm_head.weight.data[7] = value
    before = state_of(vlm)
    with pytest.raises(ValueError, match="logits that are NaN or infinite in float32: load it in bfloat16 or float32"):
        swap_vision_tower(vlm, encoder(), proc)
    assert all(torch.equal(t, before[n]) for n, t in vlm.state_dict().items() if "tower" in n)


@pytest.mark.parametrize("place", ["first", "last"])
def test_an_old_tower_of_nan_agrees_with_nothing(place: str) -> None:
    """In place of it a good encoder can be put, and it is said that the two do not agree."""
    vlm = llava()
    new = related(vlm)
    weights = [parameter for parameter in tower_of(vlm).encoder.parameters() if parameter.ndim == 2]
    weights[0 if place == "first" else -1].data[0, 0] = NAN
    with pytest.warns(UserWarning, match="cosine nan only"):
        report = swap_vision_tower(vlm, new, minimum_cosine=0.0)
    assert math.isnan(report.weight_cosine)


@pytest.mark.parametrize("rows", [1, 2])
def test_cosines_keep_nan(rows: int) -> None:
    ours, theirs = torch.ones(2, 3), torch.ones(2, 3)
    ours[rows - 1, 1] = NAN
    assert math.isnan(mean_cosine(ours, theirs))
    found = weight_cosine(ours, theirs)
    assert found is not None and math.isnan(found)


def test_a_base_model_of_nan_is_compared_with_nothing(tmp_path: Any) -> None:
    """It is no model, which `load_encoder` says; the base is looked at for information alone."""
    vlm = llava()
    related(vlm).save_pretrained(tmp_path / "fare4")
    broken = encoder()
    broken.vision_model.post_layernorm.bias.data.fill_(NAN)
    broken.save_pretrained(tmp_path / "base")
    (tmp_path / "fare4" / "README.md").write_text(f"---\nbase_model: {tmp_path / 'base'}\n---\n")
    with pytest.raises(ValueError, match="NaN or infinity"):
        load_encoder(str(tmp_path / "base"))
    report = swap_vision_tower(vlm, tmp_path / "fare4")
    assert report.base_model == str(tmp_path / "base") and "nan" not in str(report).replace(str(tmp_path), "")


@pytest.mark.parametrize("values", [None, [0.5], [0.5, 0.5, NAN], 0.5, ["0.5"] * 3])
def test_normalisations_that_are_none_are_not_the_models(values: Any) -> None:
    images_of_encoder = processor().image_processor
    images_of_encoder.image_mean = values
    with pytest.raises(ValueError, match="the encoder 'x' expects image_mean"):
        check_normalization(processor(), images_of_encoder, "x")


def test_nothing_matches_where_the_logits_are_nan() -> None:
    """The most likely of NaN is the first token: the answer `<pad>`, if that is asked for."""
    vlm, proc = llava(), processor()
    loss = VlmLoss(vlm, proc, PROMPT, ["<pad>"])
    vlm.lm_head.weight.data.fill_(NAN)
    with torch.no_grad():
        losses, match = loss.with_match(images(1))
    assert not bool(losses.isfinite()) and not bool(match)


@pytest.mark.parametrize("value", [NAN, INF])
def test_no_answer_is_made_of_nan(value: float) -> None:
    vlm, proc = llava(), processor()
    vlm.lm_head.weight.data.fill_(value)
    with pytest.raises(ValueError, match="logits are NaN or infinite in float32, so that it has no answer"):
        generate_text(vlm, proc, images(1), PROMPT, max_new_tokens=2)


def passes(vlm: Any, new: Any, proc: Any) -> list[tuple[int, torch.dtype]]:
    """Images and precision of every forward pass of a vision transformer during a swap."""
    found: list[tuple[int, torch.dtype]] = []

    def count(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if type(module).__name__ == "CLIPVisionModel":
            pixels = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
            found.append((len(pixels), next(module.parameters()).dtype))

    with register_module_forward_hook(count, with_kwargs=True):
        swap_vision_tower(vlm, new, proc)
    return found


@quiet
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_cpu_half_precision_is_used_for_the_proof_alone(dtype: torch.dtype) -> None:
    """Encoder and tower once each on one image, and the whole model once: the tower as it will be used."""
    found = passes(llava().to(dtype), encoder(), processor())
    assert [count for count, kind in found if kind == dtype] == [1, 1, 1]
    assert [count for count, kind in found if kind == torch.float32] == [4, 4]
    assert [count for count, _ in passes(llava(), clip_encoder(), processor())] == [4, 4, 1, 1, 1]
