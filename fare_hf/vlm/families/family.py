"""What a family of vision-language models is, and what LLaVA 1.5 does; a family that differs overrides it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from fare_hf.data.pixels import Normalization
from fare_hf.vlm.families.towers import CLIP, SIGLIP, TowerKind
from fare_hf.vlm.geometry import check_processor, fit, square

__all__ = ["COUNTS", "IMAGE", "Family", "image_processor_of", "image_settings", "join"]

COUNTS = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
IMAGE = "<image>"
"""The placeholder where a processor names none."""


@dataclass(frozen=True)
class Family:
    """One family of vision-language models; its methods are the hooks, here as LLaVA 1.5 has them.

    Attributes:
        vlm_class: name of the transformers class.
        towers: paths of the vision towers inside the model, as `torch.nn.Module.get_submodule` reads them; the first
            is the one for images.
        kinds: the kinds of towers that it may have.
        features: what is read of the tower: "layers" (the hidden states that the configuration names), "last" (the
            last hidden state before the final norm) or "normed" (after it).
        any_size: whether an encoder of another resolution fits (projector and processor count patches freely).
        any_resolution: whether the processor may cut an image into tiles, so that its size decides how many
            placeholders stand for it.
        keeps_prefix: whether what the language model computes of the text before an image can be kept: not where it
            wants an image at any time, or lets tokens look ahead.
        counts: fields without a default by which the processor counts the tokens of an image.
    """

    vlm_class: str
    towers: tuple[str, ...] = ("model.vision_tower",)
    kinds: tuple[TowerKind, ...] = (CLIP, SIGLIP)
    features: str = "layers"
    any_size: bool = True
    any_resolution: bool = False
    keeps_prefix: bool = True
    counts: tuple[str, ...] = ()

    any_side: ClassVar[bool] = False
    """Whether its tower reads images of any shape, as they come."""
    of_image: ClassVar[tuple[str, ...]] = (
        "pixel_values", "pixel_values_images", "image_sizes", "batch_num_images", "num_patches", "num_crops",
        "image_grid_thw", "pixel_attention_mask",
    )  # fmt: skip
    """What the processor makes of the picture; everything else it makes of the text."""

    @property
    def tower(self) -> str:
        """Path of the tower for images."""
        return self.towers[0]

    @property
    def tower_classes(self) -> tuple[str, ...]:
        """The classes that its tower may have."""
        return tuple(kind.tower_class for kind in self.kinds)

    # Images.

    def settings(self, processor: Any) -> Any:
        """See `image_settings`."""
        return image_settings(processor)

    def inputs(self, settings: Any, pixels: Tensor) -> dict[str, Tensor]:
        """The model inputs that the processor would make of a batch of images, differentiably.

        Args:
            settings: what `settings` returned.
            pixels: (B, 3, H, W) in [0, 1].

        Returns:
            `pixel_values`: (B, 3, S, S), or (B, T, 3, S, S) with T tiles and `image_sizes` (B, 2) where the model
            puts the tiles together, or (B * T, 3, S, S) where it reads them one after the other.

        Raises:
            ValueError: pixels of another shape, or a processor with a filter or range that this does not know.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels have shape {tuple(pixels.shape)}, images are (B, 3, H, W): reshape them.")
        check_processor(settings)
        processed = self.processed(settings, pixels)
        if settings.do_normalize:
            normalization = Normalization.from_processor(settings)
            processed = normalization(processed.flatten(0, -4)).view(processed.shape)
        return self.named_inputs(settings, processed, pixels)

    def processed(self, settings: Any, pixels: Tensor) -> Tensor:
        """The images before normalisation: padded, resized, cropped, in tiles; values stay in [0, 1]."""
        if getattr(settings, "do_pad", False) and hasattr(settings, "pad_to_square"):
            pixels = square(pixels, [int(value * 255) for value in settings.image_mean])
        return fit(settings, pixels)

    def named_inputs(self, settings: Any, values: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        """Normalised values under the names, and in the shape, that the model reads."""
        return {"pixel_values": values}

    # Prompts.

    def image_token(self, processor: Any) -> str:
        """The placeholder of an image in a prompt."""
        return getattr(processor, "image_token", None) or IMAGE

    def feature_token(self, processor: Any) -> str:
        """The token at whose places the language model reads an image: the placeholder, or what it is expanded to."""
        return self.image_token(processor)

    def processor_inputs(
        self, processor: Any, prompt: str, picture: Image.Image, answer: str | None = None
    ) -> dict[str, Tensor]:
        """One prompt and one picture through the processor, with the answer behind the prompt."""
        text = prompt if answer is None else join(prompt, answer)
        return dict(processor(images=picture, text=text, return_tensors="pt"))

    # What is read of the tower.

    def layers_named(self, config: Any) -> list[tuple[str, int]]:
        """Fields of the configuration and the hidden states of the tower that they name."""
        named = config.vision_feature_layer
        return [("vision_feature_layer", layer) for layer in ([named] if isinstance(named, int) else named)]

    def feature_levels(self, found: Any) -> Sequence[Any]:
        """Of what the model's `get_image_features` returns, what its language model reads: one item a level.

        Returns:
            Tensors, or sequences of tensors that are of one image each.
        """
        return [found.pooler_output]

    # Another resolution.

    def processor_patch(self, config: Any, tower: Any) -> int:
        """What the processor calls `patch_size`, by the configurations of the model and of its tower."""
        return int(tower.patch_size)

    def scaled_fields(self, content: Mapping[str, Any], old: int, size: int) -> dict[str, Any]:
        """Further fields of an image processor that follow from the resolution, with their new values."""
        return {}

    def sized(self, vlm: Any, size: int) -> Sequence[tuple[Any, str, int]]:
        """Further places of a model that hold the resolution or what follows from it: owner, attribute, value."""
        return ()


def image_processor_of(processor: Any) -> Any:
    """The image processor inside a processor.

    Raises:
        TypeError: it has none.
    """
    images = getattr(processor, "image_processor", None)
    if images is None:
        raise TypeError(
            f"{type(processor).__name__} is not the processor of a vision-language model: load it with "
            "AutoProcessor.from_pretrained from the model's repository."
        )
    return images


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


def join(prompt: str, text: str) -> str:
    """Prompt and answer with one space between them unless one of them brings white space."""
    return prompt + text if prompt[-1:].isspace() or text[:1].isspace() else f"{prompt} {text}"
