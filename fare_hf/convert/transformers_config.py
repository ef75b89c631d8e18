"""Configuration and image processor of transformers, read into a `ClipSpec` and made from one."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from fare_hf.convert.spec import ACTIVATIONS, ClipSpec, ImageSpec, TextSpec, VisionSpec

__all__ = ["image_processor", "read_image_processor", "read_transformers_config", "transformers_config"]

RESAMPLE = {"bilinear": 2, "bicubic": 3}
CLIP_VOCABULARY = 49408
ARGMAX_EOS = 2
"""The value that makes every release of transformers pool at the highest id of a sentence, as open_clip does."""
BLOCKS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "eps": "layer_norm_eps",
}
VISION = BLOCKS | {"image_size": "image_size", "patch_size": "patch_size"}
TEXT = BLOCKS | {"positions": "max_position_embeddings", "vocab_size": "vocab_size"}
"""Fields of a `VisionSpec` or `TextSpec` -> of a configuration of transformers."""


def read_transformers_config(config: Any, where: str, text: bool = True) -> ClipSpec:
    """Read a `CLIPConfig` or `CLIPVisionConfig`; `images` stays None.

    Raises:
        ValueError: an activation, shape or number of channels that open_clip's ViT does not have.
    """
    vision = getattr(config, "vision_config", config)
    tower = getattr(config, "text_config", None) if text else None
    activation, other = vision.hidden_act, tower.hidden_act if tower is not None else vision.hidden_act
    shown = f"hidden_act is {activation!r}"
    for wrong, sentence in (
        (activation not in ACTIVATIONS, f"{shown}; open_clip has {' and '.join(ACTIVATIONS)} only."),
        (
            other != activation,
            f"{shown} for images and {other!r} for text; open_clip has one for both, so convert the visual only.",
        ),
        (vision.num_channels != 3, f"num_channels is {vision.num_channels}; open_clip's ViT reads 3."),
    ):
        if wrong:
            raise ValueError(f"{where}: {sentence}")
    sides = {name: _square(getattr(vision, name), name, where) for name in ("image_size", "patch_size")}
    return ClipSpec(
        embed_dim=config.projection_dim,
        activation=activation,
        evidence=f"{where} has hidden_act {activation}",
        vision=VisionSpec(**_read(vision, VISION) | sides),
        text=None if tower is None else TextSpec(**_read(tower, TEXT), eos=_read_eos(tower, where)),
    )


def transformers_config(spec: ClipSpec, dtype: torch.dtype) -> CLIPConfig | CLIPVisionConfig:
    """`CLIPConfig`, or `CLIPVisionConfig` without a text tower."""
    common = {"hidden_act": spec.activation, "projection_dim": spec.embed_dim}
    vision = _written(spec.vision, VISION) | common
    if spec.text is None:
        return CLIPVisionConfig(**vision, architectures=["CLIPVisionModelWithProjection"], dtype=dtype)
    text = CLIPTextConfig(**_written(spec.text, TEXT) | common | _special_tokens(spec.text))
    options: dict[str, Any] = {"text_config": text.to_dict(), "vision_config": CLIPVisionConfig(**vision).to_dict()}
    return CLIPConfig(**options, projection_dim=spec.embed_dim, architectures=["CLIPModel"], dtype=dtype)


def image_processor(images: ImageSpec, image_size: int) -> Any:
    """The image processor that does what open_clip's evaluation transform does."""
    square = {"height": image_size, "width": image_size}
    shortest = images.resize_mode == "shortest"
    # Imported where it is needed: without torchvision the import alone says so, and this room is imported by many.
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": image_size} if shortest else square,
        crop_size=square,
        do_center_crop=shortest,
        do_convert_rgb=True,
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        image_mean=list(images.mean),
        image_std=list(images.std),
        resample=RESAMPLE[images.interpolation],
        rescale_factor=1 / 255,
    )


def read_image_processor(processor: Any, image_size: int, where: str) -> ImageSpec:
    """Read an image processor of the encoder.

    Raises:
        ValueError: it does something that open_clip's transform cannot say, or is made for another resolution.
    """
    names = {number: name for name, number in RESAMPLE.items()}
    interpolation = names.get(int(processor.resample))
    for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if not getattr(processor, name, False):
            raise ValueError(f"the image processor of {where} has {name} off: open_clip always does it.")
    size, crop = dict(processor.size), dict(processor.crop_size or {})
    square = {"height": image_size, "width": image_size}
    if {key: value for key, value in size.items() if value} == {"shortest_edge": image_size}:
        mode = "shortest" if processor.do_center_crop and _equal(crop, square) else None
    else:
        mode = "squash" if _equal(size, square) and not processor.do_center_crop else None
    if mode is None or interpolation is None or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise ValueError(
            f"the image processor of {where} (size {size}, crop {crop}, resample {int(processor.resample)}) has no "
            f"counterpart in open_clip at {image_size} px: give one that resizes to {image_size} and centre-crops."
        )
    return ImageSpec(tuple(processor.image_mean), tuple(processor.image_std), interpolation, mode)


def _read(config: Any, names: dict[str, str]) -> dict[str, Any]:
    return {own: getattr(config, name) for own, name in names.items()}


def _written(spec: VisionSpec | TextSpec, names: dict[str, str]) -> dict[str, Any]:
    return {name: getattr(spec, own) for own, name in names.items()}


def _read_eos(tower: Any, where: str) -> int | None:
    eos = tower.eos_token_id
    if not isinstance(eos, int):
        raise ValueError(f"{where}: eos_token_id of the text tower is {eos!r}; it must be one integer.")
    return None if eos in (ARGMAX_EOS, tower.vocab_size - 1) else eos


def _special_tokens(text: TextSpec) -> dict[str, int]:
    if text.eos == ARGMAX_EOS:
        raise ValueError(
            f"the text tower pools at eos_id {ARGMAX_EOS}, a number that transformers' CLIP reads as the highest id: "
            "convert the visual only."
        )
    own = text.vocab_size == CLIP_VOCABULARY
    begin, end = (CLIP_VOCABULARY - 2, CLIP_VOCABULARY - 1) if own else (0, ARGMAX_EOS)
    return {"bos_token_id": begin, "eos_token_id": end if text.eos is None else text.eos, "pad_token_id": 0}


def _square(value: Any, name: str, where: str) -> int:
    sides = [value, value] if isinstance(value, int) else list(value)
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"{where}: {name} is {value!r}; only square images and patches convert.")
    return int(sides[0])


def _equal(found: dict[str, Any], wanted: dict[str, int]) -> bool:
    return {key: value for key, value in found.items() if value} == wanted
