"""What a swap leaves as it was, and models that are compiled, wrapped, offloaded or moved around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from helpers.tiny_llava import PROMPT, encoder, images, llava, processor
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fare_hf.encoders import frozen
from fare_hf.vlm import VlmLoss, generate_text, swap_vision_tower, tower_of

pytestmark = pytest.mark.filterwarnings("ignore:clean images have embeddings")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def bits(seed: int, count: int) -> list[bool]:
    return (torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5).tolist()


def outside(vlm: Any) -> dict[str, Any]:
    """Everything about a model but the values of its tower."""
    inside = "model.vision_tower."
    return {
        "modes": [module.training for module in vlm.modules()],
        "gradients": [parameter.requires_grad for parameter in vlm.parameters()],
        "places": [(p.device, p.dtype, id(p), p.grad is None) for p in vlm.parameters()],
        "hooks": [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in vlm.modules()],
        "attention": [getattr(part, "_attn_implementation", None) for part in (vlm.config, tower_of(vlm).config)],
        "others": {n: t.clone() for n, t in vlm.state_dict().items() if not n.startswith(inside)},
        "random": torch.get_rng_state(),
        "mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    tensors = all(torch.equal(tensor, theirs["others"][name]) for name, tensor in ours["others"].items())
    names = set(ours) - {"others", "random"}
    return tensors and torch.equal(ours["random"], theirs["random"]) and all(ours[n] == theirs[n] for n in names)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    dtype=st.sampled_from(DTYPES),
    new=st.sampled_from(DTYPES),
    attention=st.sampled_from(("sdpa", "eager")),
    size=st.sampled_from((32, 48)),
    with_processor=st.booleans(),
    seed=st.integers(0, 1000),
    wrapped=st.sampled_from(("plain", "hooks", "parallel")),
)
def test_everything_but_the_towers_values_stays(
    dtype: torch.dtype, new: torch.dtype, attention: str, size: int, with_processor: bool, seed: int, wrapped: str
) -> None:
    vlm: Any = llava().to(dtype)
    tower_of(vlm).set_attn_implementation(attention)
    for module, training in zip(vlm.modules(), bits(seed, 10_000), strict=False):
        module.training = training
    for parameter, flag in zip(vlm.parameters(), bits(seed + 1, 10_000), strict=False):
        parameter.requires_grad_(flag)
    # transformers leaves hooks of its own at the first call that asks for hidden states, as a LLaVA's forward does.
    tower_of(vlm)(pixel_values=torch.zeros(1, 3, 32, 32, dtype=dtype), output_hidden_states=True)
    calls: list[int] = []
    tower_of(vlm).encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    model = dispatch_model(vlm, {"": "cpu"}, force_hooks=True) if wrapped == "hooks" else vlm
    model = torch.nn.DataParallel(vlm) if wrapped == "parallel" else model
    robust, wanted = encoder(image_size=size).to(new), encoder(image_size=size).to(new).vision_model.state_dict()
    before, values = outside(vlm), {n: t.clone() for n, t in tower_of(vlm).state_dict().items()}
    needed = processor() if with_processor or size != 32 else None
    with pytest.raises(KeyError), swap_vision_tower(model, robust, needed) as report:
        assert same(outside(vlm), before)
        assert all(torch.equal(t, wanted[n].to(t.dtype)) for n, t in tower_of(vlm).state_dict().items())
        assert report.probe_difference == 0.0 and calls
        raise KeyError
    assert same(outside(vlm), before)
    assert all(torch.equal(tensor, values[name]) for name, tensor in tower_of(vlm).state_dict().items())


def loss_of(vlm: Any, proc: Any) -> torch.Tensor:
    with torch.no_grad():
        return VlmLoss(vlm, proc, PROMPT, ["a red cat"])(images(1))


def expected(size: int = 48) -> tuple[torch.Tensor, list[str]]:
    """Loss and answer of a plain swapped model."""
    vlm, proc = llava(), processor()
    swap_vision_tower(vlm, encoder(image_size=size), proc)
    return loss_of(vlm, proc), generate_text(vlm, proc, images(1), PROMPT)


def test_compiled_models_and_towers_are_swapped_inside() -> None:
    whole: Any = torch.compile(llava(), backend="eager")
    assert swap_vision_tower(whole, encoder(), processor()).probe_difference == 0.0
    part, proc = llava(), processor()
    part.model.vision_tower = torch.compile(part.model.vision_tower, backend="eager")
    report = swap_vision_tower(part, encoder(image_size=48), proc)
    assert report.tower == "model.vision_tower" and report.image_tokens == (16, 36)
    compiled: Any = torch.compile(encoder(), backend="eager")
    assert swap_vision_tower(llava(), compiled).changed


@pytest.mark.slow
def test_a_compiled_model_computes_with_the_new_tower() -> None:
    vlm, proc = llava(), processor()
    vlm.compile(backend="eager")
    before = loss_of(vlm, proc)
    report = swap_vision_tower(vlm, encoder(image_size=48), proc)
    torch.testing.assert_close(loss_of(vlm, proc), expected()[0])
    report.undo()
    torch.testing.assert_close(loss_of(vlm, proc), before)


def test_a_language_model_on_the_disk(tmp_path: Path) -> None:
    """The tower is on a device, the rest is offloaded: swap, loss and answers work."""
    places = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    places["model.language_model"] = "disk"
    vlm = dispatch_model(llava(), places, offload_dir=tmp_path, main_device="cpu", force_hooks=True)
    assert vlm.get_input_embeddings().weight.device.type == "meta"
    proc = processor()
    swap_vision_tower(vlm, encoder(image_size=48), proc)
    loss, answer = expected()
    torch.testing.assert_close(loss_of(vlm, proc), loss)
    assert generate_text(vlm, proc, images(1), PROMPT) == answer


def test_an_offloaded_tower_is_refused_before_and_after() -> None:
    offloaded = llava()
    cpu_offload(offloaded, torch.device("cpu"))
    with pytest.raises(ValueError, match="on the meta device .* load the model without offloading the tower"):
        swap_vision_tower(offloaded, encoder(), processor())
    vlm = llava()
    report = swap_vision_tower(vlm, encoder())
    cpu_offload(vlm, torch.device("cpu"))
    with pytest.raises(ValueError, match="on the meta device"):
        report.undo()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_that_was_moved_since_comes_back_where_it_is(dtype: torch.dtype) -> None:
    vlm, proc = llava(), processor()
    report = swap_vision_tower(vlm, encoder(image_size=48), proc)
    vlm.to(dtype)
    report.undo()
    assert {parameter.dtype for parameter in tower_of(vlm).parameters()} == {dtype}
    torch.testing.assert_close(loss_of(vlm, proc), loss_of(llava().to(dtype), processor()))


def test_a_loss_follows_a_swap_of_another_resolution() -> None:
    vlm, proc = llava(), processor()
    loss = VlmLoss(vlm, proc, PROMPT, ["a red cat"])
    with torch.no_grad(), swap_vision_tower(vlm, encoder(image_size=48), proc):
        torch.testing.assert_close(loss(images(1)), expected()[0])
    with torch.no_grad():
        assert torch.equal(loss(images(1)), loss_of(llava(), processor()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pixels_of_a_loss_stay_in_fp32_whatever_the_model_has(dtype: torch.dtype) -> None:
    """Loss and gradient are fp32, and near those of the fp32 model."""
    vlm, proc = llava().to(dtype), processor()
    loss, pixels = VlmLoss(vlm, proc, PROMPT, ["a red cat"] * 2), images(2).requires_grad_()
    with frozen(vlm):
        values = loss(pixels)
        gradient = torch.autograd.grad(values.sum(), pixels)[0]
    assert values.dtype == gradient.dtype == torch.float32 and pixels.dtype == torch.float32
    plain = llava()
    precise = VlmLoss(plain, proc, PROMPT, ["a red cat"] * 2)(pixels)
    wanted = torch.autograd.grad(precise.sum(), pixels)[0]
    torch.testing.assert_close(values, precise, rtol=5e-2, atol=5e-2)
    cosine = torch.nn.functional.cosine_similarity(gradient.flatten(1), wanted.flatten(1))
    assert float(cosine.min()) > 0.9
