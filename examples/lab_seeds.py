"""The lab's encoders trained with several seeds, measured on everything: zero-shot, captions, questions, targeted.

    python -m fare_hf.lab.recipes fare-4 tecoa-4 --seed 1 --out outputs/seed-1
    python examples/lab_seeds.py --output_dir outputs/lab-seeds --trainings 1=outputs/seed-1

Seed 0 is that of the shipped encoders; every further seed is that of a training, and of the attacks on what it made.
Each encoder's report is saved on its own, so that an interrupted run goes on. Writes `seeds.md`, `seeds.json` (the
mean of each figure over the seeds, and its range; by how much FARE-4 is above TeCoA-4 of the same seed) and
`transfer.md`: who is fooled by whose images. A budget of parts of the sets, which `--quick` cuts once more.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from fare_hf import RobustnessReport, swap_vision_tower
from fare_hf.attacks import ThreatModel
from fare_hf.encoders import load_encoder
from fare_hf.evaluation import Row, environment, evaluate_transfer
from fare_hf.evaluation.zero_shot.classification import logits_function
from fare_hf.lab import ENCODERS, UNSEEN, encoder_folder, load_clip, load_llava, measure

NAMES = {"clip": "CLIP", "fare-2": "FARE-2", "fare-4": "FARE-4", "tecoa-2": "TeCoA-2", "tecoa-4": "TeCoA-4"}
TRANSFER = ThreatModel("linf", "4/255")
IMAGES, STEPS = 100, 50
"""Of the transfer matrix."""


def main() -> None:
    """Measures what is missing, then puts the seeds together."""
    parser = argparse.ArgumentParser(description="Measures the lab's encoders over several seeds of training.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/lab-seeds"))
    parser.add_argument("--trainings", nargs="*", default=[], metavar="SEED=FOLDER", help="of fare_hf.lab.recipes")
    parser.add_argument("--models", nargs="*", default=list(NAMES), choices=NAMES, metavar="MODEL", help="some only")
    parser.add_argument("--quick", action="store_true", help="smaller parts of the sets")
    args = parser.parse_args()
    budget = measure.QUICK if args.quick else measure.SEEDS
    reports: dict[int, list[Row]] = {}
    for seed, name, folder in encoders(args.trainings):
        if name not in args.models:
            continue
        saved = args.output_dir / f"seed-{seed}" / name
        if not (saved / "report.json").exists():
            RobustnessReport(measured(name, folder, budget, seed), environment(seed=seed)).save(saved)
            print(f"seed {seed}: {NAMES[name]} is measured", flush=True)
        reports.setdefault(seed, []).extend(RobustnessReport.load(saved).rows)
    table = over_seeds(reports)
    (args.output_dir / "seeds.json").write_text(json.dumps(table, indent=2) + "\n")
    (args.output_dir / "seeds.md").write_text("\n".join(filter(None, (markdown(table), above(table)))))
    (args.output_dir / "transfer.md").write_text(transfer(10 if args.quick else IMAGES, 2 if args.quick else STEPS))
    print((args.output_dir / "seeds.md").read_text(), (args.output_dir / "transfer.md").read_text(), sep="\n")


def encoders(trainings: list[str]) -> Iterator[tuple[int, str, str]]:
    """(seed, name, folder) of the CLIP, of the shipped encoders, and of those found in the trainings.

    Raises:
        ValueError: a training that is not SEED=FOLDER, or a folder without encoders.
    """
    for name in ("clip", *ENCODERS):
        yield 0, name, str(encoder_folder(name))
    for training in trainings:
        seed, _, folder = training.partition("=")
        if not seed.isdigit() or not folder:
            raise ValueError(f"--trainings has {training!r}: write SEED=FOLDER, such as 1=outputs/seed-1.")
        found = [name for name in ENCODERS if (Path(folder) / name / "encoder" / "model.safetensors").exists()]
        if not found:
            raise ValueError(f"{folder!r} has no trained encoder: make them with python -m fare_hf.lab.recipes.")
        yield int(seed), "clip", str(encoder_folder("clip"))
        for name in found:
            yield int(seed), name, str(Path(folder) / name / "encoder")


def measured(name: str, folder: str, budget: measure.Budget, seed: int) -> list[Row]:
    """All rows of one encoder, and of the LLaVA that sees through it."""
    rows = measure.measure_zero_shot(NAMES[name], load_encoder(folder), load_clip(), budget, seed=seed)
    llava = load_llava()
    swap_vision_tower(llava[0], folder)
    for dataset in ("twemoji", *UNSEEN):
        rows += measure.measure_captions(NAMES[name], llava, budget, seed=seed, dataset=dataset).rows
    rows += measure.measure_scenes(NAMES[name], llava, budget, seed=seed)
    rows += measure.measure_questions(NAMES[name], llava, budget, seed=seed)
    return rows + measure.measure_targeted(NAMES[name], llava, budget, seed=seed)


def over_seeds(reports: dict[int, list[Row]]) -> list[dict]:
    """For each figure its value with each seed, their mean, and the mean of the ends of their 95 % intervals."""
    table: dict[tuple, dict] = {}
    for seed, rows in sorted(reports.items()):
        for row in rows:
            eps = row.threat_model.to_dict()["eps"] if row.threat_model else "clean"
            model = row.model.removeprefix("LLaVA + ")
            cell = {
                "model": model,
                "task": row.task,
                "dataset": row.dataset,
                "metric": row.metric,
                "eps": eps,
            }
            entry = table.setdefault(tuple(cell.values()), cell | {"n": row.n, "seeds": {}, "ci": []})
            entry["seeds"][str(seed)] = row.value
            entry["ci"].append(row.ci)
    for entry in table.values():
        values, ends = list(entry["seeds"].values()), entry.pop("ci")
        entry["mean"], entry["range"] = sum(values) / len(values), [min(values), max(values)]
        entry["mean_ci"] = [sum(end[side] for end in ends) / len(ends) for side in (0, 1)]
    return list(table.values())


def markdown(table: list[dict]) -> str:
    """A line a model and a figure's radii as columns: mean over the seeds, smallest and largest, in percent."""
    lines = [
        "| task, set | model | clean | 2/255 | 4/255 | n | seeds |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    found = {(c["task"], c["dataset"], c["model"], c["eps"]): c for c in table}
    for task, dataset in dict.fromkeys((c["task"], c["dataset"]) for c in table):
        for model in NAMES.values():
            cells = [found.get((task, dataset, model, eps)) for eps in ("clean", "2/255", "4/255")]
            if cells[0] is None:
                continue
            shown = [_cell(cell) if cell else "" for cell in cells]
            lines.append(
                f"| {task}, {dataset} ({cells[0]['metric']}) | {model} | {' | '.join(shown)} | {cells[0]['n']} "
                f"| {', '.join(cells[0]['seeds'])} |"
            )
    return "\n".join(lines) + "\n"


def above(table: list[dict], model: str = "FARE-4", other: str = "TeCoA-4") -> str:
    """By how many points one model's figures are above another's of the same seed: mean, smallest and largest.

    Empty where the two have no seed in common.
    """
    found = {(c["task"], c["dataset"], c["model"], c["eps"]): c["seeds"] for c in table}
    lines = []
    for task, dataset in dict.fromkeys((c["task"], c["dataset"]) for c in table):
        cells = []
        for eps in ("clean", "2/255", "4/255"):
            ours, theirs = (found.get((task, dataset, name, eps), {}) for name in (model, other))
            points = [100 * (ours[seed] - theirs[seed]) for seed in ours if seed in theirs]
            mean = sum(points) / len(points) if points else 0.0
            cells.append(f"{mean:+.1f} ({min(points):+.1f} to {max(points):+.1f})" if points else "")
        if any(cells):
            lines.append(f"| {task}, {dataset} | {' | '.join(cells)} |")
    head = [f"| {model} above {other}, in points | clean | 2/255 | 4/255 |", "| --- | ---: | ---: | ---: |"]
    return "\n".join([*head, *lines]) + "\n" if lines else ""


def _cell(cell: dict) -> str:
    low, high = cell["range"]
    return f"{100 * cell['mean']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def transfer(images: int, steps: int) -> str:
    """Accuracy of each shipped encoder on the images that APGD on the cross entropy made on each of them."""
    test = measure.part("twemoji", images)
    text = measure.text_embeddings(load_clip(), test)
    logits = {
        NAMES[name]: logits_function(load_encoder(str(encoder_folder(name))), text, measure.lab_normalization())
        for name in ("clip", *ENCODERS)
    }
    matrix = evaluate_transfer(logits, logits, test.pixels, test.labels, TRANSFER, dataset="twemoji", steps=steps)
    head = f"Accuracy in percent on {len(test)} images of twemoji, {TRANSFER}, APGD-CE of {steps} steps, seed 0:\n\n"
    return head + matrix.to_markdown()


if __name__ == "__main__":
    main()
