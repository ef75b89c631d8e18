"""One report for everything measured: rows with their threat model and attack, and the environment they come from.

Schema 1.0. A row holds `model, task, dataset, metric, value, ci, n, threat_model, attack`, optionally `precision` and
`seconds`, and `batch_size`, on which figures depend in half precision, where prompts are padded, and by the random
starts of attacks. Values are fractions (CIDEr may exceed 1). A row measured under a threat model names its attack, and
the other way round. A rate may also hold what each of its samples gave: `outcomes`, n characters 0 and 1 whose mean is
the value, and `clusters`, n numbers separated by spaces, of the groups that samples belong to. All that was added is
optional, so reports without it are of the same schema.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation.report.intervals import fraction_interval, number_groups
from fare_hf.files.documents import read_json

__all__ = ["SCHEMA_VERSION", "RobustnessReport", "Row", "fraction_row", "make_row", "validate"]

SCHEMA_VERSION = "1.0"
Row = dict[str, Any]

NAMES = ("model", "task", "dataset", "metric")
REQUIRED = (*NAMES, "value", "ci", "n", "threat_model", "attack")
OPTIONAL = ("precision", "batch_size", "seconds", "outcomes", "clusters")
ATTACK_FIELDS = ("name", "steps", "restarts", "seed")
LARGEST = {"CIDEr": 10.0, "relative l2 to the original": math.inf}
"""Metrics that are no fractions, and how large they can be; tables print them times 100, as papers do."""


def make_row(
    *,
    model: str,
    task: str,
    dataset: str,
    metric: str,
    value: float,
    ci: Sequence[float],
    n: int,
    threat_model: ThreatModel | None = None,
    attack: Mapping[str, Any] | None = None,
    precision: torch.dtype | str | None = None,
    batch_size: int | None = None,
    seconds: float | None = None,
    outcomes: str | None = None,
    clusters: str | None = None,
) -> Row:
    """Build one valid row of a report.

    Args:
        model, task, dataset, metric: names, none empty.
        value: a fraction.
        ci: 95 % interval (low, high) around it.
        n: number of samples.
        threat_model, attack: both, or neither for a clean figure; the attack has name, steps, restarts, seed.
        precision: dtype of the model.
        batch_size: images of a forward pass.
        seconds: wall time of the attack.
        outcomes: of a rate, n characters, 1 for each sample that succeeded and 0 for the others, in their order.
        clusters: n group numbers separated by spaces, where samples are not independent; only with outcomes.

    Raises:
        ValueError: as `validate`.
    """
    threat = None if threat_model is None else threat_model.to_dict()
    row: Row = {"model": model, "task": task, "dataset": dataset, "metric": metric, "value": value, "ci": list(ci)}
    row |= {"n": n, "threat_model": threat, "attack": None if attack is None else dict(attack)}
    if precision is not None:
        row["precision"] = str(precision).removeprefix("torch.")
    if batch_size is not None:
        row["batch_size"] = batch_size
    if seconds is not None:
        row["seconds"] = round(seconds, 2)
    row |= {name: text for name, text in (("outcomes", outcomes), ("clusters", clusters)) if text is not None}
    validate([row])
    return row


def fraction_row(
    success: Sequence[bool], groups: Sequence[Hashable] | None = None, seed: int = 0, **fields: Any
) -> Row:
    """A row whose value is the fraction of `success`, with its interval (`metrics.fraction_interval`) and n.

    It keeps each sample's success and group, so that models can be compared in pairs (`evaluation.paired`).
    """
    value = sum(map(bool, success)) / len(success)
    fields["outcomes"] = "".join("1" if right else "0" for right in success)
    if groups is not None:
        fields["clusters"] = " ".join(map(str, number_groups(groups)))
    return make_row(value=value, ci=fraction_interval(success, groups, seed=seed), n=len(success), **fields)


def validate(rows: Sequence[Mapping[str, Any]]) -> None:
    """Check rows against the schema.

    Raises:
        ValueError: no list of rows, or the first fault, with the row's number and the field: a missing or unknown
            field, a value or interval that is not finite or outside [0, 1], a robust figure without its attack, an
            attack without its threat model, outcomes that are not those of its value, the same figure twice.
    """
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise ValueError(f"the rows of the report are {rows!r}: give a list of rows.")
    seen: set[tuple[str, ...]] = set()
    for number, row in enumerate(rows):
        where = f"row {number} of the report"
        _check_fields(row, where)
        _check_numbers(row, where)
        _check_outcomes(row, where)
        _check_attack(row, where)
        threat = row["threat_model"] and str(ThreatModel.from_dict(row["threat_model"]))
        key = (*(row[name] for name in NAMES), json.dumps(threat))
        if key in seen:
            raise ValueError(f"{where} repeats {' / '.join(key)}: report each figure once.")
        seen.add(key)


@dataclass
class RobustnessReport:
    """Rows and the environment they were measured in; valid from construction on.

    Attributes:
        rows: see `validate`; the order is kept.
        environment: versions, machine, command, of `fare_hf.evaluation.report.environment`.
        schema_version: "1.0".

    Raises:
        ValueError: as `validate`, or another schema version.
    """

    rows: list[Row]
    environment: dict[str, Any] = field(default_factory=dict)
    schema_version: str = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version {self.schema_version!r} is not {SCHEMA_VERSION!r}: update fare_hf.")
        validate(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, fields in the schema's order."""
        rows = [{name: row[name] for name in (*REQUIRED, *OPTIONAL) if name in row} for row in self.rows]
        return {"schema_version": self.schema_version, "rows": rows, "environment": self.environment}

    def to_json(self) -> str:
        """The report as JSON text; raises ValueError where rows or environment changed into something invalid."""
        validate(self.rows)
        return json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """Tables for people (`tables.markdown`), and below those of rates the models' paired differences."""
        from fare_hf.evaluation.report.paired import difference_table
        from fare_hf.evaluation.report.tables import markdown

        return markdown(self.rows, difference_table)

    def save(self, folder: str | Path) -> Path:
        """Write `report.json` and `report.md` into a folder (made if absent); returns the path of the JSON."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text, page = self.to_json(), self.to_markdown()
        (folder / "report.json").write_text(text, encoding="utf-8")
        (folder / "report.md").write_text(page, encoding="utf-8")
        return folder / "report.json"

    @classmethod
    def load(cls, path: str | Path) -> RobustnessReport:
        """Read a report back from its folder or its JSON file.

        Raises:
            ValueError: no JSON, other fields than a report's, or invalid rows; the message names the file.
        """
        path = Path(path)
        file = path / "report.json" if path.is_dir() else path
        content = read_json(file)
        if not isinstance(content, dict) or set(content) != {"schema_version", "rows", "environment"}:
            raise ValueError(f"'{file}' is not a robustness report: it needs schema_version, rows and environment.")
        try:
            return cls(content["rows"], content["environment"], content["schema_version"])
        except ValueError as error:
            raise ValueError(f"'{file}': {error}") from None


def _check_fields(row: Mapping[str, Any], where: str) -> None:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is {row!r}: a row has the fields {list(REQUIRED)}.")
    missing = [name for name in REQUIRED if name not in row]
    unknown = [name for name in row if name not in REQUIRED and name not in OPTIONAL]
    if missing or unknown:
        raise ValueError(f"{where} lacks {missing} and has unknown {unknown}: a row has the fields {list(REQUIRED)}.")
    for name in NAMES:
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"{where} has {name} {row[name]!r}: give a name.")


def _check_numbers(row: Mapping[str, Any], where: str) -> None:
    value, ci, n = row["value"], row["ci"], row["n"]
    most = LARGEST.get(row["metric"], 1.0)
    if (
        not isinstance(ci, (list, tuple))
        or len(ci) != 2
        or not all(_is_within(number, most) for number in (value, *ci))
    ):
        raise ValueError(f"{where} has value {value!r} and ci {ci!r}: give fractions in [0, 1], ci as [low, high].")
    if not ci[0] <= value <= ci[1]:
        raise ValueError(f"{where} has ci {ci!r}, which does not contain its value {value!r}.")
    if not _is_count(n, 1):
        raise ValueError(f"{where} has n {n!r}: give the number of samples, at least 1.")
    seconds = row.get("seconds", 0.0)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
        raise ValueError(f"{where} has seconds {seconds!r}: give a finite number from 0.")
    if not _is_count(row.get("batch_size", 1), 1):
        raise ValueError(f"{where} has batch_size {row['batch_size']!r}: give the number of images, at least 1.")
    if not isinstance(row.get("precision", "float32"), str):
        raise ValueError(f"{where} has precision {row['precision']!r}: give the name of a dtype.")


def _check_outcomes(row: Mapping[str, Any], where: str) -> None:
    """Outcomes and clusters, where a row has them, are those of its n samples."""
    n, outcomes, clusters = row["n"], row.get("outcomes"), row.get("clusters")
    if "outcomes" in row and (not isinstance(outcomes, str) or len(outcomes) != n or set(outcomes) - {"0", "1"}):
        raise ValueError(f"{where} has outcomes {_short(outcomes)}: give {n} characters 0 or 1, one per sample.")
    if isinstance(outcomes, str) and not math.isclose(outcomes.count("1") / n, row["value"], abs_tol=1e-9):
        mean = outcomes.count("1") / n
        raise ValueError(
            f"{where} has value {row['value']!r} and outcomes with mean {mean!r}: give those of its value."
        )
    if "clusters" not in row:
        return
    numbers = clusters.split(" ") if isinstance(clusters, str) else []
    if "outcomes" not in row or len(numbers) != n or not all(re.fullmatch("[0-9]+", number) for number in numbers):
        raise ValueError(
            f"{where} has clusters {_short(clusters)}: give {n} group numbers and the outcomes of the same."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}... ({len(text)} characters)"


def _check_attack(row: Mapping[str, Any], where: str) -> None:
    threat, attack = row["threat_model"], row["attack"]
    if (threat is None) != (attack is None):
        raise ValueError(
            f"{where} has threat_model {threat!r} and attack {attack!r}: a robust row has both, a clean row neither."
        )
    if threat is None or attack is None:
        return
    _check_threat_model(threat, where)
    if not isinstance(attack, Mapping) or set(attack) != set(ATTACK_FIELDS):
        raise ValueError(f"{where} has attack {attack!r}: give exactly {list(ATTACK_FIELDS)}.")
    if not isinstance(attack["name"], str) or not attack["name"].strip():
        raise ValueError(f"{where} has attack name {attack['name']!r}: name the attack.")
    for name, least in (("steps", 1), ("restarts", 1), ("seed", 0)):
        if not _is_count(attack[name], least):
            raise ValueError(f"{where} has attack {name} {attack[name]!r}: give an integer from {least}.")


def _check_threat_model(threat: Any, where: str) -> None:
    """It must be written the one way in which reports write it (radii such as 1/256 were decimals once)."""
    try:
        threat_model = ThreatModel.from_dict(threat)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} has threat_model {threat!r}: {error}") from None
    written = threat_model.to_dict()
    if dict(threat) not in (written, written | {"eps": repr(threat_model.eps)}):
        raise ValueError(f"{where} writes its threat_model as {threat!r}: write it as {written!r}.")


def _is_within(value: Any, most: float) -> bool:
    """A number in [0, most]; NaN and booleans are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
