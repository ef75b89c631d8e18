"""Images to pixels about three times as fast as by Pillow and a processor; of 1,000 values four are a level off."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from fare_hf.data.decoding import UNREADABLE, check_resized, to_rgb

__all__ = ["FastPixels"]

FILTERS = {PillowImage.Resampling.BILINEAR: "bilinear", PillowImage.Resampling.BICUBIC: "bicubic"}
JPEG = b"\xff\xd8\xff"
ORIENTATION, UPRIGHT = 0x0112, 1
MOST = 2.001 / 255
"""Difference of a value that rounding explains."""
PROBES = ((90, 120), (131, 97))
"""Height and width of the noise on which a processor is compared."""


class FastPixels:
    """What an image processor does, with torch on bytes: resize, crop the middle, scale to [0, 1].

    JPEGs are decoded by simplejpeg where it is installed (`pip install simplejpeg`), to the very bytes that
    Pillow gives; anything else, and what simplejpeg refuses, by Pillow. In a resize torch weighs pixels with 16 bits
    and Pillow with more: of 1,000 values about 4 are a level of 255 off, of a million one or so two levels.

    Args:
        processor: of transformers, without normalisation; compared on noise, so that one that does more is found.

    Raises:
        ValueError: it does not resize so, or its pixels differ by more than `MOST`.

    Example:
        >>> from PIL import Image
        >>> from fare_hf.lab import load_training_set
        >>> fast = FastPixels(load_training_set().processor)
        >>> fast.pixels(fast.read(Image.new("RGB", (200, 180)))).shape
        torch.Size([3, 160, 160])
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.size = {side: int(length) for side, length in dict(processor.size).items() if length}
        self.crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else {}
        resizes = processor.do_resize and self.size.keys() in ({"shortest_edge"}, {"height", "width"})
        if not resizes or processor.resample not in FILTERS:
            raise ValueError(_refusal(processor, "resizes to a short edge or a size, bicubic or bilinear,"))
        self.mode = FILTERS[processor.resample]
        self.decode = _decoder()
        if not all(map(self._is_equal, PROBES)):
            raise ValueError(_refusal(processor, "only resizes and crops"))

    @property
    def decoder(self) -> str:
        """What decodes JPEGs."""
        return "Pillow" if self.decode is None else "simplejpeg"

    def read(self, value: Any) -> NDArray[np.uint8]:
        """One image as (H, W, 3) bytes, upright, of a size that can be resized.

        Args:
            value: as for `to_rgb`.

        Raises:
            ValueError, OSError: as `to_rgb` and `check_resized`.
        """
        levels = self._decoded(value)
        if levels is None:
            levels = np.array(to_rgb(value))
        check_resized((levels.shape[1], levels.shape[0]), self.processor)
        return levels

    def pixels(self, levels: NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) bytes to (3, H', W') pixels in [0, 1], fp32."""
        image = torch.from_numpy(levels).permute(2, 0, 1)[None]
        image = F.interpolate(image, self._resized(*levels.shape[:2]), mode=self.mode, antialias=True)[0]
        if self.crop:
            height, width = self.crop["height"], self.crop["width"]
            top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
            image = image[:, top : top + height, left : left + width]
        return image.contiguous().float().div_(255)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize; of a long edge transformers rounds down."""
        if "height" in self.size:
            return self.size["height"], self.size["width"]
        short = self.size["shortest_edge"]
        return (int(short * height / width), short) if width <= height else (short, int(short * width / height))

    def _decoded(self, value: Any) -> NDArray[np.uint8] | None:
        """By simplejpeg, where it can."""
        content = None if self.decode is None else _content_of(value)
        if content is None or not _is_plain_jpeg(content):
            return None
        try:
            return self.decode(content, "RGB")
        except ValueError:  # a damaged one: Pillow says so, or reads it
            return None

    def _is_equal(self, shape: tuple[int, int]) -> bool:
        """Whether its processor makes the same of noise."""
        noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        theirs = self.processor(images=PillowImage.fromarray(noise), return_tensors="pt")["pixel_values"][0]
        ours = self.pixels(noise)
        return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= MOST)


def _refusal(processor: Any, what: str) -> str:
    name = type(processor).__name__
    return f"fast_images=True takes the place of a processor that {what} and {name} does otherwise; leave it out."


@functools.cache
def _decoder() -> Any:
    """`simplejpeg.decode_jpeg`, or None without it."""
    if find_spec("simplejpeg") is None:
        return None
    from simplejpeg import decode_jpeg

    return decode_jpeg


def _content_of(value: Any) -> bytes | None:
    """The bytes of a file that a data set holds or that lies here; None for anything else."""
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, (str, Path)) and Path(value).is_file():
        return Path(value).read_bytes()
    return value if isinstance(value, bytes) else None


def _is_plain_jpeg(content: bytes) -> bool:
    """Whether it is a JPEG of three channels that stands upright, by its head; a decompression bomb is none."""
    if not content.startswith(JPEG):
        return False
    try:
        with PillowImage.open(BytesIO(content), formats=["JPEG"]) as image:
            return image.mode == "RGB" and image.getexif().get(ORIENTATION, UPRIGHT) == UPRIGHT
    except UNREADABLE:
        return False
