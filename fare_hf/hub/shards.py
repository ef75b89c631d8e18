"""Rewriting some tensors of a safetensors file while the rest is copied byte by byte, in little memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

__all__ = ["DTYPES", "bytes_of", "read_header", "read_tensor", "rewrite"]

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
"""Types that a tower's weights may have, by their names in the file."""
CHUNK = 1 << 24
LARGEST_HEADER = 100_000_000


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header (tensors by name, and `__metadata__`) and where the data begin.

    Raises:
        ValueError: not a safetensors file.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER + 1
        if length > LARGEST_HEADER:
            raise ValueError(f"'{path}' is not a safetensors file: download it again.")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"'{path}' is not a readable safetensors file ({error}): download it again.") from error
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if path.stat().st_size != 8 + length + end:
        raise ValueError(f"'{path}' is cut off: its header asks for {8 + length + end} bytes; download it again.")
    return header, 8 + length


def read_tensor(path: Path, header: Mapping[str, Any], begin: int, name: str) -> Tensor:
    """One tensor of a file whose header was read.

    Raises:
        ValueError: its type is none of `DTYPES`.
    """
    entry = header[name]
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"'{name}' in '{path.name}' is {entry['dtype']}: only {', '.join(DTYPES)} are merged.")
    first, last = entry["data_offsets"]
    with path.open("rb") as file:
        file.seek(begin + first)
        raw = bytearray(file.read(last - first))
    return torch.frombuffer(raw, dtype=DTYPES[entry["dtype"]]).view(entry["shape"])


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
    text = json.dumps({**metadata, **{name: written[name] for name in entries}}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as old, target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
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


def _values(tensor: Tensor, name: str, entry: Mapping[str, Any]) -> memoryview:
    if list(tensor.shape) != entry["shape"]:
        raise ValueError(f"'{name}' has shape {list(tensor.shape)}, the file has {entry['shape']}.")
    return bytes_of(tensor.to(DTYPES[entry["dtype"]]))


def _copy(old: BinaryIO, file: BinaryIO, start: int, offsets: tuple[int, int]) -> None:
    old.seek(start)
    left = offsets[1] - offsets[0]
    while left:
        chunk = old.read(min(CHUNK, left))
        left -= len(chunk)
        file.write(chunk)
