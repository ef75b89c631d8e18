"""Files of weights in little memory: some tensors rewritten while the rest is copied byte by byte."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["DTYPES", "bytes_of", "copy_file", "read_header", "read_tensor", "rewrite", "write_tensors"]

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
"""Types that weights may have, by their names in the file."""
CHUNK = 1 << 24
LARGEST_HEADER = 32 << 20
"""Bytes, of 300,000 tensors; a file of the largest published models has some thousand."""
FICLONE = 0x40049409
"""Linux's request to share the blocks of another file until one of the two is changed."""


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header (tensors by name, and `__metadata__`) and where the data begin.

    Raises:
        ValueError: not a safetensors file, or one whose header says what is not so: sizes, offsets, types.
    """
    if not path.is_file():
        raise ValueError(f"there is no file '{path}', which is to hold weights: download it again.")
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER + 1
        if length > LARGEST_HEADER:
            raise ValueError(f"'{path}' is not a safetensors file: download it again.")
        try:
            with safe_open(path, framework="np"):  # which reads and checks the header alone
                return json.loads(file.read(length)), 8 + length
        except (SafetensorError, ValueError, RecursionError) as error:
            raise ValueError(f"'{path}' is cut off or no safetensors file ({error}): download it again.") from error


def read_tensor(path: Path, header: Mapping[str, Any], begin: int, name: str) -> Tensor:
    """One tensor of a file whose header was read.

    Raises:
        ValueError: its type is none of `DTYPES`, or the file has become shorter.
    """
    entry = header[name]
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"'{name}' in '{path.name}' is {entry['dtype']}: only {', '.join(DTYPES)} are merged.")
    first, last = entry["data_offsets"]
    with path.open("rb") as file:
        file.seek(begin + first)
        raw = bytearray(file.read(last - first))
    if len(raw) != last - first:
        raise ValueError(f"'{path}' is cut off in '{name}': download it again.")
    dtype = DTYPES[entry["dtype"]]
    return (torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)).view(entry["shape"])


def write_tensors(target: Path, tensors: Mapping[str, Tensor]) -> None:
    """A new file, tensor by tensor, so that those that are mapped need not be in memory together; shared ones twice.

    Raises:
        ValueError: a type that is none of `DTYPES`.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in names:
            raise ValueError(f"'{name}' is {tensor.dtype}: only {', '.join(DTYPES)} are merged.")
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    with target.open("wb") as file:
        _write_header(file, header)
        for tensor in tensors.values():
            file.write(bytes_of(tensor))


def copy_file(source: Path, target: Path) -> None:
    """A copy of its own, which shares blocks with the source where the file system can keep the two apart."""
    try:
        import fcntl  # not on Windows

        with source.open("rb") as old, target.open("wb") as new:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
    except (ImportError, OSError):
        shutil.copyfile(source, target)


def rewrite(source: Path, target: Path, new: Mapping[str, Callable[[], Tensor]], shapes: Mapping[str, Any]) -> int:
    """Copy a file, with other values for the tensors named in `new`; order, types and metadata stay.

    Args:
        source: safetensors file.
        target: where the new one goes.
        new: tensor name -> function that gives the values, called when their turn has come.
        shapes: tensor name -> shape, for those of `new` whose shape differs.

    Returns:
        By how many bytes the data have grown.

    Raises:
        ValueError: not a safetensors file, or a value of another shape than stated.
    """
    header, begin = read_header(source)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    order = sorted(entries, key=lambda name: entries[name]["data_offsets"])
    written, position = {}, 0
    for name in order:
        shape = list(shapes.get(name, entries[name]["shape"]))
        first, last = entries[name]["data_offsets"]
        size = last - first if name not in shapes else math.prod(shape) * DTYPES[entries[name]["dtype"]].itemsize
        written[name] = {**entries[name], "shape": shape, "data_offsets": [position, position + size]}
        position += size
    metadata = {"__metadata__": header["__metadata__"]} if "__metadata__" in header else {}
    with source.open("rb") as old, target.open("wb") as file:
        _write_header(file, {**metadata, **{name: written[name] for name in entries}})
        for name in order:
            if name in new:
                file.write(_values(new[name](), name, written[name]))
            else:
                _copy(old, file, begin + entries[name]["data_offsets"][0], entries[name]["data_offsets"])
    before = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    return position - before


def bytes_of(tensor: Tensor) -> memoryview:
    """The values as a file has them."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_header(file: BinaryIO, header: Mapping[str, Any]) -> None:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


def _values(tensor: Tensor, name: str, entry: Mapping[str, Any]) -> memoryview:
    if list(tensor.shape) != entry["shape"]:
        raise ValueError(f"'{name}' has shape {list(tensor.shape)}, the file has {entry['shape']}.")
    return bytes_of(tensor.to(DTYPES[entry["dtype"]]))


def _copy(old: BinaryIO, file: BinaryIO, start: int, offsets: tuple[int, int]) -> None:
    old.seek(start)
    left = offsets[1] - offsets[0]
    while left:
        chunk = old.read(min(CHUNK, left))
        if not chunk:
            raise ValueError(f"'{old.name}' has become shorter while it was read: merge again.")
        left -= len(chunk)
        file.write(chunk)
