"""What interrupted runs leave behind: whose folder it is, and files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fare_hf.attacks import ThreatModel
from fare_hf.documents import read_json

__all__ = ["Change", "SavedBatches", "claim", "digest", "write_tensors", "write_text"]


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write down whose folder this is, and refuse one of another run, whose files are not this one's.

    Args:
        folder: made if absent; the settings go to `settings.json`.
        settings: plain data that says which run this is.

    Raises:
        ValueError: a run with other settings began here; the message names them.
    """
    path = folder / "settings.json"
    if path.is_file() and (found := read_json(path)) != settings:
        other = [name for name in settings if found.get(name) != settings[name]] or sorted(set(found) - set(settings))
        raise ValueError(f"folder {str(folder)!r} holds a run with another {', '.join(other)}: name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=2) + "\n")


def digest(*parts: str | bytes) -> str:
    """SHA-256 of texts and bytes, each with its length, so that no two lists of parts give the same."""
    found = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        found.update(f"{len(content)}:".encode() + content)
    return found.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a kill leaves the old one or the new one."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file so that a kill leaves the old one or the new one."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, dict(metadata or {}))
    beside.replace(path)


@dataclass(frozen=True)
class Change:
    """What one batch changed about one sample.

    Attributes:
        index: of the sample.
        score: its worst score from now on.
        answer: that goes with it.
        source: number of the ground truth that found it.
        pixels: (3, S, S) fp32 on the CPU that gave the answer.
    """

    index: int
    score: float
    answer: str
    source: int
    pixels: Tensor


@dataclass(frozen=True)
class SavedBatches:
    """The finished batches of a run, one file each; of a run without a folder nothing is kept.

    Attributes:
        folder: of this run alone (see `claim`); None keeps nothing.
    """

    folder: Path | None

    def answers(self) -> list[str]:
        """Answers to the first clean images, as many as were finished."""
        path = None if self.folder is None else self.folder / "clean.json"
        return [] if path is None or not path.is_file() else read_json(path)

    def keep_answers(self, answers: Sequence[str]) -> None:
        """Write the answers to the first clean images, in place of fewer."""
        if self.folder is not None:
            write_text(self.folder / "clean.json", json.dumps(list(answers)) + "\n")

    def batch(
        self, threat_model: ThreatModel, stage: int, number: int, indices: Sequence[int]
    ) -> tuple[list[Change], float] | None:
        """What a finished batch changed, and how long it took; None for a batch that is not finished.

        Raises:
            ValueError: the file is of other samples.
        """
        path = self._path(threat_model, stage, number)
        if path is None or not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            pixels = file.get_tensor("pixels") if facts["changes"] else []
        if facts["batch"] != list(indices):
            raise ValueError(f"'{path}' is of the samples {facts['batch']}, not {list(indices)}: delete its folder.")
        said = zip(facts["changes"], pixels, strict=True)
        changes = [Change(index, score, answer, source, image) for (index, score, answer, source), image in said]
        return changes, facts["seconds"]

    def keep_batch(
        self,
        threat_model: ThreatModel,
        stage: int,
        number: int,
        indices: Sequence[int],
        changes: Sequence[Change],
        seconds: float,
    ) -> None:
        """Write what a batch of samples changed."""
        path = self._path(threat_model, stage, number)
        if path is None:
            return
        said = [(change.index, change.score, change.answer, change.source) for change in changes]
        facts = {"batch": list(indices), "changes": said, "seconds": seconds}
        tensors = {"pixels": torch.stack([change.pixels for change in changes])} if changes else {}
        write_tensors(path, tensors, {"facts": json.dumps(facts)})

    def _path(self, threat_model: ThreatModel, stage: int, number: int) -> Path | None:
        name = str(threat_model).replace(" ", "-").replace("/", "_")
        return None if self.folder is None else self.folder / f"{name}-{stage:02d}-{number:05d}.safetensors"
