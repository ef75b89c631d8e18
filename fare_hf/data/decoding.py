"""What data sets hold as an image (file, bytes, array, picture) to one 8-bit RGB picture, or a sentence why not."""

from __future__ import annotations

import functools
import logging
import struct
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets.utils.file_utils import xopen
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageOps

__all__ = ["IMAGE_ENDINGS", "MOST_PIXELS", "UNREADABLE", "check_resized", "to_rgb"]

# EPS runs another program on the file, WMF the system's; the others are containers without a decoder.
UNREAD = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
PillowImage.init()
FORMATS = sorted(set(PillowImage.OPEN) - UNREAD, key=lambda name: (name not in ("JPEG", "PNG", "WEBP"), name))
IMAGE_ENDINGS = frozenset(
    ending for ending, format in PillowImage.registered_extensions().items() if format in FORMATS
)
"""Endings of the image files that are read."""
MOST_PIXELS = 2**25
"""Pixels that an image may have after the resize of its short edge: 0.1 GB in 8 bit, several times that on the way."""
UNREADABLE = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, OSError, SyntaxError, TypeError, ValueError),
    *(struct.error, zlib.error, PillowImage.DecompressionBombError),
)
"""What Pillow raises for files that are damaged or too large, and this module for what is no image."""
CHANNELS = (1, 3, 4)
WHITE = (255, 255, 255)
logger = logging.getLogger(__name__)


def to_rgb(value: Any) -> PillowImage.Image:
    """One image, upright as its EXIF orientation says, in 8-bit RGB; what is transparent is drawn on white.

    16-bit grey is scaled to 8 bit; black and white, grey, palettes and CMYK are converted as Pillow does.

    Args:
        value: a picture, the path or bytes of a file, a mapping with `bytes` or `path`, an array or nested list of
            (H, W) or (H, W, C), or a tensor of (C, H, W): bytes, or floats in [0, 1].

    Returns:
        A picture of mode RGB.

    Raises:
        ValueError: none of these, or a mode or values without an agreed range.
        OSError: no such file, or one that holds no image; damaged files raise what is in `UNREADABLE`.
    """
    image = ImageOps.exif_transpose(_opened(value))
    if min(image.size) < 1:
        raise ValueError(f"it is {image.width} x {image.height} pixels")
    if image.mode in ("I", "F"):
        raise ValueError(f"Pillow's mode {image.mode!r} has no agreed range of values, save it as 8 bit")
    if image.mode.startswith("I;16"):
        image = _from_deep(image)
    return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def check_resized(size: tuple[int, int], processor: Any) -> None:
    """Refuses an image that its processor would blow up: bringing 1 x 20,000 pixels to a short edge of 224 takes 5 GB.

    Args:
        size: width and height, as they are before.
        processor: transformers' image processor; one that resizes to a fixed size bounds the pixels itself.

    Raises:
        ValueError: more than `MOST_PIXELS` pixels after the resize.
    """
    goal = getattr(processor, "size", None) or {}
    short = goal.get("shortest_edge") if isinstance(goal, Mapping) or hasattr(goal, "get") else None
    if not short or goal.get("longest_edge") or not getattr(processor, "do_resize", True):
        return
    pixels = short * short * max(size) // min(size)
    if pixels > MOST_PIXELS:
        raise ValueError(
            f"{size[0]} x {size[1]} pixels become {pixels:,} when the short edge is resized to {short}, "
            f"more than {MOST_PIXELS:,}"
        )


def _opened(value: Any) -> PillowImage.Image:
    """The picture as it is stored."""
    if isinstance(value, PillowImage.Image):
        return value
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _loaded(BytesIO(value))
    if isinstance(value, (str, Path)):
        return _from_path(str(value))
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) or _is_nested(value):
        return _from_array(np.asarray(value))
    raise ValueError("there is none" if value is None else f"{_kind(value)} is no image")


def _loaded(file: Any) -> PillowImage.Image:
    image = PillowImage.open(file, formats=FORMATS)
    image.load()  # now, so that its file is closed
    return image


def _from_path(name: str) -> PillowImage.Image:
    """From a local file, or from where `datasets` streams it; never from a pipe or device, which would not end."""
    if "://" in name:
        with xopen(name, "rb") as file:
            return _loaded(BytesIO(file.read()))
    path = Path(name)
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    with path.open("rb") as opened:
        return _loaded(opened)


def _is_nested(value: Any) -> bool:
    """Whether a list holds numbers in the end, and not several images."""
    inside = value
    while isinstance(inside, (list, tuple)) and inside:
        inside = inside[0]
    return inside is not value and isinstance(inside, (bool, int, float, np.number, np.ndarray))


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)} {type(value[0]).__name__}" if value else "an empty list"
    return f"a value of type {type(value).__name__}"


def _from_array(array: NDArray[Any]) -> PillowImage.Image:
    """(H, W), (H, W, C) or (C, H, W): bytes as they are; floats from 0 to 1; 16 bit over their whole range."""
    if array.ndim == 3 and array.shape[2] not in CHANNELS and array.shape[0] in CHANNELS:
        array = array.transpose(1, 2, 0)
    if fault := _fault_of(array):
        raise ValueError(fault)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    values = array.astype(np.float32)
    levels = values / 257 if array.dtype == np.uint16 else values * (255 if _is_unit(array) else 1)
    return PillowImage.fromarray(levels.round().astype(np.uint8))


def _fault_of(array: NDArray[Any]) -> str:
    """Why an array is no image; "" for one."""
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        return f"an array of shape {array.shape} is no image; (H, W, 3) or (3, H, W) is one"
    if not _is_unit(array) and not np.issubdtype(array.dtype, np.integer):
        return f"an array of {array.dtype} is no image"
    low, high = array.min(), array.max()
    if 0 <= low and high <= (1 if _is_unit(array) else 65535 if array.dtype == np.uint16 else 255):  # false for NaN
        return ""
    return f"values from {low} to {high}, and not bytes or floats in [0, 1]; leave normalising out"


def _is_unit(array: NDArray[Any]) -> bool:
    """Whether 1 is white."""
    return bool(np.issubdtype(array.dtype, np.floating)) or array.dtype == bool


def _from_deep(image: PillowImage.Image) -> PillowImage.Image:
    """8 bit of 16; Pillow would clip at 255, and show most such images white."""
    values = np.asarray(image)
    grey = (values.astype(np.float32) / 257).round().astype(np.uint8)
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return PillowImage.fromarray(grey)
    opaque = (values != key).astype(np.uint8) * 255
    return PillowImage.fromarray(np.dstack([grey, opaque]))


def _on_white(image: PillowImage.Image) -> PillowImage.Image:
    """Without a background, a black drawing on nothing would be black on black."""
    layers = image.convert("RGBA")
    if layers.getchannel("A").getextrema()[0] == 255:
        return layers.convert("RGB")
    warn_of_transparency()
    background = PillowImage.new("RGBA", layers.size, (*WHITE, 255))
    return PillowImage.alpha_composite(background, layers).convert("RGB")


@functools.cache
def warn_of_transparency() -> None:
    """Once in a process."""
    logger.warning("there are transparent images: each is drawn on white %s.", WHITE)
