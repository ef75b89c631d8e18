"""What a training will cost, before it runs: operations, memory and hours.

The hours are arithmetic: operations over the device's peak, at a utilisation that is stated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from transformers import CLIPVisionConfig

from fare_hf.encoders.flops import Flops, count_flops, peak_of
from fare_hf.encoders.memory import Memory, count_memory, count_parameters
from fare_hf.encoders.reading import FEATURES
from fare_hf.objectives import OBJECTIVES
from fare_hf.objectives.objective import update_images
from fare_hf.pretrained.configuration import read_configuration
from fare_hf.pretrained.encoder_families import REFUSED, TOWER_TYPES, family_of_type
from fare_hf.training.attack import attack_of, attack_steps_at
from fare_hf.training.batches import divide_batch
from fare_hf.training.config import FareConfig
from fare_hf.training.trainable import check_blocks
from fare_hf.vlm.tower_files import unloaded_tower

__all__ = ["GPUS", "SHAPES", "Estimate", "encoder_config", "estimate", "training_flops"]

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


def estimate(model: str, args: FareConfig, processes: int = 1, image_side: int | None = None) -> Estimate:
    """The cost of a training, without reading a weight.

    Args:
        model: one of `SHAPES`, a folder or a Hub repository, of which the configuration is read.
        args: the configuration.
        processes: that train.
        image_side: for `features`, as for `load_vision_tower`.

    Returns:
        Operations and memory, and hours on a GPU of your choice.

    Raises:
        ValueError: a model whose configuration is not found, or a number of steps that only the data set knows.
    """
    if args.max_steps < 1:
        raise ValueError("max_steps=-1 counts epochs, whose length is not known here; give --max_steps.")
    shape, flops, parameters = _of_features(model, image_side) if args.embedding == FEATURES else _of(model, args)
    layers = shape.num_hidden_layers
    blocks = layers if args.trained_blocks is None else args.trained_blocks
    check_blocks(blocks, layers)
    trained = blocks / layers
    whole, each, accumulation = _divided(args, processes)
    batch = whole or each * accumulation * processes
    objective = OBJECTIVES[args.objective]
    total = batch * training_flops(args, flops, args.max_steps, objective=objective, trained=trained)
    half = bool(args.bf16 or args.fp16)
    options: dict[str, Any] = {"half": half, "checkpointing": bool(args.activation_checkpointing), "trained": trained}
    memory = count_memory(shape, each, **options, update_images=update_images(objective), parameters=parameters)
    spent = evaluation_flops(flops, args)
    evaluation = None if spent is None else spent / total
    return Estimate(parameters, batch * args.max_steps, total, evaluation, memory, processes, half)


def _divided(args: FareConfig, processes: int) -> tuple[int | None, int, int]:
    """The batch among other processes; of a copied configuration, which asks for the parts of one, in other parts."""
    whole, each, accumulation = args.batch_asked_for
    parts_of_one = whole is not None and each is not None and each * accumulation == whole
    return divide_batch(whole, each, 1 if parts_of_one else accumulation, processes)


def _of(model: str, args: FareConfig) -> tuple[Any, Flops, int]:
    """Configuration, operations and weights of an encoder."""
    shape = encoder_config(model)
    family = family_of_type(shape.model_type)
    if args.embedding.startswith("projected") and (family is None or family.projecting is None):
        raise ValueError(f"{model!r} is a {shape.model_type!r} model without a projection; give --embedding pooled.")
    return shape, count_flops(shape, args.embedding), count_parameters(shape)


def _of_features(model: str, image_side: int | None) -> tuple[Any, Flops, int]:
    """The same of the tower of a vision-language model, whose tiles count as one large image."""
    tower, features = unloaded_tower(model, image_side=image_side)
    config = tower.config
    patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    width = getattr(config, "embed_dim", None) or config.hidden_size
    values = features.family.inputs(features.settings, features.grey(tower))["pixel_values"]
    pixels = values.numel() // (3 * getattr(config, "temporal_patch_size", 1))
    shape = SimpleNamespace(
        model_type=config.model_type,
        hidden_size=width,
        intermediate_size=getattr(config, "intermediate_size", None) or int(width * config.mlp_ratio),
        num_hidden_layers=features.depth(tower),
        num_attention_heads=getattr(config, "num_heads", None) or config.num_attention_heads,
        hidden_act=config.hidden_act,
        patch_size=patch,
        image_size=math.ceil(math.sqrt(pixels)),
        num_channels=3,
        projection_dim=0,
    )
    return shape, features.flops(tower), sum(weight.numel() for weight in tower.parameters())


def training_flops(args: FareConfig, flops: Flops, last: int, *, objective: Any, trained: float) -> int:
    """Operations of one image an update, over all updates of a training.

    Args:
        args: the configuration.
        flops: of the encoder.
        last: number of updates.
        objective: a class or an object, of which `runs_original` and `embeds_clean` are read where it has them.
        trained: as for `Flops.step`.
    """
    counts = [attack_steps_at(args, step / last).count for step in range(last)]
    parts: dict[str, Any] = {"clean_target": getattr(objective, "runs_original", True), "trained": trained}
    parts["update_images"] = update_images(objective)
    return sum(flops.step(n, **parts) * counts.count(n) for n in set(counts))


def evaluation_flops(flops: Flops, args: FareConfig) -> int | None:
    """Operations of all evaluations; None where there is none, or where their images have no bound."""
    if args.eval_strategy != "steps" or not args.eval_images:
        return None
    attacks = args.attack_steps + attack_of(args, args.eval_attack_steps or 1).count
    each = attacks * (flops.forward + flops.to_pixels) + 6 * flops.forward
    every = args.eval_steps or args.logging_steps
    every = every if every >= 1 else math.ceil(every * args.max_steps)  # a share, for the Trainer
    return int(args.max_steps / every) * args.eval_images * each


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
    if config.model_type in REFUSED:
        raise ValueError(f"{name!r} is a {config.model_type!r} model, which reads {REFUSED[config.model_type]}.")
    if vision.model_type not in TOWER_TYPES:
        raise ValueError(f"{name!r} is a {config.model_type!r} model, not a vision encoder or CLIP: name one.")
    return vision
