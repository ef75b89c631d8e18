"""What interrupted runs leave behind: whose folder it is, and files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation.attack_loop import gather
from fare_hf.evaluation.processes import agreed, process_state
from fare_hf.files.documents import read_object

__all__ = [
    "Change",
    "SavedBatches",
    "claim",
    "digest",
    "images_digest",
    "labels_digest",
    "read_tensors",
    "weights_digest",
    "write_tensors",
    "write_text",
]

SEAL = "sha256"


def claim(folder: Path, settings: Mapping[str, Any]) -> str:
    """Write down whose folder this is, and refuse one of another run, whose files are not this one's.

    Args:
        folder: made if absent; the settings go to `settings.json`.
        settings: plain data that says which run this is.

    Returns:
        A digest of the settings, for the files of this run.

    Raises:
        ValueError: a run with other settings began here; the message names them. Settings that cannot be read.
    """
    path = folder / "settings.json"
    if path.exists() and (found := read_object(path)) != settings:
        other = [name for name in settings if found.get(name) != settings[name]] or sorted(set(found) - set(settings))
        raise ValueError(f"folder {str(folder)!r} holds a run with another {', '.join(other)}: name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=2) + "\n")
    return digest(json.dumps(settings, sort_keys=True))


def weights_digest(module: nn.Module) -> str:
    """Tells models apart, or their vision towers, that differ in nothing else."""
    weights = (p.detach() for p in module.parameters() if not p.is_meta)
    return digest(*(digest(_bytes(weight)) for weight in weights))  # a sum would depend on the number of threads


def images_digest(images: Any) -> str:
    """Of the images of a run (see `gather`) their number and five of them, with their own labels where they have some:
    all would take long to read."""
    looked_at = sorted({number * (len(images) - 1) // 4 for number in range(5)})
    parts: list[str | bytes] = []
    for item in (images[index] for index in looked_at):
        parts.append(_bytes(gather([item], [0], torch.device("cpu"))))
        parts.append(str(item.get("labels")) if isinstance(item, Mapping) else "")
    return f"{len(images)} images, {digest(*parts)}"


def labels_digest(labels: Any) -> str:
    """Of all labels that a run was given beside its images, a sequence or a tensor; of None as well."""
    if isinstance(labels, Tensor):
        labels = labels.tolist()
    return digest(str(None if labels is None else list(labels)))


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
    """Write a safetensors file so that a kill leaves the old one or the new one; `read_tensors` notices changes."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    facts = dict(metadata or {})
    sealed = facts | {SEAL: _seal(tensors, facts)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, sealed)
    beside.replace(path)


