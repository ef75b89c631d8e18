"""A run that stops at the first NaN, before it reaches a weight, and leaves what it takes to look at it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from fare_hf.training.failures import NonFiniteError, save_failure

__all__ = ["FiniteTrainer"]

MOST_OVERFLOWS = 20
"""Steps in a row that the scaler of fp16 may skip: it has halved its scale from 65,536 to 1/16 by then."""


class FiniteTrainer(Trainer):
    """A Trainer that looks at the loss of every batch and at the gradient of every step."""

    _batches: Sequence[dict[str, Any]] = ()
    _overflows = 0

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Keeps hold of the batches of a step, for the case that it fails."""
        self._batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self._batches, items

    def share_of_update(self, images: int) -> float:
        """Weight of a batch in the mean over all images of an update; 1, but at the end of an epoch, and outside one.

        The Trainer takes the mean over accumulated batches, of which the last may be smaller.
        """
        sizes = [len(batch["pixel_values"]) for batch in self._batches]
        return images * len(sizes) / sum(sizes) if sizes else 1.0

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Adds to an error where the state was saved."""
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} {save_failure(self, self._batches, str(error))}") from error

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The Trainer would update the weights with a NaN gradient, and then every weight is lost.

        Under fp16 an infinite gradient is the scaler's way to find its scale: the step is skipped, not the run ended.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        whole = norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)
        finite = bool(whole.isfinite())
        self._overflows = 0 if finite else self._overflows + 1
        scaled = self.accelerator.scaler is not None
        if finite or (scaled and self._overflows < MOST_OVERFLOWS):
            return norm
        raise NonFiniteError(self._say_gradient(scaled))

    def _say_gradient(self, scaled: bool) -> str:
        step, samples = self.state.global_step + 1, [n for batch in self._batches for n in batch["index"].tolist()]
        change = "lower learning_rate, or look at these images"
        if scaled:
            change = f"it did so in {MOST_OVERFLOWS} steps running, whatever the loss was scaled by; use bf16=True"
        said = f"step {step}: the gradient is not finite, samples with index {samples}; {change}."
        return f"{said} {save_failure(self, self._batches, said)}"
