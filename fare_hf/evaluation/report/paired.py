"""Models compared in pairs: on the same samples their difference varies less than their two figures do."""

from __future__ import annotations

from collections.abc import Sequence

from fare_hf.evaluation.report.intervals import has_width, paired_interval
from fare_hf.evaluation.report.rows import Row
from fare_hf.evaluation.report.tables import Column, grid

__all__ = ["difference_table", "difference_text", "paired_difference"]

FIGURE = ("task", "dataset", "metric", "threat_model")


def paired_difference(first: Row, second: Row, *, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """How much higher the second model's figure is, with the paired 95 % bootstrap interval.

    The rows must be of the same samples in the same order, which only their count and their clusters can show here.
    Where no two samples differ, or all differ alike, the interval has no width: it then says nothing.

    Args:
        first, second: rows of a report with `outcomes` or `scores`, of one figure of two models.
        seed: of the bootstrap.

    Returns:
        The difference `second - first`, and (low, high) around it.

    Raises:
        ValueError: other figures, a row without either, another number of samples, other clusters.
    """
    if obstacle := _obstacle(first, second):
        raise ValueError(f"{second.model!r} cannot be compared with {first.model!r}: {obstacle}.")
    groups = None if first.clusters is None else first.clusters.split()
    return paired_interval(_values(first), _values(second), groups, seed=seed)


def difference_table(rows: Sequence[Row]) -> str:
    """What each model's figures are above those of the first one, as Markdown; empty where nothing can be compared.

    Args:
        rows: of one task and metric. The first model with `outcomes` or `scores` is what others are compared with;
            figures that it lacks, or has from other samples, are left out.
    """
    able = [row for row in rows if _values(row)]
    base = {_column(row): row for row in able if row.model == able[0].model}
    others = [row for row in able if row.model != able[0].model and _column(row) in base]
    pairs = [(base[_column(row)], row) for row in others if not _obstacle(base[_column(row)], row)]
    if not pairs:
        return ""
    cells = {(row.model, _column(row)): difference_text(first, row) for first, row in pairs}
    head = f"Difference to {able[0].model} in points, paired 95 % interval:"
    return f"{head}\n\n{grid([row for _, row in pairs], cells)}"


def difference_text(first: Row, second: Row) -> str:
    """`paired_difference` as it stands in a table, in points: `+2.0 [-1.0, +5.0]`."""
    change, (low, high) = paired_difference(first, second)
    text = f"{100 * change:+.1f}"
    return f"{text} [{100 * low:+.1f}, {100 * high:+.1f}]" if has_width((low, high)) else f"{text} (no interval)"


def _obstacle(first: Row, second: Row) -> str:
    """Why two rows cannot be compared in pairs; empty where they can."""
    for name in FIGURE:
        ours, theirs = str(getattr(first, name)), str(getattr(second, name))
        if ours != theirs:
            return f"they have {name} {ours!r} and {theirs!r}, give rows of one figure"
    for row in (first, second):
        if not _values(row):
            return f"the row of {row.model!r} has no outcomes, measure it again as a rate"
    if first.n != second.n:
        return f"they have n {first.n} and {second.n}, measure both on the same samples"
    if first.clusters != second.clusters:
        return "their clusters differ, measure both on the same samples with the same groups"
    return ""


def _column(row: Row) -> Column:
    return row.dataset, row.threat_model


def _values(row: Row) -> list[float]:
    """What each sample gave; nothing where the row does not say it."""
    return list(row.scores) if row.scores is not None else [float(outcome) for outcome in row.outcomes or ""]
