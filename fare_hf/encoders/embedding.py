"""What an encoder says of an image: one of a few embeddings.

The embeddings of an image `x` are known by name (`EMBEDDINGS`):

- `projected`: the CLIP image embedding after the visual projection, `(B, D)`, not normalised: what FARE trains on.
- `pooled`: the encoder's own pooled output before any projection, `(B, D)`.
- `tokens`: patch tokens of one hidden layer without the class token, `(B, N, D)`: what LLaVA reads (layer -2).
- `projected+tokens`, `pooled+tokens`: both as one vector, `(B, D + N * W)`. Its squared distance to another is that of
  the embedding plus `patch_weight` times that of the tokens, averaged over the N tokens: FARE's losses on each, added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["EMBEDDINGS", "JOINED", "check_embedding", "embed", "make_embed"]

JOINED = ("projected+tokens", "pooled+tokens")
EMBEDDINGS = ("projected", "pooled", "tokens", *JOINED)


def embed(
    encoder: nn.Module,
    pixel_values: Tensor,
    embedding: str = "projected",
    layer: int = -2,
    patch_weight: float = 1.0,
) -> Tensor:
    """Embeds normalised images.

    Args:
        encoder: from `load_encoder`; may be wrapped (DDP, FSDP, compiled).
        pixel_values: `(B, 3, H, W)`, normalised as the encoder expects.
        embedding: one of `EMBEDDINGS`.
        layer: index into the hidden states for `tokens`; -2 is what LLaVA reads.
        patch_weight: of the tokens beside another embedding (`JOINED`), above 0.

    Returns:
        `(B, D)`, or `(B, N, D)` for `tokens` (the class token is dropped).

    Raises:
        ValueError: the encoder has no such embedding.
    """
    check_embedding(embedding)
    if not embedding.endswith("tokens"):
        return _vector(encoder, encoder(pixel_values=pixel_values), embedding)
    output = encoder(pixel_values=pixel_values, output_hidden_states=True)
    tokens = _patch_tokens(output.hidden_states[layer], pixel_values, _unwrap(encoder).config.patch_size)
    if embedding == "tokens":
        return tokens
    scale = math.sqrt(patch_weight / tokens.shape[1])
    return torch.cat([_vector(encoder, output, embedding.removesuffix("+tokens")), scale * tokens.flatten(1)], 1)


def make_embed(
    encoder: nn.Module, normalization: Callable[[Tensor], Tensor], embedding: str = "projected", layer: int = -2
) -> Callable[[Tensor], Tensor]:
    """Closes over the normalisation: a function from pixels in [0,1], `(B, 3, H, W)`, to embeddings."""

    def embed_pixels(pixels: Tensor) -> Tensor:
        return embed(encoder, normalization(pixels), embedding, layer)

    return embed_pixels


def _vector(encoder: nn.Module, output: Any, embedding: str) -> Tensor:
    """`projected` or `pooled`, of what an encoder returned."""
    value: Tensor | None = getattr(output, "image_embeds" if embedding == "projected" else "pooler_output", None)
    if value is None:
        raise ValueError(
            f"{type(_unwrap(encoder)).__name__} has no {embedding!r} embedding; "
            f"load it with load_encoder(..., embedding={embedding!r})."
        )
    return value


def _patch_tokens(hidden: Tensor, pixel_values: Tensor, patch_size: int) -> Tensor:
    """Drops what stands before the patch tokens: one class token in CLIP and DINOv2, nothing in SigLIP."""
    patches = (pixel_values.shape[-2] // patch_size) * (pixel_values.shape[-1] // patch_size)
    return hidden[:, hidden.shape[1] - patches :]


def _unwrap(encoder: nn.Module) -> Any:
    return encoder.module if isinstance(encoder, nn.parallel.DistributedDataParallel) else encoder


def check_embedding(embedding: str) -> None:
    """Raises ValueError for what is none of `EMBEDDINGS`."""
    if embedding not in EMBEDDINGS:
        raise ValueError(f"embedding={embedding!r} is not known; give one of {', '.join(EMBEDDINGS)}.")
