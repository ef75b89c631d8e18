"""A published vision-language model becomes a published robust one, without loading its language model."""

from __future__ import annotations

import json
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, snapshot_download

from fare_hf.convert.checkpoints import find_file
from fare_hf.files.documents import read_object
from fare_hf.files.folders import check_new_folder, relative_name, whole_folder
from fare_hf.hub.base_model import card_head
from fare_hf.hub.merge.card import merge_card
from fare_hf.hub.merge.inputs import (
    POSITION_IDS,
    POSITIONS,
    EncoderFiles,
    TowerNames,
    check_encoder,
    check_held,
    check_parents,
    files_of,
    open_encoder,
    tower_names,
    weight_map_of,
)
from fare_hf.hub.merge.pickled import with_safetensors
from fare_hf.hub.merge.shards import DTYPES, copy_file, read_header, read_tensor, rewrite
from fare_hf.pretrained.configuration import read_configuration
from fare_hf.pretrained.weight_files import INDEX, LARGEST_INDEX, PICKLE, PICKLE_INDEX, SINGLE
from fare_hf.vlm.families.table import Family, family_named
from fare_hf.vlm.processors import completed_file
from fare_hf.vlm.swap.checks import MINIMUM_WEIGHT_COSINE, weight_cosine
from fare_hf.vlm.swap.encoder_files import transformers_folder
from fare_hf.vlm.swap.resolution import scaled_config, scaled_processor

__all__ = ["Merge", "MergePlan", "merge_vision_tower", "plan_merge", "vlm_config", "write_changed"]

COUNTING = "processor_config.json"
PROCESSORS = ("preprocessor_config.json", COUNTING, "video_preprocessor_config.json")
# Weights in other files than the index names hold the old tower: a loader could take them in place of the new one.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".tflite", ".ot")
NOT_COPIED = (".git/", ".cache/", ".gitattributes", "README.md", "optimizer.pt", "training_args.bin")
LINKED_FROM = 1 << 20


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
    out: str
    rewritten: tuple[str, ...]
    copied: tuple[str, ...]
    left_out: tuple[str, ...]
    tensors: int
    cosine: float
    resolution: tuple[int, int]
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
    """What is to be done, from small files alone; `processor` is what processor_config.json lacks, filled, or None."""

    vlm: str
    encoder: EncoderFiles
    family: Family
    config: Any
    weight_map: Mapping[str, str]
    names: TowerNames
    rewritten: tuple[str, ...]
    copied: tuple[str, ...]
    left_out: tuple[str, ...]
    processor: Mapping[str, Any] | None = None

    @property
    def resolution(self) -> tuple[int, int]:
        """Pixels a side, before and after."""
        return int(self.config.vision_config.image_size), int(self.encoder.config.image_size)


@dataclass
class _Cosine:
    """Sums for the cosine of all old and new weights, and the lowest cosine of a matrix with its name."""

    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    lowest: tuple[float, str] = (1.0, "")

    def add(self, name: str, old: torch.Tensor, new: torch.Tensor) -> None:
        cosine = weight_cosine(new, old)
        if cosine is not None and not self.lowest[0] <= cosine:  # NaN takes the place, and keeps it
            self.lowest = self.lowest if math.isnan(self.lowest[0]) else (cosine, name)
        a, b = old.float().reshape(-1), new.float().reshape(-1)
        for index, value in enumerate((a @ b, a @ a, b @ b)):
            self.sums[index] += float(value)

    def value(self) -> float:
        product, first, second = self.sums
        return product / max((first * second) ** 0.5, 1e-30)


