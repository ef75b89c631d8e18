"""Loss of a vision-language model on given texts, as a function of the image's pixels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from fare_hf.vlm.families.packed import pack_attention
from fare_hf.vlm.families.table import family_of, tower_of, tower_placement, towers_of
from fare_hf.vlm.families.towers import kind_of
from fare_hf.vlm.prefix import Prefix
from fare_hf.vlm.prompts import Rows, prompt_rows, start_device

__all__ = ["VlmLoss"]

IGNORED = -100


@dataclass(frozen=True)
class _Texts:
    """Prompts and answers for images of one size.

    Attributes:
        rows: what the model reads.
        labels: (B, L), `IGNORED` at prompt and padding.
        first: number of tokens in the shortest prompt.
    """

    rows: Rows
    labels: Tensor
    first: int

    def select(self, indices: Tensor) -> _Texts:
        """Some of the texts."""
        return _Texts(self.rows.select(indices), self.labels[indices], self.first)


class VlmLoss:
    """Mean negative log-likelihood per token of `texts[b]`, given the prompt and image `b`.

    Equal, sample by sample, to the model's own `model(labels=...)` loss on its processor's output with the prompt's
    tokens ignored: to 1e-5 where the processor does not resize; where it does, up to its rounding to 8 bits (see
    `fare_hf.vlm.geometry`). A targeted attack minimises it (`loss_fn = lambda pixels: -loss(pixels)`), an untargeted
    one maximises it (pass the object). Tokens are prepared once here, by the processor itself, and what the language
    model computes of the text before the image is kept between calls; a call is one forward, with the vocabulary only
    at the answer's positions.

    Args:
        vlm: a model of `fare_hf.vlm.families.table.FAMILIES`; freeze it around the attack (`fare_hf.encoders.frozen`).
            Its tower attends to all windows at once from then on (`fare_hf.vlm.families.packed`).
        processor: its processor (image processor and tokenizer).
        prompt: one prompt for all, or one per text, with the image placeholder (`<image>`) once in each.
        texts: the B texts; each is joined to its prompt by one space unless one of the two has white space there.

    Raises:
        TypeError: a model of another family.
        ValueError: an empty text, prompts and texts of different number, a prompt without (or with a second) image
            placeholder, or a prompt whose last token merges with the text's first.

    Example:
        >>> from fare_hf.lab import load_llava
        >>> loss = VlmLoss(*load_llava(), "USER: <image>\\nWhat is it? ASSISTANT:", ["a cat"])
        >>> loss(torch.rand(1, 3, 160, 160)).shape
        torch.Size([1])
    """

    def __init__(
        self, vlm: PreTrainedModel, processor: Any, prompt: str | Sequence[str], texts: Sequence[str]
    ) -> None:
        prompts = [prompt] * len(texts) if isinstance(prompt, str) else list(prompt)
        if not texts or len(prompts) != len(texts):
            raise ValueError(f"{len(prompts)} prompts for {len(texts)} texts: give one text (and prompt) per image.")
        self.vlm, self.processor = vlm, processor
        self._family = family_of(vlm)
        self.prompts, self.texts = prompts, list(texts)
        self._prefix = Prefix(vlm)
        # The number of placeholders follows from the tower's resolution, which a swap may change, and from the image's
        # size in families that cut it into tiles.
        self._prepared: dict[tuple[int, int, int], _Texts] = {}
        self._texts_for(self._usual)

    def __len__(self) -> int:
        """Number of texts B."""
        return len(self.texts)

    @property
    def labels(self) -> Tensor:
        """(B, L) for images of the tower's size: the answers' tokens, and -100 at prompt and padding."""
        return self._texts_for(self._usual).labels

    def __call__(self, pixels: Tensor) -> Tensor:
        """Losses of shape (B,), fp32 (fp64 for an fp64 model), differentiable in pixels (B, 3, H, W) in [0, 1]."""
        return self._reduce(*self.logits(pixels))

    def with_match(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (B,) and, from the same forward, whether greedy decoding would write the text (B,) bool.

        The most likely token at every answer position given the text so far is what greedy decoding takes, so the
        flag is exact up to rounding; it lets a targeted attack keep an iterate that works. Where the logits are not
        numbers nothing matches.
        """
        logits, labels = self.logits(pixels)
        match = (logits.detach().argmax(-1) == labels) | (labels == IGNORED)
        losses = self._reduce(logits, labels)
        return losses, match.all(1) & losses.detach().isfinite().to(match.device)

    def select(self, indices: Sequence[int] | Tensor) -> VlmLoss:
        """The same loss for a subset of the texts, without preparing the tokens again."""
        chosen = torch.as_tensor(indices)
        part = copy.copy(self)
        part.prompts = [self.prompts[index] for index in chosen.tolist()]
        part.texts = [self.texts[index] for index in chosen.tolist()]
        part._prepared = {size: texts.select(chosen.to(texts.labels.device)) for size, texts in self._prepared.items()}
        return part

    @property
    def _usual(self) -> tuple[int, int]:
        """The tower's own size."""
        tower = tower_of(self.vlm)
        size = kind_of(tower).side(tower.config)
        return size, size

    def _texts_for(self, size: tuple[int, int]) -> _Texts:
        """The texts for images of `size`, prepared on first use."""
        size = size if self._family.any_resolution else self._usual
        key = (self._usual[0], *size)
        if key not in self._prepared:
            self._prepared[key] = _prepare(self.vlm, self.processor, self.prompts, self.texts, size)
        return self._prepared[key]

    def logits(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, L - first, V) that predict the labels (B, L - first) from the first answer token on."""
        inputs = self._family.inputs(self._family.settings(self.processor), pixels)
        if len(pixels) != len(self):
            raise ValueError(f"{len(pixels)} images for {len(self)} texts: give one image per text.")
        texts = self._texts_for((int(pixels.shape[-2]), int(pixels.shape[-1])))
        rows = texts.rows
        _, dtype = tower_placement(self.vlm)
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        for tower in towers_of(self.vlm).values():
            pack_attention(tower)
        output = self.vlm(
            **self._prefix.inputs(rows, self.processor),
            **inputs,
            logits_to_keep=rows.ids.shape[1] - texts.first + 1,
        )
        return output.logits[:, :-1], texts.labels[:, texts.first :]

    @staticmethod
    def _reduce(logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over each sample's own tokens; padding and prompt count for nothing."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        labels = labels.to(logits.device)
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return losses.sum(1) / (labels != IGNORED).sum(1)


def _prepare(
    vlm: PreTrainedModel, processor: Any, prompts: Sequence[str], answers: Sequence[str], size: tuple[int, int]
) -> _Texts:
    heads = prompt_rows(vlm, processor, prompts, size)
    rows = prompt_rows(vlm, processor, prompts, size, answers)
    labels = rows.ids.masked_fill(rows.mask == 0, IGNORED)
    for number, answer in enumerate(answers):
        length = heads.lengths[number]
        head, row = heads.ids[number, :length].tolist(), rows.ids[number, : rows.lengths[number]].tolist()
        _check_seam(head, row, answer)
        labels[number, :length] = IGNORED
    device = start_device(vlm)
    return _Texts(rows.to(device), labels.to(device), min(heads.lengths))


def _check_seam(head: list[int], row: list[int], text: str) -> None:
    """The prompt's tokens must be the beginning of the tokens of prompt and text, with at least one token left."""
    if row[: len(head)] != head:
        raise ValueError(
            f"the prompt's last token merges with the text {text!r}: end the prompt with a token of its own, "
            "such as ':', and no space."
        )
    if len(row) == len(head):
        raise ValueError(f"the text {text!r} has no tokens: every image needs a text.")
