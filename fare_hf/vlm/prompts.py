"""Prompts as the model's own processor writes them, prepared once: token ids with the image's placeholders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from fare_hf.vlm.families.family import join
from fare_hf.vlm.families.table import family_of, tower_placement
from fare_hf.vlm.processors import complete_processor
from fare_hf.vlm.swap.compatibility import check_image_token

__all__ = ["Rows", "image_token_count", "model_inputs", "padding_of", "prompt_rows", "start_device"]

NO_INPUTS = ("labels",)


@dataclass(frozen=True)
class Rows:
    """Tokenised texts, padded to one length L.

    Attributes:
        ids: (B, L).
        mask: (B, L), 1 where real.
        extras: further inputs of the model by name, (B, L, ...), padded with 0.
        lengths: real tokens of each row.
    """

    ids: Tensor
    mask: Tensor
    extras: dict[str, Tensor]
    lengths: tuple[int, ...]

    def to(self, device: torch.device) -> Rows:
        """The same on a device."""
        extras = {name: tensor.to(device) for name, tensor in self.extras.items()}
        return replace(self, ids=self.ids.to(device), mask=self.mask.to(device), extras=extras)

    def select(self, indices: Tensor) -> Rows:
        """Some of the rows; L stays."""
        extras = {name: tensor[indices] for name, tensor in self.extras.items()}
        lengths = tuple(self.lengths[index] for index in indices.tolist())
        return Rows(self.ids[indices], self.mask[indices], extras, lengths)


def prompt_rows(
    vlm: PreTrainedModel,
    processor: Any,
    prompts: Sequence[str],
    size: tuple[int, int],
    answers: Sequence[str] | None = None,
    *,
    left: bool = False,
) -> Rows:
    """What the processor makes of each prompt, with its answer behind it, for an image of `size` (height, width).

    Raises:
        ValueError: a prompt does not hold the placeholder exactly once; processor and model disagree on the image's
            token.
    """
    family = family_of(vlm)
    check_image_token(family, vlm.config, processor)
    complete_processor(family, vlm.config, processor)
    token, picture = family.image_token(processor), Image.new("RGB", (size[1], size[0]))
    found: dict[tuple[str, str | None], dict[str, Tensor]] = {}  # the same words are given to the processor once
    made = []
    for number, prompt in enumerate(prompts):
        answer = None if answers is None else answers[number]
        if (prompt if answer is None else join(prompt, answer)).count(token) != 1:
            raise ValueError(f"the prompt {prompt!r} must hold '{token}' exactly once, and its text must not.")
        if (prompt, answer) not in found:
            found[prompt, answer] = family.processor_inputs(processor, prompt, picture, answer)
        made.append(found[prompt, answer])

    def columns(name: str, padding: int = 0) -> Tensor:
        return _padded([inputs[name][0] for inputs in made], padding, left)

    ids = columns("input_ids", padding_of(processor))
    mask = _padded([torch.ones_like(inputs["input_ids"][0]) for inputs in made], 0, left)
    known = (*family.of_image, *NO_INPUTS, "input_ids", "attention_mask")
    extras = {name: columns(name) for name in made[0] if name not in known}
    return Rows(ids, mask, extras, tuple(int(row) for row in mask.sum(1)))


def model_inputs(vlm: PreTrainedModel, processor: Any, picture: Image.Image) -> dict[str, Tensor]:
    """What the processor makes of one picture and nothing but its placeholder, where the model wants it."""
    device, (_, dtype) = start_device(vlm), tower_placement(vlm)
    family = family_of(vlm)
    inputs = family.processor_inputs(processor, family.image_token(processor), picture)
    return {
        name: tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
        for name, tensor in inputs.items()
        if name not in NO_INPUTS
    }


def image_token_count(vlm: PreTrainedModel, inputs: Mapping[str, Tensor]) -> int:
    """Placeholders of the image in `model_inputs`; 0 where the model has no token of its own for it."""
    token = getattr(vlm.config, "image_token_id", None)
    return 0 if token is None else int((inputs["input_ids"] == token).sum())


def start_device(vlm: PreTrainedModel) -> torch.device:
    """Device where the token embeddings are computed and the ids go; accelerate knows it of offloaded ones."""
    embeddings: Any = vlm.get_input_embeddings()
    device: torch.device = embeddings.weight.device
    execution = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
    return torch.device(execution) if device.type == "meta" and execution is not None else device


def padding_of(processor: Any) -> int:
    """The id that stands where a text is too short."""
    tokenizer = processor.tokenizer
    return (tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id) or 0


def _padded(rows: Sequence[Tensor], padding: int, left: bool) -> Tensor:
    """Rows (L_i, ...) in one (B, L, ...) tensor."""
    width = max(map(len, rows))
    padded = rows[0].new_full((len(rows), width, *rows[0].shape[1:]), padding)
    for number, row in enumerate(rows):
        padded[number, slice(width - len(row), width) if left else slice(0, len(row))] = row
    return padded