def merge_vision_tower(
    vlm_repo: str | os.PathLike[str],
    encoder_repo: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    push_to_hub: bool = False,
    hard_links: bool = False,
    private: bool | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    revision: str | None = None,
    encoder_revision: str | None = None,
    base: str | os.PathLike[str] | None = None,
) -> Merge:
    """Write a vision-language model whose tower is a robust encoder; the language model is never loaded.

    Only the safetensors files that hold the tower are rewritten, tensor by tensor. File names, index and configuration
    stay (an encoder of another resolution changes configuration and processor), so whatever reads the original's
    repository reads this one. A card names both parents. One tensor at a time is in memory, also while the
    encoder answers two images before anything is written; an encoder in open_clip's format while it is converted.

    Args:
        vlm_repo: folder or Hub name of a model of `vlm.families.table.FAMILIES`, in safetensors; pickled weights
            (`pytorch_model.bin`) are read as weights alone and written as safetensors, into a folder only.
        encoder_repo: folder, Hub name, or file, as `fare_hf.swap_vision_tower` takes it (no module).
        out: new folder, to which all other files are copied (sharing blocks where the file system can); or, with
            `push_to_hub`, a new repository, to which the Hub copies them itself: nothing else is down- or uploaded.
        push_to_hub: `out` is a repository, and `vlm_repo` one on the same Hub.
        hard_links: large files in `out` are those of the source (or of the Hub's cache) under a second name, where
            the disk can: no room is taken, and who edits one edits both.
        private: of the new repository.
        token: access token; None takes `HF_TOKEN` or that of `hf auth login`.
        endpoint: of another Hub than `HF_ENDPOINT`.
        revision: of `vlm_repo` on the Hub.
        encoder_revision: of `encoder_repo` on the Hub.
        base: as for `swap_vision_tower`, for a bare file of open_clip weights.

    Raises:
        TypeError: not a known family.
        ValueError: parents that do not fit, an encoder whose weights or answers are not finite, weights that are
            quantised, or pickled beside code, files or links that leave their folder, an index that its files do not
            fit, an `out` that is not empty. Nothing is left behind.
        OSError: something cannot be read or written.
    """
    if push_to_hub:
        from fare_hf.hub.merge.on_hub import merge_on_hub

        if hard_links:
            raise ValueError("hard_links is for a merge into a folder: on the Hub nothing is linked, leave it out.")
        hub: dict[str, Any] = {"token": token, "endpoint": endpoint, "private": private, "revision": revision}
        return merge_on_hub(str(vlm_repo), encoder_repo, str(out), encoder_revision=encoder_revision, base=base, **hub)
    target = Path(out)
    check_new_folder(target)
    folder = Path(vlm_repo)
    if not folder.is_dir():
        folder = Path(
            snapshot_download(str(vlm_repo), revision=revision, token=token, endpoint=endpoint or constants.ENDPOINT)
        )
    config, family = vlm_config(folder)
    with transformers_folder(encoder_repo, config.vision_config, base=base, revision=encoder_revision) as found:
        place, at, _ = found
        with temporary_folder() as room:
            card = card_of(encoder_repo, encoder_revision)
            encoder = open_encoder(str(encoder_repo), place, at, card, Path(room))
            check_parents(config, family, encoder)
            with whole_folder(target) as part, _in_safetensors(folder, part) as (parent, unpickled):
                plan = plan_merge(str(vlm_repo), parent, files_of(parent), encoder)
                check_held(parent, sorted(set(plan.weight_map.values())), plan.weight_map, family)
                check_encoder(encoder)
                # The copy that was made for the safetensors goes away: what is linked to it is nobody else's.
                result = _merge_folder(plan, parent, part, hard_links or bool(unpickled))
    linked = () if unpickled else result.linked
    return replace(result, out=str(out), linked=linked, unpickled=unpickled)


def plan_merge(vlm: str, folder: Path, files: list[str], encoder: EncoderFiles) -> MergePlan:
    """Find the towers' tensors and sort the files.

    Args:
        vlm: name of the model.
        folder: holds its configuration, and index or single file of weights.
        files: all its files.
        encoder: the other parent, which `check_parents` has compared.

    Raises:
        TypeError, ValueError: as `merge_vision_tower`.
    """
    config, family = vlm_config(folder)
    files = [relative_name(name, f"'{vlm}'") for name in files]
    weights = weight_map_of(folder, files)
    names = tower_names(weights, family, encoder)
    changed = [*names.files]
    if config.vision_config.image_size != encoder.config.image_size:
        changed += ["config.json", *(name for name in PROCESSORS if name in files)]
        changed += [INDEX] if INDEX in files else []
    processor = _completed(vlm, folder, files, config)
    changed += [COUNTING] if processor is not None and COUNTING not in changed else []
    kept = set(weights.values())
    others = [name for name in files if name not in changed and not name.startswith(NOT_COPIED)]
    left_out = [name for name in others if name.endswith(WEIGHTS) and name not in kept]
    left_out += [name for name in others if name.endswith(".index.json") and name != INDEX]
    copied = [name for name in others if name not in left_out]
    rewritten, whole, passed = (tuple(sorted(group)) for group in (changed, copied, left_out))
    return MergePlan(vlm, encoder, family, config, weights, names, rewritten, whole, passed, processor)


def _completed(vlm: str, folder: Path, files: list[str], config: Any) -> dict[str, Any] | None:
    """What the processor of an older repository lacks to count an image's tokens, filled; and that is said."""
    sources = (COUNTING, "preprocessor_config.json", "tokenizer_config.json")
    names = [name for name in sources if name in files and (folder / name).is_file()]
    found = completed_file(config, {name: read_object(folder / name, LARGEST_INDEX) for name in names})
    if found is not None:
        warnings.warn(
            f"the processor of '{vlm}' does not say how many tokens stand for an image: {COUNTING} is written with "
            "what the model's configuration says.",
            UserWarning,
            stacklevel=4,
        )
    return found


