"""Comparisons that NaN does not slip through: Python's `max(0.0, nan)` is 0.0, and `nan > limit` is false."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["check_finite", "dtypes_that_hold", "largest", "largest_difference", "smallest"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def largest(values: Iterable[float]) -> float:
    """`max`, or NaN where one of the values is NaN.

    Raises:
        ValueError: no values: nothing was compared, which proves nothing.
    """
    found = [float(value) for value in values]
    return math.nan if any(map(math.isnan, found)) else max(found)


def smallest(values: Iterable[float]) -> float:
    """`min`, or NaN where one of the values is NaN.

    Raises:
        ValueError: no values.
    """
    return -largest(-value for value in values)


def largest_difference(ours: Tensor | Sequence[Tensor], theirs: Tensor | Sequence[Tensor]) -> float:
    """Largest absolute difference of two tensors, or of two lists of them pair by pair.

    Returns:
        A number that passes `difference <= allowed` only where every value of both is finite: NaN or infinity else.

    Raises:
        ValueError: lists of another length, tensors of another shape, or nothing to compare.
    """
    pairs = list(zip(_listed(ours), _listed(theirs), strict=True))
    if any(a.shape != b.shape for a, b in pairs) or not any(a.numel() for a, _ in pairs):
        shapes = [(tuple(a.shape), tuple(b.shape)) for a, b in pairs]
        raise ValueError(f"tensors of shapes {shapes} cannot be compared: pass pairs of one shape that hold values.")
    return largest(_difference(a, b) for a, b in pairs if a.numel())


def check_finite(tensor: Tensor, what: str, dtype: torch.dtype | None = None) -> None:
    """Refuse NaN and infinity, also those that a conversion to `dtype` would make.

    Args:
        tensor: of any type; whole numbers are always finite.
        what: names the values, in the plural, for the message ("the weights 'x' of the encoder 'y'").
        dtype: in which they are to be used; None is their own.

    Raises:
        ValueError: they are not finite in their own dtype, or in `dtype`: the dtypes that hold them are named.
    """
    if not tensor.is_floating_point() or _is_finite(tensor, dtype or tensor.dtype):
        return
    if not _is_finite(tensor, tensor.dtype):
        raise ValueError(f"{what} hold NaN or infinity: take a checkpoint whose training did not diverge.")
    value = float(tensor.double().abs().max())
    fitting = " or ".join(str(other).removeprefix("torch.") for other in dtypes_that_hold(tensor)[:2])
    name = str(dtype).removeprefix("torch.")
    raise ValueError(f"{what} hold {value:.4g}, which {name} cannot hold: use {fitting}.")


def dtypes_that_hold(tensor: Tensor) -> list[torch.dtype]:
    """Floating-point types, smallest first, in which all values stay finite."""
    return [dtype for dtype in DTYPES if _is_finite(tensor, dtype)]


def _is_finite(tensor: Tensor, dtype: torch.dtype) -> bool:
    values = tensor.detach().to(dtype)
    return bool(torch.isfinite(values if values.dtype.itemsize > 1 else values.float()).all())


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """In fp32 at least, where the difference of two half-precision values is not rounded and does not overflow."""
    dtype = torch.promote_types(torch.promote_types(ours.dtype, theirs.dtype), torch.float32)
    return float((ours.detach().to(dtype) - theirs.detach().to(ours.device, dtype)).abs().max())


def _listed(tensors: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else tensors
