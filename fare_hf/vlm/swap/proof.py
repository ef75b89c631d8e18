"""Proof that a swap did what it should: forward passes of tower, encoder and whole model on probe images."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from fare_hf.data.pixels import Normalization, resize, to_pil
from fare_hf.encoders import evaluating, frozen
from fare_hf.finite import largest, largest_difference
from fare_hf.pretrained.validation import check_answer, is_here
from fare_hf.vlm.families.table import placement, tower_of
from fare_hf.vlm.families.towers import kind_of
from fare_hf.vlm.prompts import image_token_count, model_inputs

__all__ = [
    "MINIMUM_COSINE",
    "clean_embeddings",
    "forward_check",
    "image_tokens",
    "mean_cosine",
    "probe_dtype",
    "probe_images",
    "probe_states",
    "tower_difference",
    "twin_of",
]

MINIMUM_COSINE = 0.6
"""Below this mean cosine of clean embeddings an encoder counts as fine-tuned from another CLIP than the tower."""
PROBES = 4


def probe_images(count: int, size: int) -> Tensor:
    """Images like photographs in their spectrum (amplitude 1/f) and in that colours vary together.

    Returns:
        (count, 3, size, size) in [0, 1]; the same ones at every size, and random state stays where it was.
    """
    generator = torch.Generator().manual_seed(0)
    side = 128
    spectrum = torch.fft.rfft2(torch.randn(count, 3, side, side, generator=generator))
    rows, columns = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None, :]
    amplitude = (rows**2 + columns**2).sqrt().clamp_min(1 / side).reciprocal()
    images = torch.fft.irfft2(spectrum * amplitude, s=(side, side))
    images = images + 2 * images.mean(1, keepdim=True)
    images = (images - images.mean((1, 2, 3), keepdim=True)) / images.std((1, 2, 3), keepdim=True)
    return resize((0.5 + 0.25 * images).clamp(0, 1), size)


def probe_dtype(tower: nn.Module) -> torch.dtype:
    """In which precision embeddings are compared: the tower's own, but fp32 on a CPU, where halves take minutes."""
    device, dtype = placement(tower)
    return torch.float32 if device.type == "cpu" and dtype.itemsize < 4 else dtype


def twin_of(new: PreTrainedModel, tower: nn.Module, dtype: torch.dtype | None = None) -> Any:
    """A copy of the encoder with the tower's device, dtype (or another) and attention, to compare the tower with."""
    device, own = placement(tower)
    twin: Any = copy.deepcopy(new)
    twin.to(device=device, dtype=dtype or own).eval()
    twin.set_attn_implementation(getattr(tower.config, "_attn_implementation", None) or "sdpa")
    return twin


@torch.no_grad()
def probe_states(twin: Any, tower: nn.Module, source: str) -> list[Tensor]:
    """What an encoder makes of a probe image in the tower's precision: all that a tower can show.

    Args:
        twin: `twin_of` the encoder.
        tower: decides by its class what can be compared.
        source: name of the encoder.

    Raises:
        ValueError: NaN or infinity: the encoder computes nothing in that precision.
    """
    states = _states(twin, tower)
    if all(bool(state.isfinite().all()) for state in states):
        return states
    _, dtype = placement(twin)
    precise = _states(twin_of(twin, tower, torch.float32), tower) if dtype.itemsize < 4 else states
    fits = all(bool(state.isfinite().all()) for state in precise)
    advice = "load the model in bfloat16 or float32" if fits else "take a checkpoint whose training did not diverge"
    raise ValueError(
        f"the encoder '{source}' makes NaN or infinity of a probe image in {_name(dtype)}, though its weights are "
        f"finite: {advice}."
    )


@torch.no_grad()
def tower_difference(tower: nn.Module, expected: Sequence[Tensor]) -> tuple[float, float]:
    """Largest absolute difference of a tower from `probe_states`, and what rounding explains.

    All hidden states of the tower are compared, and what it returns where it has as many blocks as the encoder.

    Returns:
        Both numbers; the first one is NaN or infinite where a value of the tower is.
    """
    with evaluating(tower):
        ours = _states(tower, tower)
    theirs = list(expected)
    if len(ours) < len(theirs):  # the last block, which is not read, was left out of the tower
        ours, theirs = ours[:-1], theirs[: len(ours) - 1]
    _, dtype = placement(tower)
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 2e-2
    return largest_difference(ours, theirs), tolerance * largest(float(state.abs().max()) for state in theirs)


