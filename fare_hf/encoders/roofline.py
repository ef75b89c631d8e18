"""How fast a training step can be on a device: each operator as fast as its multiplications or its memory allow.

The operators are those that torch would run, one after the other (eager), on tensors that hold nothing: no weight is
made and nothing is computed. What a compiler merges, and a cache that holds a result until the next operator reads it,
can beat this limit; launches, Python and slow kernels stay above it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from fare_hf.encoders.embedding import embed
from fare_hf.encoders.modes import freeze, matmul_patch_embedding
from fare_hf.encoders.precision import attack_mode, shadow

__all__ = ["ATEN", "Costs", "Operators", "operations", "step_costs"]

ATEN = torch.ops.aten
ATTENTION = {  # of a CPU; a backward pass of flash attention makes five products where the forward pass makes two
    ATEN._scaled_dot_product_flash_attention_for_cpu: (1.0, 0),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (2.5, 1),
}
"""Operator -> its operations over those of the forward pass, and which argument is the queries."""
UNMOVED = {ATEN._unsafe_view, ATEN.empty, ATEN.empty_like, ATEN.empty_strided, ATEN.new_empty, ATEN.new_empty_strided}
"""Operators that neither read nor write, besides views."""
ADAM = 28
"""Bytes that a fused AdamW moves for each weight: four numbers are read and three written."""


@dataclass(frozen=True)
class Costs:
    """What one batch costs: (operations, bytes) of each operator of the three phases of a step.

    Attributes:
        target: a forward pass without gradients.
        attack: one gradient step, forward and backward to the pixels.
        update: forward, backward to the weights, and AdamW.
    """

    target: tuple[tuple[int, int], ...]
    attack: tuple[tuple[int, int], ...]
    update: tuple[tuple[int, int], ...]

    def step(self, attack_steps: int) -> tuple[int, int]:
        """Operations and bytes of a step."""
        parts = self._parts(attack_steps)
        return sum(flops for flops, _ in parts), sum(moved for _, moved in parts)

    def seconds(self, attack_steps: int, flop_per_second: float, byte_per_second: float) -> float:
        """The least time of a step: of each operator what takes longer, its operations or its bytes."""
        return sum(max(flops / flop_per_second, moved / byte_per_second) for flops, moved in self._parts(attack_steps))

    def _parts(self, attack_steps: int) -> list[tuple[int, int]]:
        return [*self.target, *self.attack * attack_steps, *self.update]


class Operators(TorchDispatchMode):
    """Notes operations and bytes of every operator that runs inside, in `found`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        packet = function._overloadpacket
        views = any(result.alias_info and not result.alias_info.is_write for result in function._schema.returns)
        if not views and packet not in UNMOVED and function.namespace == "aten":
            tensors = [part for part in tree_leaves((args, kwargs, output)) if isinstance(part, Tensor)]
            moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.found.append((operations(packet, args, kwargs or {}, output), moved))
        return output


def step_costs(make: Callable[[], nn.Module], batch_size: int, *, half: bool) -> Costs:
    """Costs of the phases of a FARE step on `projected` embeddings, apart from the attack's own arithmetic on pixels.

    Args:
        make: makes the encoder, such as `lambda: CLIPVisionModelWithProjection(config)`; its weights are never filled.
        batch_size: images that a process takes at once.
        half: bf16 autocast.

    Returns:
        Operations and bytes, of tensors as a CPU would hold them.
    """
    dtype = torch.bfloat16 if half else None
    with FakeTensorMode():
        encoder: Any = make().eval()
        size = encoder.config.image_size
        pixels = torch.empty(batch_size, encoder.config.num_channels, size, size)
        with matmul_patch_embedding(encoder):
            update = _phase(encoder, pixels, list(encoder.parameters()), dtype)
            weights = sum(parameter.numel() for parameter in encoder.parameters())
            points = pixels.clone().requires_grad_()
            with attack_mode(encoder, dtype):
                attack = _phase(encoder, points, [points], dtype)
            freeze(encoder)
            with shadow(encoder, dtype):
                target = _phase(encoder, pixels, [], dtype)
    return Costs(target, attack, (*update, (0, ADAM * weights)))


def _phase(
    encoder: nn.Module, pixels: Tensor, wanted: list[Any], dtype: torch.dtype | None
) -> tuple[tuple[int, int], ...]:
    with Operators() as operators:
        with torch.autocast("cpu", dtype) if dtype else nullcontext(), torch.set_grad_enabled(bool(wanted)):
            distances = embed(encoder, pixels).float().square().sum()
        if wanted:
            torch.autograd.grad(distances, wanted, allow_unused=True)
    return tuple(operators.found)


def operations(packet: Any, args: Any, kwargs: Any, output: Any) -> int:
    """Operations of one operator of torch; 0 of one that multiplies no matrices."""
    if packet in ATTENTION:
        factor, first = ATTENTION[packet]
        return round(factor * sdpa_flop_count(*(tensor.shape for tensor in args[first : first + 3])))
    counted = flop_registry.get(packet)
    return 0 if counted is None else int(counted(*args, **kwargs, out_val=output))
