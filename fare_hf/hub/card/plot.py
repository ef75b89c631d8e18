"""The picture on a card: the report's figures as bars with their intervals."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation.report.rows import Row

__all__ = ["PLOT", "draw_report"]

PLOT = "results.png"
COLORS = ("#8c959f", "#1f6feb", "#bf8700", "#1a7f37", "#8250df", "#cf222e")
PANEL, GROUP, MARGIN = 2.6, 0.95, 1.3  # inches: height of a panel, width of a group of bars, what stands beside them
BARS = 0.8  # width of a group's bars, of the place it has


def draw_report(rows: Sequence[Row]) -> bytes | None:
    """A PNG with a panel for each task and metric: a group of bars for each data set and threat model.

    Args:
        rows: of a `RobustnessReport`.

    Returns:
        The file's content, the same for the same rows and matplotlib; None where there are no rows, or no matplotlib
        (`pip install "fare_hf[plots]"`): then a card does without.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    if not rows:
        return None
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        panels.setdefault((row.task, row.metric), []).append(row)
    groups = max(4, *(len(_groups(chosen)) for chosen in panels.values()))
    size = (MARGIN + GROUP * groups, 0.4 + PANEL * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    places = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, ((task, metric), chosen) in zip(places, panels.items(), strict=True):
        _draw(axes, chosen, list(dict.fromkeys(row.model for row in chosen)))
        axes.set_xlim(-0.5, groups - 0.5)
        axes.set_title(f"{task}: {metric}, in percent", fontsize=9, loc="left", parse_math=False)
    file = io.BytesIO()
    # Without the version of matplotlib in the file.
    figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
    return file.getvalue()


def _draw(axes: Any, rows: Sequence[Row], models: Sequence[str]) -> None:
    """One panel; a figure that a model lacks leaves its place empty."""
    groups = _groups(rows)
    for number, model in enumerate(models):
        own = [row for row in rows if row.model == model]
        offset = BARS * ((number + 0.5) / len(models) - 0.5)
        heights = [100 * row.value for row in own]
        spread = [[100 * abs(row.value - row.ci[end]) for row in own] for end in (0, 1)]
        axes.bar(
            [groups.index(_group(row)) + offset for row in own],
            heights,
            BARS / len(models),
            yerr=spread,
            label=model.lstrip("_"),
            color=COLORS[number % len(COLORS)],
            error_kw={"elinewidth": 0.8, "ecolor": "#24292f"},
        )
    names = [f"{dataset}\n{threat or 'clean'}" for dataset, threat in groups]
    axes.set_xticks(range(len(groups)), names, fontsize=7, parse_math=False)
    axes.set_ylim(0, 100)
    axes.tick_params(axis="y", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    for text in axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False).get_texts():
        text.set_parse_math(False)


def _groups(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Data sets in their order, each clean first and then by radius."""
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    return sorted({_group(row) for row in rows}, key=lambda group: (datasets.index(group[0]), _order(group[1])))


def _group(row: Row) -> tuple[str, str]:
    return row.dataset, str(row.threat_model or "")


def _order(threat: str) -> tuple[str, float]:
    if not threat:
        return "", 0.0
    norm, eps = threat.split()
    return norm, ThreatModel(norm, eps).eps
