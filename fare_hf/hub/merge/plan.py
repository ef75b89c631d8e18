"""What a merge is to do, from small files alone: which files change, which stay, which are left out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fare_hf.files.documents import read_object
from fare_hf.files.folders import relative_name
from fare_hf.hub.merge.inputs import EncoderFiles, tower_names, weight_map_of
from fare_hf.pretrained.configuration import read_configuration
from fare_hf.pretrained.weight_files import INDEX, LARGEST_INDEX
from fare_hf.vlm.families.table import Family, family_of_config
from fare_hf.vlm.processors import completed_file

__all__ = ["COUNTING", "PROCESSORS", "Merge", "MergePlan", "plan_merge", "vlm_config"]

COUNTING = "processor_config.json"
PROCESSORS = ("preprocessor_config.json", COUNTING, "video_preprocessor_config.json")
# Weights in other files than the index names hold the old tower: a loader could take them in place of the new one.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".tflite", ".ot")
NOT_COPIED = (".", "README.md", "optimizer.pt", "training_args.bin")


@dataclass(frozen=True)
class Merge:
    """What a merge wrote.

    Attributes:
        vlm, encoder: the parents, as they were named.
        out: folder, or repository.
        rewritten: files with new content.
        copied: files as they were (by the Hub itself on the Hub).
        linked: those of them that are the source's own file under a second name, which `hard_links` asks for.
        unpickled: files of weights that the parent has as pickles, now safetensors.
        left_out: other weight files of the parent, which hold the old tower.
        tensors: how many were replaced.
        cosine: of the tower's old and new weights; near 1 for a fine-tuned tower.
        resolution: pixels a side, before and after.
        commit: on the Hub, else None.
    """

    vlm: str
    encoder: str
    rewritten: tuple[str, ...]
    copied: tuple[str, ...]
    left_out: tuple[str, ...]
    tensors: int
    resolution: tuple[int, int]
    out: str = ""
    cosine: float = math.nan
    commit: str | None = None
    linked: tuple[str, ...] = ()
    unpickled: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.vlm} + {self.encoder} -> {self.out}{f' (commit {self.commit[:12]})' if self.commit else ''}",
            f"rewritten: {', '.join(self.rewritten)}; copied: {len(self.copied)} files",
            f"{self.tensors} tensors; cosine of old and new weights {self.cosine:.3f}",
        ]
        if self.linked:
            lines += [f"hard-linked, so that a change here changes the source too: {', '.join(self.linked)}"]
        lines += [f"from pickles to safetensors: {', '.join(self.unpickled)}"] if self.unpickled else []
        lines += [f"left out (they hold the old tower): {', '.join(self.left_out)}"] if self.left_out else []
        return "\n".join(lines)


@dataclass(frozen=True)
class MergePlan:
    """What is to be done, from small files alone.

    Attributes:
        result: what will be said of it, without cosine, output and commit.
        encoder, family, config: the new tower, and the family and configuration of the model.
        weight_map: tensor -> file that holds it.
        flat: the tower's tensors -> their names in a flat CLIP or SigLIP vision model.
        processor: what processor_config.json lacks, filled, or None.
    """

    result: Merge
    encoder: EncoderFiles
    family: Family
    config: Any
    weight_map: Mapping[str, str]
    flat: Mapping[str, str]
    processor: Mapping[str, Any] | None = None

    @property
    def tower_files(self) -> list[str]:
        """The files that hold the tower."""
        return list(dict.fromkeys(self.weight_map[name] for name in self.flat))


def plan_merge(vlm: str, folder: Path, files: list[str], encoder: EncoderFiles) -> MergePlan:
    """Find the towers' tensors and sort the files.

    Args:
        vlm: name of the model.
        folder: holds its configuration, and index or single file of weights.
        files: all its files.
        encoder: the other parent, as `opened_encoder` gives it.

    Raises:
        TypeError, ValueError: as `merge_vision_tower`.
    """
    config, family = vlm_config(folder)
    files = [relative_name(name, f"'{vlm}'") for name in files]
    weights = weight_map_of(folder, files)
    flat = tower_names(weights, family, encoder)
    old, size = map(encoder.kind.side, (config.vision_config, encoder.config))
    changed = {weights[name] for name in flat}
    changed |= set() if old == size else {"config.json", *({INDEX, *PROCESSORS} & set(files))}
    processor = _completed(vlm, folder, files, config, family)
    changed |= set() if processor is None else {COUNTING}
    others = [name for name in sorted(files) if name not in changed and not name.startswith(NOT_COPIED)]
    kept = {INDEX, *weights.values()}
    left_out = [name for name in others if name.endswith((*WEIGHTS, ".index.json")) and name not in kept]
    result = Merge(
        vlm=vlm,
        encoder=encoder.source,
        rewritten=tuple(sorted(changed)),
        copied=tuple(name for name in others if name not in left_out),
        left_out=tuple(left_out),
        tensors=len(flat),
        resolution=(old, size),
    )
    return MergePlan(result, encoder, family, config, weights, flat, processor)


def _completed(vlm: str, folder: Path, files: list[str], config: Any, family: Family) -> dict[str, Any] | None:
    """What the processor of an older repository lacks to count an image's tokens, filled; and that is said."""
    sources = (COUNTING, "preprocessor_config.json", "tokenizer_config.json")
    names = [name for name in sources if name in files and (folder / name).is_file()]
    found = completed_file(family, config, {name: read_object(folder / name, LARGEST_INDEX) for name in names})
    if found is not None:
        warnings.warn(
            f"the processor of '{vlm}' does not say how many tokens stand for an image: {COUNTING} is written with "
            "what the model's configuration says.",
            UserWarning,
            stacklevel=4,
        )
    return found


def vlm_config(folder: Path) -> tuple[Any, Family]:
    """The configuration of a vision-language model, and its family.

    Raises:
        TypeError: no known family.
        ValueError: a configuration that no model can have.
    """
    config = read_configuration(str(folder))
    return config, family_of_config(config)
