"""The two parents of a merge as they lie on disk: which tensors are the tower's, and their new values."""

from __future__ import annotations

import ctypes
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.hooks import attach_align_device_hook
from torch import Tensor

from fare_hf.convert.checkpoints import find_file
from fare_hf.hub.merge.pickled import safetensors_of
from fare_hf.hub.merge.shards import read_header, read_tensor
from fare_hf.pretrained.configuration import read_configuration
from fare_hf.pretrained.validation import check_answers, check_recorded, recorded_architecture
from fare_hf.pretrained.weight_files import INDEX, PICKLE, SINGLE, read_index
from fare_hf.vlm.families.table import Family, family_of_config
from fare_hf.vlm.families.towers import TowerKind, kind_typed
from fare_hf.vlm.swap.compatibility import check_architecture, check_weights
from fare_hf.vlm.swap.encoder_files import transformers_folder

__all__ = [
    "POSITIONS",
    "POSITION_IDS",
    "EncoderFiles",
    "check_encoder",
    "check_held",
    "opened_encoder",
    "tower_names",
    "weight_map_of",
]

PARTS = r"(?:vision_model\.)?((?:embeddings|encoder|pre_layrnorm|post_layernorm|head)\..+)"
POSITIONS, POSITION_IDS = "embeddings.position_embedding.weight", "embeddings.position_ids"
POOLING = ["SiglipMultiheadAttentionPoolingHead"]  # reads the weights of its parts without calling them
# Of glibc, which keeps the blocks that torch frees and seldom fills them again: a merge would take twice as much.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


@dataclass
class EncoderFiles:
    """The weights of an encoder, read one by one.

    Attributes:
        source: as it was named.
        config: its vision configuration.
        locations: flat name -> (file, name in it).
        card: its model card, or None.
    """

    source: str
    config: Any
    locations: dict[str, tuple[Path, str]]
    card: Path | None = None
    _headers: dict[Path, tuple[dict[str, Any], int]] = field(default_factory=dict, repr=False)

    @property
    def kind(self) -> TowerKind:
        """Of its tower."""
        found = kind_typed(self.config.model_type)
        assert found is not None  # checked when it was opened
        return found

    def tensor(self, flat: str, dtype: torch.dtype) -> Tensor:
        """One weight in the type that it will have.

        Raises:
            ValueError: it is not finite in that type.
        """
        if _TRIM is not None:
            _TRIM(0)
        file, name = self.locations[flat]
        if file not in self._headers:
            self._headers[file] = read_header(file)
        # Read, not mapped: the pages of a mapped file would count as memory of this process.
        tensor = read_tensor(file, *self._headers[file], name)
        check_weights(flat, tensor, dtype, self.source)
        return tensor.to(dtype)


def tower_names(weight_map: Mapping[str, str], family: Family, encoder: EncoderFiles) -> dict[str, str]:
    """The towers' tensors -> their names in a flat vision model, with or without the levels that releases add.

    Raises:
        ValueError: a tensor of the tower that the encoder does not have, or the other way round.
    """
    flat: dict[str, str] = {}
    for leaf in _leaves(family):
        own = re.compile(rf"(?:.*\.)?{leaf}\.{'(.+)' if encoder.kind.own else PARTS}")
        inside = {name: match[1] for name in weight_map if (match := own.fullmatch(name))}
        if not inside:
            raise ValueError(f"the checkpoint has no weights of a '{leaf}': name the repository of the whole model.")
        _check_complete(set(inside.values()), encoder)
        flat |= inside
    strange = [name for name in weight_map if name not in flat and _in_tower(name, family)]
    if strange:
        raise ValueError(f"the checkpoint has '{strange[0]}' in its vision tower, which no CLIP or SigLIP has.")
    return flat


@contextmanager
def opened_encoder(
    source: str | os.PathLike[str], vlm: Any, revision: str | None, base: str | os.PathLike[str] | None
) -> Iterator[EncoderFiles]:
    """Look at an encoder that may take the tower's place, without reading its weights.

    Args:
        source: folder, Hub name or file; of open_clip's format it is converted first.
        vlm: configuration of the vision-language model.
        revision: of the encoder on the Hub.
        base: for a bare file, the CLIP it was fine-tuned from.

    Raises:
        ValueError: no weights there, an index that they do not fit, another kind or architecture, a quantised model.
        TypeError: no known family.
        OSError: it cannot be read.
    """
    family = family_of_config(vlm)
    with (
        transformers_folder(source, vlm.vision_config, base=base, revision=revision) as (folder, at, _),
        tempfile.TemporaryDirectory(prefix="fare_hf-merge-") as unpickled,
    ):
        card = None if Path(source).is_file() else find_file(os.fspath(source), "README.md", revision)
        encoder = _open_transformers(str(source), folder, at, card, Path(unpickled))
        _check_kinds(vlm, family, encoder)
        yield encoder


def _open_transformers(
    source: str, folder: str, revision: str | None, card: Path | None, unpickled: Path
) -> EncoderFiles:
    """Of transformers' format; `unpickled` is an empty folder for the safetensors of pickled weights."""
    where, find = f"the encoder '{source}'", partial(find_file, folder, revision=revision)
    config = read_configuration(folder, revision=revision or "main")
    check_recorded(config, recorded_architecture(folder, revision=revision or "main"), where)
    if find(INDEX) is None and find(SINGLE) is None:
        if safetensors_of(find, unpickled) is None:
            raise ValueError(f"{where} has no {SINGLE} and no {PICKLE}: convert it first.")
        find = partial(find_file, str(unpickled))
    return EncoderFiles(source, getattr(config, "vision_config", config), _locations(find, where), card)


