"""Rows of a report as Markdown tables: a line per model, a column per data set and radius."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TypeVar

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation.report.intervals import FEW, has_width
from fare_hf.evaluation.report.rows import LARGEST, Row
from fare_hf.files.markup import inline

__all__ = ["Column", "columns_of", "grid", "html_tables", "markdown"]

Column = tuple[str, ThreatModel | None]
"""A data set and a threat model, None for clean figures."""
Item = TypeVar("Item")


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
        table = grid(chosen, {(row.model, (row.dataset, row.threat_model)): _cell(row) for row in chosen})
        title = f"### {inline(task)}: {inline(metric)}"
        parts = [title, table, _attacks(chosen), below(chosen) if below else ""]
        sections.append("\n\n".join(part for part in parts if part) + "\n")
    return "\n".join(sections)


def html_tables(rows: Sequence[Row]) -> str:
    """The tables of `markdown` without what stands below them, as HTML for a notebook."""
    parts = []
    for task, metric in _unique((row.task, row.metric) for row in rows):
        chosen = [row for row in rows if (row.task, row.metric) == (task, metric)]
        columns, cells = columns_of(chosen), {(row.model, row.dataset, row.threat_model): _cell(row) for row in chosen}
        lines = [["model", *(f"{dataset}, {ball or 'clean'}" for dataset, ball in columns)]]
        for model in _unique(row.model for row in chosen):
            lines.append([model, *(cells.get((model, *column), "") for column in columns)])
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
        parts.append(f"<h4>{escape(task)}: {escape(metric)}, {_unit(metric)}</h4><table>{body}</table>")
        parts.append(f"<p>{_attacks(chosen, escape)}</p>")
    return "".join(parts)


def grid(rows: Sequence[Row], cells: Mapping[tuple[str, Column], str]) -> str:
    """The Markdown table of rows of one task and metric, from what stands in the cells of a model and a column."""
    columns = columns_of(rows)
    head = ["model", *(f"{inline(dataset)}, {ball or 'clean'}" for dataset, ball in columns)]
    lines = [head, ["---", *("---:" for _ in columns)]]
    for model in _unique(row.model for row in rows):
        lines.append([inline(model), *(cells.get((model, column), "") for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Data sets in the order of their first row, each clean first and then by norm and radius."""
    datasets = _unique(row.dataset for row in rows)
    found = {(row.dataset, row.threat_model) for row in rows}
    return sorted(found, key=lambda column: (datasets.index(column[0]), _ball_order(column[1])))


def _ball_order(ball: ThreatModel | None) -> tuple[str, float]:
    return ("", 0.0) if ball is None else (ball.norm, ball.eps)


def _attacks(rows: Sequence[Row], escaped: Callable[[str], str] = inline) -> str:
    """The sample counts and the attacks that a table's figures come from, in Markdown or escaped otherwise."""
    counts = ", ".join(_unique(f"n = {row.n} ({escaped(row.dataset)})" for row in rows))
    note = f"{_unit(rows[0].metric).capitalize()}, with 95 % intervals; {counts}."
    if sizes := _unique(str(row.batch_size) for row in rows if row.batch_size is not None):
        note += f" Batches of {' or '.join(sizes)} images."
    note += "".join(f" {sentence}" for sentence in _cautions(rows))
    used = _unique(escaped(row.attack_text) for row in rows if row.attack)
    return f"{note} Attack: {'; '.join(used)}." if used else note


def _cautions(rows: Sequence[Row]) -> Iterator[str]:
    """What the figures do not say."""
    if not all(has_width(row.ci) for row in rows):
        yield "No interval: every draw of these samples gives the same figure, which does not say that others would."
    if any(row.n < FEW and row.outcomes is None for row in rows):
        yield f"Intervals of less than {FEW} samples are too narrow."
    if any(row.metric == "CIDEr" for row in rows):
        yield "CIDEr weighs words by their rarity among these images: compare it on the same ones only."


def _unit(metric: str) -> str:
    """What the numbers of a table are: those of CIDEr exceed 100."""
    return "times 100" if metric in LARGEST else "in percent"


def _cell(row: Row) -> str:
    low, high = row.ci
    shown = f"[{100 * low:.1f}, {100 * high:.1f}]" if has_width(row.ci) else "(no interval)"
    return f"{100 * row.value:.1f} {shown}"


def _unique(items: Iterable[Item]) -> list[Item]:
    """Items without repetition, in their order."""
    return list(dict.fromkeys(items))
