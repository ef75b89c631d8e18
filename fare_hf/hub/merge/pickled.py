"""Parents whose weights are pickles (`pytorch_model.bin`): read as weights alone, and written as safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fare_hf.convert.states import read_pickled
from fare_hf.hub.merge.shards import copy_file, write_tensors
from fare_hf.pretrained.weight_files import INDEX, PICKLE, PICKLE_INDEX, SINGLE, read_index

__all__ = ["safetensors_of", "with_safetensors"]


def safetensors_of(find: Callable[[str], Path | None], folder: Path) -> dict[str, Path] | None:
    """Write the weights of a folder or repository without safetensors as such, one file for one.

    Args:
        find: gives the path of a file there, or None.
        folder: where they are written, with their index.

    Returns:
        New file name -> old file; None where there are no pickled weights.

    Raises:
        ValueError: code or objects in them, an index that they do not fit.
        OSError: they cannot be read, or the disk is full.
    """
    index = find(PICKLE_INDEX)
    listed = read_index(index) if index is not None else {}
    weight_map: dict[str, str] = {}
    written: dict[str, Path] = {}
    for name in sorted(set(listed.values())) or [PICKLE]:
        path = find(name)
        if path is None and index is None:
            return None
        if path is None:
            raise ValueError(f"'{index}' names the file {name!r}, which is not there: download it again.")
        new = name.removesuffix(".bin").replace("pytorch_model", "model") + ".safetensors"
        state = read_pickled(path)
        absent = [tensor for tensor, file in listed.items() if file == name and tensor not in state]
        absent += [tensor for tensor in state if tensor in weight_map]
        if absent or new in written:
            raise ValueError(f"'{index}' does not fit its files ({(absent or [name])[0]!r}): download them again.")
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / new, state)
        weight_map |= dict.fromkeys(state, new)
        written[new] = path
    if list(written) != [SINGLE]:
        total = sum((folder / new).stat().st_size for new in written)
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return written


def with_safetensors(folder: Path, files: list[str], copy: Path) -> dict[str, Path]:
    """A copy of a model's folder, with safetensors for its pickled weights.

    Args:
        folder: the model.
        files: its files, all inside.
        copy: the empty folder for it.

    Returns:
        As `safetensors_of`.

    Raises:
        ValueError: as `safetensors_of`.
    """
    found = safetensors_of(lambda name: folder / name if name in files else None, copy) or {}
    replaced = {path.relative_to(folder).as_posix() for path in found.values()} | {PICKLE_INDEX}
    for name in sorted(set(files) - replaced):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        copy_file(folder / name, copy / name)
    return found
