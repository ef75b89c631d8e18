"""What `FareTrainer` measures between two lines of its log, and when it tells the data its epoch."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import IntervalStrategy, TrainerCallback

from fare_hf.encoders.flops import peak_flops

__all__ = [
    "MEASURED",
    "EpochCallback",
    "LastLine",
    "Window",
    "WithoutEpochs",
    "greater_is_better",
    "measured_names",
    "peak_memory",
    "summarise",
]

MEASURED = {
    "loss": False,
    "attack_gain": False,
    "cosine_clean": True,
    "cosine_adversarial": True,
    "clean_accuracy": True,
    "robust_accuracy": True,
}
"""What an evaluation measures, for `metric_for_best_model`: whether more is better."""


class Window:
    """What happened since the last line of the log; sums stay on the device until `close`.

    Args:
        device: where this process computes; its peak, if known, gives the model FLOP utilisation (MFU).
        half: whether it multiplies in half precision, be it in the attack alone.
    """

    def __init__(self, device: torch.device, half: bool = True) -> None:
        self.device, self.peak = device, peak_flops(device, half)
        self.started: float | None = None
        self._reset()

    def begin(self) -> None:
        """Starts the clock, with the first batch."""
        self.started = time.perf_counter() if self.started is None else self.started

    def count(self, images: int, flops: int = 0) -> None:
        """Counts a batch: images over all processes, operations of this one."""
        self.images += images
        self.flops += flops

    def add(self, values: Tensor) -> None:
        """Adds measured values `(B, 4)`."""
        self.sums += values.sum(0)
        self.measured += len(values)

    def close(self, accelerator: Accelerator) -> dict[str, float]:
        """The measurements of the window over all processes (a collective call); a new window begins."""
        metrics = {}
        if self.measured:
            total = accelerator.reduce(self.sums, reduction="sum").tolist()
            metrics = summarise(total, self.measured * accelerator.num_processes)
            del metrics["loss"]
        now = time.perf_counter()
        if self.started is not None:
            metrics["images_per_second"] = round(self.images / (now - self.started), 2)
            if self.peak is not None:
                metrics["mfu"] = round(self.flops / (now - self.started) / self.peak, 4)
        metrics["memory_gib"] = round(peak_memory(self.device) / 2**30, 3)
        self.started = now
        self._reset()
        return metrics

    def _reset(self) -> None:
        self.sums = torch.zeros(4, device=self.device)
        self.images = self.measured = self.flops = 0


class EpochCallback(TrainerCallback):
    """Tells the training set its epoch: accelerate tells either the sampler or the data set, not both."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Calls `train_dataset.set_epoch(epoch)` where there is one."""
        dataset: Any = getattr(kwargs.get("train_dataloader"), "dataset", None)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))


class LastLine(TrainerCallback):
    """Logs the last step too: a run that is shorter than `logging_steps` would end without a figure."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks for a line where there is none yet."""
        logs = IntervalStrategy(args.logging_strategy) == IntervalStrategy.STEPS
        control.should_log = control.should_log or (logs and state.global_step == state.max_steps)


class WithoutEpochs(TrainerCallback):
    """Keeps out of bars and dashboards what the Trainer adds to each line and nobody reads as a curve.

    `trainer_state.json` has the epoch still. The Trainer's operations are those of a language model.
    """

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Takes it out, before the callbacks that follow."""
        for name in ("epoch", "total_flos"):
            logs.pop(name, None)


def peak_memory(device: torch.device) -> int:
    """Most bytes so far, without a sync: of tensors on a GPU, of this process on a CPU (0 where Windows runs it)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def summarise(sums: list[float], count: int) -> dict[str, float]:
    """Means of `count` samples from the column sums of `_measure`, and perhaps of both accuracies."""
    loss, start, clean, adversarial, *right = sums
    named = zip(("clean_accuracy", "robust_accuracy"), right, strict=False)
    return {
        "loss": loss / count,
        "attack_gain": loss / start if start else float("inf"),
        "cosine_clean": clean / count,
        "cosine_adversarial": adversarial / count,
        **{name: correct / count for name, correct in named},
    }


def greater_is_better(metric: str | None, given: bool | None) -> bool | None:
    """Whether more of a measurement is better; the Trainer maximises whatever does not end in `loss`.

    Args:
        metric: `metric_for_best_model`, perhaps with `eval_` and the name of an evaluation set in front.
        given: what was asked for.

    Raises:
        ValueError: the worst checkpoint was asked for, or a direction of nothing.
    """
    if metric is None:
        if given is not None:
            raise ValueError(f"greater_is_better={given} of what? give metric_for_best_model, such as loss.")
        return None
    name = next((name for name in MEASURED if metric == name or metric.endswith(f"_{name}")), None)
    if name is None:
        return given
    if given is not None and given != MEASURED[name]:
        raise ValueError(f"greater_is_better={given} would keep the worst checkpoint by {metric!r}; leave it out.")
    return MEASURED[name]


def measured_names(eval_dataset: Any, accuracies: bool) -> list[str]:
    """Names that `metric_for_best_model` may have, without `eval_`.

    Args:
        eval_dataset: a data set, or several by name.
        accuracies: whether images are also classified.
    """
    names = [name for name in MEASURED if accuracies or not name.endswith("_accuracy")]
    return [f"{part}_{name}" for part in eval_dataset for name in names] if isinstance(eval_dataset, dict) else names
