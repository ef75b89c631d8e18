"""Rows of a report as Markdown tables: a line per model, a column per data set and radius."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation.report.rows import Row
from fare_hf.files.markup import inline

__all__ = ["grid", "markdown", "threat_text"]


def markdown(rows: Sequence[Row], below: Callable[[Sequence[Row]], str] | None = None) -> str:
    """One table per task and metric, in percent with 95 % intervals, and the attacks below it.

    Models, tasks and data sets keep the order of their first row; clean comes before radii, these ascending.

    Args:
        rows: of a report.
        below: what else stands below a table, from its rows; an empty text adds nothing.
    """
    sections = []
    for task, metric in _unique((row.task, row.metric) for row in rows):
        chosen = [row for row in rows if (row.task, row.metric) == (task, metric)]
        title = f"### {inline(task)}: {inline(metric)}"
        parts = [title, _table(chosen), _attacks(chosen), below(chosen) if below else ""]
        sections.append("\n\n".join(part for part in parts if part) + "\n")
    return "\n".join(sections)


def grid(rows: Sequence[Row], cells: Mapping[tuple[str, str, str], str]) -> str:
    """The Markdown table of rows of one task and metric; `cells` are by (model, data set, `threat_text`)."""
    datasets = _unique(row.dataset for row in rows)
    columns = [
        (dataset, threat)
        for dataset in datasets
        for threat in sorted({threat_text(row) for row in rows if row.dataset == dataset}, key=_threat_order)
    ]
    head = ["model", *(f"{inline(dataset)}, {threat or 'clean'}" for dataset, threat in columns)]
    lines = [head, ["---", *("---:" for _ in columns)]]
    for model in _unique(row.model for row in rows):
        lines.append([inline(model), *(cells.get((model, *column), "") for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _table(rows: Sequence[Row]) -> str:
    return grid(rows, {(row.model, row.dataset, threat_text(row)): _cell(row) for row in rows})


def _attacks(rows: Sequence[Row]) -> str:
    """The sample counts and the attacks that a table's figures come from."""
    counts = ", ".join(_unique(f"n = {row.n} ({inline(row.dataset)})" for row in rows))
    used = _unique(inline(row.attack_text) for row in rows if row.attack)
    note = f"In percent, with 95 % intervals; {counts}."
    if sizes := _unique(str(row.batch_size) for row in rows if row.batch_size is not None):
        note += f" Batches of {' or '.join(sizes)} images."
    return f"{note} Attack: {'; '.join(used)}." if used else note


def _cell(row: Row) -> str:
    low, high = row.ci
    return f"{100 * row.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def threat_text(row: Row) -> str:
    """A row's threat model, such as "linf 4/255"; empty for a clean one."""
    return str(row.threat_model or "")


def _threat_order(threat: str) -> tuple[str, float]:
    """Clean first, then by norm and radius."""
    if not threat:
        return "", 0.0
    norm, eps = threat.split()
    return norm, ThreatModel(norm, eps).eps


def _unique(items: Any) -> list[Any]:
    """Items without repetition, in their order."""
    return list(dict.fromkeys(items))
