"""Tensors of a safetensors file on the Hub, by HTTP ranges: its header, and the bytes of those that are wanted."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from huggingface_hub import hf_hub_url
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from fare_hf.files.documents import MIB, parse_json

__all__ = ["NoRangesError", "RemoteWeights"]

FIRST = 128 * 1024
"""Bytes of the first request, which hold the header of most files."""
LARGEST_HEADER = 100 * MIB
"""As safetensors has it."""
GAP, RUN = MIB, 256 * MIB
"""Bytes between two tensors that are read with them, and bytes of one request."""


class NoRangesError(OSError):
    """The Hub does not give this file in parts, which says nothing against the whole."""


@dataclass(frozen=True)
class RemoteWeights:
    """One file of weights in a repository of the Hub.

    Attributes:
        url: of the file.
        where: its name for messages.
        total: bytes of the file.
        begin: where the bytes of the tensors begin.
        entries: what the header says of each tensor: `dtype`, `shape`, `data_offsets` from `begin`.
    """

    url: str
    where: str
    total: int
    begin: int
    entries: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, repository: str, file: str, revision: str | None = None) -> Self | None:
        """Reads the header; None where the repository has no such file.

        Args:
            repository: on the Hub.
            file: its name there.
            revision: of the repository.

        Raises:
            NoRangesError: the Hub does not give parts.
            ValueError: no safetensors file.
            OSError: the Hub fails.
        """
        url, where = hf_hub_url(repository, file, revision=revision), f"{file} of {repository!r}"
        try:
            start, total = _part(url, 0, FIRST, where)
        except EntryNotFoundError:
            return None
        length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else LARGEST_HEADER + 1
        if length > min(LARGEST_HEADER, total - 8):
            raise ValueError(f"{where} is cut off or no safetensors file: take another revision.")
        if length + 8 > len(start):
            start += _part(url, len(start), 8 + length, where)[0]
        header = parse_json(start[8 : 8 + length], where)
        if not isinstance(header, dict):
            raise ValueError(f"{where} has a header that no safetensors file has: take another revision.")
        entries = {str(name): entry for name, entry in header.items() if name != "__metadata__"}
        for entry in entries.values():
            _check(entry, total - 8 - length, where)
        return cls(url, where, total, 8 + length, entries)

    def size(self, names: Sequence[str]) -> int:
        """Bytes of some tensors."""
        return sum(end - begin for begin, end in (self.entries[name]["data_offsets"] for name in names))

    def read(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Some tensors as they are stored; those that stand side by side come in one request.

        Raises:
            NoRangesError, ValueError, OSError: as `open`.
        """
        found: dict[str, Tensor] = {}
        for run in self._runs(names):
            first, last = self.entries[run[0]]["data_offsets"][0], self.entries[run[-1]]["data_offsets"][1]
            data = _part(self.url, self.begin + first, self.begin + last, self.where)[0] if last > first else b""
            spans = [(name, [end - first for end in self.entries[name]["data_offsets"]]) for name in run]
            try:
                found |= load(self._file({name: data[begin:end] for name, (begin, end) in spans}))
            except SafetensorError as error:
                raise ValueError(f"{self.where} is no safetensors file ({error}): take another revision.") from error
        return found

    def _runs(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Tensors that are read in one request."""
        run: list[str] = []
        for name in sorted(names, key=lambda name: self.entries[name]["data_offsets"]):
            begin, end = self.entries[name]["data_offsets"]
            if run:
                first, last = self.entries[run[0]]["data_offsets"][0], self.entries[run[-1]]["data_offsets"][1]
                if begin - last > GAP or end - first > RUN:
                    yield run
                    run = []
            run.append(name)
        if run:
            yield run

    def _file(self, parts: dict[str, bytes]) -> bytes:
        """A safetensors file of some tensors alone."""
        header, place = {}, 0
        for name, part in parts.items():
            header[name] = self.entries[name] | {"data_offsets": [place, place + len(part)]}
            place += len(part)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + b"".join(parts.values())


def _part(url: str, begin: int, end: int, where: str) -> tuple[bytes, int]:
    """Bytes of a file from `begin` to `end`, or to its own end; and how many it has."""
    response = http_backoff("GET", url, headers={**build_hf_headers(), "Range": f"bytes={begin}-{end - 1}"})
    hf_raise_for_status(response)
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    if response.status_code != 206 or not total.isdigit():
        raise NoRangesError(f"HTTP {response.status_code} to a request for a part")
    if len(response.content) != min(end, int(total)) - begin:
        raise NoRangesError(f"{len(response.content)} bytes of {where} came, {end - begin} were asked for")
    return response.content, int(total)


def _check(entry: Any, room: int, where: str) -> None:
    """An entry of the header, as far as its bytes are asked for by it; safetensors checks the rest."""
    offsets: Any = entry.get("data_offsets") if isinstance(entry, dict) else None
    numbers = isinstance(offsets, list) and len(offsets) == 2 and all(type(number) is int for number in offsets)
    if not numbers or not 0 <= offsets[0] <= offsets[1] <= room:
        raise ValueError(f"{where} has a header that no safetensors file has: take another revision.")
