"""The one pixel convention: float tensors (B, 3, H, W) in [0, 1], not normalised.

Processors make them with `do_normalize=False`; the normalisation of a model happens inside the function that an attack
differentiates, so that a radius of 4/255 means 4/255.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fare_hf.attacks.threat_model import check_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Normalization",
    "Pictures",
    "StoredPixels",
    "check_pixels",
    "one_by_one",
    "quantize",
    "resize",
    "to_pil",
    "together",
    "unnormalized",
]

Processor = TypeVar("Processor")
Pictures: TypeAlias = Tensor | list[Tensor]
"""Images (N, 3, H, W) in [0, 1], or a list of N (3, H, W) where their sizes differ."""


class Normalization:
    """Per-channel `(pixels - mean) / std`, differentiable, what a model expects of its pixel values.

    Args:
        mean, std: one number a channel, for pixels in [0, 1].

    Raises:
        ValueError: lengths that differ, or a std that is not positive and finite.

    Example:
        >>> import torch
        >>> Normalization([0.5] * 3, [0.5] * 3)(torch.ones(1, 3, 2, 2)).max().item()
        1.0
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                f"mean {self.mean} and std {self.std} differ in length: pass one number a channel for each."
            )
        if not all(math.isfinite(m) and math.isfinite(s) and s > 0 for m, s in zip(self.mean, self.std, strict=True)):
            raise ValueError(f"mean {self.mean}, std {self.std}: pass finite numbers, and every std above 0.")
        self._tensors: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_processor(cls, image_processor: Any) -> Normalization:
        """The normalisation of a transformers image processor (or of the image processor inside a processor).

        Raises:
            ValueError: no `image_mean` or `image_std`.
        """
        source = getattr(image_processor, "image_processor", image_processor)
        mean, std = getattr(source, "image_mean", None), getattr(source, "image_std", None)
        if mean is None or std is None:
            raise ValueError(
                f"{type(source).__name__} has no image_mean and image_std: pass Normalization(mean, std)."
            )
        return cls(mean, std)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to the same shape and dtype, normalised."""
        mean, std = self._on(pixels.device, pixels.dtype)
        return (pixels - mean).div_(std)

    def __repr__(self) -> str:
        return f"Normalization(mean={self.mean}, std={self.std})"

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Mean and std on a device, made once: copying them there in every step of an attack would be a host sync."""
        if (device, dtype) not in self._tensors:
            with torch.inference_mode(False):  # an inference tensor could not be used under autograd later
                shaped = [torch.tensor(v, device=device, dtype=dtype).view(1, -1, 1, 1) for v in (self.mean, self.std)]
            self._tensors[device, dtype] = (shaped[0], shaped[1])
        return self._tensors[device, dtype]


class StoredPixels:
    """Stands for an image processor, and leaves images as they are stored, of any size: (3, H, W) in [0, 1]."""

    do_rescale, rescale_factor, do_resize, do_normalize = True, 1 / 255, False, False

    def __call__(self, images: Image | Sequence[Image], return_tensors: str = "pt") -> dict[str, Tensor]:
        """RGB pictures of one size as a batch (B, 3, H, W)."""
        pictures = images if isinstance(images, Sequence) else [images]
        levels = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
        return {"pixel_values": levels.permute(0, 3, 1, 2).float().div(255)}


def unnormalized(image_processor: Processor) -> Processor:
    """A copy of a transformers image processor that stops before normalising: its `pixel_values` are in [0, 1].

    Raises:
        ValueError: it does not rescale bytes by 1/255, so that its output would not be in [0, 1].
    """
    rescales, factor = getattr(image_processor, "do_rescale", False), getattr(image_processor, "rescale_factor", None)
    if not rescales or factor is None or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        fault = f"rescale_factor {factor}: set it to 1/255" if rescales else "do_rescale off: set it on"
        raise ValueError(f"{type(image_processor).__name__} has {fault}, so that pixels are in [0, 1].")
    processor = copy.deepcopy(image_processor)
    processor.do_normalize = False  # type: ignore[attr-defined]
    return processor


def resize(pixels: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Bicubic, antialiased, clamped to [0, 1], differentiable; the same tensor when it has that size already.

    Args:
        pixels: (B, C, H, W) in [0, 1].
        size: height and width, or one number for both.

    Raises:
        ValueError: a size below 1.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size {size} is not positive: pass a height and width of at least 1.")
    if pixels.shape[-2:] == (height, width):
        return pixels
    return F.interpolate(pixels, (height, width), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def quantize(pixels: Tensor) -> Tensor:
    """Round to the nearest 8-bit level, as saving to PNG does: values k/255, same shape and dtype."""
    return pixels.mul(255).round_().clamp_(0, 255).div_(255)


def together(images: Sequence[Tensor]) -> Pictures:
    """Images (3, H, W) as one batch where all have one size, else as they are."""
    return torch.stack(list(images)) if len({image.shape for image in images}) == 1 else list(images)


def one_by_one(change: Callable[..., Tensor], *images: Pictures) -> Pictures:
    """What a function of batches makes of images; of those of several sizes one after the other.

    Args:
        change: (B, 3, H, W), as many as `images`, -> the same number of images.
        images: of equal sizes.
    """
    if all(isinstance(batch, Tensor) for batch in images):
        return change(*images)
    return together([change(*(image[None] for image in group))[0] for group in zip(*images, strict=True)])


def to_pil(pixels: Tensor) -> list[Image]:
    """A batch (B, 3, H, W) in [0, 1] as 8-bit RGB pictures.

    Raises:
        TypeError, ValueError: not pixels (see `check_pixels`), or not 3 channels.
    """
    from PIL import Image

    check_pixels(pixels)
    if pixels.shape[1] != 3:
        raise ValueError(f"pixels have {pixels.shape[1]} channels: pass RGB images of shape (B, 3, H, W).")
    levels = pixels.detach().float().mul(255).round_().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in levels]
