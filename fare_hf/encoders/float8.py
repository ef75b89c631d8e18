"""Linear layers in 8-bit floats while an encoder is attacked: forward and input gradient, never an update.

Micikevicius et al. 2022 (arXiv 2209.05433) describe the formats. Each row of either factor has a scale of its own,
from its largest value, and all three products of the scheme are in E4M3, as row-wise scaling allows. Sums are in fp32,
results in bf16. As the weights are frozen they are cast once for a whole attack, along their rows for the forward
pass and along their columns for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fare_hf.encoders import other_forwards

__all__ = ["check_float8", "float8_linears", "product", "quantise"]

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
MULTIPLE = 16
"""Of which both sizes of a layer must be multiples; others stay as they are."""
ADA = (8, 9)
"""The first compute capability with 8-bit tensor cores."""

Rows = tuple[Tensor, Tensor]
"""A matrix `(M, K)` in E4M3 and what its rows are multiplied by, fp32 `(M, 1)`."""


def check_float8(device: torch.device) -> None:
    """Refuses GPUs without 8-bit floats; a CPU computes the same numbers, and is slower than in fp32.

    Raises:
        ValueError: a device on which it would fail.
    """
    if device.type == "cpu":
        return
    if device.type == "cuda" and torch.version.cuda and torch.cuda.get_device_capability(device) >= ADA:
        return
    raise ValueError(
        f"attack_fp8=True needs a GPU of compute capability {ADA[0]}.{ADA[1]} (Ada, Hopper), and {str(device)!r} is "
        "none; use attack_bf16=True, or bf16=True."
    )


def quantise(matrix: Tensor) -> Rows:
    """Rows scaled so that their largest value is E4M3's, and rounded."""
    matrix = matrix.contiguous()  # as the tensor cores want the rows of either factor
    largest = matrix.abs().amax(dim=1, keepdim=True).float()
    scale = largest.clamp_min(torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    return (matrix / scale).to(E4M3), scale


def product(left: Rows, right: Rows, bias: Tensor | None = None) -> Tensor:
    """`left @ right.T + bias` in bf16: `(M, K)` and `(N, K)` give `(M, N)`."""
    (a, scale_a), (b, scale_b) = left, right
    if a.device.type == "cpu":  # whose kernels know one scale a matrix, in some versions of torch
        with torch.autocast("cpu", enabled=False):
            sums = (a.float() @ b.float().t()) * scale_a * scale_b.t()
        return (sums if bias is None else sums + bias.float()).to(torch.bfloat16)
    return torch._scaled_mm(a, b.t(), scale_a=scale_a, scale_b=scale_b.t(), bias=bias, out_dtype=torch.bfloat16)


@contextmanager
def float8_linears(module: nn.Module) -> Iterator[nn.Module]:
    """Inside, linear layers multiply in 8-bit floats, and their weights get no gradient.

    Memory: 2 bytes for each of their weights while it lasts.

    Args:
        module: whose weights are frozen and do not change inside; its other layers run as they did.
    """
    parts = [part for part in module.modules() if isinstance(part, nn.Linear) and _fits(part)]
    with other_forwards({part: _forward(part) for part in parts}):
        yield module


def _fits(part: nn.Linear) -> bool:
    return part.in_features % MULTIPLE == 0 and part.out_features % MULTIPLE == 0


def _forward(part: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = part.weight.detach()
    bias = None if part.bias is None else part.bias.detach().to(torch.bfloat16)
    return partial(_apply, quantise(weight), quantise(weight.t()), bias)


def _apply(rows: Rows, columns: Rows, bias: Tensor | None, values: Tensor) -> Tensor:
    flat = _Float8Linear.apply(values.reshape(-1, values.shape[-1]), rows, columns, bias)
    return flat.reshape(*values.shape[:-1], -1)


class _Float8Linear(torch.autograd.Function):
    """`values @ weight.T + bias`; `rows` is the weight, `columns` its transpose."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Rows, columns: Rows, bias: Tensor | None) -> Tensor:
        ctx.columns, ctx.dtype = columns, values.dtype
        return product(quantise(values), rows, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return product(quantise(gradients[0]), ctx.columns).to(ctx.dtype), None, None, None
