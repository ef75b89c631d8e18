"""Weights sharded by FSDP2: what is asked of accelerate, and the whole encoder gathered again."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers import PreTrainedModel

from fare_hf.encoders.modes import blocks_of
from fare_hf.training.checks import refuse
from fare_hf.training.run import TrainingRun

__all__ = ["prepare_frozen", "set_up_sharding", "whole_encoder"]


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


def whole_encoder(trainer: TrainingRun) -> Any:
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
