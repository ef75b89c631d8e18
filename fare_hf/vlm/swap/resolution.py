"""Another resolution: tower, configuration and processor change together, and can be put back together."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fare_hf.vlm.families.family import Family, image_processor_of

__all__ = ["Edits", "resize_configs", "resize_processor", "resize_tower", "scaled_config", "scaled_processor"]

SQUARES, SIDES, PINPOINTS = ("size", "crop_size"), ("image_size", "img_size"), "image_grid_pinpoints"
COUNTS = ("num_image_tokens", "image_seq_length")
SIZES = ("shortest_edge", "longest_edge", "height", "width")


class Edits:
    """Attributes that were set, so that they can be set back, newest first."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, Any]] = []

    def __len__(self) -> int:
        return len(self._done)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute; nothing happens where it has the value."""
        old = getattr(owner, name)
        if isinstance(value, torch.Tensor) or old != value:
            self._done.append((owner, name, old))
            setattr(owner, name, value)

    def undo(self) -> None:
        """Set everything back; tensors go where their owner is now, in the precision that it has now."""
        while self._done:
            owner, name, value = self._done.pop()
            if isinstance(value, torch.Tensor):
                value = value.to(owner if isinstance(owner, torch.Tensor) else getattr(owner, name))
            setattr(owner, name, value)


def resize_tower(tower: nn.Module, size: int, edits: Edits) -> None:
    """Make room for the positions of images of `size` pixels; their values are to be loaded afterwards.

    The parameter stays the same object, with its hooks and its `requires_grad`.
    """
    embeddings: Any = tower.get_submodule("embeddings")
    weight = embeddings.position_embedding.weight
    old = int(embeddings.num_patches)
    patches = (size // int(embeddings.patch_size)) ** 2
    positions = patches + len(weight) - old  # CLIP has one more, for the class token
    edits.set(weight, "grad", None)
    edits.set(weight, "data", weight.data.new_zeros(positions, weight.shape[1]))
    edits.set(embeddings.position_embedding, "num_embeddings", positions)
    ids = torch.arange(positions, device=embeddings.position_ids.device).unsqueeze(0)
    edits.set(embeddings, "position_ids", ids)
    edits.set(embeddings, "num_patches", patches)
    edits.set(embeddings, "num_positions", positions)
    edits.set(embeddings, "image_size", size)


def resize_configs(vlm: Any, family: Family, towers: Iterable[Any], size: int, edits: Edits) -> None:
    """Write the resolution, and what follows from it, into every configuration that the model reads."""
    old = int(vlm.config.vision_config.image_size)
    owners = _unique([vlm.config, vlm.model.config])
    for owner in owners:
        for name, value in _changes(owner.to_dict(), old, size).items():
            edits.set(owner, name, value)
    for owner, name, value in family.sized(vlm, size):
        edits.set(owner, name, value)
    for vision in _unique([tower.config for tower in towers] + [owner.vision_config for owner in owners]):
        edits.set(vision, "image_size", size)


def scaled_config(content: Mapping[str, Any], config: Any, old: int, size: int) -> dict[str, Any]:
    """The content of a `config.json`, for images of `size` instead of `old` pixels.

    Args:
        content: as the file has it, which may leave defaults out.
        config: the same, read by transformers.
        old, size: pixels a side.
    """
    whole = copy.deepcopy(dict(content))
    whole |= _changes(config.to_dict(), old, size)
    whole.setdefault("vision_config", {})["image_size"] = size
    return whole


def scaled_processor(content: Mapping[str, Any], family: Family, old: int, size: int) -> dict[str, Any]:
    """The content of a `preprocessor_config.json` or `processor_config.json`, for the other resolution.

    Raises:
        ValueError: a size there is not the tower's.
    """
    found = {**copy.deepcopy(dict(content)), **_scaled(content, old, size)}
    if content.get("image_processor_type"):
        found |= family.scaled_fields(content, old, size)
    for name in ("image_processor", "video_processor"):
        if isinstance(content.get(name), dict):
            found[name] = scaled_processor(content[name], family, old, size)
    return found


def resize_processor(family: Family, processor: Any, old: int, size: int, edits: Edits) -> None:
    """Let a processor make images of `size` pixels instead of `old`, and as many placeholders as they have patches.

    Raises:
        ValueError: the processor makes neither.
    """
    for owner in (processor, image_processor_of(processor), getattr(processor, "video_processor", None)):
        given = {name: getattr(owner, name, None) for name in (*SQUARES, *SIDES, *COUNTS, PINPOINTS, "patch_size")}
        for name, value in (_scaled(given, old, size) | family.scaled_fields(given, old, size)).items():
            if owner is not None:
                edits.set(owner, name, value)


def _scaled(given: Mapping[str, Any], old: int, size: int) -> dict[str, Any]:
    """Fields of a processor, or of its image processor, that follow from the resolution, with their new values."""
    found: dict[str, Any] = {name: size for name in SIDES if given.get(name) == old}
    for name in SQUARES:
        value = given.get(name)
        if isinstance(value, int):
            found[name] = _scaled_size({"height": value}, old, size)["height"]
        elif value is not None:
            found[name] = _scaled_size(value, old, size)
    found |= {name: _scaled_patches(given[name], old, size) for name in COUNTS if isinstance(given.get(name), int)}
    return found | ({PINPOINTS: _scaled_pinpoints(given[PINPOINTS], old, size)} if given.get(PINPOINTS) else {})


def _changes(config: Mapping[str, Any], old: int, size: int) -> dict[str, Any]:
    """Fields of a configuration that follow from the resolution, with their new values."""
    patch = int(config["vision_config"]["patch_size"])
    before, after = (old // patch) ** 2, (size // patch) ** 2
    found: dict[str, Any] = {}
    for name in ("image_seq_length", "video_seq_length"):
        length = config.get(name)
        for extra in (0, 1):  # the class token may count
            if length and length % (before + extra) == 0:
                found[name] = length // (before + extra) * (after + extra)
                break
    if config.get("image_grid_pinpoints"):
        found[PINPOINTS] = _scaled_pinpoints(config[PINPOINTS], old, size)
    return found


def _scaled_size(sizes: Any, old: int, size: int) -> Any:
    """`{"shortest_edge": 336}`, `{"height": 336, "width": 336}` or a `SizeDict`, with the new number."""
    found = copy.copy(sizes)
    for name in SIZES:
        if name in found and found[name] is not None:
            if found[name] not in (old, size):
                raise ValueError(
                    f"the processor has {name} {found[name]}, and the vision tower {old} px: load both from the same "
                    "repository."
                )
            found[name] = size
    return found


def _scaled_pinpoints(pinpoints: Any, old: int, size: int) -> list[list[int]]:
    return [[side // old * size for side in pair] for pair in pinpoints]


def _scaled_patches(patches: int, old: int, size: int) -> int:
    side = round(patches**0.5)
    return (side * size // old) ** 2


def _unique(items: Iterable[Any]) -> list[Any]:
    return list({id(item): item for item in items}.values())