def read_tensors(path: Path, run: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a file of `write_tensors`.

    Args:
        path: which.
        run: that its metadata must name; None asks for none.

    Raises:
        ValueError: the file is cut, was changed, or is of another run; the message names it.
    """
    if not path.is_file():  # a pipe would keep its reader waiting for ever
        raise ValueError(f"'{path}' is no file: delete it, and run the same command again.")
    try:
        with safe_open(path, "pt") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{path}' cannot be read ({error}): delete it, and run the same command again.") from None
    if facts.pop(SEAL, None) != _seal(tensors, facts):
        raise ValueError(f"'{path}' was changed after it was written: delete it, and run the same command again.")
    if run is not None and facts.get("run") != run:
        raise ValueError(f"'{path}' is of another run: delete it, and run the same command again.")
    return tensors, facts


def _seal(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    parts: list[str | bytes] = [word for item in sorted(facts.items()) for word in item]
    for name, tensor in sorted(tensors.items()):
        parts += [name, f"{tensor.dtype} {tuple(tensor.shape)}"]
        parts.append(_bytes(tensor.detach()))
    return digest(*parts)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


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
        run: what `claim` gave.
    """

    folder: Path | None
    run: str = ""

    @classmethod
    def claimed(cls, folder: str | Path | None, settings: Callable[[], Mapping[str, Any]]) -> Self:
        """Of a run in a folder that is its own (see `claim`); the settings are asked for where there is a folder."""
        return cls(None) if folder is None else cls(Path(folder), claim(Path(folder), settings()))

    def part(self, name: str) -> Self:
        """Of one of several attacks of the run, with files of its own."""
        if self.folder is None:
            return self
        (self.folder / name).mkdir(exist_ok=True)
        return replace(self, folder=self.folder / name)

    def once(self, name: str, make: Callable[[], dict[str, Tensor]], *, distributed: bool) -> dict[str, Tensor]:
        """Tensors that are made once: the same run reads what it wrote.

        Args:
            name: of their file.
            make: called in all processes or in none.
            distributed: whether several processes call this; the first one writes.

        Raises:
            ValueError: as `read_tensors`.
        """
        path = None if self.folder is None else self.folder / f"{name}.safetensors"
        if path is not None and agreed(path.exists, distributed=distributed):
            return read_tensors(path, self.run)[0]
        made = make()
        if path is not None and (not distributed or process_state().is_main_process):
            write_tensors(path, made, {"run": self.run})
        return made

    def check_same(self, name: str, tensor: Tensor, *, distributed: bool) -> None:
        """Refuses a run that began with other numbers; of other threads or machines the last digits may differ.

        Raises:
            ValueError: they are others, or as `read_tensors`.
        """
        begun = self.once(name, lambda: {name: tensor}, distributed=distributed)[name]
        near = 1e-3 * float(begun.abs().max())
        if begun.shape != tensor.shape or not torch.allclose(begun, tensor.to(begun), rtol=0, atol=near):
            raise ValueError(f"folder '{self.folder}' holds a run with another {name}: name another folder.")

    def answers(self) -> list[str]:
        """Answers to the first clean images, as many as were finished.

        Raises:
            ValueError: the file is cut, was changed, or is of another run.
        """
        path = None if self.folder is None else self.folder / "clean.json"
        if path is None or not path.exists():
            return []
        found = read_object(path)
        answers = found.get("answers")
        if not isinstance(answers, list) or found != self._answers(answers):
            raise ValueError(f"'{path}' was changed, or is of another run: delete it, and run the same command again.")
        return answers

    def keep_answers(self, answers: Sequence[str]) -> None:
        """Write the answers to the first clean images, in place of fewer."""
        if self.folder is not None:
            write_text(self.folder / "clean.json", json.dumps(self._answers(answers)) + "\n")

    def _answers(self, answers: Sequence[str]) -> dict[str, Any]:
        return {"run": self.run, SEAL: digest(self.run, *map(str, answers)), "answers": list(answers)}

    def batch(
        self, threat_model: ThreatModel, stage: int, number: int, indices: Sequence[int]
    ) -> tuple[list[Change], float] | None:
        """What a finished batch changed, and how long it took; None for a batch that is not finished.

        Raises:
            ValueError: the file is of other samples or another run, is cut, or was changed.
        """
        if (found := self.read(threat_model, stage, number, indices)) is None:
            return None
        tensors, facts = found
        pixels: Any = tensors.get("pixels", [])
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
        said = [(change.index, change.score, change.answer, change.source) for change in changes]
        tensors = {"pixels": torch.stack([change.pixels for change in changes])} if changes else {}
        self.write(threat_model, stage, number, indices, tensors, changes=said, seconds=seconds)

    def read(
        self, threat_model: ThreatModel, stage: int, number: int, indices: Sequence[int]
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and plain data of a finished batch; returns and raises as `batch`."""
        path = self._path(threat_model, stage, number)
        if path is None or not path.exists():
            return None
        tensors, metadata = read_tensors(path, self.run)
        facts = json.loads(metadata["facts"])
        if facts["batch"] != list(indices):
            raise ValueError(f"'{path}' is of the samples {facts['batch']}, not {list(indices)}: delete its folder.")
        return tensors, facts

    def write(
        self,
        threat_model: ThreatModel,
        stage: int,
        number: int,
        indices: Sequence[int],
        tensors: Mapping[str, Tensor],
        **facts: Any,
    ) -> None:
        """Write what was found of a batch of samples."""
        path = self._path(threat_model, stage, number)
        if path is not None:
            text = json.dumps({"batch": list(indices), **facts})
            write_tensors(path, tensors, {"facts": text, "run": self.run})

    def _path(self, threat_model: ThreatModel, stage: int, number: int) -> Path | None:
        name = str(threat_model).replace(" ", "-").replace("/", "_")
        return None if self.folder is None else self.folder / f"{name}-{stage:02d}-{number:05d}.safetensors"
