"""Reading what others released: a Hub repository, a folder, or one file of weights, never running its code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from torch import Tensor

from fare_hf.convert.states import read_state
from fare_hf.files.documents import read_object
from fare_hf.files.folders import check_no_lab_name, path_inside, relative_name

__all__ = [
    "TOKENIZER_FILES",
    "Checkpoint",
    "copy_tokenizer",
    "find_file",
    "names_repository",
    "read_checkpoint",
    "read_state",
]

OPEN_CLIP_CONFIG = "open_clip_config.json"
VISUAL_WEIGHTS = "visual.safetensors"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    VISUAL_WEIGHTS,
)
WEIGHT_ENDINGS = (".safetensors", ".pt", ".pth", ".pth.tar", ".bin", ".ckpt")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class Checkpoint:
    """An open_clip checkpoint as it was found.

    Attributes:
        name_or_path: what was asked for.
        state: open_clip names, `visual.` before those of the vision tower.
        config: content of `open_clip_config.json`, or None beside a bare file.
        visual_only: the text tower is not there.
    """

    name_or_path: str
    state: dict[str, Tensor]
    config: dict[str, Any] | None
    visual_only: bool


def read_checkpoint(name_or_path: str, revision: str | None = None) -> Checkpoint:
    """Read an open_clip checkpoint.

    Args:
        name_or_path: a Hub repository, a folder with `open_clip_config.json`, or one file with the state dict of the
            vision tower alone (`.pt` as RobustVLM writes them, or `.safetensors`).

    Raises:
        ValueError: no configuration or weights there, a file that holds code, a whole CLIP in a bare file, another
            kind of network.
        OSError: the file or repository cannot be read.
    """
    if Path(name_or_path).is_file() or name_or_path.endswith(WEIGHT_ENDINGS):
        return _bare(name_or_path)
    path = find_file(name_or_path, OPEN_CLIP_CONFIG, revision)
    if path is None:
        raise ValueError(
            f"'{name_or_path}' holds no {OPEN_CLIP_CONFIG}, which says its shape and activation: add the file, or "
            "name the file of weights itself with a base."
        )
    for name in WEIGHTS:
        weights = find_file(name_or_path, name, revision)
        if weights is not None:
            state = read_state(weights)
            visual_only = _is_visual(state, f"'{name_or_path}'")
            return Checkpoint(name_or_path, _named(state), read_object(path), visual_only)
    raise ValueError(f"'{name_or_path}' holds no weights: it needs one of {', '.join(WEIGHTS)}.")


def names_repository(name_or_path: str) -> bool:
    """Whether a name can be that of a repository on the Hub, "namespace/name", and is no folder here.

    The Hub has a few old repositories without a namespace, none of a CLIP: a single word that is no folder is a
    mistake, or the name of a folder on another machine.
    """
    try:
        validate_repo_id(name_or_path)
    except HFValidationError:
        return False
    return "/" in name_or_path and not Path(name_or_path).is_dir()


def find_file(name_or_path: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a folder or a Hub repository; None where it does not exist.

    Raises:
        ValueError: a name or a link that leaves the folder; no name of a repository.
        OSError: neither a folder nor a repository that can be reached.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        path = path_inside(folder, name)
        return path if path.is_file() else None
    check_no_lab_name(name_or_path)
    if not names_repository(name_or_path):
        raise ValueError(
            f"'{name_or_path}' is neither a folder or file here nor the name of a Hub repository (namespace/name)."
        )
    try:
        return Path(hf_hub_download(name_or_path, relative_name(name, f"'{name_or_path}'"), revision=revision))
    except LocalEntryNotFoundError as error:
        if _cached(name_or_path, revision):
            return None
        raise OSError(
            f"'{name_or_path}' is not a folder here, and the Hub could not be reached to look for it: check the name "
            "and the connection, or set HF_HUB_OFFLINE=1 to use what is cached."
        ) from error
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise OSError(
            f"the Hub does not give '{name_or_path}' (HTTP {error.response.status_code}): check the name, the "
            "revision and your right to read it."
        ) from error


def _bare(name_or_path: str) -> Checkpoint:
    state = read_state(Path(name_or_path))
    if not _is_visual(state, f"'{name_or_path}'"):
        raise ValueError(
            f"'{name_or_path}' is the state dict of a whole CLIP, and a single file must hold the vision tower alone: "
            f"put it into a folder as {WEIGHTS[2]} beside its {OPEN_CLIP_CONFIG} and convert the folder."
        )
    return Checkpoint(name_or_path, _named(state), None, True)


def _is_visual(state: Mapping[str, Tensor], where: str) -> bool:
    """Tell a vision tower (True) from a whole CLIP (False).

    Raises:
        ValueError: it is neither.
    """
    names = {name.removeprefix("visual.") for name in state}
    if any(name.startswith(("vision_model.", "text_model.")) for name in state):
        raise ValueError(f"{where} has the names of transformers already: load it with from_pretrained.")
    if not {"class_embedding", "conv1.weight"} <= names:
        first = ", ".join(repr(name) for name in sorted(state)[:3])
        raise ValueError(f"{where} is not the state dict of an open_clip ViT: its first names are {first}.")
    return "class_embedding" in state or all(name.startswith("visual.") for name in state)


def _named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of a whole CLIP: a bare tower gets `visual.`, a separate text tower (`custom_text`) loses `text.`."""
    if "class_embedding" in state:
        return {f"visual.{name}": tensor for name, tensor in state.items()}
    return {name.removeprefix("text."): tensor for name, tensor in state.items()}


def _cached(name_or_path: str, revision: str | None) -> bool:
    """Offline: whether the repository is in the cache, so that a file which is not there can be said to be absent."""
    names = (OPEN_CLIP_CONFIG, "config.json")
    found = (try_to_load_from_cache(name_or_path, name, revision=revision) for name in names)
    return constants.HF_HUB_OFFLINE and any(isinstance(path, str) for path in found)


def copy_tokenizer(sources: list[tuple[Any, str | None]], folder: Path) -> bool:
    """Copy the tokenizer files of the first that has them."""
    for name_or_path, revision in sources:
        if name_or_path is None or Path(name_or_path).is_file():
            continue
        found = [path for name in TOKENIZER_FILES if (path := find_file(os.fspath(name_or_path), name, revision))]
        for path in found:
            shutil.copyfile(path, folder / path.name)
        if found:
            return True
    return False
