"""Rows of a report as Markdown tables: a line per model, a column per data set and radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fare_hf.attacks import ThreatModel

__all__ = ["markdown"]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table per task and metric, in percent with 95 % intervals, and the attacks below it.

    Models, tasks and data sets keep the order of their first row; clean comes before radii, these ascending.
    """
    sections = []
    for task, metric in _unique((row["task"], row["metric"]) for row in rows):
        chosen = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
        sections.append(f"### {task}: {metric}\n\n{_table(chosen)}\n\n{_attacks(chosen)}\n")
    return "\n".join(sections)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    datasets = _unique(row["dataset"] for row in rows)
    columns = [
        (dataset, threat)
        for dataset in datasets
        for threat in sorted({_threat(row) for row in rows if row["dataset"] == dataset}, key=_threat_order)
    ]
    cells = {(row["model"], row["dataset"], _threat(row)): _cell(row) for row in rows}
    head = ["model", *(f"{dataset}, {threat or 'clean'}" for dataset, threat in columns)]
    lines = [head, ["---", *("---:" for _ in columns)]]
    for model in _unique(row["model"] for row in rows):
        lines.append([_escape(model), *(cells.get((model, *column), "") for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _attacks(rows: Sequence[Mapping[str, Any]]) -> str:
    """The sample counts and the attacks that a table's figures come from."""
    counts = ", ".join(_unique(f"n = {row['n']} ({row['dataset']})" for row in rows))
    used = _unique(
        "{name}, {steps} steps, restarts {restarts}, seed {seed}".format(**row["attack"])
        for row in rows
        if row["attack"] is not None
    )
    note = f"In percent, with 95 % intervals; {counts}."
    return f"{note} Attack: {'; '.join(used)}." if used else note


def _cell(row: Mapping[str, Any]) -> str:
    low, high = row["ci"]
    return f"{100 * row['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _threat(row: Mapping[str, Any]) -> str:
    threat = row["threat_model"]
    return "" if threat is None else str(ThreatModel.from_dict(threat))


def _threat_order(threat: str) -> tuple[str, float]:
    """Clean first, then by norm and radius."""
    if not threat:
        return "", 0.0
    norm, eps = threat.split()
    return norm, ThreatModel(norm, eps).eps


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _unique(items: Any) -> list[Any]:
    """Items without repetition, in their order."""
    return list(dict.fromkeys(items))
