"""Charts of a report: accuracy over the radius, pairs of bars. Needs matplotlib: `pip install "fare_hf[plots]"`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fare_hf.attacks import ThreatModel

__all__ = ["paired_bars", "radius_curves"]


def radius_curves(
    rows: Sequence[Mapping[str, Any]], path: str | Path, *, task: str, dataset: str, metric: str, norm: str = "linf"
) -> Path:
    """One line a model: the figure over eps, clean at 0, with its intervals as bands.

    Args:
        rows: of a report.
        path: file to write; its folder is made if absent.
        task, dataset, metric, norm: which rows.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no such rows.
    """
    chosen = _chosen(rows, task, dataset, metric)
    figure, axes = _figure(6, 4)
    for model in dict.fromkeys(row["model"] for row in chosen):
        points = sorted(
            (_eps(row), row["value"], *row["ci"])
            for row in chosen
            if row["model"] == model and (row["threat_model"] or {"norm": norm})["norm"] == norm
        )
        eps, values, low, high = zip(*points, strict=True)
        scaled = [radius * 255 if norm == "linf" else radius for radius in eps]
        (line,) = axes.plot(scaled, [100 * value for value in values], marker="o", label=model)
        axes.fill_between(scaled, [100 * v for v in low], [100 * v for v in high], alpha=0.15, color=line.get_color())
    axes.set_xlabel("eps x 255" if norm == "linf" else f"eps ({norm})")
    axes.set_ylabel(f"{metric}, %")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{task}: {dataset}")
    axes.legend()
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
    """Two bars a model, clean and attacked, with their intervals.

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
    axes.set_title(f"{task}: {dataset}")
    axes.legend()
    return _save(figure, path)


def _chosen(rows: Sequence[Mapping[str, Any]], task: str, dataset: str, metric: str) -> list[Mapping[str, Any]]:
    chosen = [row for row in rows if (row["task"], row["dataset"], row["metric"]) == (task, dataset, metric)]
    if not chosen:
        known = sorted({f"{row['task']} / {row['dataset']} / {row['metric']}" for row in rows})
        raise ValueError(f"no rows of {task} / {dataset} / {metric}: there are {', '.join(known) or 'none'}.")
    return chosen


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
