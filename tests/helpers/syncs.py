"""How often the host waits for a device: as CUDA itself tells it, and on a CPU by the operators that would wait."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Syncs(TorchDispatchMode):
    """Counts what would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in WAITING
        return function(*args, **(kwargs or {}))


@contextmanager
def counted_syncs(device: str) -> Iterator[Syncs]:
    """Counts inside; the count is there at the end."""
    syncs = Syncs()
    if device == "cpu":
        with syncs:
            yield syncs
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield syncs
        finally:
            torch.cuda.set_sync_debug_mode("default")
    syncs.count = sum("synchroniz" in str(warning.message) for warning in caught)
