"""Pictures of a training for the dashboards: images, what the attack made of them, and the difference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from fare_hf.training.run import TrainingRun

__all__ = ["AttackPictures", "picture_of"]

SHOWN = 4  # images of a batch
NAME = "train/attacked_images"


def picture_of(clean: Tensor, attacked: Tensor) -> Tensor:
    """One image of the first few: clean ones, attacked ones below, and below these the difference.

    Args:
        clean, attacked: (B, 3, H, W) in [0, 1].

    Returns:
        (3, 3 H, N W) in [0, 1] on the CPU, N being at most `SHOWN`. Of the difference, grey is none, and black and
        white are the largest in the picture.
    """
    clean, attacked = (pixels[:SHOWN].detach().float().cpu() for pixels in (clean, attacked))
    difference = attacked - clean
    magnified = 0.5 + 0.5 * difference / difference.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.cat([torch.cat(list(row), dim=2) for row in (clean, attacked, magnified)], dim=1)


class AttackPictures(TrainerCallback):
    """Sends a picture to each dashboard of the run, every `picture_steps`.

    Args:
        trainer: whose callbacks are asked for their dashboards.
    """

    def __init__(self, trainer: TrainingRun) -> None:
        self.trainer = trainer
        self.picture: Tensor | None = None

    def look(self, clean: Tensor, attacked: Tensor) -> None:
        """Takes the picture, on the main process, where one is due at the end of this step."""
        every, step = self.trainer.args.picture_steps, self.trainer.state.global_step + 1
        if every is not None and step % every == 0 and self.trainer.is_world_process_zero():
            self.picture = picture_of(clean, attacked)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sends what was taken."""
        if self.picture is not None:
            for callback in self.trainer.callback_handler.callbacks:
                _send(callback, self.picture, state.global_step)
            self.picture = None


def _send(callback: TrainerCallback, picture: Tensor, step: int) -> None:
    """To the dashboard of a callback of transformers, which alone knows the writer of the run."""
    if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
        callback.tb_writer.add_image(NAME, picture, step)
    array = picture.mul(255).round().byte().permute(1, 2, 0).numpy()
    if isinstance(callback, WandbCallback):
        callback._wandb.log({NAME: callback._wandb.Image(array), "train/global_step": step})
    if isinstance(callback, TrackioCallback):
        callback._trackio.log({NAME: callback._trackio.Image(array), "train/global_step": step})
