"""Floating-point operations of a forward pass, counted while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fare_hf.encoders.flops import Flops
from fare_hf.encoders.roofline import ATEN, operations

__all__ = ["count_operations"]

LINEAR = {ATEN.mm, ATEN.addmm}
PATCHES = {ATEN.convolution}


def count_operations(forward: Callable[[], object]) -> Flops:
    """Operations of one call, by what its backward pass costs: convolutions, products with weights, attention.

    Args:
        forward: what is to be counted; it runs without gradients.
    """
    with torch.no_grad(), _Products() as products:
        forward()
    return Flops(products.found["patches"], products.found["linear"], products.found["attention"])


class _Products(TorchDispatchMode):
    """Sums operations by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        kind = "patches" if packet in PATCHES else "linear" if packet in LINEAR else "attention"
        self.found[kind] += operations(packet, args, kwargs or {}, output)
        return output
