"""What the quickstart shows: figures as lines and as a table, what they prove, and a picture of both LLaVAs' words."""

from __future__ import annotations

import textwrap
from pathlib import Path

from torch import Tensor

from fare_hf.evaluation import NamesConcept, Row, SheetRow, TextEvaluation, attack_sheet, paired_difference
from fare_hf.evaluation.report.attack_sheet import Answer
from fare_hf.lab import measure
from fare_hf.lab.drawings import all_concepts

__all__ = ["draw", "lower", "proof", "said", "summary", "wrapped"]

PICTURES = 4


def wrapped(command: str) -> str:
    """A command on several lines, as a shell would take it."""
    lines = textwrap.wrap(command, 100, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(lines)


def said(row: Row) -> str:
    """One figure as a line."""
    low, high = row.ci
    figure = f"{row.value:6.1%}  [{low:.1%}, {high:.1%}]  n={row.n}"
    return f"{row.model:14s} {row.task:10s} {row.dataset:8s} {radius(row):12s} {figure}"


def proof(shown: bool, claim: str, figures: str) -> str:
    """A line for what a stage was to show, with the figures that do or do not show it."""
    return f"    => {'shown' if shown else 'NOT shown'}: {claim} ({figures})"


def lower(low: Row, high: Row) -> bool:
    """Whether one rate lies below another.

    Of two models on the same samples where their paired interval is above 0; else where intervals do not touch.
    """
    if low.model != high.model and low.n == high.n:
        return paired_difference(low, high)[1][0] > 0
    return low.ci[1] < high.ci[0]


def radius(row: Row) -> str:
    """`clean`, or the threat model."""
    return str(row.threat_model or "clean")


def summary(rows: list[Row]) -> str:
    """The table at the end: a line for each task, data set and threat model, a column for each encoder, in percent."""
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        metric = row.metric if row.metric != "accuracy" else f"{row.task} accuracy"
        line = cells.setdefault((metric, row.dataset, radius(row)), {})
        low, high = row.ci
        line[row.model.removeprefix("LLaVA + ")] = f"{100 * row.value:.1f} [{100 * low:.0f}, {100 * high:.0f}]"
    columns = list(dict.fromkeys(name for line in cells.values() for name in line))
    head = f"{'percent, with 95 % intervals':44s}" + "".join(f"{name:>17s}" for name in columns)
    lines = [
        f"{metric:20s}{dataset:10s}{threat:14s}" + "".join(f"{line.get(name, ''):>17s}" for name in columns)
        for (metric, dataset, threat), line in cells.items()
    ]
    hint = "target forced: how often the attacker's sentence is written, less is better"
    return "\n".join([head, "-" * len(head), *lines, hint])


def draw(before: TextEvaluation, after: TextEvaluation, budget: measure.Budget, path: Path) -> None:
    """Clean image, the attack on either tower, and what both LLaVAs say, for images that both were attacked on."""
    test, threat = measure.part("twemoji", budget.captions), measure.THREAT_MODELS[-1]
    sides = {"CLIP": before, "FARE": after}
    shared = set.intersection(*(set(side.adversarial[str(threat)]) for side in sides.values()))
    rule = NamesConcept(all_concepts())
    rows = [
        sheet_row(test.pixels[index], index, sides, str(threat), test.class_names[test.labels[index]], rule)
        for index in sorted(shared)[:PICTURES]
    ]
    if not rows:
        print("    no picture: no image was captioned rightly by both LLaVAs", flush=True)
        return
    attack_sheet(rows, path, threat_model=threat, title="What the lab's LLaVA says, with both towers")


def sheet_row(
    pixels: Tensor, index: int, sides: dict[str, TextEvaluation], threat: str, wanted: str, rule: NamesConcept
) -> SheetRow:
    """One image of the picture; answers that name the concept are marked right."""

    def marked(text: str) -> Answer:
        return Answer(text, rule(text, wanted))

    clean = {name: marked(side.clean[index]) for name, side in sides.items()}
    attacked = {
        f"attack on {name}": (side.adversarial[threat][index], {name: marked(side.attacked[threat][index])})
        for name, side in sides.items()
    }
    return SheetRow(pixels, clean, attacked, wanted)