@torch.no_grad()
def clean_embeddings(
    vision: nn.Module, normalization: Normalization, layers: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Embeddings of the probe images at the encoder's own resolution, (N, D) fp32 on the CPU.

    The pooled embedding where the model has CLIP's, else the mean patch token behind block `layers`.

    Args:
        vision: tower or encoder.
        normalization: of its pixels.
        layers: blocks before the tokens that are read.
        dtype: to compute in, without changing the model; None is its own.
    """
    device, own = placement(vision)
    config: Any = vision.config
    dtype = dtype or own
    kind = kind_of(vision)
    pixels = normalization(probe_images(PROBES, kind.side(config))).to(device, dtype)
    with evaluating(vision):
        if kind.pools_class_token:
            return _run(vision, pixels, dtype).pooler_output.float().cpu()
        if kind.own:
            last = _run(vision, pixels, dtype).last_hidden_state
            return last.float().reshape(PROBES, -1, last.shape[-1]).mean(1).cpu()
        hidden = _run(vision, pixels, dtype, output_hidden_states=True).hidden_states
    return hidden[layers].float().mean(1).cpu()


def check_tower(tower: Any, where: str) -> None:
    """A tower of a class of its own answers images with what is finite and differs, as `check_answers` asks of others.

    Args:
        tower: one that is not on this machine whole is passed over.
        where: names it, for the message.

    Raises:
        ValueError: it does not.
    """
    if not is_here(tower):
        return
    dtype = probe_dtype(tower)
    found = clean_embeddings(tower, Normalization([0.5] * 3, [0.5] * 3), 0, dtype)
    check_answer(found, f"{where} answers with features", dtype)


def mean_cosine(ours: Tensor, theirs: Tensor) -> float:
    """Mean cosine of paired embeddings (N, D); NaN where an embedding is not finite."""
    return float(F.cosine_similarity(ours, theirs, dim=-1).mean())


def image_tokens(vlm: Any, processor: Any) -> int:
    """Placeholder tokens of one image; 0 where the model has no token of its own for it.

    Raises:
        ValueError: the processor makes nothing of an image.
    """
    return image_token_count(vlm, _whole_inputs(vlm, processor))


@torch.no_grad()
def forward_check(vlm: Any, processor: Any) -> int:
    """Run the whole model once on an image through its processor; returns `image_tokens`.

    Raises:
        ValueError: the processor writes another number of placeholders than the model has features; logits that are
            not finite.
    """
    inputs = _whole_inputs(vlm, processor)
    with _fitting(vlm), frozen(vlm):
        logits = vlm(**inputs, use_cache=False).logits
    if not bool(logits.isfinite().all()):
        raise ValueError(
            f"the {type(vlm).__name__} answers an image with logits that are NaN or infinite in "
            f"{_name(logits.dtype)}: load it in bfloat16 or float32, and see that it answers without a swap."
        )
    return image_token_count(vlm, inputs)


def _whole_inputs(vlm: Any, processor: Any) -> dict[str, Tensor]:
    """What the processor makes of an image that is wider than high."""
    tower = tower_of(vlm)
    size = kind_of(tower).side(tower.config)
    picture: Image.Image = to_pil(probe_images(1, size))[0].resize((size + size // 2, size))
    with _fitting(vlm):
        return model_inputs(vlm, processor, picture)


@contextmanager
def _fitting(vlm: Any) -> Iterator[None]:
    """Whatever a library says of a processor and a model that do not fit becomes one sentence."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        words = text if isinstance(error, (ValueError, RuntimeError)) else f"{type(error).__name__}: {text}"
        raise ValueError(
            f"the {type(vlm).__name__} does not take what its processor makes of an image ({words}): pass the "
            "processor of this model, and see that the model runs on its own."
        ) from error


def _run(vision: nn.Module, pixels: Tensor, dtype: torch.dtype, **options: Any) -> Any:
    """A forward pass in a dtype; the model's own weights stay as they are."""
    inputs = {**kind_of(vision).inputs(vision.config, pixels), **options}
    if placement(vision)[1] == dtype:
        return vision(**inputs)
    weights = {name: weight.detach().to(dtype) for name, weight in vision.named_parameters()}
    return functional_call(vision, weights, kwargs=inputs)


def _states(module: Any, tower: nn.Module) -> list[Tensor]:
    """All hidden states of a probe image, if the tower shows them, and last what it returns."""
    device, dtype = placement(module)
    kind = kind_of(tower)
    size = kind.side(module.config)
    probe = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    inputs = kind.inputs(module.config, probe)
    if not kind.shows_layers:
        return [value for value in tree_leaves(dict(module(**inputs))) if isinstance(value, Tensor)]
    output = module(**inputs, output_hidden_states=True)
    return [*output.hidden_states, output.last_hidden_state]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
