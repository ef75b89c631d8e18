"""Attention of towers that pack windows and images in one sequence, such as Qwen-VL's: of all of them at once.

Without a kernel for packed sequences (FlashAttention), transformers calls `scaled_dot_product_attention` once for each
window of each image: 1,800 times where a Qwen2.5-VL reads four images of 448 pixels, and a larger batch gains nothing.
Here windows of one length are the batch of one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fare_hf.vlm.families.towers import KINDS, QwenKind

__all__ = ["pack_attention"]

NAME = "windows_in_batches_as_flash"
"""Among the attention functions of transformers, whose towers pass on where sequences end to names with `flash`."""
PACKING = frozenset(kind.tower_class for kind in KINDS if isinstance(kind, QwenKind))
"""Classes of towers."""


def pack_attention(tower: Any) -> None:
    """For good: a tower that packs sequences attends to all of them at once; the results are the same.

    Not for a while: with activation checkpointing blocks run again in the backward pass, and must run as before, and
    threads may share a model. It is not saved with the tower.

    Args:
        tower: of any kind; changed is one that would call `scaled_dot_product_attention` by sequence.
    """
    packs = any(base.__name__ in PACKING for base in type(tower).__mro__)  # a sharded tower has a class of its own
    if packs and tower.config._attn_implementation == "sdpa":
        tower.config._attn_implementation = NAME


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **options: Any,
) -> tuple[Tensor, None]:
    """What `scaled_dot_product_attention` gives of each sequence.

    Args:
        module: an attention layer.
        query, key, value: (1, heads, tokens, width).
        attention_mask: None.
        cu_seq_lens_q: where sequences begin, and where the last one ends, (sequences + 1,).
        max_length_q: the longest.
        options: of `sdpa_attention_forward`, and the same ends of the keys, which are not used.

    Returns:
        (1, tokens, heads, width), and no weights.
    """
    options = {name: option for name, option in options.items() if name not in ("cu_seq_lens_k", "max_length_k")}

    def attend_rows(rows: Callable[[Tensor], Tensor]) -> Tensor:
        """Makes (N, heads, length, width) of each of the three, attends, and returns (N * length, heads, width)."""
        queries, keys, values = (rows(part[0]) for part in (query, key, value))
        return sdpa_attention_forward(module, queries, keys, values, attention_mask, **options)[0].flatten(0, 1)

    sequences, tokens = len(cu_seq_lens_q) - 1, query.shape[2]
    if sequences * max_length_q == tokens:  # so all are as long as the longest; the host need not wait for the lengths
        return attend_rows(lambda part: part.unflatten(1, (sequences, -1)).transpose(0, 1))[None], None
    lengths = cu_seq_lens_q.diff().tolist()
    positions = torch.arange(tokens, device=query.device).split(lengths)
    groups = [torch.stack([part for part in positions if len(part) == length]) for length in sorted(set(lengths))]
    found = [attend_rows(lambda part, group=group: part[:, group].transpose(0, 1)) for group in groups]  # type: ignore[misc]
    order = torch.cat([group.flatten() for group in groups]).argsort()
    return torch.cat(found)[order][None], None


AttentionInterface.register(NAME, attend)
