"""Loss of a vision-language model on given texts, as a function of the image's pixels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from fare_hf.pixels import Normalization
from fare_hf.vlm.families import tower_of
from fare_hf.vlm.prompts import check_resolution, join, pad, prompt_ids

__all__ = ["VlmLoss"]

IGNORED = -100


class VlmLoss:
    """Mean negative log-likelihood per token of `texts[b]`, given the prompt and image `b`.

    Equal, sample by sample, to the model's own `model(labels=...)` loss with the prompt's tokens ignored. A targeted
    attack minimises it (`loss_fn = lambda pixels: -loss(pixels)`), an untargeted one maximises it (pass the object).
    Tokens are prepared once here; a call is one forward, with the vocabulary only at the answer's positions.

    Args:
        vlm: a model of `fare_hf.vlm.families.FAMILIES`; freeze it around the attack (`fare_hf.encoders.frozen`).
        processor: its processor (image processor and tokenizer).
        prompt: one prompt for all, or one per text, with the image placeholder (`<image>`) once in each.
        texts: the B texts; each is joined to its prompt by one space unless one of the two has white space there.

    Raises:
        ValueError: an empty text, prompts and texts of different number, a prompt without (or with a second) image
            placeholder, or a prompt whose last token merges with the text's first.
    """

    def __init__(
        self, vlm: PreTrainedModel, processor: Any, prompt: str | Sequence[str], texts: Sequence[str]
    ) -> None:
        prompts = [prompt] * len(texts) if isinstance(prompt, str) else list(prompt)
        if not texts or len(prompts) != len(texts):
            raise ValueError(f"{len(prompts)} prompts for {len(texts)} texts: give one text (and prompt) per image.")
        heads = prompt_ids(vlm, processor, prompts)
        rows = prompt_ids(vlm, processor, [join(p, text) for p, text in zip(prompts, texts, strict=True)])
        for head, row, text in zip(heads, rows, texts, strict=True):
            _check_seam(head, row, text)
        device = tower_of(vlm).get_parameter("post_layernorm.weight").device
        padding = processor.tokenizer.pad_token_id
        ids, mask = pad(rows, 0 if padding is None else padding)
        labels = ids.masked_fill(mask == 0, IGNORED)
        for number, head in enumerate(heads):
            labels[number, : len(head)] = IGNORED
        self.vlm = vlm
        self.normalization = Normalization.from_processor(processor.image_processor)
        self.input_ids, self.attention_mask, self.labels = ids.to(device), mask.to(device), labels.to(device)
        self._first = min(len(head) for head in heads)

    def __len__(self) -> int:
        """Number of texts B."""
        return len(self.input_ids)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Losses of shape (B,), fp32 (fp64 for an fp64 model), differentiable in pixels (B, 3, S, S) in [0, 1]."""
        return self._reduce(self._logits(pixels))

    def with_match(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and, from the same forward, whether greedy decoding would write the text (B,) bool.

        The most likely token at every answer position given the text so far is what greedy decoding takes, so the
        flag is exact up to rounding; it lets a targeted attack keep an iterate that works.
        """
        logits = self._logits(pixels)
        labels = self.labels[:, self._first :]
        match = (logits.detach().argmax(-1) == labels) | (labels == IGNORED)
        return self._reduce(logits), match.all(1)

    def select(self, indices: Sequence[int] | torch.Tensor) -> VlmLoss:
        """The same loss for a subset of the texts, without preparing the tokens again."""
        chosen = torch.as_tensor(indices, device=self.input_ids.device)
        part = copy.copy(self)
        part.input_ids, part.attention_mask = self.input_ids[chosen], self.attention_mask[chosen]
        part.labels = self.labels[chosen]
        return part

    def _logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, L - first, V) that predict the columns of `labels` from the first answer token on."""
        check_resolution(self.vlm, pixels)
        if len(pixels) != len(self):
            raise ValueError(f"{len(pixels)} images for {len(self)} texts: give one image per text.")
        output = self.vlm(
            input_ids=self.input_ids,
            attention_mask=self.attention_mask,
            pixel_values=self.normalization(pixels).to(tower_of(self.vlm).dtype),
            logits_to_keep=self.input_ids.shape[1] - self._first + 1,
            use_cache=False,
        )
        return output.logits[:, :-1]

    def _reduce(self, logits: torch.Tensor) -> torch.Tensor:
        """Mean over each sample's own tokens; padding and prompt count for nothing."""
        labels = self.labels[:, self._first :]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return losses.sum(1) / (labels != IGNORED).sum(1)


def _check_seam(head: list[int], row: list[int], text: str) -> None:
    """The prompt's tokens must be the beginning of the tokens of prompt and text, with at least one token left."""
    if row[: len(head)] != head:
        raise ValueError(
            f"the prompt's last token merges with the text {text!r}: end the prompt with a token of its own, "
            "such as ':', and no space."
        )
    if len(row) == len(head):
        raise ValueError(f"the text {text!r} has no tokens: every image needs a text.")
