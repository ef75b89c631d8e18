"""The two parents of a merge as they lie on disk: which tensors are the tower's, and their new values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.hooks import attach_align_device_hook
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPVisionModel, SiglipVisionModel

from fare_hf.configuration import read_configuration
from fare_hf.convert.checkpoints import find_file, read_json
from fare_hf.hub.shards import read_header, read_tensor
from fare_hf.validation import check_answers, check_recorded, recorded_architecture
from fare_hf.vlm.checks import check_architecture, check_weights
from fare_hf.vlm.families import ENCODER_OF, Family

__all__ = [
    "INDEX",
    "POSITIONS",
    "POSITION_IDS",
    "SINGLE",
    "EncoderFiles",
    "TowerNames",
    "check_encoder",
    "check_parents",
    "open_encoder",
    "tower_names",
    "weight_map_of",
]

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PARTS = r"(?:vision_model\.)?((?:embeddings|encoder|pre_layrnorm|post_layernorm|head)\..+)"
POSITIONS, POSITION_IDS = "embeddings.position_embedding.weight", "embeddings.position_ids"
TOWERS: dict[str, Any] = {"clip_vision_model": CLIPVisionModel, "siglip_vision_model": SiglipVisionModel}
POOLING = ["SiglipMultiheadAttentionPoolingHead"]  # reads the weights of its parts without calling them
LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class TowerNames:
    """Tensors of the towers in a published checkpoint.

    Attributes:
        files: file name -> names of the tower's tensors in it.
        flat: name in the checkpoint -> name in a flat CLIP or SigLIP vision model.
    """

    files: dict[str, list[str]]
    flat: dict[str, str]


@dataclass
class EncoderFiles:
    """The weights of an encoder, read one by one.

    Attributes:
        source: as it was named.
        config: its vision configuration.
        places: flat name -> (file, name in it).
        images: content of its preprocessor_config.json, or None.
        card: its model card, or None.
    """

    source: str
    config: Any
    places: dict[str, tuple[Path, str]]
    images: dict[str, Any] | None
    card: Path | None = None
    _headers: dict[Path, tuple[dict[str, Any], int]] = field(default_factory=dict, repr=False)

    def tensor(self, flat: str, dtype: torch.dtype) -> Tensor:
        """One weight in the type that it will have.

        Raises:
            ValueError: it is not finite in that type.
        """
        file, name = self.places[flat]
        if file not in self._headers:
            self._headers[file] = read_header(file)
        # Read, not mapped: the pages of a mapped file would count as memory of this process.
        tensor = read_tensor(file, *self._headers[file], name)
        check_weights(flat, tensor, dtype, self.source)
        return tensor.to(dtype)


def tower_names(weight_map: Mapping[str, str], family: Family, encoder: EncoderFiles) -> TowerNames:
    """Find the towers' tensors by their names, with or without the levels that releases of transformers add.

    Raises:
        ValueError: a tensor of the tower that the encoder does not have, or the other way round.
    """
    leaves = [path.rsplit(".", 1)[-1] for path in family.towers]
    flat: dict[str, str] = {}
    for leaf in leaves:
        own = re.compile(rf"(?:.*\.)?{leaf}\.{PARTS}")
        inside = {name: match[1] for name in weight_map if (match := own.fullmatch(name))}
        if not inside:
            raise ValueError(f"the checkpoint has no weights of a '{leaf}': name the repository of the whole model.")
        _check_complete(set(inside.values()), encoder)
        flat |= inside
    strange = [name for name in weight_map if name not in flat and re.search(rf"(^|\.)({'|'.join(leaves)})\.", name)]
    if strange:
        raise ValueError(f"the checkpoint has '{strange[0]}' in its vision tower, which no CLIP or SigLIP has.")
    files: dict[str, list[str]] = {}
    for name in flat:
        files.setdefault(weight_map[name], []).append(name)
    return TowerNames(files, flat)


def open_encoder(source: str, place: str, revision: str | None, card: Path | None) -> EncoderFiles:
    """Look at an encoder in the format of transformers, without reading its weights.

    Args:
        source: as the caller named it.
        place: folder or Hub name.
        revision: of the latter.
        card: its model card.

    Raises:
        ValueError: no safetensors there.
        OSError: it cannot be read.
    """
    config = read_configuration(place, revision=revision or "main")
    check_recorded(config, recorded_architecture(place, revision=revision or "main"), f"the encoder '{source}'")
    index = find_file(place, INDEX, revision)
    names: Iterable[str] = sorted(set(read_json(index)["weight_map"].values())) if index else [SINGLE]
    places: dict[str, tuple[Path, str]] = {}
    for name in names:
        path = find_file(place, name, revision)
        if path is None:
            raise ValueError(f"the encoder '{source}' has no {name}: only safetensors are merged; convert it first.")
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                if not key.startswith("text_model."):
                    places[key.removeprefix("vision_model.")] = (path, key)
    images = find_file(place, "preprocessor_config.json", revision)
    vision = getattr(config, "vision_config", config)
    return EncoderFiles(source, vision, places, read_json(images) if images else None, card)


def check_encoder(encoder: EncoderFiles) -> None:
    """The encoder answers two images as `fare_hf.validation.check_answers` asks for, with one weight in memory.

    Raises:
        ValueError: it does not; a weight that its class needs is not there, or not finite.
    """
    with init_empty_weights():
        module = TOWERS[encoder.config.model_type](encoder.config)
    missing = sorted(name for name in module.state_dict() if _flat(name) not in encoder.places)
    kept = [name for name in missing if not _flat(name).startswith("head.")]
    if kept:
        raise ValueError(
            f"the encoder '{encoder.source}' has no weights for '{kept[0]}': pass one with all its parts."
        )
    if missing:  # published without its pooling, which no language model reads
        module.head = None
    attach_align_device_hook(
        module, "cpu", offload=True, weights_map=_OneByOne(encoder), preload_module_classes=POOLING
    )
    check_answers(module, f"the encoder '{encoder.source}'", torch.device("cpu"))


class _OneByOne(Mapping[str, Tensor]):
    """An encoder's weights in fp32, each read when it is needed."""

    def __init__(self, encoder: EncoderFiles) -> None:
        self.encoder = encoder

    def __getitem__(self, name: str) -> Tensor:
        return self.encoder.tensor(_flat(name), torch.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self.encoder.places)

    def __len__(self) -> int:
        return len(self.encoder.places)


