"""What a training will cost, before it runs: operations, memory and hours. Takes the options of a training.

    fare-hf estimate --config examples/recipes/vit-l-14-336.yaml examples/recipes/fare-4.yaml --gpus H100 "RTX 4090"

Reads the encoder's configuration and no weights; the shapes of the five encoders of `examples/recipes` are known
without a network. The hours are arithmetic: operations over the device's peak, at a utilisation that you state.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import CLIPVisionConfig

from fare_hf.cli.console import hide_notices, one_sentence
from fare_hf.cli.recipe_files import expand_config
from fare_hf.cli.train import FareScriptArguments
from fare_hf.cli.training_options import build_parser
from fare_hf.encoders.flops import ASSUMED_MFU, Flops, count_flops, peak_of
from fare_hf.encoders.memory import Memory, count_memory, count_parameters
from fare_hf.pretrained.configuration import TOWERS, read_configuration
from fare_hf.training import FareConfig
from fare_hf.training.batches import share_of_batch
from fare_hf.training.schedules import attack_of, training_flops
from fare_hf.training.trainable import check_blocks

__all__ = ["Estimate", "estimate", "main"]

GPUS = ("H100", "A100", "L40S", "RTX 4090")
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_HUGE = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "openai/clip-vit-base-patch32": _BASE | {"patch_size": 32, "projection_dim": 512},
    "openai/clip-vit-base-patch16": _BASE | {"patch_size": 16, "projection_dim": 512},
    "openai/clip-vit-large-patch14": _LARGE | {"patch_size": 14, "projection_dim": 768},
    "openai/clip-vit-large-patch14-336": _LARGE | {"patch_size": 14, "projection_dim": 768, "image_size": 336},
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": _HUGE | {"patch_size": 14, "projection_dim": 1024, "hidden_act": "gelu"},
}
"""Encoders of the recipes, as their configurations on the Hub have them."""


@dataclass(frozen=True)
class Estimate:
    """Cost of a training.

    Attributes:
        parameters: of the encoder.
        images: that are attacked, over all processes and steps.
        flops: of all training steps.
        evaluation: operations of all evaluations, over `flops`; None without evaluations or a bound on their images.
        memory: of one process.
        processes: among which the work is divided.
        half: whether in bf16 or fp16.
    """

    parameters: int
    images: int
    flops: int
    evaluation: float | None
    memory: Memory
    processes: int
    half: bool

    def hours(self, gpu: str, mfu: float) -> float:
        """Hours on `processes` GPUs of a kind, at a share of its peak in this precision; loading, logging and
        evaluation aside.

        Raises:
            ValueError: a GPU whose peak is not known.
        """
        peak = peak_of(gpu, half=self.half)
        if peak is None:
            raise ValueError(f"gpus={gpu!r} is not known; give one such as {', '.join(GPUS)}.")
        return self.flops / (peak * mfu * self.processes) / 3600


def estimate(script: FareScriptArguments, config: FareConfig, processes: int = 1) -> Estimate:
    """The cost of a training with these arguments on so many processes.

    Raises:
        ValueError: a model whose configuration is not found, or a number of steps that only the data set knows.
    """
    if config.max_steps < 1:
        raise ValueError("max_steps=-1 counts epochs, whose length is not known here; give --max_steps.")
    shape = encoder_config(script.model)
    flops = count_flops(shape, config.embedding)
    check_blocks(config.trained_blocks or 0, shape.num_hidden_layers)
    if config.global_batch_size is not None:
        share_of_batch(config.global_batch_size, processes)
    trained = 1.0 if config.trained_blocks is None else config.trained_blocks / shape.num_hidden_layers
    trained = 0.0 if config.lora_rank is not None else trained
    batch = config.global_batch_size or (
        config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
    )
    target = config.objective == "fare"
    total = batch * training_flops(config, flops, config.max_steps, clean_target=target, trained=trained)
    half = bool(config.bf16 or config.fp16)
    memory = count_memory(
        shape,
        min(config.per_device_train_batch_size, batch // processes),
        half=half,
        checkpointing=bool(config.activation_checkpointing),
        trained=trained,
    )
    spent = evaluation_flops(flops, config)
    share = None if spent is None else spent / total
    return Estimate(count_parameters(shape), batch * config.max_steps, total, share, memory, processes, half)


def evaluation_flops(flops: Flops, config: FareConfig) -> int | None:
    """Operations of all evaluations; None where there is none, or where their images have no bound."""
    if config.eval_strategy != "steps" or not config.eval_images:
        return None
    attacks = config.attack_steps + attack_of(config, config.eval_attack_steps or 1).count
    each = attacks * (flops.forward + flops.to_pixels) + 6 * flops.forward
    every = config.eval_steps or config.logging_steps
    every = every if every >= 1 else math.ceil(every * config.max_steps)  # a share, for the Trainer
    return int(config.max_steps / every) * config.eval_images * each


def encoder_config(name: str) -> Any:
    """The vision configuration of a model, from the table, a folder or the Hub.

    Raises:
        ValueError: there is none.
    """
    if name in SHAPES:
        return CLIPVisionConfig(**SHAPES[name])
    try:
        config = read_configuration(name)
    except OSError as error:
        raise ValueError(
            f"{name!r} is neither a folder with a model nor found on the Hub; known without a network are "
            f"{', '.join(SHAPES)}."
        ) from error
    vision = getattr(config, "vision_config", config)
    if vision.model_type not in TOWERS:
        raise ValueError(f"{name!r} is a {config.model_type!r} model, not a vision encoder or CLIP: name one.")
    return vision


def report(found: Estimate, gpus: Sequence[str], mfu: float) -> str:
    """Lines for people."""
    memory, giga = found.memory, 1e9
    lines = [
        f"{found.parameters / 1e6:.0f} M parameters; {found.images:,} images; {found.flops / 1e18:.3g} EFLOP",
        f"memory of a process: {memory.peak / giga:.1f} GB: weights, gradients, copies {memory.weights / giga:.1f}, "
        f"optimizer {memory.optimizer / giga:.1f}, activations {max(memory.update, memory.attack) / giga:.1f}",
    ]
    if found.evaluation is not None:
        lines.append(f"evaluations: {found.evaluation:.1%} of the training's operations, in addition")
    peak = "half precision" if found.half else "fp32 (--bf16 is many times faster)"
    for gpu in gpus:
        hours = found.hours(gpu, mfu)
        lines.append(f"{found.processes} x {gpu}: {hours:.1f} hours at an MFU of {mfu:.0%} (assumed) in {peak}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, prog: str = "fare-hf estimate") -> None:
    """The command line: the options of a training, `--gpus`, `--mfu` and `--num_processes`."""
    hide_notices()
    words = [*(sys.argv[1:] if arguments is None else arguments), "--use_cpu"]  # nothing runs on a device here
    parser = build_parser(FareScriptArguments, prog, __doc__, everything="--help_all" in words)
    for action in parser._actions:
        action.required = action.dest == "model"
    parser.set_defaults(dataset="none", output_dir="none")
    group = parser.add_argument_group("estimate")
    group.add_argument("--gpus", nargs="+", default=list(GPUS), help="names of GPUs whose peak is known")
    group.add_argument("--mfu", type=float, default=ASSUMED_MFU, help="share of the peak that the training reaches")
    group.add_argument("--num_processes", type=int, default=1, help="GPUs")
    with one_sentence(prog):
        known = {action.dest for action in parser._actions} - {"config"}
        script, config, own = parser.parse_args_into_dataclasses(expand_config(words, known))
        if not 0 < own.mfu <= 1 or own.num_processes < 1:
            raise ValueError(f"mfu={own.mfu}, num_processes={own.num_processes}: give an MFU in (0, 1] and a GPU.")
        print(report(estimate(script, config, own.num_processes), own.gpus, own.mfu))


if __name__ == "__main__":
    main()
