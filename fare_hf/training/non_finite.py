"""A run that stops at the first NaN, before it reaches a weight, and leaves what it takes to look at it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Trainer

__all__ = ["FiniteTrainer", "NonFiniteError", "blame", "in_range", "save_failure"]

MOST_OVERFLOWS = 20
"""Steps in a row that the scaler of fp16 may skip: it has halved its scale from 65,536 to 1/16 by then."""


class NonFiniteError(ValueError):
    """A loss, a gradient or a pixel that is NaN or infinite, or out of range; says the step and the samples."""


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
        # Private: callbacks see no gradient norm, and after clipping an infinite gradient looks like a small one.
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


def blame(step: int, inputs: Mapping[str, Any], losses: Tensor | None) -> str:
    """The sentence for a batch that broke: the step and the `index` of the samples at fault, or of all.

    Step 0 is an evaluation.
    """
    where = f"step {step}" if step else "evaluation"
    broken = ~in_range(inputs["pixel_values"])
    if broken.any():
        samples = inputs["index"][broken].tolist()
        return (
            f"{where}: samples with index {samples} have NaN or values outside [0, 1]; look at these images, and give "
            "them as PixelDataset does, before normalisation."
        )
    bad = torch.ones_like(broken) if losses is None else ~losses.isfinite()
    return (
        f"{where}: the loss is not finite, samples with index {inputs['index'][bad].tolist()}; "
        "lower learning_rate, or look at these images."
    )


def in_range(pixels: Tensor) -> Tensor:
    """(B,) whether all values of an image are in [0, 1]; NaN is not."""
    pixels = pixels.flatten(1)
    return ((pixels >= 0) & (pixels <= 1)).all(dim=1)


def save_failure(trainer: Any, batches: Sequence[Mapping[str, Any]], message: str) -> str:
    """Writes what it takes to look at a failure: this process's batch, and once the weights and the optimizer.

    `output_dir/failure-step-N` then holds `process-R/batch.safetensors` with `failure.json`, and `state` with the
    model, `optimizer.safetensors` (moments, by parameter and name) and `optimizer.json` (its groups). No update was
    made since the failure. Sharded weights (FSDP) are not written: it takes all processes, and one has stopped.

    Args:
        trainer: that failed.
        batches: of the step, one for each accumulation.
        message: what went wrong.

    Returns:
        A sentence that says where it is.
    """
    step = trainer.state.global_step + 1
    folder = Path(str(trainer.args.output_dir)) / f"failure-step-{step}"
    own = folder / f"process-{trainer.args.process_index}"
    facts = {"step": step, "message": message, "samples": [n for b in batches for n in b["index"].tolist()]}
    facts |= {"run": trainer.identity, "torch": torch.__version__, "transformers": transformers.__version__}
    try:
        own.mkdir(parents=True, exist_ok=True)
        (own / "failure.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        keys = [key for key, value in batches[0].items() if isinstance(value, Tensor)]
        save_file({key: torch.cat([batch[key].cpu() for batch in batches]) for key in keys}, own / "batch.safetensors")
        if trainer.is_fsdp_enabled:
            return f"The batch is in {str(folder)!r}; the weights are sharded and were not saved."
        _save_state(trainer, folder / "state")
    except OSError as error:
        return f"Its state could not be saved: {error}."
    return f"The batch, the weights and the optimizer are in {str(folder)!r}."


def _save_state(trainer: Any, folder: Path) -> None:
    """Weights and optimizer, by the first process that comes here; those of the others are the same."""
    try:
        folder.mkdir()
    except FileExistsError:
        return
    encoder = trainer.accelerator.unwrap_model(trainer.model)
    encoder.save_pretrained(folder)
    names = {parameter: name for name, parameter in encoder.named_parameters()}
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    moments = {
        f"{names[parameter]}.{key}": value.detach().cpu().contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    save_file(moments, folder / "optimizer.safetensors")
    groups = [{**group, "params": [names[p] for p in group["params"]]} for group in optimizer.param_groups]
    (folder / "optimizer.json").write_text(json.dumps(groups, indent=2, default=str) + "\n", encoding="utf-8")
