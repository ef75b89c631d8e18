"""Room on the disk for the checkpoints that a run announces, seen before its first step."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

__all__ = ["check_disk", "checkpoint_bytes", "checkpoints_at_once"]

BYTES = 4
"""Of a weight; weights and moments are kept in fp32."""


def check_disk(args: TrainingArguments, model: Any, step: int = 0) -> None:
    """Refuses to start a run whose checkpoints will not fit.

    Args:
        args: how often it saves and how many it keeps.
        model: what is saved.
        step: that it goes on from.

    Raises:
        ValueError: less room than the checkpoints and the encoder at the end take at least.
    """
    count = checkpoints_at_once(args, step)
    size, encoder = checkpoint_bytes(args, model), BYTES * sum(p.numel() for p in model.parameters())
    folder = Path(str(args.output_dir)).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if count * size + encoder > free:
        raise ValueError(
            f"{count} checkpoints of {_gigabytes(size)} and the encoder do not fit into {_gigabytes(free)} free at "
            f"output_dir={str(args.output_dir)!r}; give a smaller save_total_limit, a larger save_steps, or another "
            "disk."
        )


def checkpoint_bytes(args: TrainingArguments, model: Any) -> int:
    """The least that a checkpoint takes: all weights, and two moments a trained weight for Adam's family."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    moments = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    optimizer = str(getattr(args.optim, "value", args.optim))
    keeps = 0 if args.save_only_model or "adam" not in optimizer else 2 * (1 if "8bit" in optimizer else BYTES)
    return BYTES * weights + keeps * moments


def checkpoints_at_once(args: TrainingArguments, step: int = 0) -> int:
    """How many checkpoints lie on the disk at once; a new one is whole before an old one goes.

    Where epochs are counted, or saving depends on what is measured, at least the one that is written.
    """
    if SaveStrategy(args.save_strategy) == SaveStrategy.NO:
        return 0
    planned = 1
    if args.save_strategy == SaveStrategy.STEPS and args.max_steps > 0:
        every = args.save_steps if args.save_steps >= 1 else math.ceil(args.save_steps * args.max_steps)
        planned = max(1, math.ceil((args.max_steps - step) / every))
    return planned if not args.save_total_limit else min(planned, args.save_total_limit + 1)


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
