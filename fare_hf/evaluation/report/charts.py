"""Charts of a report: curves over the radius, pairs of bars, transfer. Needs matplotlib (`fare_hf[plots]`)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fare_hf.attacks import ThreatModel, format_eps
from fare_hf.evaluation.report.rows import LARGEST, Row

__all__ = ["draw_report", "paired_bars", "radius_curves", "transfer_map"]

MADE_ON = " made on "
"""Between data set and source in the rows of `transfer.transfer_matrix`."""
NAME = 18  # characters of a model's name on one line below its bars
Draw = Callable[[Path], Path]


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


def _charts(rows: Sequence[Row]) -> Iterator[tuple[str, Draw]]:
    """The name of each chart, and what draws it to a path."""
    for task, dataset, metric in dict.fromkeys((row.task, row.dataset, row.metric) for row in rows):
        chosen = _chosen(rows, task, dataset, metric)
        names = {"task": task, "dataset": dataset, "metric": metric}
        if all(row.threat_model for row in chosen):
            continue
        for norm in dict.fromkeys(row.threat_model.norm for row in chosen if row.threat_model):
            name = f"{task}, {dataset}, {metric}, {norm}"
            yield f"curves, {name}", partial(radius_curves, rows, norm=norm, **names)
            if threat := _largest_shared(chosen, norm):
                yield f"bars, {name}", partial(paired_bars, rows, threat_model=threat, **names)
    for task, dataset, metric, key in dict.fromkeys(_map_key(row) for row in rows if _is_transfer(row)):
        cells = _cells(rows, task, dataset, metric, key)
        if len(cells) > 1:
            names = {"task": task, "dataset": dataset, "metric": metric}
            threat = ThreatModel(*key.split())
            yield (
                f"transfer, {task}, {dataset}, {metric}, {key}",
                partial(transfer_map, rows, threat_model=threat, **names),
            )


def _largest_shared(rows: Sequence[Row], norm: str) -> ThreatModel | None:
    """The largest ball of a norm in which every model was attacked, if every model has a clean row too."""
    models = {row.model for row in rows}
    if {row.model for row in rows if row.threat_model is None} != models:
        return None
    attacked = [row for row in rows if row.threat_model and row.threat_model.norm == norm]
    balls = {str(row.threat_model): row.threat_model for row in attacked if row.threat_model}
    shared = [ball for key, ball in balls.items() if {row.model for row in attacked if _key(row) == key} == models]
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
    chosen = [
        row
        for row in _chosen(rows, task, dataset, metric)
        if row.threat_model is None or row.threat_model.norm == norm
    ]
    if not chosen:
        raise ValueError(f"no {norm} rows and no clean ones of {task} / {dataset} / {metric}: measure them first.")
    lines = {
        model: sorted((_eps(row), row.value, *row.ci) for row in chosen if row.model == model)
        for model in dict.fromkeys(row.model for row in chosen)
    }
    radii = sorted({point[0] for points in lines.values() for point in points})
    figure, axes = _figure(6.5, 4.5)
    for place, (model, points) in enumerate(lines.items()):
        eps, values, low, high = ([100 * number for number in column] for column in zip(*points, strict=True))
        aside = (place - (len(lines) - 1) / 2) * 0.012 * 100 * max(radii)  # intervals beside, not over one another
        ends = [[v - e for v, e in zip(values, low, strict=True)], [e - v for v, e in zip(values, high, strict=True)]]
        axes.errorbar(
            [x + aside for x in eps], values, yerr=ends, marker="o", capsize=3, elinewidth=1, label=_label(model)
        )
    axes.set_xticks(
        [100 * radius for radius in radii], [format_eps(radius) if radius else "clean" for radius in radii]
    )
    axes.set_xlabel(f"eps ({norm})")
    _finish(figure, axes, chosen, task, dataset, metric)
    return _save(figure, path)


def paired_bars(
    rows: Sequence[Row],
    path: str | Path,
    *,
    task: str,
    dataset: str,
    metric: str,
    threat_model: ThreatModel,
) -> Path:
    """Two bars a model, clean and attacked, with their intervals; the attack and n stand in the title.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no rows, or a model that has only one of the two.
    """
    chosen = _chosen(rows, task, dataset, metric)
    pairs = {}
    for model in dict.fromkeys(row.model for row in chosen):
        mine = {_key(row): row for row in chosen if row.model == model}
        wanted = (None, str(threat_model))
        missing = [name or "clean" for name in wanted if name not in mine]
        if missing:
            raise ValueError(f"{model} has no {missing[0]} row of {task} / {dataset} / {metric}: measure it first.")
        pairs[model] = [mine[name] for name in wanted]
    figure, axes = _figure(max(4.0, 1.2 * len(pairs) + 2), 4)
    for place, (title, color) in enumerate((("clean", "#57606a"), (str(threat_model), "#c4261d"))):
        values = [100 * pair[place].value for pair in pairs.values()]
        ends = [[100 * abs(pair[place].ci[end] - pair[place].value) for pair in pairs.values()] for end in (0, 1)]
        at = [number + (place - 0.5) * 0.38 for number in range(len(pairs))]
        axes.bar(at, values, 0.36, yerr=ends, label=title, color=color, capsize=3)
    axes.set_xticks(range(len(pairs)), [textwrap.fill(model, NAME) for model in pairs], parse_math=False)
    _finish(figure, axes, [row for pair in pairs.values() for row in pair], task, dataset, metric)
    return _save(figure, path)


def transfer_map(
    rows: Sequence[Row],
    path: str | Path,
    *,
    task: str,
    dataset: str,
    metric: str,
    threat_model: ThreatModel,
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
    cells = _cells(rows, task, dataset, metric, str(threat_model))
    if not cells:
        raise ValueError(f"no {threat_model} rows of {task} / {dataset}{MADE_ON}... / {metric}: measure them first.")
    sources, victims = list(dict.fromkeys(s for s, _ in cells)), list(dict.fromkeys(v for _, v in cells))
    figure, axes = _figure(max(5.0, 1.3 * len(victims) + 2.5), max(3.0, 0.7 * len(sources) + 1.8))
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
    _put_title(figure, f"{_title(list(cells.values()), task, dataset, intervals=False)}\n{threat_model}")
    return _save(figure, path)


def _is_transfer(row: Row) -> bool:
    return row.threat_model is not None and MADE_ON in row.dataset


def _map_key(row: Row) -> tuple[str, str, str, str]:
    return row.task, row.dataset.rpartition(MADE_ON)[0], row.metric, str(_key(row))


def _cells(rows: Sequence[Row], task: str, dataset: str, metric: str, key: str) -> dict[tuple[str, str], Row]:
    """Transfer rows by source and victim."""
    wanted = (task, dataset, metric, key)
    chosen = [row for row in rows if _is_transfer(row) and _map_key(row) == wanted]
    return {(row.dataset.rpartition(MADE_ON)[2], row.model): row for row in chosen}


def _finish(figure: Any, axes: Any, rows: Sequence[Row], task: str, dataset: str, metric: str) -> None:
    """Vertical axis, title and legend, no wider than the figure."""
    axes.set_ylabel(f"{metric}, {_unit(metric)}", parse_math=False)
    highest = max(1.0, *(100 * row.ci[1] for row in rows))
    axes.set_ylim(0, min(103.0, 1.05 * highest) if metric not in LARGEST else None)
    axes.spines[["top", "right"]].set_visible(False)
    _put_title(figure, _title(rows, task, dataset))
    names = axes.get_legend_handles_labels()[1]
    columns = max(1, min(len(names), int(11 * figure.get_figwidth() / (6 + max(map(len, names))))))
    for text in figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9).get_texts():
        text.set_parse_math(False)


def _put_title(figure: Any, text: str) -> None:
    """Over the whole figure, in lines that fit it."""
    width = int(13.5 * figure.get_figwidth())
    lines = [piece for line in text.splitlines() for piece in textwrap.wrap(line, width)]
    figure.suptitle("\n".join(lines), fontsize=9, parse_math=False)


def _label(model: str) -> str:
    """Names that begin with an underscore are left out of legends otherwise."""
    return model.lstrip("_") or model


def _unit(metric: str) -> str:
    return "x 100" if metric in LARGEST else "%"


def _chosen(rows: Sequence[Row], task: str, dataset: str, metric: str) -> list[Row]:
    chosen = [row for row in rows if (row.task, row.dataset, row.metric) == (task, dataset, metric)]
    if not chosen:
        known = sorted({f"{row.task} / {row.dataset} / {row.metric}" for row in rows})
        raise ValueError(f"no rows of {task} / {dataset} / {metric}: there are {', '.join(known) or 'none'}.")
    return chosen


def _title(rows: Sequence[Row], task: str, dataset: str, intervals: bool = True) -> str:
    """What was measured, on how many samples, and under which attacks."""
    counts = ", ".join(dict.fromkeys(str(row.n) for row in rows))
    used = dict.fromkeys(row.attack_text for row in rows if row.attack)
    return "\n".join([f"{task}: {dataset}, n = {counts}{', 95 % intervals' if intervals else ''}", *used])


def _key(row: Row) -> str | None:
    return None if row.threat_model is None else str(row.threat_model)


def _eps(row: Row) -> float:
    return 0.0 if row.threat_model is None else row.threat_model.eps


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of its own, without pyplot's global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('charts need matplotlib: pip install "fare_hf[plots]".') from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