def write_changed(plan: MergePlan, folder: Path, part: Path) -> float:
    """Write the files with new content into `part`; returns the cosine of the tower's old and new weights."""
    old, size = plan.resolution
    sums, grown = _Cosine(), 0
    for file in plan.names.files:
        grown += _rewrite_file(plan, file, folder, part, sums)
    for name in set(plan.rewritten) - set(plan.names.files):
        filled = plan.processor if name == COUNTING else None
        content = dict(filled) if filled is not None else read_object(folder / name, LARGEST_INDEX)
        if name == "config.json":
            content = scaled_config(content, plan.config, old, size)
        elif name == INDEX:
            metadata = content.get("metadata")
            if isinstance(metadata, dict) and isinstance(metadata.get("total_size"), int):
                metadata["total_size"] += grown
        elif size != old:
            content = scaled_processor(content, old, size)
        (part / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    cosine = sums.value()
    least, name = sums.lowest
    if not least >= MINIMUM_WEIGHT_COSINE:
        warnings.warn(
            f"the weights of '{plan.encoder.source}' and of the tower of '{plan.vlm}' have cosine {least:.2f} only in "
            f"'{name}': the encoder seems to be fine-tuned from another CLIP, or its weights are mixed up; the "
            "language model may not understand it.",
            UserWarning,
            stacklevel=3,
        )
    return cosine


def vlm_config(folder: Path) -> tuple[Any, Family]:
    """The configuration of a vision-language model, and its family.

    Raises:
        TypeError: no known family.
        ValueError: a configuration that no model can have.
    """
    config = read_configuration(str(folder))
    return config, family_named(config.architectures or [type(config).__name__], config)


def card_of(source: str | os.PathLike[str], revision: str | None) -> Path | None:
    """The model card of a folder or repository, or None."""
    return None if Path(source).is_file() else find_file(os.fspath(source), "README.md", revision)


def write_card(plan: MergePlan, merge: Merge, readme: Path | None, part: Path) -> None:
    """The card with both parents; licence and languages are those of the language model's card."""
    old = card_head(readme) if readme is not None else {}
    text = merge_card(merge, plan.family.vlm_class, old, plan.encoder.card)
    (part / "README.md").write_text(text, encoding="utf-8")


@contextmanager
def _in_safetensors(folder: Path, part: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The model's folder, or one beside `part` with safetensors for its pickled weights, and their names."""
    files = files_of(folder)
    if INDEX in files or SINGLE in files or not {PICKLE, PICKLE_INDEX} & set(files):
        yield folder, ()
        return
    with tempfile.TemporaryDirectory(prefix=".fare_hf-merge-", dir=part.parent) as place:
        yield Path(place), tuple(with_safetensors(folder, files, Path(place)))


def _merge_folder(plan: MergePlan, folder: Path, part: Path, hard_links: bool) -> Merge:
    for name in (*plan.rewritten, *plan.copied):
        (part / name).parent.mkdir(parents=True, exist_ok=True)
    cosine = write_changed(plan, folder, part)
    linked = tuple(name for name in plan.copied if hard_links and _link(folder / name, part / name))
    for name in plan.copied:
        if name not in linked:
            copy_file(folder / name, part / name)
    merge = Merge(
        plan.vlm, plan.encoder.source, "", plan.rewritten, plan.copied, plan.left_out, len(plan.names.flat), cosine,
        plan.resolution, linked=linked,
    )  # fmt: skip
    write_card(plan, merge, folder / "README.md", part)
    return merge


def _rewrite_file(plan: MergePlan, file: str, folder: Path, part: Path, sums: _Cosine) -> int:
    """One file with the tower's new values; returns by how many bytes it has grown."""
    source = folder / file
    header, begin = read_header(source)
    new: dict[str, Any] = {}
    shapes: dict[str, list[int]] = {}
    patches = plan.resolution[1] // int(plan.encoder.config.patch_size)
    for name in plan.names.files[file]:
        flat, entry = plan.names.flat[name], header[name]
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"the vision tower's '{name}' is quantised ({entry['dtype']}): merge the original model.")
        if flat == POSITION_IDS:
            count = patches**2 + int(plan.encoder.config.model_type == "clip_vision_model")
            new[name] = partial(_position_ids, count)
            shapes[name] = [1, count]
            continue
        new[name] = partial(_new_value, plan, source, header, begin, name, sums)
        if flat == POSITIONS and plan.resolution[0] != plan.resolution[1]:
            tensor = plan.encoder.tensor(flat, DTYPES[entry["dtype"]])
            shapes[name] = list(tensor.shape)
    return rewrite(source, part / file, new, shapes)


def _position_ids(count: int) -> torch.Tensor:
    return torch.arange(count).unsqueeze(0)


def _new_value(
    plan: MergePlan, source: Path, header: Mapping[str, Any], begin: int, name: str, sums: _Cosine
) -> torch.Tensor:
    flat = plan.names.flat[name]
    new = plan.encoder.tensor(flat, DTYPES[header[name]["dtype"]])
    if list(new.shape) == header[name]["shape"]:
        sums.add(flat, read_tensor(source, header, begin, name), new)
    return new


def _link(source: Path, target: Path) -> bool:
    """Large files are linked where the disk can; small ones, which people edit, never."""
    real = source.resolve()
    if real.stat().st_size < LINKED_FROM:
        return False
    try:
        os.link(real, target)
    except OSError:  # another disk, or no links there
        return False
    return True


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Where files of a remote merge lie for a while."""
    return tempfile.TemporaryDirectory(prefix="fare_hf-merge-")