def check_parents(config: Any, family: Family, encoder: EncoderFiles) -> None:
    """What can be said from the two configurations.

    Raises:
        ValueError: another kind or architecture; a quantised model.
    """
    if getattr(config, "quantization_config", None):
        raise ValueError(
            "the vision-language model is quantised: merge into the unquantised one, quantise afterwards."
        )
    kinds = {"clip_vision_model": "CLIPVisionModel", "siglip_vision_model": "SiglipVisionModel"}
    kinds |= {"idefics_vision": "IdeficsVisionTransformer"}
    tower = kinds.get(config.vision_config.model_type)
    if tower not in family.tower_classes:
        raise ValueError(
            f"the vision tower is a {config.vision_config.model_type!r}: only {' or '.join(family.tower_classes)} is "
            "supported."
        )
    if kinds.get(encoder.config.model_type) != ENCODER_OF[str(tower)]:
        raise ValueError(
            f"the encoder '{encoder.source}' is a {encoder.config.model_type!r}, the vision tower needs a "
            f"{ENCODER_OF[str(tower)]}: pass an encoder of the tower's kind."
        )
    check_architecture(config, family, config.vision_config, encoder.config, encoder.source)


def weight_map_of(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, of a folder with an index or with a single file.

    Raises:
        ValueError: neither.
    """
    if (folder / INDEX).is_file():
        return json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    if (folder / SINGLE).is_file():
        with safe_open(folder / SINGLE, framework="pt") as file:
            return dict.fromkeys(file.keys(), SINGLE)
    raise ValueError("the vision-language model has no safetensors: only these are merged; convert it first.")


def _check_complete(tower: set[str], encoder: EncoderFiles) -> None:
    """Each tensor of the tower has one in the encoder; and the encoder none of those blocks that the tower lacks."""
    missing = sorted(name for name in tower if name != POSITION_IDS and name not in encoder.places)
    if missing:
        raise ValueError(
            f"the encoder '{encoder.source}' has no weights for '{missing[0]}' of the vision tower: pass an encoder "
            "with all its parts."
        )
    layers = 1 + max((int(match[1]) for name in tower if (match := LAYER.match(name))), default=-1)
    for name in sorted(encoder.places):
        layer = LAYER.match(name)
        wanted = int(layer[1]) < layers if layer else name.startswith(("embeddings.", "pre_", "post_"))
        if wanted and name not in tower and name != POSITION_IDS:
            raise ValueError(f"the checkpoint's vision tower lacks '{name}': name the repository of the whole model.")


def _flat(name: str) -> str:
    return name.removeprefix("vision_model.")
