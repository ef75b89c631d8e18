"""One figure of a report: what was measured of which model, on how many samples, under which attack."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation.report.intervals import fraction_interval, number_groups

__all__ = ["LARGEST", "Row", "fraction_row", "read_rows"]

LARGEST = {"CIDEr": 10.0, "relative l2 to the original": math.inf}
"""Metrics that are no fractions, and how large they can be; tables print them times 100, as papers do."""
NAMES = ("model", "task", "dataset", "metric")
ATTACK = {"name": None, "steps": 1, "restarts": 1, "seed": 0}
"""What an attack says of itself, and the least of its numbers."""


@dataclass(frozen=True)
class Row:
    """One valid figure of a report. `to_dict` gives it as `report.json` holds it, in the order of these fields.

    Attributes:
        model, task, dataset, metric: names, none empty.
        value: a fraction (CIDEr may exceed 1).
        ci: 95 % interval (low, high) around it.
        n: number of samples.
        threat_model, attack: both, or neither for a clean figure; the attack has name, steps, restarts, seed.
        precision: dtype of the model, such as "float32".
        batch_size: images of a forward pass, on which figures depend in half precision, where prompts are padded, and
            by the random starts of attacks.
        seconds: wall time of the attack, kept with two decimals.
        outcomes: of a rate, n characters, 1 for each sample that succeeded and 0 for the others, in their order.
        clusters: n group numbers separated by spaces, where samples are not independent; only with outcomes.
        scores: of a mean that is no rate, such as CIDEr, n numbers, what each sample is worth, in their order.

    Raises:
        ValueError: the first fault, with its field: an empty name, a value or interval that is not finite or outside
            [0, 1], a robust figure without its attack, an attack without its threat model, outcomes that are not
            those of its value, scores whose mean is another.

    Example:
        >>> Row("CLIP", "zero-shot", "digits", "accuracy", value=0.5, ci=(0.4, 0.6), n=100).value
        0.5
    """

    model: str
    task: str
    dataset: str
    metric: str
    value: float
    ci: tuple[float, float]
    n: int
    threat_model: ThreatModel | None = None
    attack: Mapping[str, Any] | None = None
    precision: str | torch.dtype | None = None
    batch_size: int | None = None
    seconds: float | None = None
    outcomes: str | None = None
    clusters: str | None = None
    scores: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.precision, (str, torch.dtype)):
            self._set("precision", str(self.precision).removeprefix("torch."))
        for name in ("ci", "scores"):
            if isinstance(getattr(self, name), list):
                self._set(name, tuple(getattr(self, name)))
        if fault := next(_faults(self), None):
            raise ValueError(f"the row has {fault}")
        if self.seconds is not None:
            self._set("seconds", round(self.seconds, 2))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def attack_text(self) -> str:
        """The attack and its effort, as tables and cards say it; empty for a clean figure."""
        return "{name}, {steps} steps, restarts {restarts}, seed {seed}".format(**self.attack) if self.attack else ""

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data; optional fields that are None are left out."""
        given = {name: getattr(self, name) for name in FIELDS}
        given |= {"ci": list(self.ci), "threat_model": self.threat_model and self.threat_model.to_dict()}
        given["scores"] = None if self.scores is None else list(self.scores)
        given["attack"] = None if self.attack is None else dict(self.attack)
        return {name: value for name, value in given.items() if name in REQUIRED or value is not None}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Row:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a missing or unknown field, a threat model that is written otherwise than `to_dict` does, and
                as for a `Row`.
        """
        if fault := next(_faults_of_content(content), None):
            raise ValueError(f"the row {fault}")
        threat = content["threat_model"]
        return cls(**{**content, "threat_model": None if threat is None else ThreatModel.from_dict(threat)})


FIELDS = tuple(field.name for field in fields(Row))
REQUIRED = (*(field.name for field in fields(Row) if field.default is MISSING), "threat_model", "attack")


def fraction_row(
    success: Sequence[bool], groups: Sequence[Hashable] | None = None, seed: int = 0, **names: Any
) -> Row:
    """A row whose value is the fraction of `success`, with its interval (`intervals.fraction_interval`) and n.

    It keeps each sample's success and group, so that models can be compared in pairs (`evaluation.report.paired`).
    """
    value = sum(map(bool, success)) / len(success)
    names["outcomes"] = "".join("1" if right else "0" for right in success)
    if groups is not None:
        names["clusters"] = " ".join(map(str, number_groups(groups)))
    return Row(value=value, ci=fraction_interval(success, groups, seed=seed), n=len(success), **names)


def read_rows(content: Any) -> list[Row]:
    """Rows of plain data, of a report or of another file.

    Raises:
        ValueError: no list of rows, or as `Row.from_dict`, with the row's number.
    """
    if not isinstance(content, list):
        raise ValueError(f"the rows of the report are {content!r}: give a list of rows.")
    rows = []
    for number, row in enumerate(content):
        try:
            rows.append(Row.from_dict(row))
        except ValueError as error:
            raise ValueError(f"row {number} of the report{str(error).removeprefix('the row')}") from None
    return rows


def _faults_of_content(content: Any) -> Iterator[str]:
    """What is wrong with the shape of a written row; each fault supposes that there is none before it."""
    if not isinstance(content, Mapping):
        yield f"is {content!r}: a row has the fields {list(REQUIRED)}."
    missing = [name for name in REQUIRED if name not in content]
    unknown = [name for name in content if name not in FIELDS]
    if missing or unknown:
        yield f"lacks {missing} and has unknown {unknown}: a row has the fields {list(REQUIRED)}."
    for name in content:
        if content[name] is None and name not in REQUIRED:
            yield f"has {name} None: give its value, or leave it out."
    written = content["threat_model"]
    if written is not None:
        try:
            threat = ThreatModel.from_dict(written)
        except (TypeError, ValueError) as error:
            yield f"has threat_model {written!r}: {error}"
        expected = threat.to_dict()  # radii such as 1/256 were decimals once
        if dict(written) not in (expected, expected | {"eps": repr(threat.eps)}):
            yield f"writes its threat_model as {written!r}: write it as {expected!r}."


def _faults(row: Row) -> Iterator[str]:
    """What is wrong with a row; each fault supposes that there is none before it."""
    for name in NAMES:
        if not _is_name(getattr(row, name)):
            yield f"{name} {getattr(row, name)!r}: give a name."
    yield from _faults_of_numbers(row)
    yield from _faults_of_outcomes(row)
    yield from _faults_of_scores(row)
    yield from _faults_of_attack(row)


def _faults_of_numbers(row: Row) -> Iterator[str]:
    value, ci, most = row.value, row.ci, LARGEST.get(row.metric, 1.0)
    if not isinstance(ci, tuple) or len(ci) != 2 or not all(_is_number(number, most) for number in (value, *ci)):
        yield f"value {value!r} and ci {ci!r}: give fractions in [0, 1], ci as [low, high]."
    if not ci[0] <= value <= ci[1]:
        yield f"ci {ci!r}, which does not contain its value {value!r}."
    if not _is_count(row.n, 1):
        yield f"n {row.n!r}: give the number of samples, at least 1."
    if row.seconds is not None and not (_is_number(row.seconds, math.inf) and row.seconds < math.inf):
        yield f"seconds {row.seconds!r}: give a finite number from 0."
    if row.batch_size is not None and not _is_count(row.batch_size, 1):
        yield f"batch_size {row.batch_size!r}: give the number of images, at least 1."
    if row.precision is not None and not isinstance(row.precision, str):
        yield f"precision {row.precision!r}: give the name of a dtype."


def _faults_of_outcomes(row: Row) -> Iterator[str]:
    n, outcomes, clusters = row.n, row.outcomes, row.clusters
    if outcomes is not None:
        if not isinstance(outcomes, str) or len(outcomes) != n or set(outcomes) - {"0", "1"}:
            yield f"outcomes {_short(outcomes)}: give {n} characters 0 or 1, one per sample."
        mean = outcomes.count("1") / n
        if not math.isclose(mean, row.value, abs_tol=1e-9):
            yield f"value {row.value!r} and outcomes with mean {mean!r}: give those of its value."
    if clusters is not None:
        numbers = clusters.split(" ") if isinstance(clusters, str) else []
        if outcomes is None or len(numbers) != n or not all(re.fullmatch("[0-9]+", number) for number in numbers):
            yield f"clusters {_short(clusters)}: give {n} group numbers and the outcomes of the same."


def _faults_of_scores(row: Row) -> Iterator[str]:
    scores, most = row.scores, LARGEST.get(row.metric, 1.0)
    if scores is None:
        return
    if not isinstance(scores, tuple) or len(scores) != row.n or not all(_is_number(one, most) for one in scores):
        yield f"scores {_short(scores)}: give {row.n} fractions, one per sample."
    if row.outcomes is not None or not math.isclose(sum(scores) / row.n, row.value, abs_tol=1e-9):
        yield f"value {row.value!r} and scores with mean {sum(scores) / row.n!r}: give those of its value alone."


def _faults_of_attack(row: Row) -> Iterator[str]:
    threat, attack = row.threat_model, row.attack
    if (threat is None) != (attack is None):
        yield f"threat_model {threat!r} and attack {attack!r}: a robust row has both, a clean row neither."
    if threat is None or attack is None:
        return
    if not isinstance(threat, ThreatModel):
        yield f"threat_model {threat!r}: give a ThreatModel."
    if not isinstance(attack, Mapping) or set(attack) != set(ATTACK):
        yield f"attack {attack!r}: give exactly {list(ATTACK)}."
    if not _is_name(attack["name"]):
        yield f"attack name {attack['name']!r}: name the attack."
    for name, least in ATTACK.items():
        if least is not None and not _is_count(attack[name], least):
            yield f"attack {name} {attack[name]!r}: give an integer from {least}."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}... ({len(text)} characters)"


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any, most: float) -> bool:
    """A number in [0, most]; NaN and booleans are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
