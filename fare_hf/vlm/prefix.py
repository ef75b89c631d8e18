"""The text before the image: the language model's keys and values of it are computed once and used in every call."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from fare_hf.encoders import evaluating
from fare_hf.vlm.families import feature_token, towers_of
from fare_hf.vlm.prompts import Rows

__all__ = ["Prefix"]


class Prefix:
    """Keys and values of the tokens that all rows begin with, up to the first image token.

    They are thrown away when a weight of the language model has changed.

    Args:
        vlm: the vision-language model.
    """

    def __init__(self, vlm: PreTrainedModel) -> None:
        self.vlm = vlm
        self._state: tuple[Any, Any] | None = None

    def inputs(self, rows: Rows, processor: Any) -> dict[str, Any]:
        """Text inputs of a forward pass: ids after the prefix, the whole mask, and the prefix itself."""
        length = self._length(rows, processor)
        extras = {name: tensor[:, length:] for name, tensor in rows.extras.items()}
        found = {"input_ids": rows.ids[:, length:], "attention_mask": rows.mask, **extras}
        if length == 0:
            return {**found, "use_cache": False}
        cache = copy.deepcopy(self._cache(rows.ids[:1, :length]))
        cache.batch_repeat_interleave(len(rows.ids))
        return {**found, "past_key_values": cache, "use_cache": True}

    def _length(self, rows: Rows, processor: Any) -> int:
        """Columns that are the same in all rows, real, and before any image token."""
        # The image attention of Idefics, whose language model wants an image at any time; the token types of
        # PaliGemma and Gemma 3, which let tokens look ahead.
        if rows.extras:
            return 0
        image = processor.tokenizer.convert_tokens_to_ids(feature_token(processor))
        same = (rows.ids == rows.ids[:1]).all(0) & (rows.ids != image).all(0) & (rows.mask == 1).all(0)
        return int(same.long().cumprod(0).sum())

    @torch.no_grad()
    def _cache(self, ids: Tensor) -> Any:
        key = (tuple(ids[0].tolist()), self._version())
        if self._state is None or self._state[0] != key:
            with evaluating(self.vlm):
                # Given, as some models (Granite 4 Vision) make none themselves.
                cache = DynamicCache(config=self.vlm.config.get_text_config())
                self.vlm(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            self._state = (key, cache)
        return self._state[1]

    def _version(self) -> int:
        """Changes with every change of a weight outside of the towers, in place or by another tensor."""
        seen = {id(parameter) for tower in towers_of(self.vlm).values() for parameter in tower.parameters()}
        others = (parameter for parameter in self.vlm.parameters() if id(parameter) not in seen)
        return hash(tuple((parameter.data_ptr(), parameter._version) for parameter in others))
