"""A training as those see it that publish it, gather its weights or print its facts: `FareTrainer`, from below."""

from __future__ import annotations

from typing import Any, Protocol

from accelerate import Accelerator
from transformers import TrainerState

from fare_hf.encoders.flops import Flops
from fare_hf.training.config import FareConfig

__all__ = ["TrainingRun"]


class TrainingRun(Protocol):
    """The attributes of `FareTrainer` that are read outside of it."""

    args: FareConfig
    model: Any
    objective: Any
    processing_class: Any
    train_dataset: Any
    card: dict[str, Any]
    state: TrainerState
    accelerator: Accelerator
    callback_handler: Any
    flops: Flops
    half: bool
    trained_share: float
    compiled_by: str | None
    hub_model_id: str | None
    is_fsdp_enabled: bool

    def is_world_process_zero(self) -> bool:
        """Whether this process writes and prints."""
