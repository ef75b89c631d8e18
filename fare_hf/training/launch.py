"""What a launcher asked for that cannot work, seen before torch or accelerate stumble over it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["check_launch"]

PRECISIONS = ("no", "fp16", "bf16")
UNTRIED = {"ACCELERATE_USE_MEGATRON_LM": "Megatron-LM", "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config"}
"""Ways to divide a model that accelerate would take from the environment, beside DeepSpeed."""


def check_launch(use_cpu: bool, deepspeed: Any, environment: Mapping[str, str] = os.environ) -> None:
    """Looks at what `accelerate launch` and torchrun hand over.

    Args:
        use_cpu: whether the run leaves the GPUs alone.
        deepspeed: the field of `TrainingArguments`.
        environment: where the launcher left its settings.

    Raises:
        ValueError: DeepSpeed or another untried way to divide a model, an unknown precision, more processes than GPUs.
    """
    if deepspeed or environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ValueError(
            "DeepSpeed was never tried with gradients to the pixels; use FSDP, which shards the same: accelerate "
            "launch --config_file examples/accelerate/fsdp.yaml (fsdp_reshard_after_forward: false is ZeRO-2)."
        )
    for variable, way in UNTRIED.items():
        if environment.get(variable, "false").lower() in ("true", "1", "yes", "on", "y", "t"):
            raise ValueError(
                f"{way} was never tried with gradients to the pixels; use FSDP (examples/accelerate/fsdp.yaml), or "
                "take it out of accelerate's configuration."
            )
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in PRECISIONS:
        raise ValueError(f"mixed_precision={precision!r} is not known here; give one of {', '.join(PRECISIONS)}.")
    processes = int(environment.get("LOCAL_WORLD_SIZE", 1))
    if use_cpu or not torch.cuda.is_available() or processes <= (devices := torch.cuda.device_count()):
        return
    raise ValueError(
        f"{processes} processes were started on a machine with {devices} visible GPUs; give --num_processes {devices} "
        "a machine, or set CUDA_VISIBLE_DEVICES."
    )
