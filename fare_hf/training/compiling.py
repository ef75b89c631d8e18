"""torch.compile, whether an option or accelerate's configuration asks for it."""

from __future__ import annotations

import torch
import torch._dynamo
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import nn

from fare_hf.encoders.modes import blocks_of
from fare_hf.training.checks import refuse
from fare_hf.training.config import FareConfig

__all__ = ["compile_encoders"]

UNUSED = ("dynamic", "fullgraph")
"""Settings of accelerate's plugin; `use_regional_compilation` is what is done."""
VARIANTS = 64
"""Of a compiled block, at most."""


def compile_encoders(args: FareConfig, accelerator: Accelerator, *encoders: nn.Module, sharded: bool) -> str | None:
    """Compiles in place, so that the attack, DDP and the update all call what was compiled.

    Block by block: all blocks of an encoder share what was compiled for one, so that it takes
    seconds where the encoder as a whole takes minutes. accelerate would wrap the model for the update alone. Under
    FSDP it does what it needs itself.

    Args:
        args: the configuration.
        accelerator: of the run; it compiles nothing any more.
        encoders: the trained one and the original.
        sharded: whether FSDP compiles.

    Returns:
        The backend, with its mode where that is not the default; None where nothing is compiled.

    Raises:
        ValueError: settings that would be ignored, or an attack in 8 bits, which excludes it.
    """
    plugin = accelerator.state.dynamo_plugin
    asked = args.torch_compile or plugin.backend != DynamoBackend.NO
    other = "FSDP" if sharded else "torch_compile"
    excluded = f"attack_fp8=True replaces layers in each attack, which {other} excludes; leave one out."
    refuse([(args.attack_fp8 and (sharded or asked), excluded)])
    if not asked:
        return None
    backend, mode = args.torch_compile_backend or plugin.backend.value.lower(), args.torch_compile_mode or plugin.mode
    if not sharded:
        why = "is not used: blocks are compiled for one shape; give false."
        refuse((getattr(plugin, name), f"dynamo's {name} {why}") for name in UNUSED)
        # Blocks of all encoders share one function: in the attack and the update, with weights trained and frozen,
        # with gradients and without, of windows and of whole images. Beyond the limit they would run as they are.
        torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
        for block in (block for encoder in encoders for block in blocks_of(encoder)[1]):
            block.compile(backend=backend, mode=mode, dynamic=False)
        plugin.backend = DynamoBackend.NO
    return backend if mode in (None, "default") else f"{backend}, mode {mode}"
