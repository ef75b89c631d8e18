"""Charts of a report: accuracy over the radius, pairs of bars. Needs matplotlib: `pip install "fare_hf[plots]"`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fare_hf.attacks import ThreatModel, format_eps

__all__ = ["paired_bars", "radius_curves"]


def radius_curves(
    rows: Sequence[Mapping[str, Any]], path: str | Path, *, task: str, dataset: str, metric: str, norm: str = "linf"
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
    chosen = _chosen(rows, task, dataset, metric)
    lines = {}
    for model in dict.fromkeys(row["model"] for row in chosen):
        lines[model] = sorted(
            (_eps(row), row["value"], *row["ci"])
            for row in chosen
            if row["model"] == model and (row["threat_model"] or {"norm": norm})["norm"] == norm
        )
    radii = sorted({point[0] for points in lines.values() for point in points})
    figure, axes = _figure(6.5, 4.5)
    for place, (model, points) in enumerate(lines.items()):
        eps, values, low, high = ([100 * number for number in column] for column in zip(*points, strict=True))
        aside = (place - (len(lines) - 1) / 2) * 0.012 * 100 * max(radii)  # intervals beside, not over one another
        ends = [[v - e for v, e in zip(values, low, strict=True)], [e - v for v, e in zip(values, high, strict=True)]]
        axes.errorbar([x + aside for x in eps], values, yerr=ends, marker="o", capsize=3, elinewidth=1, label=model)
    axes.set_xticks(
        [100 * radius for radius in radii], [format_eps(radius) if radius else "clean" for radius in radii]
    )
    axes.set_xlabel(f"eps ({norm})")
    axes.set_ylabel(f"{metric}, %")
    axes.set_ylim(bottom=0)
    axes.set_title(_title(chosen, task, dataset), fontsize=9)
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    return _save(figure, path)


def paired_bars(
    rows: Sequence[Mapping[str, Any]],
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
    for model in dict.fromkeys(row["model"] for row in chosen):
        mine = {_key(row): row for row in chosen if row["model"] == model}
        wanted = (None, str(threat_model))
        missing = [name or "clean" for name in wanted if name not in mine]
        if missing:
            raise ValueError(f"{model} has no {missing[0]} row of {task} / {dataset} / {metric}: measure it first.")
        pairs[model] = [mine[name] for name in wanted]
    figure, axes = _figure(max(4.0, 1.2 * len(pairs) + 2), 4)
    for place, (title, color) in enumerate((("clean", "#57606a"), (str(threat_model), "#c4261d"))):
        values = [100 * pair[place]["value"] for pair in pairs.values()]
        ends = [
            [100 * abs(pair[place]["ci"][end] - pair[place]["value"]) for pair in pairs.values()] for end in (0, 1)
        ]
        at = [number + (place - 0.5) * 0.38 for number in range(len(pairs))]
        axes.bar(at, values, 0.36, yerr=ends, label=title, color=color, capsize=3)
    axes.set_xticks(range(len(pairs)), list(pairs))
    axes.set_ylabel(f"{metric}, %")
    axes.set_title(_title([row for pair in pairs.values() for row in pair], task, dataset), fontsize=9)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return _save(figure, path)


def _chosen(rows: Sequence[Mapping[str, Any]], task: str, dataset: str, metric: str) -> list[Mapping[str, Any]]:
    chosen = [row for row in rows if (row["task"], row["dataset"], row["metric"]) == (task, dataset, metric)]
    if not chosen:
        known = sorted({f"{row['task']} / {row['dataset']} / {row['metric']}" for row in rows})
        raise ValueError(f"no rows of {task} / {dataset} / {metric}: there are {', '.join(known) or 'none'}.")
    return chosen


def _title(rows: Sequence[Mapping[str, Any]], task: str, dataset: str) -> str:
    """What was measured, on how many samples, and under which attacks."""
    counts = ", ".join(dict.fromkeys(str(row["n"]) for row in rows))
    used = dict.fromkeys(
        "{name}, {steps} steps, restarts {restarts}, seed {seed}".format(**row["attack"])
        for row in rows
        if row["attack"] is not None
    )
    return "\n".join([f"{task}: {dataset}, n = {counts}, 95 % intervals", *used])


def _key(row: Mapping[str, Any]) -> str | None:
    return None if row["threat_model"] is None else str(ThreatModel.from_dict(row["threat_model"]))


def _eps(row: Mapping[str, Any]) -> float:
    return 0.0 if row["threat_model"] is None else ThreatModel.from_dict(row["threat_model"]).eps


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
