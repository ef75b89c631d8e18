"""The lab's full table: CLIP, FARE-2/4 and TeCoA-2/4 on all test sets, and the LLaVA with three of the towers.

    python examples/lab_table.py --output_dir outputs/lab-table

Writes `report.json` and `report.md`. A model that is in `report.json` already is not measured again, so that an
interrupted run goes on. About an hour on two cores; `--quick` takes parts of the sets, and `--models` some of the
models: runs side by side are put together with `--include`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fare_hf import RobustnessReport, ThreatModel, swap_vision_tower
from fare_hf.encoders import load_encoder
from fare_hf.evaluation import Row, environment
from fare_hf.evaluation.report.paired import difference_text
from fare_hf.lab import ENCODERS, UNSEEN, encoder_folder, load_clip, load_llava, measure
from fare_hf.lab.drawings import TEST_STYLES
from fare_hf.lab.sets import is_unseen

MODELS = ("clip", *ENCODERS, "llava-clip", "llava-fare-4", "llava-tecoa-4")
FOUR = ThreatModel("linf", "4/255")
FAR_STYLE = TEST_STYLES[1]
"""Questions about its drawings are asked clean alone."""
TWO = ThreatModel("linf", "2/255")
SELECTED = {
    "zero-shot, clean": ("zero-shot", "twemoji", None),
    "zero-shot, 4/255": ("zero-shot", "twemoji", FOUR),
    "captions, clean": ("captions", "twemoji", None),
    "captions, 2/255": ("captions", "twemoji", TWO),
    "of clothes, clean": ("captions", "fashion", None),
    "of clothes, 2/255": ("captions", "fashion", TWO),
    "of digits, clean": ("captions", "digits", None),
    "of digits, 2/255": ("captions", "digits", TWO),
    "sentence forced, 4/255": ("targeted", "twemoji", FOUR),
}
"""Columns of the short table: task, data set and threat model."""
NAMES = {"clip": "CLIP", "fare-2": "FARE-2", "fare-4": "FARE-4", "tecoa-2": "TeCoA-2", "tecoa-4": "TeCoA-4"}


def main() -> None:
    """Measures what is missing, saving after each model."""
    parser = argparse.ArgumentParser(description="Measures the lab's models on all of its test sets.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/lab-table"))
    parser.add_argument("--quick", action="store_true", help="parts of the sets, fewer steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--include", nargs="*", type=Path, default=[], help="report.json of runs with other --models")
    help_ = "pages whose tables are replaced: the whole one, or the short one of the README"
    parser.add_argument("--readme", type=Path, nargs="+", default=[], metavar="PAGE", help=help_)
    args = parser.parse_args()
    budget = measure.QUICK if args.quick else measure.FULL
    saved = args.output_dir / "report.json"
    rows: list[Row] = []
    for path in (saved, *args.include):
        rows += RobustnessReport.load(path).rows if path.exists() or path in args.include else []
    for model in MODELS:
        if model in args.models and shown(model) not in {row.model for row in rows}:
            rows += measured(model, budget, args.seed)
            save(rows, args.seed, args.output_dir)
    report = save(rows, args.seed, args.output_dir)
    print(report.to_markdown())
    for page in args.readme:
        write_into(page, report)


def shown(model: str) -> str:
    """The model's name in the report: ``llava-fare-4`` is ``LLaVA + FARE-4``."""
    return f"LLaVA + {NAMES[model.removeprefix('llava-')]}" if model.startswith("llava-") else NAMES[model]


def measured(model: str, budget: measure.Budget, seed: int) -> list[Row]:
    """All rows of an encoder, or of the LLaVA with one of the towers."""
    name = model.removeprefix("llava-")
    if name == model:
        return measure.measure_zero_shot(
            NAMES[name], load_encoder(str(encoder_folder(name))), load_clip(), budget, seed=seed
        )
    llava = load_llava()
    swap_vision_tower(llava[0], str(encoder_folder(name)))
    rows: list[Row] = []
    for dataset in budget.samples:
        rows += measure.measure_captions(NAMES[name], llava, budget, seed=seed, dataset=dataset).rows
    rows += measure.measure_scenes(NAMES[name], llava, budget, seed=seed)
    rows += measure.measure_questions(NAMES[name], llava, budget, seed=seed)
    rows += measure.measure_questions(NAMES[name], llava, budget, [], seed=seed, style=FAR_STYLE)
    return rows + measure.measure_targeted(NAMES[name], llava, budget, seed=seed)


