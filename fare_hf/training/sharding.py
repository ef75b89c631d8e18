"""Weights sharded by FSDP2: what is asked of accelerate, and the whole encoder gathered again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, StateDictType
from transformers import PreTrainedModel, TrainingArguments
from transformers.training_args import ParallelMode

from fare_hf.training.checks import Faults, refuse
from fare_hf.training.trainable import blocks_of

if TYPE_CHECKING:
    from fare_hf.training.trainer import FareTrainer

__all__ = ["check_sharding", "prepare_frozen", "set_up_sharding", "whole_encoder"]

WHOLE = {"cpu", "mps"}
"""Devices on which accelerate leaves weights whole, whatever is asked for."""


def check_sharding(args: TrainingArguments, environment: Mapping[str, str] = os.environ) -> None:
    """Looks at the FSDP that the launcher or the arguments ask for, before any weights are fetched.

    Args:
        args: with `fsdp` and `fsdp_config`, and where the run computes.
        environment: where the launcher left its settings.

    Raises:
        ValueError: FSDP where nothing would be sharded, the first version of it, or settings that lose weights.
    """
    if args.fsdp or environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        refuse(_faults_of_sharding(args, environment))


def _faults_of_sharding(args: TrainingArguments, environment: Mapping[str, str]) -> Faults:
    kind = args.distributed_state.distributed_type.value if args.distributed_state else "NO"
    yield (
        args.device.type in WHOLE or args.parallel_mode != ParallelMode.DISTRIBUTED,
        f"fsdp asks for sharded weights, but accelerate runs {kind} on {args.device.type}, where nothing is sharded; "
        "start it on GPUs with accelerate launch, or leave FSDP out.",
    )
    given = args.fsdp_plugin_args or {}
    version = int(given.get("fsdp_version", environment.get("FSDP_VERSION", 1)))
    yield version != 2, f"fsdp_version={version} was never tried with gradients to the pixels; give fsdp_version: 2."
    plugin = FullyShardedDataParallelPlugin(**given)
    yield (
        plugin.cpu_ram_efficient_loading,
        "fsdp_cpu_ram_efficient_loading=true loads no weights in the other processes, which need the original's; give "
        "false.",
    )
    name = getattr(plugin.state_dict_type, "name", plugin.state_dict_type)
    yield (
        plugin.state_dict_type != StateDictType.FULL_STATE_DICT,
        f"fsdp_state_dict_type={name} makes checkpoints without the encoder's weights; give FULL_STATE_DICT.",
    )


def set_up_sharding(accelerator: Accelerator, encoder: PreTrainedModel) -> None:
    """Before accelerate shards an encoder: its blocks are what is gathered at once, and its numbers are those of DDP.

    accelerate would look for the classes in `_no_split_modules`, some of which the vision part alone does not hold.
    Under mixed precision it would cast parameters, inputs and outputs of every block and use no autocast: norms, the
    residual stream and the embeddings, whose small difference is the loss, would be rounded to bf16. Here parameters
    are gathered in fp32 and autocast casts what it casts under DDP.

    Raises:
        ValueError: classes to wrap that the encoder does not hold.
    """
    plugin: Any = accelerator.state.fsdp_plugin
    block = type(blocks_of(encoder)[1][0]).__name__
    wanted = plugin.transformer_cls_names_to_wrap or [block]
    held = {type(part).__name__ for part in encoder.modules()}
    given = f"fsdp_transformer_layer_cls_to_wrap={','.join(wanted)}"
    refuse(
        (name not in held, f"{given}: the encoder holds no {name}; leave it out, or give {block}.")
        for name in sorted(wanted)
    )
    plugin.transformer_cls_names_to_wrap = wanted
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    prepare_frozen(accelerator, encoder)


def prepare_frozen(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """Puts a module's forward under autocast as accelerate does without FSDP; it is neither wrapped nor sharded.

    Returns:
        The module, on the accelerator's device where that places modules itself.
    """
    prepared = accelerator.prepare_model(module, evaluation_mode=True)
    # evaluate() without train() prepares the encoder only while the accelerator knows of no model.
    accelerator._models.remove(prepared)
    return prepared


def whole_encoder(trainer: FareTrainer) -> Any:
    """The encoder with all of its weights, as a plain class of transformers.

    Under FSDP every process must call this: the shards are gathered in the main memory of the main process, into a
    new module; what the others get is not whole.
    """
    encoder: Any = trainer.accelerator.unwrap_model(trainer.model)
    if not trainer.is_fsdp_enabled:
        return encoder
    weights = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.is_world_process_zero():
        return encoder
    plain: Any = next(cls for cls in type(encoder).__mro__ if not issubclass(cls, FSDPModule))
    with torch.random.fork_rng(devices=[]):  # what is drawn for the new module is overwritten
        whole = plain(encoder.config)
    whole.load_state_dict(weights, strict=True)
    return whole.eval()