def _locations(find: Callable[[str], Path | None], where: str) -> dict[str, tuple[Path, str]]:
    """Flat name -> where the tensor lies."""
    index = find(INDEX)
    listed = read_index(index) if index is not None else {}
    locations: dict[str, tuple[Path, str]] = {}
    for name in sorted(set(listed.values())) or [SINGLE]:
        path = find(name)
        if path is None:
            raise ValueError(f"{where} has no {name}, which its index names: download it again.")
        header, _ = read_header(path)
        _check_file(name, header, listed or dict.fromkeys(header, name), where)
        tower = [key for key in header if not key.startswith(("text_model.", "__metadata__"))]
        locations |= {key.removeprefix("vision_model."): (path, key) for key in tower}
    return locations


def check_encoder(encoder: EncoderFiles) -> None:
    """The encoder answers two images as `pretrained.validation.check_answers` asks for, with one weight in memory.

    Raises:
        ValueError: it does not; a weight that its class needs is not there, or not finite.
    """
    family = encoder.kind.family
    cls = family.plain if family else encoder.kind.own_class
    with init_empty_weights():
        module: Any = cls(encoder.config)
    missing = sorted(name for name in module.state_dict() if _flat(name) not in encoder.locations)
    kept = [name for name in missing if not _flat(name).startswith("head.")]
    if kept:
        raise ValueError(
            f"the encoder '{encoder.source}' has no weights for '{kept[0]}': pass one with all its parts."
        )
    if encoder.kind.own:  # its weights are held to be finite one by one, as they are written
        return
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
        return iter(self.encoder.locations)

    def __len__(self) -> int:
        return len(self.encoder.locations)


def _check_kinds(config: Any, family: Family, encoder: EncoderFiles) -> None:
    """What can be said from the two configurations."""
    kind = config.vision_config.model_type
    if getattr(config, "quantization_config", None):
        raise ValueError(
            "the vision-language model is quantised: merge into the unquantised one, quantise afterwards."
        )
    if kind_typed(kind) not in family.kinds:
        raise ValueError(f"the vision tower is a {kind!r}: only {' or '.join(family.tower_classes)} is supported.")
    check_architecture(config, family, config.vision_config, encoder.config, encoder.source)


def weight_map_of(folder: Path, files: Collection[str]) -> dict[str, str]:
    """Tensor name -> file name, of a model with an index or with a single file.

    Args:
        folder: holds the index or the single file.
        files: all that the model has.

    Raises:
        ValueError: neither, or an index of files that are not there.
    """
    if INDEX not in files:
        if SINGLE not in files:
            raise ValueError("the vision-language model has no safetensors: only these are merged; convert it first.")
        header, _ = read_header(folder / SINGLE)
        return {name: SINGLE for name in header if name != "__metadata__"}
    weight_map = read_index(folder / INDEX)
    absent = sorted(set(weight_map.values()) - set(files))
    if absent:
        raise ValueError(f"{INDEX} names the file {absent[0]!r}, which is not there: take the whole model.")
    return weight_map


def check_held(folder: Path, files: Iterable[str], weight_map: Mapping[str, str], family: Family) -> None:
    """Files hold what the index says, and nothing of the tower besides, which would stay as it was.

    Raises:
        ValueError: a tensor in another file, in two, or in a file that the index does not name for it.
    """
    for file in files:
        header, _ = read_header(folder / file)
        _check_file(file, header, weight_map, "the vision-language model")
        strange = [name for name in header if name not in weight_map and _in_tower(name, family)]
        if strange:
            raise ValueError(
                f"'{file}' holds {strange[0]!r} of the tower, which {INDEX} does not name: mend the index."
            )


def _check_file(file: str, header: Mapping[str, Any], weight_map: Mapping[str, str], owner: str) -> None:
    told = [
        f"has {name!r} in '{file}' by its {INDEX}, but not there: download both again."
        for name, other in weight_map.items()
        if other == file and name not in header
    ]
    told += [
        f"has {name!r} in '{file}' and, by its {INDEX}, in '{weight_map[name]}': which of them counts is not known; "
        "take one away."
        for name in header
        if weight_map.get(name, file) != file
    ]
    if told:
        raise ValueError(f"{owner} {told[0]}")


def _leaves(family: Family) -> list[str]:
    return [path.rsplit(".", 1)[-1] for path in family.towers]


def _in_tower(name: str, family: Family) -> bool:
    return re.search(rf"(^|\.)({'|'.join(_leaves(family))})\.", name) is not None


def _check_complete(tower: set[str], encoder: EncoderFiles) -> None:
    """Each tensor of the tower has one in the encoder; and the encoder none of those blocks that the tower lacks."""
    missing = sorted(name for name in tower if name != POSITION_IDS and name not in encoder.locations)
    if missing:
        raise ValueError(
            f"the encoder '{encoder.source}' has no weights for '{missing[0]}' of the vision tower: pass an encoder "
            "with all its parts."
        )
    layers = 1 + max((int(match[1]) for name in tower if (match := LAYER.match(name))), default=-1)
    for name in sorted(encoder.locations):
        layer = LAYER.match(name)
        wanted = int(layer[1]) < layers if layer else name.startswith(("embeddings.", "pre_", "post_"))
        if wanted and name not in tower and name != POSITION_IDS:
            raise ValueError(f"the checkpoint's vision tower lacks '{name}': name the repository of the whole model.")


def _flat(name: str) -> str:
    return name.removeprefix("vision_model.")
