"""Checkpoints of a training: written, found again and read, every weight by name or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerState
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from fare_hf.encoders import load_complete

__all__ = ["CheckpointTrainer"]


class CheckpointTrainer(Trainer):
    """A Trainer whose checkpoints bring back every weight of a vision encoder."""

    model: Any

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """`Trainer.train`, which makes one step too many where the checkpoint is of the last step already."""
        folder = get_last_checkpoint(str(self.args.output_dir)) if resume_from_checkpoint is True else None
        folder = folder or (resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None)
        if folder and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            state = TrainerState.load_from_json(str(Path(folder) / "trainer_state.json"))
            if state.global_step >= self.args.max_steps > 0:
                self._restore(folder)
                self.state = state
                return TrainOutput(state.global_step, 0.0, {})
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The Trainer loads nothing into a `CLIPVisionModel` from `vision_model.*` names, with only a warning."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._restore(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """As `_load_from_checkpoint`."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._restore(str(self.state.best_model_checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """`Trainer.train` puts `use_cache` into the configuration, which no vision encoder has."""
        vars(self.accelerator.unwrap_model(self.model).config).pop("use_cache", None)
        super()._save(output_dir, state_dict)

    def _restore(self, folder: str) -> None:
        """Every weight from a checkpoint, by name, or an error."""
        encoder = self.accelerator.unwrap_model(self.model)
        encoder.load_state_dict(load_complete(type(encoder), folder).state_dict(), strict=True)
