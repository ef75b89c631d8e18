"""Prompts as the model's own processor writes them, prepared once: token ids with the image's placeholders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from fare_hf.vlm.families import family_of, tower_placement

__all__ = ["Rows", "image_token", "join", "model_inputs", "pad", "prompt_rows", "start_device"]

IMAGE = "<image>"
# What a processor makes of the picture; everything else it makes of the text.
OF_IMAGE = ("pixel_values", "pixel_values_images", "image_sizes", "batch_num_images")


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


def image_token(vlm: PreTrainedModel, processor: Any) -> str:
    """The placeholder of an image in a prompt.

    Raises:
        TypeError: no `VlmLoss` for this family.
        ValueError: processor and model disagree on it.
    """
    family = family_of(vlm)
    if not family.loss:
        raise TypeError(
            f"losses and answers through pixels are not available for {type(vlm).__name__}: its processor's geometry "
            "is not written down in fare_hf.vlm.geometry."
        )
    token = getattr(processor, "image_token", None) or IMAGE
    expected = getattr(vlm.config, "image_token_id", None)
    index = processor.tokenizer.convert_tokens_to_ids(token)
    if expected is not None and index != expected:
        raise ValueError(
            f"the processor's image token '{token}' has id {index}, the model expects {expected}: load both from the "
            "same repository."
        )
    return token


def prompt_rows(
    vlm: PreTrainedModel, processor: Any, texts: Sequence[str], size: tuple[int, int], *, left: bool = False
) -> Rows:
    """What the processor makes of each text, for an image of `size` (height, width) at its placeholder.

    Raises:
        ValueError: a text does not hold the placeholder exactly once.
    """
    token = image_token(vlm, processor)
    for text in texts:
        if text.count(token) != 1:
            raise ValueError(f"the prompt {text!r} must hold '{token}' exactly once.")
    picture = Image.new("RGB", (size[1], size[0]))
    made = [_inputs(processor, text, token, picture) for text in texts]
    ids, mask = pad([inputs["input_ids"][0].tolist() for inputs in made], _padding(processor), left=left)
    known = (*OF_IMAGE, "input_ids", "attention_mask")
    names = [name for name in (made[0] if made else {}) if name not in known]
    extras = {name: _pad_rows([inputs[name][0] for inputs in made], ids.shape[1], left) for name in names}
    return Rows(ids, mask, extras, tuple(int(row) for row in mask.sum(1)))


def model_inputs(vlm: PreTrainedModel, processor: Any, picture: Image.Image) -> dict[str, Tensor]:
    """What the processor makes of one picture and nothing but its placeholder, where the model wants it."""
    token = getattr(processor, "image_token", None) or IMAGE
    device, (_, dtype) = start_device(vlm), tower_placement(vlm)
    inputs = _inputs(processor, token, token, picture)
    return {
        name: tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
        for name, tensor in inputs.items()
    }


def start_device(vlm: PreTrainedModel) -> torch.device:
    """Device of the token embeddings, where the ids go."""
    return vlm.get_input_embeddings().weight.device  # type: ignore[return-value]


def join(prompt: str, text: str) -> str:
    """Prompt and answer with one space between them unless one of them brings white space."""
    return prompt + text if prompt[-1:].isspace() or text[:1].isspace() else f"{prompt} {text}"


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Pad rows of ids to one (B, L) tensor; returns it with its attention mask (1 = real)."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(row, dtype=torch.long)
        mask[number, place] = 1
    return ids, mask


def _inputs(processor: Any, text: str, token: str, picture: Image.Image) -> dict[str, Tensor]:
    """One text and one picture through the processor."""
    if type(processor).__name__.startswith("Idefics"):  # a prompt is a list with the pictures in their places
        before, after = text.split(token)
        parts = [part for part in (before, picture, after) if not isinstance(part, str) or part.strip()]
        return dict(processor(text=[parts], return_tensors="pt"))
    return dict(processor(images=picture, text=text, return_tensors="pt"))


def _padding(processor: Any) -> int:
    tokenizer = processor.tokenizer
    return (tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id) or 0


def _pad_rows(rows: Sequence[Tensor], width: int, left: bool) -> Tensor:
    """Rows (L_i, ...) to one (B, L, ...) tensor of zeros and them."""
    padded = rows[0].new_zeros(len(rows), width, *rows[0].shape[1:])
    for number, row in enumerate(rows):
        padded[number, slice(width - len(row), width) if left else slice(0, len(row))] = row
    return padded
