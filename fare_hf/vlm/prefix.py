"""The text before the image: the language model's keys and values of it are computed once and used in every call."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from fare_hf.encoders import evaluating
from fare_hf.vlm.families.table import family_of, towers_of
from fare_hf.vlm.prompts import Rows

__all__ = ["Prefix"]

SAMPLES = 8
"""Values of each weight that are looked at: `weight.data` may be changed without any other trace."""
PLAIN = (nn.Parameter, Tensor)
OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Prefix:
    """Keys and values of the tokens that all rows begin with, up to the first image token.

    They are thrown away when a weight outside of the towers has changed, or a module, a hook, or what a module is
    told: adapters that are added, chosen, switched off or merged are all of these.

    Args:
        vlm: the vision-language model.
    """

    def __init__(self, vlm: PreTrainedModel) -> None:
        self.vlm = vlm
        self._state: tuple[Any, Any] | None = None

    def inputs(self, rows: Rows, processor: Any) -> dict[str, Any]:
        """Text inputs of a forward pass: ids after the prefix, the whole mask, and the prefix itself."""
        length = self.length(rows, processor)
        extras = {name: tensor[:, length:] for name, tensor in rows.extras.items()}
        found = {"input_ids": rows.ids[:, length:], "attention_mask": rows.mask, **extras}
        if length == 0:
            return {**found, "use_cache": False}
        cache = copy.deepcopy(self._cache(rows.ids[:1, :length]))
        cache.batch_repeat_interleave(len(rows.ids))
        return {**found, "past_key_values": cache, "use_cache": True}

    def length(self, rows: Rows, processor: Any) -> int:
        """Columns that are the same in all rows, real, and before any image token."""
        family = family_of(self.vlm)
        if not family.keeps_prefix:
            return 0
        image = processor.tokenizer.convert_tokens_to_ids(family.feature_token(processor))
        same = (rows.ids == rows.ids[:1]).all(0) & (rows.ids != image).all(0) & (rows.mask == 1).all(0)
        return int(same.long().cumprod(0).sum())

    @torch.no_grad()
    def _cache(self, ids: Tensor) -> Any:
        kind = ids.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (tuple(ids[0].tolist()), precision, self._version())
        if self._state is None or self._state[0] != key:
            with evaluating(self.vlm):
                # Given, as some models (Granite 4 Vision) make none themselves.
                cache = DynamicCache(config=self.vlm.config.get_text_config())
                self.vlm(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            self._state = (key, cache)
        return self._state[1]

    def _version(self) -> tuple[Any, ...]:
        """Another one after every change outside of the towers that could change what the language model computes."""
        inside = {id(part) for tower in towers_of(self.vlm).values() for part in tower.modules()}
        parts = [(name, part) for name, part in self.vlm.named_modules() if id(part) not in inside]
        tensors = [
            t for _, part in parts for t in (*part._parameters.values(), *part._buffers.values()) if t is not None
        ]
        told = tuple((name, type(part), _told(part)) for name, part in parts)
        return told, tuple((tensor.data_ptr(), tensor._version) for tensor in tensors), _sampled(tensors)


def _told(part: nn.Module) -> str:
    """What a module is told besides its weights: numbers, words, and lists of them; and which hooks it has."""
    own = {name: value for name, value in vars(part).items() if name not in OF_EVERY_MODULE and _is_plain(value)}
    return repr((own, *(list(hooks) for hooks in (part._forward_hooks, part._forward_pre_hooks))))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple, set)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, (bool, int, float, str))


def _sampled(tensors: Iterable[Tensor]) -> tuple[bytes, ...]:
    """The bits of a few values of each tensor, read at once on each device; those that are offloaded have none."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.device.type != "meta" and tensor.numel() and type(tensor) in PLAIN:
            flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach()[:1].reshape(-1)
            chosen = flat[:: -(-len(flat) // SAMPLES)]
            groups.setdefault((tensor.device, tensor.dtype), []).append(chosen)
    return tuple(torch.cat(group).cpu().view(torch.uint8).numpy().tobytes() for group in groups.values())
