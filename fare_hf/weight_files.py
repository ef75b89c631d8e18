"""What a stranger's folder says about its weights: JSON that is bounded, and indexes whose files lie beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fare_hf.folders import path_inside, relative_name

__all__ = ["INDEX", "PICKLE", "PICKLE_INDEX", "SINGLE", "check_weight_files", "read_index", "read_json"]

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLE_INDEX, PICKLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
LARGEST_JSON = 32 << 20
"""Bytes; the index of the largest published models, with 100,000 tensors, has 10 MB."""
MOST_FILES = 1_000
"""Of one checkpoint; the largest published ones have 200."""

Pairs = list[tuple[str, Any]]


def read_json(path: Path, pairs: Callable[[Pairs], Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """A JSON object.

    Args:
        path: of the file.
        pairs: makes an object of its pairs, as in `json.loads`.

    Raises:
        ValueError: it is none, no regular file, too large, or nested without end.
    """
    if not path.is_file():
        raise ValueError(f"'{path}' is no file: it cannot be read.")
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"'{path}' has {path.stat().st_size:,} bytes, more than any such file: do not use it.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError(f"'{path}' is not valid JSON: it is nested without end.") from None
    except ValueError as error:
        raise ValueError(f"'{path}' is not valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' holds {type(found).__name__}, not an object.")
    return found


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> name of the file that holds it, of an index of weights in several files.

    Raises:
        ValueError: no index, a tensor that is listed twice, a file that is none of weights or leaves the folder, more
            files than any checkpoint has.
    """
    found = read_json(path, _once(path)).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ValueError(f"'{path}' has no weight_map, which says what is in which file: download it again.")
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


def _once(path: Path) -> Callable[[Pairs], dict[str, Any]]:
    """Objects whose names stand there once: of two entries, JSON readers take the one or the other."""

    def made(pairs: Pairs) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise ValueError(f"it lists {twice!r} twice")
        return found

    return made
