"""Low-precision copies of frozen weights: what autocast would cast again in every forward pass.

Autocast casts weight and bias of each linear layer and convolution when they are used, and keeps the result only where
they require a gradient. An attack runs the same frozen weights many times: here they are cast once, to the same
numbers. Other parameters (norms, embeddings) autocast does not cast.

CLIP's quick GELU, `x sigmoid(1.702 x)`, is five operators with its gradient, each of which reads and writes the widest
tensors of a block. It is `silu(1.702 x) / 1.702`, and silu is one operator each way: the attack's copies of the layers
before and after it hold the factors. They are rounded with them, so that the attack is another one than that of
sharded encoders, which are not put into this mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import QuickGELUActivation
from transformers.models.clip.modeling_clip import CLIPMLP

from fare_hf.encoders import frozen, other_forwards
from fare_hf.encoders.float8 import float8_linears

__all__ = ["attack_mode", "cast_for_good", "shadow"]

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
                scaled = parameter.detach() * factors[parameter] if factors and parameter in factors else parameter
                copies[parameter] = nn.Parameter(scaled.detach().to(dtype), requires_grad=False)
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
    silu = other_forwards({part.activation_fn: F.silu for part in quick})
    with frozen(module), eight(module), shadow(module, dtype, _factors(quick)), silu:
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
    plain = type(layer) is nn.Linear and set(layer._parameters) == {"weight", "bias"} and not own
    return plain and all(owners.get(parameter) == 1 for parameter in layer.parameters())


def _factors(quick: list[CLIPMLP]) -> dict[nn.Parameter, float]:
    """Of the layer before, QUICK; of the weight after, 1 / QUICK."""
    found = {own: QUICK for part in quick for own in part.fc1.parameters()}
    return found | {own: 1 / QUICK for part in quick for name, own in part.fc2.named_parameters() if name == "weight"}


def _cast_parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Each fp32 weight and bias that autocast would cast."""
    for part in module.modules():
        if isinstance(part, CAST):
            for name, parameter in part._parameters.items():
                if parameter is not None and parameter.dtype == torch.float32:
                    yield part, name, parameter
