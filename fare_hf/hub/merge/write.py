"""The files of a merge that have new content: the tower's weights, what depends on the resolution, the card."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fare_hf.files.documents import read_object
from fare_hf.hub.base_model import card_head
from fare_hf.hub.merge.card import merge_card
from fare_hf.hub.merge.inputs import POSITION_IDS, POSITIONS
from fare_hf.hub.merge.plan import COUNTING, Merge, MergePlan
from fare_hf.hub.merge.shards import DTYPES, read_header, read_tensor, rewrite
from fare_hf.pretrained.encoder_families import class_tokens_of
from fare_hf.pretrained.weight_files import INDEX, LARGEST_INDEX
from fare_hf.vlm.swap.compatibility import MINIMUM_WEIGHT_COSINE, weight_cosine
from fare_hf.vlm.swap.resolution import scaled_config, scaled_processor

__all__ = ["WeightCosine", "write_changed"]


@dataclass
class WeightCosine:
    """Sums for the cosine of all old and new weights, and the lowest cosine of a matrix with its name."""

    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    lowest: tuple[float, str] = (1.0, "")

    def add(self, name: str, old: torch.Tensor, new: torch.Tensor) -> None:
        """Counts one tensor."""
        cosine = weight_cosine(new, old)
        if cosine is not None and not self.lowest[0] <= cosine:  # NaN takes the place, and keeps it
            self.lowest = self.lowest if math.isnan(self.lowest[0]) else (cosine, name)
        a, b = old.float().reshape(-1), new.float().reshape(-1)
        for index, value in enumerate((a @ b, a @ a, b @ b)):
            self.sums[index] += float(value)

    def value(self) -> float:
        """Of all together."""
        product, first, second = self.sums
        return product / max((first * second) ** 0.5, 1e-30)


def write_changed(plan: MergePlan, folder: Path, part: Path, repo_id: str = "") -> Merge:
    """Write the files with new content and the card.

    Args:
        plan: what is to be done.
        folder: holds the model's files that change, and its card.
        part: where they go.
        repo_id: that the card's snippet loads; "" for a folder.

    Returns:
        What was done.
    """
    cosine = WeightCosine()
    for name in (*plan.result.rewritten, *plan.result.copied):
        (part / name).parent.mkdir(parents=True, exist_ok=True)
    grown = sum(_rewrite_weights(plan, file, folder, part, cosine) for file in plan.tower_files)
    for name in set(plan.result.rewritten) - set(plan.tower_files):
        content = _new_content(plan, name, folder, grown)
        (part / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _warn_of_strangers(plan.result, *cosine.lowest)
    merge = replace(plan.result, cosine=cosine.value(), out=repo_id)
    card = merge_card(merge, plan.family.vlm_class, card_head(folder / "README.md"), plan.encoder.card)
    (part / "README.md").write_text(card, encoding="utf-8")
    return merge


def _new_content(plan: MergePlan, name: str, folder: Path, grown: int) -> Mapping[str, Any]:
    """Of a JSON file, where the weights have grown by so many bytes."""
    if name == COUNTING and plan.processor is not None:
        content = dict(plan.processor)
    else:
        content = read_object(folder / name, LARGEST_INDEX)
    old, size = plan.result.resolution
    if name == "config.json":
        return scaled_config(content, plan.config, old, size)
    if name == INDEX:
        metadata = content.get("metadata")
        if isinstance(metadata, dict) and isinstance(metadata.get("total_size"), int):
            metadata["total_size"] += grown
        return content
    return content if size == old else scaled_processor(content, plan.family, old, size)


def _warn_of_strangers(merge: Merge, least: float, name: str) -> None:
    if not least >= MINIMUM_WEIGHT_COSINE:
        warnings.warn(
            f"the weights of '{merge.encoder}' and of the tower of '{merge.vlm}' have cosine {least:.2f} only in "
            f"'{name}': the encoder seems to be fine-tuned from another model, or its weights are mixed up; the "
            "language model may not understand it.",
            UserWarning,
            stacklevel=5,
        )


def _rewrite_weights(plan: MergePlan, file: str, folder: Path, part: Path, cosine: WeightCosine) -> int:
    """One file with the tower's new values; returns by how many bytes it has grown."""
    source, vision = folder / file, plan.encoder.config
    header, begin = read_header(source)
    old, size = plan.result.resolution
    positions = 0 if plan.encoder.kind.own else (size // int(vision.patch_size)) ** 2 + class_tokens_of(vision, 0)
    new: dict[str, Callable[[], torch.Tensor]] = {}
    shapes: dict[str, list[int]] = {}
    for name, flat in plan.flat.items():
        if plan.weight_map[name] != file:
            continue
        dtype = header[name]["dtype"]
        if dtype not in DTYPES:
            raise ValueError(f"the vision tower's '{name}' is quantised ({dtype}): merge the original model.")
        new[name] = partial(_new_value, plan, source, header, begin, name, cosine)
        if flat == POSITION_IDS:
            new[name] = torch.arange(positions).unsqueeze(0).clone
            shapes[name] = [1, positions]
        elif flat == POSITIONS and old != size:
            shapes[name] = [positions, header[name]["shape"][-1]]
    return rewrite(source, part / file, new, shapes)


def _new_value(
    plan: MergePlan, source: Path, header: Mapping[str, Any], begin: int, name: str, cosine: WeightCosine
) -> torch.Tensor:
    flat = plan.flat[name]
    new = plan.encoder.tensor(flat, DTYPES[header[name]["dtype"]])
    if list(new.shape) == header[name]["shape"]:
        cosine.add(flat, read_tensor(source, header, begin, name), new)
    return new
