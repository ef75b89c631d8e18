"""What a CLIP ViT is, said once: both formats are read into these fields and written from them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ACTIVATIONS", "ClipSpec", "ImageSpec", "TextSpec", "VisionSpec"]

ACTIVATIONS = ("gelu", "quick_gelu")
"""The two of CLIP: exact GELU (LAION), and `x * sigmoid(1.702 x)` (OpenAI)."""


@dataclass(frozen=True)
class VisionSpec:
    """The vision transformer: pre-norm blocks behind a class token and one position for each patch."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    image_size: int
    patch_size: int
    eps: float = 1e-5

    @property
    def positions(self) -> int:
        """Tokens of an image: its patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True)
class TextSpec:
    """The causal text transformer; `eos` None pools at each sentence's highest id, a number at its first place."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    positions: int
    vocab_size: int
    eps: float = 1e-5
    eos: int | None = None


@dataclass(frozen=True)
class ImageSpec:
    """How pictures become pixels: resized ("shortest": and centre-cropped; "squash": not), then normalised."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


@dataclass(frozen=True)
class ClipSpec:
    """A CLIP, or its vision part alone where `text` is None.

    Attributes:
        embed_dim: length of an embedding.
        activation: one of `ACTIVATIONS`.
        evidence: where the activation was read.
        images: None where the source does not say.
    """

    embed_dim: int
    activation: str
    evidence: str
    vision: VisionSpec
    text: TextSpec | None = None
    images: ImageSpec | None = None
