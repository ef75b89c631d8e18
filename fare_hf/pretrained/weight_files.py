"""What a stranger's folder says about its weights: indexes, whose files have to lie beside them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fare_hf.files.documents import MIB, read_object, read_text
from fare_hf.files.folders import path_inside, relative_name

__all__ = ["INDEX", "LARGEST_INDEX", "PICKLE", "PICKLE_INDEX", "SINGLE", "check_weight_files", "read_index"]

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLE_INDEX, PICKLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
LARGEST_INDEX = 32 * MIB
"""Those of the largest published models, with 100,000 tensors, have 10."""
MOST_FILES = 1_000
"""Of one checkpoint; the largest published ones have 200."""


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> name of the file that holds it, of an index of weights in several files.

    Raises:
        ValueError: no index, a tensor that is listed twice, a file that is none of weights or leaves the folder, more
            files than any checkpoint has.
    """
    found = read_object(path, LARGEST_INDEX).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ValueError(f"'{path}' has no weight_map, which says what is in which file: download it again.")
    _check_once(path)
    names = set(map(repr, found.values()))
    if len(names) > MOST_FILES:
        raise ValueError(f"'{path}' names {len(names):,} files, more than any checkpoint has: do not use it.")
    ending = ".bin" if path.name == PICKLE_INDEX else ".safetensors"
    for name in found.values():
        if not relative_name(name, f"'{path}'").endswith(ending):
            raise ValueError(f"'{path}' names {name!r}, which is no {ending} file: do not use it.")
    return found


def check_weight_files(folder: Path, names: Iterable[str] = (INDEX, SINGLE, PICKLE_INDEX, PICKLE)) -> None:
    """What transformers would open as the weights of a folder lies in it.

    Args:
        folder: with a model.
        names: of the files to begin with; what an index among them names is looked at too.

    Raises:
        ValueError: as `read_index`; a link that leaves the folder, a file that is named and not there.
    """
    for name in names:
        path = path_inside(folder, name)
        if not path.is_file():
            continue
        for file in sorted(set(read_index(path).values())) if name.endswith(".index.json") else ():
            if not path_inside(folder, file, f"'{path}'").is_file():
                raise ValueError(f"'{path}' names the file {file!r}, which is not there: download it again.")


def _check_once(path: Path) -> None:
    """Of two entries of one name, readers of JSON take the one or the other."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise ValueError(f"'{path}' lists {name!r} twice: download it again.")
        return found

    json.loads(read_text(path, LARGEST_INDEX), object_pairs_hook=once)
