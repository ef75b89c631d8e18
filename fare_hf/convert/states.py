"""State dicts as others saved them: safetensors, or pickles read without running anything, out of what wraps them."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["read_pickled", "read_state"]

STATES = ("vision_encoder_state_dict", "state_dict", "model_state_dict", "model")
"""Where training code keeps the weights in what it saves; the second is of TeCoA's prompts, where it has the first."""
WRAPPERS = ("module.", "model.", "_orig_mod.")
"""What data parallelism, a module around the encoder and torch.compile put before every name."""
# Numbers that OpenAI's own state dicts carry beside the weights.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "visual.input_resolution", "attn_mask")


class NumpyNumber:
    """Stands for a number of numpy, as TeCoA's training saves its best accuracy: nothing of numpy is called."""

    def __init__(self, *_: Any) -> None:
        """Whatever the pickle gives is dropped."""

    def __setstate__(self, _: Any) -> None:
        """Also that."""


NUMPY: list[Any] = [
    (NumpyNumber, name) for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
]


def read_state(path: Path) -> dict[str, Tensor]:
    """A flat state dict from safetensors or, weights only, from a pickle.

    Training dictionaries (`STATES`) are opened, and prefixes that all names share (`WRAPPERS`) taken off.

    Raises:
        ValueError: code, objects or nothing readable inside.
        OSError: no such file.
    """
    state = _unwrapped(_read_safetensors(path) if path.suffix == ".safetensors" else _inner(path))
    return _checked({name: value for name, value in state.items() if name not in NOT_WEIGHTS}, path)


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle under the names that they have; in torch's zip format they are mapped, not read.

    Raises:
        ValueError, OSError: as `read_state`.
    """
    return _checked(_inner(path), path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    _check_file(path)
    try:
        return load_file(path)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that torch lacks
        raise ValueError(f"'{path}' is not a readable safetensors file: {error}.") from error


def _inner(path: Path) -> Mapping[str, Any]:
    """What a pickle holds, or the state dict inside."""
    _check_file(path)
    loaded = _load(path)
    found = loaded if isinstance(loaded, Mapping) else {}
    inner: Any = next((found[name] for name in STATES if isinstance(found.get(name), Mapping)), found)
    if not inner or not all(isinstance(name, str) for name in inner):
        raise ValueError(f"'{path}' holds {type(loaded).__name__}, not a state dict of tensors.")
    return inner


def _checked(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    for name, value in state.items():
        fault = _fault(name, value)
        if fault:
            raise ValueError(f"'{path}' holds {fault}")
    return {name: value.detach() for name, value in state.items()}


def _fault(name: str, value: Any) -> str | None:
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} under {name!r}, not a tensor: save the state dict of the vision tower alone."
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        return f"a sparse, quantised or empty tensor under {name!r}: save the plain weights."
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        return f"{tuple(value.shape)} values under {name!r} that repeat fewer stored ones: do not use it."
    return None


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise OSError(f"there is no file '{path}'.")


def _load(path: Path) -> Any:
    """`torch.load` that never unpickles code; its long messages become one sentence."""
    mapped = zipfile.is_zipfile(path)
    try:
        if mapped:
            _check_archive(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY):
            warnings.simplefilter("ignore")  # of TorchScript archives: refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"'{path}' holds code or objects besides tensors{f' ({found[1]})' if found else ''}, and is not loaded: "
            "where you trust it, save the model's state_dict() alone, or convert it to safetensors."
        ) from error
    except _PackedError:
        raise
    except Exception as error:  # whatever the unpickler meets in a damaged file
        fault = "is not a readable checkpoint of torch: it may be cut off."
        if "TorchScript" in str(error):
            fault = (
                "is a TorchScript archive, which holds code, and is not loaded: give the state dict of the vision "
                "tower instead."
            )
        raise ValueError(f"'{path}' {fault}") from error


class _PackedError(ValueError):
    """An archive that torch did not write."""


def _check_archive(path: Path) -> None:
    """torch stores its tensors as they are; what is packed could be a thousand times larger when it is unpacked."""
    with zipfile.ZipFile(path) as archive:
        packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    packed = [name for name in packed if "/code/" not in name]  # of a TorchScript archive, refused by torch
    if packed:
        raise _PackedError(f"'{path}' is compressed ({packed[0]!r}), which torch.save never does: do not use it.")


def _unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """Without the prefixes that every name has."""
    found = dict(state)
    while prefix := next((p for p in WRAPPERS if found and all(name.startswith(p) for name in found)), None):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found