def save(rows: list[Row], seed: int, folder: Path) -> RobustnessReport:
    """Writes the report, its models in the order of `MODELS`."""
    order = [shown(model) for model in MODELS]
    report = RobustnessReport(sorted(rows, key=lambda row: order.index(row.model)), environment(seed=seed))
    report.save(folder)
    return report


def write_into(page: Path, report: RobustnessReport) -> None:
    """Replaces what stands between a page's marks by the whole table or the short one."""
    text = page.read_text()
    for mark, table in (("lab-table", whole), ("lab-selection", selection)):
        begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
        if begin in text:
            head, rest = text.split(begin)
            text = f"{head}{begin}\n{table(report)}\n{end}{rest.split(end)[1]}"
    page.write_text(text)


def whole(report: RobustnessReport) -> str:
    """The report's tables, with its command and its versions."""
    versions = ", ".join(f"{name} {version}" for name, version in report.environment["versions"].items())
    machine = report.environment["machine"]
    source = f"`{report.environment['command']}`, seed {report.environment['seed']}; {versions}; {machine['cpu']}"
    tables = f"{report.to_markdown().strip()}\n\n{differences(report)}"
    return f"{tables}\n\n{source}, {machine['cores']} cores."


def differences(report: RobustnessReport, ours: str = "FARE-4", theirs: str = "TeCoA-4") -> str:
    """How many points one encoder's figures are above the other's on the same images, with paired 95 % intervals."""
    kept = [row for row in report.rows if row.outcomes is not None or row.scores is not None]
    found = {(row.model, figure(row)): row for row in kept}
    radii = (None, TWO, FOUR)
    cells: dict[str, dict[ThreatModel | None, str]] = {}
    for row in kept:
        other = found.get((row.model.replace(ours, theirs), figure(row)))
        if row.model.removeprefix("LLaVA + ") == ours and other is not None:
            seen = "unseen" if is_unseen(row.dataset) else "drawings"
            name = f"{row.task}, {row.dataset} ({seen})"
            cells.setdefault(name, {})[row.threat_model] = difference_text(other, row)
    head = f"| {ours} above {theirs}, in points | clean | 2/255 | 4/255 |\n| --- | ---: | ---: | ---: |\n"
    lines = ([name, *(changes.get(radius, "") for radius in radii)] for name, changes in cells.items())
    return head + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(row: Row) -> tuple[object, ...]:
    """What a row measures."""
    return row.task, row.dataset, row.metric, row.threat_model


def selection(report: RobustnessReport, models: Sequence[str] = ("CLIP", "TeCoA-4", "FARE-4")) -> str:
    """A line for each encoder, alone and in the LLaVA, and below it the attacks."""
    cells = {(row.model.removeprefix("LLaVA + "), row.task, row.dataset, row.threat_model): row for row in report.rows}
    lines = [["encoder", *SELECTED], ["---", *("---:" for _ in SELECTED)]]
    for model in models:
        found = [cells[model, *column] for column in SELECTED.values()]
        lines.append([model, *(f"{100 * r.value:.1f} [{100 * r.ci[0]:.0f}, {100 * r.ci[1]:.0f}]" for r in found)])
    attacked = {task: cells[models[0], task, "twemoji", FOUR] for task in ("zero-shot", "captions", "targeted")}
    attacks = "; ".join(f"{task} {row.attack_text}, n = {row.n}" for task, row in attacked.items())
    others = ", ".join(f"{name} n = {cells[models[0], 'captions', name, None].n}" for name in UNSEEN)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\nIn percent, with 95 % intervals. Attacks: {attacks}; {others}."


if __name__ == "__main__":
    main()
