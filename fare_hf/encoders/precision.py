"""Low-precision copies of frozen weights: what autocast would cast again in every forward pass.

Autocast casts weight and bias of each linear layer and convolution when they are used, and keeps the result only where
they require a gradient. An attack runs the same frozen weights many times: here they are cast once, to the same
numbers. Other parameters (norms, embeddings) autocast does not cast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from fare_hf.encoders import frozen
from fare_hf.encoders.float8 import float8_linears

__all__ = ["attack_mode", "cast_for_good", "shadow"]

CAST = (nn.Linear, nn.Conv2d)
"""Modules whose fp32 parameters autocast casts."""


@contextmanager
def shadow(module: nn.Module, dtype: torch.dtype | None) -> Iterator[nn.Module]:
    """Inside, linear layers and convolutions hold frozen copies in `dtype`; afterwards the parameters themselves.

    Memory: 2 bytes for each of their weights while it lasts.

    Args:
        module: whose forward runs under autocast to `dtype`, and whose weights do not change inside.
        dtype: bf16 or fp16; None changes nothing.
    """
    saved = [] if dtype is None else list(_cast_parameters(module))
    copies: dict[nn.Parameter, nn.Parameter] = {}  # tied weights stay tied
    try:
        for part, name, parameter in saved:
            if parameter not in copies:
                copies[parameter] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
            part._parameters[name] = copies[parameter]
        yield module
    finally:
        for part, name, parameter in saved:
            part._parameters[name] = parameter


@contextmanager
def attack_mode(module: nn.Module, dtype: torch.dtype | None = None, float8: bool = False) -> Iterator[nn.Module]:
    """What an encoder is while it is attacked: `frozen`, its weights a `shadow`, perhaps with `float8_linears`."""
    eight = float8_linears if float8 else nullcontext  # from the parameters themselves, before their shadow
    with frozen(module), eight(module), shadow(module, dtype):
        yield module


def cast_for_good(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The `shadow` of a module that is never trained, such as the original encoder: half the memory, the same outputs
    under autocast. None changes nothing."""
    for part, name, parameter in list(_cast_parameters(module)) if dtype is not None else []:
        part._parameters[name] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
    return module


def _cast_parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Each fp32 weight and bias that autocast would cast."""
    for part in module.modules():
        if isinstance(part, CAST):
            for name, parameter in part._parameters.items():
                if parameter is not None and parameter.dtype == torch.float32:
                    yield part, name, parameter
