"""Floating-point operations of a vision transformer and of a FARE step, and what a device does at most.

A multiplication and an addition are two operations; only matrix products count, as everywhere where a model FLOP
utilisation (MFU) is given (Chowdhery et al. 2022, arXiv 2204.02311, appendix B). What activation checkpointing or
flash attention computes a second time does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fare_hf.pretrained.encoder_families import class_tokens_of, family_of_type

__all__ = ["ASSUMED_MFU", "Flops", "count_flops", "peak_flops", "peak_of", "uses_tf32"]

ASSUMED_MFU = 0.29
"""Share of its peak that a GPU is assumed to reach, where hours are foretold: what an H100 did in an eager step of a
ViT-L/14 in bf16, with 10 steps of the attack (docs/speed.md)."""

PEAKS = {
    "B200": (2250.0, 75.0),
    "GH200": (989.5, 67.0),
    "H200": (989.5, 67.0),
    "H100 PCIE": (756.5, 51.2),
    "H100 NVL": (835.5, 60.0),
    "H100": (989.5, 67.0),
    "A100": (312.0, 19.5),
    "A800": (312.0, 19.5),
    "A40": (149.7, 37.4),
    "A30": (165.0, 10.3),
    "A10G": (70.0, 31.5),
    "A10": (125.0, 31.2),
    "L40S": (362.0, 91.6),
    "L40": (181.0, 90.5),
    "L4": (121.0, 30.3),
    "RTX A6000": (154.8, 38.7),
    "RTX 6000 ADA": (364.2, 91.1),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
}
"""Part of a CUDA device's name -> dense TFLOP/s of NVIDIA's data sheets: in half precision with fp32 accumulation, and
in fp32 without tensor cores, as torch multiplies unless TF32 is allowed; the first part that is found counts."""


@dataclass(frozen=True)
class Flops:
    """Operations for one image, in three kinds that differ in their backward pass.

    Attributes:
        patches: the patch embedding's product, whose input is the image.
        linear: products with weights.
        attention: products of queries with keys, and of attention with values.
    """

    patches: int
    linear: int
    attention: int

    @property
    def forward(self) -> int:
        """One forward pass."""
        return self.patches + self.linear + self.attention

    @property
    def to_pixels(self) -> int:
        """A backward pass to the pixels with frozen weights; a product of two activations has two gradients."""
        return self.patches + self.linear + 2 * self.attention

    @property
    def to_weights(self) -> int:
        """A backward pass to every weight and not to the pixels."""
        return self.patches + 2 * self.linear + 2 * self.attention

    def step(
        self, attack_steps: int, *, clean_target: bool = True, trained: float = 1.0, update_images: int = 1
    ) -> int:
        """One image through a training step: the original's target, the attack, and the update.

        Args:
            attack_steps: gradient steps of the attack.
            clean_target: whether the original encoder is run, as for FARE (TeCoA does not).
            trained: share of the linear layers' weights that are trained; the gradient passes through all others too.
            update_images: images that the update embeds: 2 where it reads the clean one besides the attacked one.
        """
        attack = attack_steps * (self.forward + self.to_pixels)
        update = self.forward + self.to_weights - round((1 - trained) * self.linear)
        return clean_target * self.forward + attack + update_images * update


def count_flops(config: Any, embedding: str = "projected", layer: int = -2) -> Flops:
    """Operations that an embedding of one image needs.

    Args:
        config: of a CLIP, SigLIP or DINOv2 vision encoder (a whole CLIP's works too).
        embedding: one of `fare_hf.encoders.EMBEDDINGS`.
        layer: index into the hidden states for `tokens`; later layers are not needed, and not counted.

    Raises:
        ValueError: a layer that the encoder does not have.
    """
    config = getattr(config, "vision_config", config)
    width, depth = config.hidden_size, config.num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"layer={layer} is outside the {depth + 1} hidden states; give one of them, such as -2.")
    layers = layer % (depth + 1) if embedding == "tokens" else depth
    patches = (config.image_size // config.patch_size) ** 2
    family = family_of_type(config.model_type)
    tokens = patches + class_tokens_of(config)
    linear = layers * tokens * (8 * width**2 + _mlp(config))
    attention = layers * 4 * tokens**2 * width
    if family and family.attention_pooling and embedding.startswith("pooled"):  # one learned query reads all tokens
        linear += 4 * tokens * width**2 + 4 * width**2 + _mlp(config)
        attention += 4 * tokens * width
    if embedding.startswith("projected"):
        linear += 2 * width * config.projection_dim
    return Flops(patches * 2 * config.num_channels * config.patch_size**2 * width, linear, attention)


def peak_flops(device: torch.device, half: bool = True) -> float | None:
    """What a CUDA device computes at most, in FLOP/s; None for a CPU or a device not in `PEAKS`.

    Args:
        device: where it computes.
        half: in half precision; else in fp32, or where it is allowed in TF32, at half of the peak in half precision.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak, tf32 = peak_of(name, half), not half and uses_tf32(device)
    return peak if peak is None or not tf32 else max(peak, (peak_of(name) or 0) / 2)


def uses_tf32(device: torch.device) -> bool:
    """Whether fp32 matrix products are rounded to TF32: it was allowed, and the device has it."""
    # By any of torch's ways to allow it. `get_float32_matmul_precision` raises an error after the one of transformers,
    # for `tf32` and for `torch_compile`.
    allowed = device.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return allowed and torch.cuda.get_device_capability(device) >= (8, 0)


def peak_of(name: str, half: bool = True) -> float | None:
    """As `peak_flops`, of a device by its name, such as `H100` or `RTX 4090`; None if it is not in `PEAKS`.

    Args:
        name: of the device.
        half: in half precision; else in fp32.
    """
    name = name.upper().replace("-", " ")
    return next((tera[0 if half else 1] * 1e12 for part, tera in PEAKS.items() if part in name), None)


def _mlp(config: Any) -> int:
    """Operations of one token in one MLP."""
    width = config.hidden_size
    if getattr(config, "use_swiglu_ffn", False):  # as Dinov2SwiGLUFFN: two thirds, in multiples of 8
        inner = (int(int(width * config.mlp_ratio) * 2 / 3) + 7) // 8 * 8
        return 6 * width * inner
    inner = getattr(config, "intermediate_size", None) or int(width * config.mlp_ratio)
    return (6 if getattr(config, "use_gated_mlp", False) else 4) * width * inner
