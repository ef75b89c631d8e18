"""How an encoder stands while it is used: frozen, evaluating, with other forward functions; always put back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from fare_hf.encoders.reading import Reading

__all__ = [
    "blocks_of",
    "depth_of",
    "evaluating",
    "freeze",
    "freeze_unused",
    "frozen",
    "matmul_patch_embedding",
    "other_forwards",
    "passed_over",
]


def freeze(module: nn.Module) -> nn.Module:
    """Puts `module` in eval mode without weight gradients, for good, and returns it."""
    return module.eval().requires_grad_(False)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Eval mode inside; every sub-module gets its own mode back, also after an exception."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """`evaluating`, and no parameter requires a gradient: an attack then stores no activations for the weights."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    with evaluating(module):
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield module
        finally:
            for parameter, requires_grad in flags:
                parameter.requires_grad_(requires_grad)


def freeze_unused(encoder: PreTrainedModel, reading: Reading) -> list[str]:
    """Freezes what is never read, such as `post_layernorm` for `tokens`, and returns the names.

    DDP waits for every trainable parameter's gradient, and a parameter without one would only decay. What is read is
    found by one forward and backward pass of a grey image, so that it holds for any encoder.

    Raises:
        ValueError: no trainable parameter is left.
    """
    named = [(name, parameter) for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    with torch.enable_grad(), evaluating(encoder):
        total = reading.embed(encoder, reading.grey(encoder)).sum()
        if not total.requires_grad:
            raise ValueError(
                f"{type(encoder).__name__} has no trainable parameter behind {reading.embedding!r}; unfreeze some."
            )
        gradients = torch.autograd.grad(total, [parameter for _, parameter in named], allow_unused=True)
    unused = [(name, parameter) for (name, parameter), grad in zip(named, gradients, strict=True) if grad is None]
    for _, parameter in unused:
        parameter.requires_grad_(False)
    return [name for name, _ in unused]


def blocks_of(encoder: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the transformer blocks: the one list as long as the configuration says.

    Raises:
        ValueError: there is none.
    """
    depth = depth_of(encoder.config)
    for name, part in encoder.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == depth:
            return name, part
    raise ValueError(f"{type(encoder).__name__} has no list of {depth} blocks; train all of it.")


def depth_of(config: Any) -> int:
    """Blocks of a tower, by its configuration; Qwen's calls them `depth`."""
    return int(getattr(config, "num_hidden_layers", None) or config.depth)


@contextmanager
def passed_over(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Modules give back what they are given, and compute nothing, inside."""
    with other_forwards(dict.fromkeys(parts, _identity)):
        yield


def _identity(values: Tensor, *_: Any, **__: Any) -> Tensor:
    return values


@contextmanager
def matmul_patch_embedding(module: nn.Module) -> Iterator[nn.Module]:
    """Computes non-overlapping patch convolutions as reshape and matrix product inside; restored after.

    The input gradient of a stride-p convolution is slow on CPU, and an attack needs nothing else; values agree with
    the convolution to 1e-5.
    """
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d) and _is_patch_convolution(part)]
    with other_forwards({part: MethodType(_matmul_forward, part) for part in convolutions}):
        yield module


@contextmanager
def other_forwards(forwards: Mapping[nn.Module, Callable[..., Tensor]]) -> Iterator[None]:
    """Modules compute with other functions inside; afterwards as before, with what a hook had put there."""
    saved = {part: vars(part).get("forward") for part in forwards}
    for part, forward in forwards.items():
        vars(part)["forward"] = forward
    try:
        yield
    finally:
        for part, own in saved.items():
            if own is None:
                del vars(part)["forward"]
            else:
                vars(part)["forward"] = own


def _matmul_forward(conv: nn.Conv2d, pixels: Tensor) -> Tensor:
    """A patch convolution's forward as one matrix product over `(B * patches, 3 * p * p)`.

    A function, not an object made anew in every step, which would make torch.compile start again.
    """
    batch, channels, height, width = pixels.shape
    p, q = int(conv.kernel_size[0]), int(conv.kernel_size[1])
    rows, columns = height // p, width // q
    pixels = pixels[:, :, : rows * p, : columns * q]
    patches = pixels.reshape(batch, channels, rows, p, columns, q).permute(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(batch, rows * columns, channels * p * q)
    output = F.linear(patches, conv.weight.reshape(conv.out_channels, -1), conv.bias)
    return output.transpose(1, 2).reshape(batch, conv.out_channels, rows, columns)


def _is_patch_convolution(conv: nn.Conv2d) -> bool:
    plain = conv.groups == 1 and set(conv.dilation) == {1} and conv.padding in ((0, 0), "valid")
    return plain and tuple(conv.kernel_size) == tuple(conv.stride)
