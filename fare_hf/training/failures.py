"""What is said of a step that went wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["NonFiniteError", "blame", "in_range", "save_failure"]


def blame(step: int, inputs: Mapping[str, Any], losses: Tensor | None) -> str:
    """The sentence for a batch that broke: the step and the `index` of the samples at fault, or of all.

    Step 0 is an evaluation.
    """
    where = f"step {step}" if step else "evaluation"
    broken = ~in_range(inputs["pixel_values"])
    if broken.any():
        samples = inputs["index"][broken].tolist()
        return f"{where}: samples with index {samples} have NaN or values outside [0, 1]; look at these images."
    bad = torch.ones_like(broken) if losses is None else ~losses.isfinite()
    return (
        f"{where}: the loss is not finite, samples with index {inputs['index'][bad].tolist()}; "
        "lower learning_rate, or look at these images."
    )


def in_range(pixels: Tensor) -> Tensor:
    """(B,) whether all values of an image are in [0, 1]; NaN is not."""
    pixels = pixels.flatten(1)
    return ((pixels >= 0) & (pixels <= 1)).all(dim=1)


class NonFiniteError(ValueError):
    """A loss, a gradient or a pixel that is NaN or infinite, or out of range; says the step and the samples."""


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
