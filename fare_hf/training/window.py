"""What `FareTrainer` measures between two lines of its log, and when it tells the data its epoch."""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback

__all__ = ["EpochCallback", "Window", "summarise"]


class Window:
    """What happened since the last line of the log; sums stay on the device until `close`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.started: float | None = None
        self._reset()

    def begin(self, images: int) -> None:
        """Counts a batch; the clock starts with the first."""
        self.started = time.perf_counter() if self.started is None else self.started
        self.images += images

    def add(self, values: Tensor) -> None:
        """Adds measured values `(B, 4)`."""
        self.sums += values.sum(0)
        self.count += len(values)

    def close(self, accelerator: Accelerator) -> dict[str, float]:
        """The measurements of the window over all processes (a collective call); a new window begins."""
        metrics = {}
        if self.count:
            total = accelerator.reduce(self.sums, reduction="sum").tolist()
            metrics = summarise(total, self.count * accelerator.num_processes)
            del metrics["loss"]
        now = time.perf_counter()
        if self.started is not None:
            metrics["images_per_second"] = round(self.images / (now - self.started), 2)
        self.started = now
        self._reset()
        return metrics

    def _reset(self) -> None:
        self.sums = torch.zeros(4, device=self.device)
        self.images = self.count = 0


class EpochCallback(TrainerCallback):
    """Tells the training set its epoch: accelerate tells either the sampler or the data set, not both."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Calls `train_dataset.set_epoch(epoch)` where there is one."""
        dataset: Any = getattr(kwargs.get("train_dataloader"), "dataset", None)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))


def summarise(sums: list[float], count: int) -> dict[str, float]:
    """Means of `count` samples from the column sums of `_measure`."""
    loss, start, clean, adversarial = sums
    return {
        "loss": loss / count,
        "attack_gain": loss / start if start else float("inf"),
        "cosine_clean": clean / count,
        "cosine_adversarial": adversarial / count,
    }
