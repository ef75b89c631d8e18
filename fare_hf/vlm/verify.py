"""Proof that a swap did what it should: forward passes of tower, encoder and whole model on probe images."""

from __future__ import annotations

import copy
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from fare_hf.encoders import evaluating, frozen
from fare_hf.pixels import Normalization, resize, to_pil
from fare_hf.vlm.families import Family, placement
from fare_hf.vlm.prompts import model_inputs

__all__ = [
    "MINIMUM_COSINE",
    "clean_embeddings",
    "forward_check",
    "mean_cosine",
    "probe_images",
    "tower_difference",
    "twin_of",
]

MINIMUM_COSINE = 0.6
"""Below this mean cosine of clean embeddings an encoder counts as fine-tuned from another CLIP than the tower."""
PROBES = 8


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


def twin_of(new: PreTrainedModel, tower: nn.Module) -> Any:
    """A copy of the encoder with the tower's device, dtype and attention, to compare the swapped tower with."""
    device, dtype = placement(tower)
    twin: Any = copy.deepcopy(new)
    twin.to(device=device, dtype=dtype).eval()
    twin.set_attn_implementation(getattr(tower.config, "_attn_implementation", None) or "sdpa")
    return twin


@torch.no_grad()
def tower_difference(tower: nn.Module, twin: nn.Module) -> tuple[float, float]:
    """Largest absolute difference of a tower and an encoder on a probe image, and what rounding explains.

    All hidden states that both have are compared (the last one and the pooled one, in a tower that shows no others).
    """
    device, dtype = placement(tower)
    size = int(tower.config.image_size)  # type: ignore[arg-type, union-attr]
    probe = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    with evaluating(tower):
        ours, theirs = _states(tower, probe, tower), _states(twin, probe, tower)
    pairs = list(zip(ours, theirs, strict=False))
    difference = max(float((a.float() - b.float()).abs().max()) for a, b in pairs)
    scale = max(float(b.float().abs().max()) for _, b in pairs)
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 2e-2
    return difference, tolerance * scale


@torch.no_grad()
def clean_embeddings(vision: nn.Module, normalization: Normalization, layers: int) -> Tensor:
    """Embeddings of the probe images at the encoder's own resolution, (N, D) fp32 on the CPU.

    The pooled embedding where the model has CLIP's, else the mean patch token behind block `layers`.
    """
    device, dtype = placement(vision)
    config: Any = vision.config
    pixels = normalization(probe_images(PROBES, int(config.image_size))).to(device, dtype)
    with evaluating(vision):
        if hasattr(vision, "pre_layrnorm"):  # CLIP's spelling, and Idefics'
            return vision(pixel_values=pixels).pooler_output.float().cpu()
        hidden = vision(pixel_values=pixels, output_hidden_states=True).hidden_states
    return hidden[layers].float().mean(1).cpu()


def mean_cosine(ours: Tensor, theirs: Tensor) -> float:
    """Mean cosine of paired embeddings (N, D)."""
    return float(F.cosine_similarity(ours, theirs, dim=-1).mean())


@torch.no_grad()
def forward_check(vlm: Any, family: Family, processor: Any) -> int:
    """Run the whole model once on an image through its processor; returns the placeholder tokens of the image.

    Raises:
        ValueError: the processor writes another number of placeholders than the model has features.
    """
    size = int(vlm.config.vision_config.image_size)
    picture: Image.Image = to_pil(probe_images(1, size))[0].resize((size + size // 2, size))
    inputs = model_inputs(vlm, processor, picture)
    token = getattr(vlm.config, "image_token_id", None)
    count = 0 if token is None else int((inputs["input_ids"] == token).sum())
    try:
        with frozen(vlm):
            vlm(**inputs, use_cache=False)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the {type(vlm).__name__} does not take what its processor makes of an image ({str(error)[:200]}): pass "
            "the processor of this model, and see that the model runs on its own."
        ) from error
    return count


def _states(module: nn.Module, probe: Tensor, tower: nn.Module) -> list[Tensor]:
    if not isinstance(tower, PreTrainedModel):  # Idefics
        output = module(pixel_values=probe)
        return [output.last_hidden_state, output.pooler_output]
    return list(module(pixel_values=probe, output_hidden_states=True).hidden_states)
