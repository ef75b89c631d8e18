"""What image processors do to pixels, differentiably: padding, resize, crop, tiles of any resolution, normalisation.

Each function mirrors the PIL backend of transformers' processors, on float pixels in [0, 1] instead of bytes. Where
nothing is resized the result is the processor's; where it is, the processor rounds to 8 bits after the width and after
the height, and this does not: a pixel differs by at most 1.5/255.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_utils import select_best_resolution

from fare_hf.data.pixels import Normalization
from fare_hf.vlm.families.table import image_processor_of

__all__ = ["image_inputs", "image_settings", "processed_pixels"]

MODES = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers of the filters that torch has too."""


def image_settings(processor: Any) -> Any:
    """The image processor as a processor calls it: with the options that the processor's class sets itself.

    AyaVision cuts images into tiles and Gemma 3 does not look closer, whatever the image processor's own file says.

    Raises:
        TypeError: it is no processor of a vision-language model.
    """
    settings = copy.copy(image_processor_of(processor))
    for name, value in getattr(processor, "images_kwargs", {}).items():
        setattr(settings, name, value)
    return settings


def image_inputs(image_processor: Any, pixels: Tensor) -> dict[str, Tensor]:
    """The model inputs that the processor would make of a batch of images.

    Args:
        image_processor: `image_settings` of the processor of a model of `fare_hf.vlm.families.table.FAMILIES`.
        pixels: (B, 3, H, W) in [0, 1].

    Returns:
        `pixel_values`: (B, 3, S, S), or (B, T, 3, S, S) with T tiles and `image_sizes` (B, 2) where the model puts the
        tiles together, or (B * T, 3, S, S) where it reads them one after the other (AyaVision, Gemma 3).

    Raises:
        ValueError: pixels of another shape, or a processor with a filter or range that this does not know.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"pixels have shape {tuple(pixels.shape)}, images are (B, 3, H, W): reshape them.")
    _check(image_processor)
    processed = processed_pixels(image_processor, pixels)
    if image_processor.do_normalize:
        normalization = Normalization.from_processor(image_processor)
        processed = normalization(processed.flatten(0, -4)).view(processed.shape)
    if getattr(image_processor, "image_grid_pinpoints", None) is not None:
        sizes = torch.tensor([pixels.shape[-2:]] * len(pixels), device=pixels.device)
        return {"pixel_values": processed, "image_sizes": sizes}
    if type(image_processor).__name__.startswith("Idefics"):
        processed = processed.unsqueeze(1)
    return {"pixel_values": processed}


def processed_pixels(image_processor: Any, pixels: Tensor) -> Tensor:
    """The same before normalisation: values stay in [0, 1]."""
    if getattr(image_processor, "image_grid_pinpoints", None) is not None:
        return _tiles(image_processor, pixels)
    if getattr(image_processor, "crop_to_patches", False) and image_processor.max_patches > 1:
        return _canvas(image_processor, pixels)
    if getattr(image_processor, "do_pan_and_scan", False):
        parts = [_fit(image_processor, part) for part in (pixels, *_close_ups(image_processor, pixels))]
        return torch.stack(parts, 1).flatten(0, 1)
    if hasattr(image_processor, "min_size"):
        return _long_side(image_processor, pixels)
    if getattr(image_processor, "do_pad", False) and hasattr(image_processor, "pad_to_square"):
        pixels = _square(pixels, [int(value * 255) for value in image_processor.image_mean])
    return _fit(image_processor, pixels)


def _fit(image_processor: Any, pixels: Tensor) -> Tensor:
    """Resize and centre crop as the processor is told to."""
    if image_processor.do_resize:
        pixels = _resize(pixels, _target(image_processor.size, pixels), image_processor)
    if getattr(image_processor, "do_center_crop", False):
        crop = image_processor.crop_size
        pixels = _center_crop(pixels, int(crop["height"]), int(crop["width"]))
    return pixels


def _long_side(image_processor: Any, pixels: Tensor) -> Tensor:
    """DeepSeek-VL: the longer side becomes `size`, the shorter one is padded to a square."""
    if image_processor.do_resize:
        height, width = pixels.shape[-2:]
        scale, least = int(image_processor.size["height"]) / max(height, width), image_processor.min_size
        target = max(round(height * scale), least), max(round(width * scale), least)
        pixels = _resize(pixels, target, image_processor)
    return _square(pixels, image_processor.background_color) if image_processor.do_pad else pixels


def _tiles(image_processor: Any, pixels: Tensor) -> Tensor:
    """The whole image squeezed into a square, then tiles of the image fitted into the best grid, (B, T, 3, S, S)."""
    size, crop = image_processor.size, getattr(image_processor, "crop_size", None)
    edge = size["shortest_edge"] or size["height"]
    tile = int(crop["height"] if crop is not None and crop["height"] else edge)
    overview = (int(edge), int(size["width"] or edge))
    height, width = pixels.shape[-2:]
    rows, columns = select_best_resolution((height, width), image_processor.image_grid_pinpoints)
    fitted = _resize(pixels, _inside(height, width, rows, columns), image_processor)
    top, left = (rows - fitted.shape[-2]) // 2, (columns - fitted.shape[-1]) // 2
    padded = F.pad(fitted, (left, columns - fitted.shape[-1] - left, top, rows - fitted.shape[-2] - top))
    parts = [_resize(pixels, overview, image_processor)]
    parts += [padded[..., i : i + tile, j : j + tile] for i in range(0, rows, tile) for j in range(0, columns, tile)]
    return torch.stack([_fit(image_processor, part) for part in parts], 1)


def _canvas(image_processor: Any, pixels: Tensor) -> Tensor:
    """AyaVision: an image stretched over the best grid of tiles, row by row, then the whole: (B * T, 3, S, S)."""
    # Imported where it is needed: its module asks for torchvision in some versions of transformers.
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    tile = int(image_processor.size["height"]), int(image_processor.size["width"])
    fewest, most = image_processor.min_patches, image_processor.max_patches
    columns, rows = get_optimal_tiled_canvas(tuple(pixels.shape[-2:]), tile, fewest, most)
    large = _resize(pixels, (rows * tile[0], columns * tile[1]), image_processor)
    parts = [part for row in large.split(tile[0], -2) for part in row.split(tile[1], -1)]
    if len(parts) > 1:
        parts.append(_resize(pixels, tile, image_processor))
    return torch.stack(parts, 1).flatten(0, 1)


def _close_ups(image_processor: Any, pixels: Tensor) -> tuple[Tensor, ...]:
    """Gemma 3's "pan and scan": an image that is much longer than wide, in a few pieces along its length."""
    height, width = pixels.shape[-2:]
    long, short = max(height, width), min(height, width)
    least = image_processor.pan_and_scan_min_crop_size
    if long / short < image_processor.pan_and_scan_min_ratio_to_activate:
        return ()
    count = min(long // least, math.floor(long / short + 0.5))
    count = min(image_processor.pan_and_scan_max_num_crops, max(2, count))
    length = math.ceil(long / count)
    if min(length, short) < least:
        return ()
    return pixels.split(length, -1 if width >= height else -2)


def _inside(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """The largest size of the same shape that fits."""
    if columns / width < rows / height:
        return min(math.ceil(height * (columns / width)), rows), columns
    return rows, min(math.ceil(width * (rows / height)), columns)


def _target(size: Any, pixels: Tensor) -> tuple[int, int]:
    """Height and width after a resize."""
    height, width = pixels.shape[-2:]
    edge = size["shortest_edge"]
    if edge:
        short, long = min(height, width), max(height, width)
        longer = int(edge * long / short)
        return (longer, edge) if width <= height else (edge, longer)
    return int(size["height"]), int(size["width"])


def _resize(pixels: Tensor, size: tuple[int, int], image_processor: Any) -> Tensor:
    if pixels.shape[-2:] == size:
        return pixels
    height_first = _height_first(*pixels.shape[-2:], *size, int(image_processor.resample))
    return _passes(pixels, size, MODES[int(image_processor.resample)], height_first)


def _passes(pixels: Tensor, size: tuple[int, int], mode: str, height_first: bool) -> Tensor:
    """One side after the other with a clip after each, as PIL does it; the order matters where a value is clipped."""
    (height, width), (rows, columns) = pixels.shape[-2:], size
    for shape in ((rows, width) if height_first else (height, columns), size):
        if pixels.shape[-2:] != shape:
            pixels = F.interpolate(pixels, shape, mode=mode, align_corners=False, antialias=True).clamp(0, 1)
    return pixels


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


def _square(pixels: Tensor, levels: Sequence[int]) -> Tensor:
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


def _check(image_processor: Any) -> None:
    """The processor does what these functions do."""
    name = type(image_processor).__name__
    if image_processor.do_resize and int(image_processor.resample) not in MODES:
        raise ValueError(f"the filter {image_processor.resample} of the {name} is unknown: use bicubic or bilinear.")
    factor = image_processor.rescale_factor
    if not image_processor.do_rescale or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise ValueError(f"the {name} does not rescale bytes by 1/255: set do_rescale and rescale_factor.")
