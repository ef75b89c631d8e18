"""What an open_clip ViT computes, in plain torch, straight from its state dict.

The yardstick of every conversion: it shares no code and no names with transformers, and the tests hold it against the
open_clip package itself. Format: Radford et al. 2021, as open_clip 3 defines it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fare_hf.convert.spec import ClipSpec, TextSpec, VisionSpec

__all__ = ["image_features", "text_features"]

State = Mapping[str, Tensor]


def image_features(state: State, spec: ClipSpec, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Embed normalised images in fp32.

    Args:
        state: open_clip names, `visual.` before those of the vision tower; any dtype.
        pixel_values: `(B, 3, S, S)`.

    Returns:
        Embeddings `(B, embed_dim)`, not normalised, and the input of the first block with the output of every block,
        `(B, N, width)` each.
    """
    tower = spec.vision
    patches = F.conv2d(pixel_values.float(), state["visual.conv1.weight"].float(), stride=tower.patch_size)
    tokens = patches.flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].float().expand(len(tokens), 1, -1)
    hidden = torch.cat([first, tokens], dim=1) + state["visual.positional_embedding"].float()
    layers = [_norm(state, "visual.ln_pre", hidden, tower.eps)]
    for index in range(tower.layers):
        prefix = f"visual.transformer.resblocks.{index}."
        layers.append(_block(state, prefix, layers[-1], tower, spec.activation, None))
    pooled = _norm(state, "visual.ln_post", layers[-1][:, 0], tower.eps)
    return pooled @ state["visual.proj"].float(), layers


def text_features(state: State, spec: ClipSpec, input_ids: Tensor) -> Tensor:
    """Embed sentences of token ids `(B, L)` in fp32: `(B, embed_dim)`, not normalised."""
    tower = spec.text
    assert tower is not None
    length = input_ids.shape[1]
    hidden = F.embedding(input_ids, state["token_embedding.weight"].float())
    hidden = hidden + state["positional_embedding"].float()[:length]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    for index in range(tower.layers):
        hidden = _block(state, f"transformer.resblocks.{index}.", hidden, tower, spec.activation, later)
    hidden = _norm(state, "ln_final", hidden, tower.eps)
    ends = input_ids.argmax(dim=1) if tower.eos is None else (input_ids == tower.eos).int().argmax(dim=1)
    return hidden[torch.arange(len(hidden)), ends] @ state["text_projection"].float()


def _block(
    state: State, prefix: str, hidden: Tensor, tower: VisionSpec | TextSpec, activation: str, masked: Tensor | None
) -> Tensor:
    """Attention and MLP, each behind its norm and beside its residual; `masked` marks what a row may not see."""
    hidden = hidden + _attention(state, prefix, _norm(state, prefix + "ln_1", hidden, tower.eps), tower.heads, masked)
    inner = _linear(state, prefix + "mlp.c_fc", _norm(state, prefix + "ln_2", hidden, tower.eps))
    inner = F.gelu(inner) if activation == "gelu" else inner * torch.sigmoid(1.702 * inner)
    return hidden + _linear(state, prefix + "mlp.c_proj", inner)


def _attention(state: State, prefix: str, hidden: Tensor, heads: int, masked: Tensor | None) -> Tensor:
    batch, length, width = hidden.shape
    stacked = F.linear(
        hidden, state[prefix + "attn.in_proj_weight"].float(), state[prefix + "attn.in_proj_bias"].float()
    )
    query, key, value = stacked.view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) / (width // heads) ** 0.5
    if masked is not None:
        scores = scores.masked_fill(masked, float("-inf"))
    mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, width)
    return _linear(state, prefix + "attn.out_proj", mixed)


def _norm(state: State, name: str, hidden: Tensor, eps: float) -> Tensor:
    weight, bias = state[name + ".weight"].float(), state[name + ".bias"].float()
    return F.layer_norm(hidden, hidden.shape[-1:], weight, bias, eps)


def _linear(state: State, name: str, hidden: Tensor) -> Tensor:
    return F.linear(hidden, state[name + ".weight"].float(), state[name + ".bias"].float())
