"""Weights of a part of a published model: the files that hold them, and of a large one those tensors alone."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fare_hf.convert.checkpoints import find_file
from fare_hf.pretrained.weight_files import INDEX, SINGLE, read_index
from fare_hf.pretrained.weight_ranges import NoRangesError, RemoteWeights

__all__ = ["LoadedWeights", "StoredWeights", "fill"]

INNER = re.compile(r"(^|\.)(vision_tower|vision_model|image_tower)\.vision_model\.")
"""A level of names that CLIP and SigLIP towers have in the files of older releases."""
SHARE = 0.5
"""Of the bytes of a file, above which it is downloaded whole, and is there for the next time."""
logger = logging.getLogger(__name__)


class StoredWeights:
    """The weights of a folder or repository, read as little as is needed.

    Args:
        name_or_path: folder or Hub repository.
        revision: of a Hub repository.
    """

    def __init__(self, name_or_path: str, revision: str | None = None) -> None:
        self.name_or_path, self.revision = name_or_path, revision
        self._remote: dict[str, RemoteWeights | None] = {}

    def places(self) -> Iterator[tuple[str, str]]:
        """File and name of every tensor, by the index, or by the one file's own list.

        Raises:
            ValueError: no weights in safetensors.
        """
        index = find_file(self.name_or_path, INDEX, self.revision)
        if index is not None:
            yield from ((file, name) for name, file in read_index(index).items())
        elif (remote := self._in_parts(SINGLE)) is not None:
            yield from ((SINGLE, name) for name in remote.entries)
        else:
            with self._opened(SINGLE) as tensors:
                yield from ((SINGLE, name) for name in tensors.keys())

    def read(self, file: str, names: Sequence[str]) -> dict[str, Tensor]:
        """Some tensors of a file, by HTTP ranges where they are its smaller part.

        Raises:
            ValueError: the file is not there, cut off, or lacks one of them.
        """
        remote = self._in_parts(file)
        if remote is not None and set(names) <= remote.entries.keys():
            wanted = remote.size(names)
            if wanted <= SHARE * remote.total:
                try:
                    return remote.read(names)
                except NoRangesError as error:
                    self._refused(file, error)
        with self._opened(file) as tensors:
            return {name: tensors.get_tensor(name) for name in names}

    def _in_parts(self, file: str) -> RemoteWeights | None:
        """The file as it is read in parts; None for folders, for what is on this machine, and where the Hub does not
        give parts, which is said."""
        if file not in self._remote:
            self._remote[file] = None
            if not (Path(self.name_or_path).is_dir() or constants.HF_HUB_OFFLINE or self._is_cached(file)):
                try:
                    self._remote[file] = RemoteWeights.open(self.name_or_path, file, self.revision)
                except NoRangesError as error:
                    self._refused(file, error)
        return self._remote[file]

    def _is_cached(self, file: str) -> bool:
        return isinstance(try_to_load_from_cache(self.name_or_path, file, revision=self.revision), str)

    def _refused(self, file: str, error: Exception) -> None:
        self._remote[file] = None
        logger.warning("%s of %r is downloaded whole: its Hub gives no parts (%s).", file, self.name_or_path, error)

    @contextmanager
    def _opened(self, file: str) -> Iterator[Any]:
        path = find_file(self.name_or_path, file, self.revision)
        if path is None:
            raise ValueError(
                f"{self.name_or_path!r} has no {file}: only safetensors are read; convert its weights first."
            )
        try:
            with safe_open(path, framework="pt") as tensors:
                yield tensors
        except SafetensorError as error:
            raise ValueError(f"'{path}' is cut off or no safetensors file ({error}): download it again.") from error


class LoadedWeights:
    """The weights of a model in memory, with the methods of `StoredWeights`."""

    def __init__(self, model: Any) -> None:
        self._state: dict[str, Tensor] = model.state_dict()

    def places(self) -> Iterator[tuple[str, str]]:
        """One place, and the name of every tensor."""
        yield from (("memory", name) for name in self._state)

    def read(self, file: str, names: Sequence[str]) -> dict[str, Tensor]:
        """Copies of some tensors, on the CPU."""
        return {name: self._state[name].to("cpu", copy=True) for name in names}


def fill(model: Any, stored: StoredWeights | LoadedWeights, where: str) -> None:
    """Loads the weights that a model has, and no others, in fp32.

    Args:
        model: without weights (on the meta device).
        stored: where they are.
        where: whose weights these are, for messages.

    Raises:
        ValueError: a weight that is not there, or of another shape.
    """
    wanted = model.state_dict()
    places = {_plain(name): (file, name) for file, name in stored.places()}
    by_file: dict[str, list[tuple[str, str]]] = {}
    for name in wanted:
        if _plain(name) not in places:
            raise ValueError(f"{where!r} has no weights for {name!r} of its {type(model).__name__}: take it whole.")
        file, key = places[_plain(name)]
        by_file.setdefault(file, []).append((name, key))
    found: dict[str, Tensor] = {}
    for file, names in by_file.items():
        tensors = stored.read(file, [key for _, key in names])
        found |= {name: tensors.pop(key).float() for name, key in names}
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{where!r} holds {name!r} of shape {tuple(tensor.shape)}, and its config.json asks for "
                f"{tuple(wanted[name].shape)}: weights and configuration are of different models."
            )
    model.load_state_dict(found, assign=True)


def _plain(name: str) -> str:
    """A name of a tensor without the levels that releases of transformers add or leave out."""
    return INNER.sub(r"\1\2.", name.removeprefix("model."))
