"""Which weights of an encoder are trained: all, or the first blocks."""

from __future__ import annotations

from torch import nn

from fare_hf.encoders.modes import blocks_of

__all__ = ["check_blocks", "train_first_blocks", "trained_share"]


def check_blocks(count: int, depth: int) -> None:
    """Raises a ValueError where more blocks shall be trained than there are."""
    if count > depth:
        raise ValueError(f"trained_blocks={count}, but the encoder has {depth} blocks; give at most that.")


def train_first_blocks(encoder: nn.Module, count: int) -> None:
    """Freezes all but the first blocks and what is before them (R-Adapt, arXiv 2603.12799).

    Raises:
        ValueError: more blocks than there are.
    """
    name, blocks = blocks_of(encoder)
    check_blocks(count, len(blocks))
    last = next(f"{name}.{count - 1}.{inner}" for inner, _ in reversed(list(blocks[count - 1].named_parameters())))
    behind = False  # parameters are registered in the order in which they are used
    for key, parameter in encoder.named_parameters():
        if behind:
            parameter.requires_grad_(False)
        behind = behind or key == last


def trained_share(encoder: nn.Module) -> float:
    """Share of the linear layers' weights that are trained, in [0, 1]: the weight gradients that a step computes."""
    weights = [part.weight for part in encoder.modules() if isinstance(part, nn.Linear)]
    total = sum(weight.numel() for weight in weights)
    return sum(weight.numel() for weight in weights if weight.requires_grad) / total if total else 1.0
