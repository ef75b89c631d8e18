"""Pictures of a report: curves over the radius, pairs of bars, transfer, and one picture of everything.

Needs matplotlib: `pip install matplotlib`.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fare_hf.attacks import ThreatModel, format_eps
from fare_hf.evaluation.report.rows import LARGEST, Row
from fare_hf.evaluation.report.tables import columns_of

__all__ = ["draw_report", "draw_summary", "new_figure", "paired_bars", "radius_curves", "save_figure", "transfer_map"]

MADE_ON = " made on "
"""Between data set and source in the rows of `transfer.transfer_matrix`."""
NAME = 18  # characters of a model's name on one line below its bars
COLORS = ("#8c959f", "#1f6feb", "#bf8700", "#1a7f37", "#8250df", "#cf222e")
PANEL, GROUP, MARGIN = 2.6, 0.95, 1.3  # inches: height of a panel, width of a group of bars, what stands beside them
BARS = 0.8  # width of a group's bars, of the space it has


def draw_report(rows: Sequence[Row], folder: str | Path) -> list[Path]:
    """Every chart that a report has the rows for, as PNG files; files of the same names are replaced.

    For each task, data set, metric and norm: curves where there are a clean figure and a radius, and bars where
    all models have a clean figure and one of the same radius (the largest such). For each task, data set, metric and
    threat model with images made on models: a map, where it has two cells or more.

    Args:
        rows: of a report.
        folder: made if absent, and if there is anything to draw.

    Returns:
        The files, in the order of the rows.

    Raises:
        ImportError: matplotlib is not installed, and there is something to draw.
    """
    paths: list[Path] = []
    taken: set[str] = set()
    for name, draw in _charts(rows):
        safe = base = re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII).strip("-.")[:120]
        number = 2
        while safe.lower() in taken:  # some file systems do not tell capitals
            safe, number = f"{base}-{number}", number + 1
        taken.add(safe.lower())
        paths.append(draw(Path(folder) / f"{safe}.png"))
    return paths


def _charts(rows: Sequence[Row]) -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """The name of each chart, and what draws it to a path."""
    for task, dataset, metric in dict.fromkeys((row.task, row.dataset, row.metric) for row in rows):
        names = {"task": task, "dataset": dataset, "metric": metric}
        chosen = _chosen(rows, **names)
        if all(row.threat_model for row in chosen):
            continue
        for norm in dict.fromkeys(row.threat_model.norm for row in chosen if row.threat_model):
            title = f"{task}, {dataset}, {metric}, {norm}"
            yield f"curves, {title}", partial(radius_curves, rows, norm=norm, **names)
            if ball := _largest_shared(chosen, norm):
                yield f"bars, {title}", partial(paired_bars, rows, threat_model=ball, **names)
    for task, dataset, metric, ball in dict.fromkeys(key for row in rows if (key := _map_of(row))):
        names = {"task": task, "dataset": dataset, "metric": metric}
        if len(_cells(rows, (task, dataset, metric, ball))) > 1:
            title = f"transfer, {task}, {dataset}, {metric}, {ball}"
            yield title, partial(transfer_map, rows, threat_model=ball, **names)


def _largest_shared(rows: Sequence[Row], norm: str) -> ThreatModel | None:
    """The largest ball of a norm in which every model was attacked, if every model has a clean row too."""
    models = {row.model for row in rows}
    measured: dict[ThreatModel | None, set[str]] = {}
    for row in rows:
        measured.setdefault(row.threat_model, set()).add(row.model)
    if measured.get(None) != models:
        return None
    shared = [ball for ball, found in measured.items() if ball and ball.norm == norm and found == models]
    return max(shared, key=lambda ball: ball.eps, default=None)


def radius_curves(
    rows: Sequence[Row], path: str | Path, *, task: str, dataset: str, metric: str, norm: str = "linf"
) -> Path:
    """One line a model: the figure over eps, clean at 0, with its intervals; the attack and n stand in the title.

    Args:
        rows: of a report.
        path: file to write; its folder is made if absent.
        task, dataset, metric, norm: which rows.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no such rows.
    """
    every = _chosen(rows, task, dataset, metric)
    chosen = [row for row in every if row.threat_model is None or row.threat_model.norm == norm]
    if not chosen:
        raise ValueError(f"no {norm} rows and no clean ones of {task} / {dataset} / {metric}: measure them first.")
    radii = sorted({_eps(row) for row in chosen})
    figure, axes = _chart(6.5, 4.5)
    models = list(dict.fromkeys(row.model for row in chosen))
    for number, model in enumerate(models):
        line = sorted((row for row in chosen if row.model == model), key=_eps)
        aside = (number - (len(models) - 1) / 2) * 0.012 * 100 * max(radii)  # intervals beside, not over one another
        axes.errorbar(
            [100 * _eps(row) + aside for row in line],
            [100 * row.value for row in line],
            yerr=_ends(line),
            marker="o",
            capsize=3,
            elinewidth=1,
            label=_label(model),
        )
    axes.set_xticks(
        [100 * radius for radius in radii], [format_eps(radius) if radius else "clean" for radius in radii]
    )
    axes.set_xlabel(f"eps ({norm})")
    _finish(figure, axes, chosen)
    return save_figure(figure, path)


def paired_bars(
    rows: Sequence[Row], path: str | Path, *, task: str, dataset: str, metric: str, threat_model: ThreatModel
) -> Path:
    """Two bars a model, clean and attacked, with their intervals; the attack and n stand in the title.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no rows, or a model that has only one of the two.
    """
    chosen = _chosen(rows, task, dataset, metric)
    models = list(dict.fromkeys(row.model for row in chosen))
    found = {(row.model, row.threat_model): row for row in chosen}
    balls = (None, threat_model)
    for model, ball in ((model, ball) for model in models for ball in balls):
        if (model, ball) not in found:
            raise ValueError(
                f"{model} has no {ball or 'clean'} row of {task} / {dataset} / {metric}: measure it first."
            )
    figure, axes = _chart(max(4.0, 1.2 * len(models) + 2), 4)
    for ball, side, color in zip(balls, (-0.19, 0.19), ("#57606a", "#c4261d"), strict=True):
        bars = [found[model, ball] for model in models]
        at = [number + side for number in range(len(models))]
        heights = [100 * row.value for row in bars]
        axes.bar(at, heights, 0.36, yerr=_ends(bars), label=str(ball or "clean"), color=color, capsize=3)
    axes.set_xticks(range(len(models)), [textwrap.fill(model, NAME) for model in models], parse_math=False)
    _finish(figure, axes, [found[model, ball] for model in models for ball in balls])
    return save_figure(figure, path)


def transfer_map(
    rows: Sequence[Row], path: str | Path, *, task: str, dataset: str, metric: str, threat_model: ThreatModel
) -> Path:
    """A cell for every source (lines: the images were made on it) and victim (columns: it was shown them).

    Args:
        rows: of a report, with those of `transfer.transfer_matrix`.
        path: file to write; its folder is made if absent.
        task, metric, threat_model: which rows.
        dataset: its name without "made on ...".

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no such rows.
    """
    cells = _cells(rows, (task, dataset, metric, threat_model))
    if not cells:
        raise ValueError(f"no {threat_model} rows of {task} / {dataset}{MADE_ON}... / {metric}: measure them first.")
    sources, victims = list(dict.fromkeys(s for s, _ in cells)), list(dict.fromkeys(v for _, v in cells))
    figure, axes = _chart(max(5.0, 1.3 * len(victims) + 2.5), max(3.0, 0.7 * len(sources) + 1.8))
    values = [
        [100 * cells[source, victim].value if (source, victim) in cells else float("nan") for victim in victims]
        for source in sources
    ]
    top = 100.0 if metric not in LARGEST else None
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    for line, numbers in enumerate(values):
        for column, number in enumerate(numbers):
            if number == number:  # a pair that was not measured stays empty
                color = "white" if image.norm(number) > 0.55 else "black"
                axes.text(column, line, f"{number:.1f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(victims)), [textwrap.fill(name, NAME) for name in victims], parse_math=False)
    axes.set_yticks(range(len(sources)), [textwrap.fill(name, NAME) for name in sources], parse_math=False)
    axes.set_xlabel(f"shown to ({metric}, {_unit(metric)})", parse_math=False)
    axes.set_ylabel("made on")
    counts, *attacks = _facts(list(cells.values()))
    _put_title(figure, [f"{task}: {dataset}, {counts}", *attacks, str(threat_model)])
    return save_figure(figure, path)


def draw_summary(rows: Sequence[Row]) -> bytes | None:
    """A PNG of a whole report, as a card shows it: a panel for each task and metric, a group of bars for each data set
    and threat model.

    Returns:
        The file's content, the same for the same rows and matplotlib; None where there are no rows, or no matplotlib
        (`pip install matplotlib`): then a card does without.
    """
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        panels.setdefault((row.task, row.metric), []).append(row)
    groups = max([4, *(len(columns_of(chosen)) for chosen in panels.values())])
    try:
        figure = new_figure(MARGIN + GROUP * groups, 0.4 + PANEL * len(panels), layout="constrained")
    except ImportError:
        return None
    if not rows:
        return None
    every = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, ((task, metric), chosen) in zip(every, panels.items(), strict=True):
        _draw_panel(axes, chosen)
        axes.set_xlim(-0.5, groups - 0.5)
        axes.set_title(f"{task}: {metric}, in percent", fontsize=9, loc="left", parse_math=False)
    file = io.BytesIO()
    # Without the version of matplotlib in the file.
    figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
    return file.getvalue()


def _draw_panel(axes: Any, rows: Sequence[Row]) -> None:
    """One panel of the summary; a figure that a model lacks leaves a gap."""
    groups, models = columns_of(rows), list(dict.fromkeys(row.model for row in rows))
    for number, model in enumerate(models):
        own = [row for row in rows if row.model == model]
        offset = BARS * ((number + 0.5) / len(models) - 0.5)
        axes.bar(
            [groups.index((row.dataset, row.threat_model)) + offset for row in own],
            [100 * row.value for row in own],
            BARS / len(models),
            yerr=_ends(own),
            label=model.lstrip("_"),
            color=COLORS[number % len(COLORS)],
            error_kw={"elinewidth": 0.8, "ecolor": "#24292f"},
        )
    names = [f"{dataset}\n{ball or 'clean'}" for dataset, ball in groups]
    axes.set_xticks(range(len(groups)), names, fontsize=7, parse_math=False)
    axes.set_ylim(0, 100)
    axes.tick_params(axis="y", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    _as_written(axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False))


def _map_of(row: Row) -> tuple[str, str, str, ThreatModel] | None:
    """Task, data set, metric and threat model of the transfer map that a row is a cell of, if it is of one."""
    dataset, found, _ = row.dataset.rpartition(MADE_ON)
    return (row.task, dataset, row.metric, row.threat_model) if row.threat_model and found else None


def _cells(rows: Sequence[Row], key: tuple[str, str, str, ThreatModel]) -> dict[tuple[str, str], Row]:
    """Rows of a transfer map by source and victim."""
    return {(row.dataset.rpartition(MADE_ON)[2], row.model): row for row in rows if _map_of(row) == key}


def _chosen(rows: Sequence[Row], task: str, dataset: str, metric: str) -> list[Row]:
    chosen = [row for row in rows if (row.task, row.dataset, row.metric) == (task, dataset, metric)]
    if not chosen:
        known = sorted({f"{row.task} / {row.dataset} / {row.metric}" for row in rows})
        raise ValueError(f"no rows of {task} / {dataset} / {metric}: there are {', '.join(known) or 'none'}.")
    return chosen


def _ends(rows: Sequence[Row]) -> list[list[float]]:
    """How far the ends of the intervals are from the figures, in percent."""
    return [[100 * abs(row.value - row.ci[end]) for row in rows] for end in (0, 1)]


def _eps(row: Row) -> float:
    return row.threat_model.eps if row.threat_model else 0.0


def _label(model: str) -> str:
    """Names that begin with an underscore are left out of legends otherwise."""
    return model.lstrip("_") or model


def _unit(metric: str) -> str:
    return "x 100" if metric in LARGEST else "%"


def _facts(rows: Sequence[Row]) -> list[str]:
    """On how many samples rows were measured, and under which attacks."""
    counts = ", ".join(dict.fromkeys(str(row.n) for row in rows))
    return [f"n = {counts}", *dict.fromkeys(row.attack_text for row in rows if row.attack)]


def _finish(figure: Any, axes: Any, rows: Sequence[Row]) -> None:
    """Vertical axis, title and legend, no wider than the figure, of rows of one task, data set and metric."""
    metric = rows[0].metric
    axes.set_ylabel(f"{metric}, {_unit(metric)}", parse_math=False)
    highest = max(1.0, *(100 * row.ci[1] for row in rows))
    axes.set_ylim(0, min(103.0, 1.05 * highest) if metric not in LARGEST else None)
    axes.spines[["top", "right"]].set_visible(False)
    counts, *attacks = _facts(rows)
    _put_title(figure, [f"{rows[0].task}: {rows[0].dataset}, {counts}, 95 % intervals", *attacks])
    names = axes.get_legend_handles_labels()[1]
    columns = max(1, min(len(names), int(11 * figure.get_figwidth() / (6 + max(map(len, names))))))
    _as_written(figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9))


def _put_title(figure: Any, lines: Sequence[str]) -> None:
    """Over the whole figure, in lines that fit it."""
    width = int(13.5 * figure.get_figwidth())
    pieces = [piece for line in lines for piece in textwrap.wrap(line, width)]
    figure.suptitle("\n".join(pieces), fontsize=9, parse_math=False)


def _as_written(legend: Any) -> None:
    """Names are no formulas."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def new_figure(width: float, height: float, what: str = "charts", **options: Any) -> Any:
    """An empty figure of its own, in inches, without pyplot's global state.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{what} need matplotlib: pip install matplotlib.") from error
    return Figure(figsize=(width, height), **options)


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a figure; its folder is made if absent."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _chart(width: float, height: float) -> tuple[Any, Any]:
    figure = new_figure(width, height, layout="constrained")
    return figure, figure.add_subplot()
