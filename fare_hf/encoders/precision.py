"""Low-precision copies of frozen weights: what autocast would cast again in every forward pass.

Autocast casts weight and bias of each linear layer and convolution when they are used, and keeps the result only where
they require a gradient. An attack runs the same frozen weights many times: here they are cast once, to the same
numbers. Other parameters (norms, embeddings) autocast does not cast.

CLIP's quick GELU, `x sigmoid(1.702 x)`, is five operators with its gradient, each of which reads and writes the widest
tensors of a block. It is `silu(1.702 x) / 1.702`, and silu is one operator each way: the attack's copies of the layers
before and after it hold the factors, with which they are rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import QuickGELUActivation
from transformers.models.clip.modeling_clip import CLIPMLP

from fare_hf.encoders import evaluating, frozen, other_forwards
from fare_hf.encoders.float8 import float8_linears

__all__ = ["attack_mode", "cast_for_good", "shadow", "sharded_attack_mode"]

CAST = (nn.Linear, nn.Conv2d)
"""Modules whose fp32 parameters autocast casts."""
QUICK = 1.702
"""Of quick GELU."""


@contextmanager
def shadow(
    module: nn.Module, dtype: torch.dtype | None, factors: Mapping[nn.Parameter, float] | None = None
) -> Iterator[nn.Module]:
    """Inside, linear layers and convolutions hold frozen copies in `dtype`; afterwards the parameters themselves.

    Memory: 2 bytes for each of their weights while it lasts.

    Args:
        module: whose forward runs under autocast to `dtype`, and whose weights do not change inside.
        dtype: bf16 or fp16; None changes nothing.
        factors: by which copies are multiplied before they are rounded.
    """
    saved = [] if dtype is None else list(_cast_parameters(module))
    copies: dict[nn.Parameter, nn.Parameter] = {}  # tied weights stay tied
    try:
        for part, name, parameter in saved:
            if parameter not in copies:
                scaled = parameter.detach() * factors.get(parameter, 1.0) if factors else parameter.detach()
                copies[parameter] = nn.Parameter(scaled.to(dtype), requires_grad=False)
            part._parameters[name] = copies[parameter]
        yield module
    finally:
        for part, name, parameter in saved:
            part._parameters[name] = parameter


@contextmanager
def attack_mode(module: nn.Module, dtype: torch.dtype | None = None, float8: bool = False) -> Iterator[nn.Module]:
    """What an encoder is while it is attacked: `frozen`, its weights a `shadow`, perhaps with `float8_linears`.

    With a shadow, CLIP's quick GELU is one operator.
    """
    eight = float8_linears if float8 else nullcontext  # from the parameters themselves, before their shadow
    quick = [] if dtype is None or float8 else _quick_gelus(module)
    with frozen(module), eight(module), shadow(module, dtype, _factors(quick)), _as_silu(quick):
        yield module


@contextmanager
def sharded_attack_mode(module: nn.Module, dtype: torch.dtype | None = None) -> Iterator[nn.Module]:
    """`attack_mode`, with the same numbers, of an encoder whose weights are gathered while it runs.

    They are neither frozen nor copied: FSDP fixes requires_grad when it first gathers a parameter, and frozen then, it
    would never be trained. Factors are multiplied in each pass.
    """
    quick = [] if dtype is None else _quick_gelus(module)
    scaled: dict[nn.Module, Callable[..., Tensor]]
    scaled = {part.fc1: partial(_scaled, part.fc1, QUICK, QUICK) for part in quick}
    scaled |= {part.fc2: partial(_scaled, part.fc2, 1 / QUICK, 1.0) for part in quick}
    with evaluating(module), other_forwards(scaled), _as_silu(quick):
        yield module


def cast_for_good(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The `shadow` of a module that is never trained, such as the original encoder: half the memory, the same outputs
    under autocast. None changes nothing."""
    for part, name, parameter in list(_cast_parameters(module)) if dtype is not None else []:
        part._parameters[name] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
    return module


def _quick_gelus(module: nn.Module) -> list[CLIPMLP]:
    """Layers of CLIP with quick GELU between plain linear layers that hold fp32 parameters of their own."""
    owners: dict[nn.Parameter, int] = {}
    for _, _, parameter in _cast_parameters(module):
        owners[parameter] = owners.get(parameter, 0) + 1
    found = (part for part in module.modules() if type(part) is CLIPMLP)
    quick = (part for part in found if type(part.activation_fn) is QuickGELUActivation)
    return [part for part in quick if all(_is_plain(layer, owners) for layer in (part.fc1, part.fc2))]


def _is_plain(layer: nn.Module, owners: Mapping[nn.Parameter, int]) -> bool:
    """A linear layer that nothing looks at or computes otherwise: no hook, such as an adapter's or that of pruning."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    own = "forward" in vars(layer) or any(map(bool, hooks))
    plain = type(layer) is nn.Linear and not own
    return plain and all(owners.get(parameter) == 1 for parameter in layer.parameters())


def _as_silu(quick: list[CLIPMLP]) -> AbstractContextManager[None]:
    return other_forwards({part.activation_fn: F.silu for part in quick})


def _factors(quick: list[CLIPMLP]) -> dict[nn.Parameter, float]:
    """Of what comes before the activation, QUICK; of the weight behind it, 1 / QUICK."""
    found: dict[nn.Parameter, float] = {}
    for part in quick:
        found |= dict.fromkeys(part.fc1.parameters(), QUICK) | {cast(nn.Parameter, part.fc2.weight): 1 / QUICK}
    return found


def _scaled(layer: nn.Linear, weight: float, bias: float, values: Tensor) -> Tensor:
    return F.linear(values, layer.weight * weight, layer.bias * bias)


def _cast_parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Each fp32 weight and bias that autocast would cast."""
    for part in module.modules():
        if isinstance(part, CAST):
            for name, parameter in part._parameters.items():
                if parameter is not None and parameter.dtype == torch.float32:
                    yield part, name, parameter
