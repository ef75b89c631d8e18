"""Which weights of an encoder are trained: all, the first blocks, or low-rank updates (LoRA)."""

from __future__ import annotations

from torch import nn

__all__ = ["add_lora", "check_blocks", "has_lora", "merge_lora", "train_first_blocks", "trained_share"]


def blocks_of(encoder: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the transformer blocks: the one list as long as the configuration says.

    Raises:
        ValueError: there is none.
    """
    depth = encoder.config.num_hidden_layers  # type: ignore[union-attr]
    for name, part in encoder.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == depth:
            return name, part
    raise ValueError(f"{type(encoder).__name__} has no list of {depth} blocks; train all of it.")


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


def add_lora(encoder: nn.Module, rank: int) -> None:
    """Puts low-rank updates beside the blocks' linear layers, in place, through PEFT; all else is frozen.

    Hu et al. 2021, arXiv 2106.09685; the updates count `alpha / rank` = 2 times, PEFT's usual.

    Raises:
        ValueError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("lora_rank needs PEFT: pip install 'fare_hf[lora]', or leave it out.") from error
    name, blocks = blocks_of(encoder)
    inner = [f"{name}.{key}" for key, part in blocks.named_modules() if isinstance(part, nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=inner), encoder)


def has_lora(encoder: nn.Module) -> bool:
    """Whether `add_lora` was applied, and not yet `merge_lora`."""
    return any(name.endswith("base_layer") for name, _ in encoder.named_modules())


def merge_lora(encoder: nn.Module) -> None:
    """Adds the updates to the weights and leaves the plain encoder, in place; nothing where there are none."""
    merged = [(name, part) for name, part in encoder.named_modules() if hasattr(part, "get_base_layer")]
    for name, part in merged:
        part.merge()
        parent, _, own = name.rpartition(".")
        setattr(encoder.get_submodule(parent), own, part.get_base_layer())


def trained_share(encoder: nn.Module) -> float:
    """Share of the linear layers' weights that are trained, in [0, 1]: the weight gradients that a step computes."""
    weights = [part.weight for part in encoder.modules() if isinstance(part, nn.Linear)]
    total = sum(weight.numel() for weight in weights)
    return sum(weight.numel() for weight in weights if weight.requires_grad) / total if total else 1.0
