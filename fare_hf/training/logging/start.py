"""What a run says before its first step: on what it runs, how many images an update has, its precision, its hours.

Much of it comes from other places than the command line: from accelerate's configuration, from environment variables,
from which libraries are installed.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from accelerate.commands.config.config_args import default_config_file
from transformers import SchedulerType, TrainerCallback

from fare_hf.encoders.flops import ASSUMED_MFU, peak_flops, uses_tf32
from fare_hf.training.batches import RECIPE_BATCH
from fare_hf.training.checkpointing.identity import image_backend
from fare_hf.training.config import CHEAPER, FareConfig
from fare_hf.training.estimate import training_flops
from fare_hf.training.objective_facts import objective_facts
from fare_hf.training.run import TrainingRun

__all__ = ["SayAtStart", "SayHowToSave", "facts_of_run"]


class SayAtStart(TrainerCallback):
    """Prints the facts of a run, on the main process.

    Args:
        trainer: that runs.
    """

    def __init__(self, trainer: TrainingRun) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prints them."""
        if state.is_world_process_zero:
            lines = [f"  {name:10} {fact}" for name, fact in facts_of_run(self.trainer).items()]
            print("This run:", *lines, sep="\n", flush=True)


class SayHowToSave(TrainerCallback):
    """Says at the end what writes the encoder; the command line writes it itself, and removes this."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prints it."""
        if state.is_world_process_zero:
            print(f"trainer.save_encoder() writes the encoder with its card to {args.output_dir}/encoder", flush=True)


def facts_of_run(trainer: TrainingRun) -> dict[str, str]:
    """Name -> one line, of a trainer that is about to make its first step."""
    args = trainer.args
    return {
        "device": _device(trainer),
        "update": _update(args),
        "precision": _precision(trainer),
        "compile": _compile(trainer),
        "images": _images(trainer),
        "recipe": _recipe(trainer),
        "steps": _steps(trainer),
        "trained": _trained(trainer.model),
        "hours": _hours(trainer),
    }


def _device(trainer: TrainingRun) -> str:
    device, count = trainer.args.device, trainer.args.world_size
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    sharded = ", weights sharded (FSDP)" if trainer.is_fsdp_enabled else ""
    return f"{name}, {count} {'process' if count == 1 else 'processes'}{sharded}"


def _images(trainer: TrainingRun) -> str:
    data, workers = trainer.train_dataset, trainer.args.dataloader_num_workers
    fast = getattr(data, "fast", None)
    decoded = f", JPEGs decoded by {fast.decoder}" if fast else ""
    readers = f"{workers} more processes for each" if workers else "each process"
    return f"resized by {image_backend(trainer.processing_class, data)}{decoded}, read by {readers}"


def _update(args: FareConfig) -> str:
    parts = (args.world_size, args.train_batch_size, args.gradient_accumulation_steps)
    images = math.prod(parts)
    given = "global_batch_size" if args.global_batch_size else "per_device_train_batch_size"
    paper = "" if images == RECIPE_BATCH else f"; the paper's recipe has {RECIPE_BATCH}"
    product = " x ".join(map(str, parts))
    return f"{images} images = {product} (processes x images at a time x batches), by {given}{paper}"


def _precision(trainer: TrainingRun) -> str:
    args, used = trainer.args, trainer.accelerator.mixed_precision
    name = f"fp32{' with TF32' if uses_tf32(args.device) else ''}" if used == "no" else used
    if args.bf16 or args.fp16:
        return f"{name} (option {'bf16' if args.bf16 else 'fp16'})"
    return f"{name} ({_launcher() if 'ACCELERATE_MIXED_PRECISION' in os.environ else 'default'})"


def _compile(trainer: TrainingRun) -> str:
    if trainer.compiled_by is None:
        return "no"
    return f"{trainer.compiled_by} ({'option torch_compile' if trainer.args.torch_compile else _launcher()})"


def _launcher() -> str:
    """Where settings come from that `accelerate launch` hands over in the environment."""
    stale = f"; it reads {default_config_file} unless told otherwise" if os.path.isfile(default_config_file) else ""
    return f"from accelerate launch, an option or its configuration{stale}"


def _recipe(trainer: TrainingRun) -> str:
    args = trainer.args
    cheaper = [f", {name}={value}" for name in CHEAPER if (value := getattr(args, name))]
    name, steps = (
        objective_facts(trainer.objective)["objective"],
        f"{args.attack_steps} steps of {args.attack_step_size}",
    )
    return f"{name}, {args.embedding} embedding, {args.threat_model}, PGD with {steps}{''.join(cheaper)}"


def _steps(trainer: TrainingRun) -> str:
    args, last, first = trainer.args, trainer.state.max_steps, trainer.state.global_step
    warmup = args.get_warmup_steps(last)
    schedule = f"{SchedulerType(args.lr_scheduler_type).value}, warm-up {warmup}"
    never = "; the warm-up does not end, give --warmup_steps" if warmup >= last else ""
    begin = f", from {first:,}" if first else ""
    return f"{last:,} updates{begin}, learning rate {args.learning_rate:g} ({schedule}){never}"


def _trained(model: torch.nn.Module) -> str:
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained, all_of_them = sum(n for n, trained in counts if trained), sum(n for n, _ in counts)
    return f"{trained / 1e6:.4g} of {all_of_them / 1e6:.4g} M parameters"


def _hours(trainer: TrainingRun) -> str:
    args = trainer.args
    if (peak := peak_flops(args.device, half=trainer.half)) is None:
        return "not known before the first steps: no peak of this device is on record"
    last = trainer.state.max_steps
    each = training_flops(args, trainer.flops, last, objective=trainer.objective, trained=trainer.trained_share)
    left = (last - trainer.state.global_step) / last
    images = args.train_batch_size * args.gradient_accumulation_steps
    hours = each * left * images / (peak * ASSUMED_MFU) / 3600
    return f"about {hours:.3g} at {ASSUMED_MFU:.0%} of the device's peak (assumed), without evaluations"
