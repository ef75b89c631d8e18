"""What image processors do to pixels, differentiably: resize, crop, padding; how a family puts them together it says.

Each function mirrors the PIL backend of transformers' processors, on float pixels in [0, 1] instead of bytes. Where
nothing is resized the result is the processor's; where it is, the processor rounds to 8 bits after the width and after
the height, and this does not: a pixel differs by at most 1.5/255.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

__all__ = ["check_processor", "fit", "merged_patches", "resize", "square"]

MODES = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""PIL's numbers of the filters that are known here; torch has all but the first."""
LANCZOS = 3
"""Pixels on either side that its window reaches, where an image is enlarged."""


def fit(settings: Any, pixels: Tensor) -> Tensor:
    """Resize and centre crop as the processor is told to."""
    if settings.do_resize:
        pixels = resize(pixels, _target(settings.size, pixels), settings)
    if getattr(settings, "do_center_crop", False):
        crop = settings.crop_size
        pixels = _center_crop(pixels, int(crop["height"]), int(crop["width"]))
    return pixels


def _target(size: Any, pixels: Tensor) -> tuple[int, int]:
    """Height and width after a resize."""
    height, width = pixels.shape[-2:]
    edge = size["shortest_edge"]
    if edge:
        short, long = min(height, width), max(height, width)
        longer = int(edge * long / short)
        return (longer, edge) if width <= height else (edge, longer)
    return int(size["height"]), int(size["width"])


def resize(pixels: Tensor, size: tuple[int, int], settings: Any) -> Tensor:
    """Resize with the processor's filter, as Pillow does it."""
    if pixels.shape[-2:] == size:
        return pixels
    height_first = _height_first(*pixels.shape[-2:], *size, int(settings.resample))
    return _passes(pixels, size, MODES[int(settings.resample)], height_first)


def _passes(pixels: Tensor, size: tuple[int, int], mode: str, height_first: bool) -> Tensor:
    """One side after the other with a clip after each, as PIL does it; the order matters where a value is clipped."""
    (height, width), (rows, columns) = pixels.shape[-2:], size
    for shape in ((rows, width) if height_first else (height, columns), size):
        if pixels.shape[-2:] != shape:
            pixels = _resampled(pixels, shape, mode).clamp(0, 1)
    return pixels


def _resampled(pixels: Tensor, shape: tuple[int, int], mode: str) -> Tensor:
    """One side resized; a sum of weighted pixels may leave [0, 1]."""
    if mode != "lanczos":
        return F.interpolate(pixels, shape, mode=mode, align_corners=False, antialias=True)
    if shape[1] == pixels.shape[-1]:
        return _lanczos(pixels.shape[-2], shape[0]).to(pixels) @ pixels
    return pixels @ _lanczos(pixels.shape[-1], shape[1]).to(pixels).t()


@cache
def _lanczos(old: int, new: int) -> Tensor:
    """Weights (new, old) of Pillow's Lanczos filter, in fp64."""
    scale = old / new
    reach = LANCZOS * max(scale, 1)
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    first = (centres - reach + 0.5).floor().clamp(min=0)
    last = (centres + reach + 0.5).floor().clamp(max=old)
    columns = torch.arange(old, dtype=torch.float64)
    inside = (columns >= first[:, None]) & (columns < last[:, None])
    distances = (columns + 0.5 - centres[:, None]) / max(scale, 1)
    weights = torch.sinc(distances) * torch.sinc(distances / LANCZOS) * inside * (distances.abs() < LANCZOS)
    return weights / weights.sum(1, keepdim=True)


@cache
def _height_first(height: int, width: int, rows: int, columns: int, resample: int) -> bool:
    """Whether Pillow takes the height before the width here: its rule has changed over releases, so it is asked."""
    levels = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(levels.to(torch.uint8).permute(1, 2, 0).numpy())
    resized = torch.frombuffer(bytearray(picture.resize((columns, rows), resample).tobytes()), dtype=torch.uint8)
    expected = resized.view(rows, columns, 3).permute(2, 0, 1) / 255
    pixels = levels[None] / 255
    gaps = [
        (_passes(pixels, (rows, columns), MODES[resample], flag)[0] - expected).abs().max() for flag in (False, True)
    ]
    return bool(gaps[1] < gaps[0])


def _center_crop(pixels: Tensor, height: int, width: int) -> Tensor:
    """Crop around the centre; what lies outside of the image is black."""
    high, wide = max(height - pixels.shape[-2], 0), max(width - pixels.shape[-1], 0)
    if high or wide:
        above, before = math.ceil(high / 2), math.ceil(wide / 2)
        pixels = F.pad(pixels, (before, wide - before, above, high - above))
    top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
    return pixels[..., top : top + height, left : left + width]


def square(pixels: Tensor, levels: Sequence[int]) -> Tensor:
    """Pad the shorter side with a colour, given in bytes."""
    height, width = pixels.shape[-2:]
    side = max(height, width)
    if height == width:
        return pixels
    colour = torch.tensor([level / 255 for level in levels], device=pixels.device, dtype=pixels.dtype)
    square = colour.view(1, -1, 1, 1).expand(len(pixels), -1, side, side).clone()
    top, left = (side - height) // 2, (side - width) // 2
    square[..., top : top + height, left : left + width] = pixels
    return square


def merged_patches(values: Tensor, patch: int, merge: int, frames: int) -> tuple[Tensor, Tensor]:
    """Images as rows of patches, those that are merged to one token one after the other, as Qwen's towers read them.

    Args:
        values: (B, C, H, W), sides of a whole number of tokens.
        patch: pixels a side.
        merge: patches a side of a token.
        frames: equal frames that a picture counts as.

    Returns:
        (B * rows * columns, C * frames * patch * patch), and the grid (B, 3): 1, rows, columns.

    Raises:
        ValueError: sides of no whole number of tokens.
    """
    height, width = values.shape[-2:]
    if height % (patch * merge) or width % (patch * merge):
        raise ValueError(
            f"images of {height} x {width} pixels are no whole number of tokens of {patch * merge} pixels, and "
            "do_resize of the image processor is off: switch it on, or resize them."
        )
    rows, columns = height // patch, width // patch
    parts = values.unflatten(-1, (columns // merge, merge, patch)).unflatten(-4, (rows // merge, merge, patch))
    # (B, C, row, row in token, y, column, column in token, x) -> tokens, patches of a token, values of a patch
    parts = parts.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    repeated = parts.expand(*parts.shape[:6], frames, *parts.shape[7:])
    grid = torch.tensor([[1, rows, columns]] * len(values), device=values.device)
    return repeated.flatten(5).flatten(0, 4), grid


def check_processor(settings: Any) -> None:
    """The processor does what these functions do.

    Raises:
        ValueError: it has a filter or range that they do not know.
    """
    name = type(settings).__name__
    if settings.do_resize and int(settings.resample) not in MODES:
        raise ValueError(f"the filter {settings.resample} of the {name} is unknown: use lanczos, bicubic or bilinear.")
    factor = settings.rescale_factor
    if not settings.do_rescale or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise ValueError(f"the {name} does not rescale bytes by 1/255: set do_rescale and rescale_factor.")
