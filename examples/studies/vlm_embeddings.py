"""What of a vision tower should be made robust, so that a LLaVA stays right under attack? A study on the lab.

    python examples/studies/vlm_embeddings.py --output_dir outputs/vlm-embeddings

FARE at 4/255 on each of `ARMS`, with as many steps as a budget of operations pays for. The learning rate of an arm is
chosen on captions of the validation style with seed 0; then every seed is measured through the lab's whole LLaVA on
styles that no training saw: captions, yes-no questions, POPE, and a forced sentence, clean and at 2/255 and 4/255.
Every training and every report is saved on its own, so that an interrupted study goes on. Writes `study.json` and
`study.md`: the mean over the seeds, and the difference to the first arm on the same images with its 95 % interval (a
bootstrap over images; each counts with all its seeds), of figures that keep what each image gave: not the questions'.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fare_hf import RobustnessReport, ThreatModel, swap_vision_tower
from fare_hf.encoders import load_encoder
from fare_hf.encoders.flops import Flops, count_flops
from fare_hf.evaluation import NamesConcept, Row, environment, evaluate_captions
from fare_hf.evaluation.report.intervals import has_width, paired_interval
from fare_hf.lab import encoder_folder, load_llava, measure, recipes
from fare_hf.lab.captions import zero_shot_prompts
from fare_hf.lab.drawings import all_concepts
from fare_hf.vlm.tower_files import load_vision_tower

ARMS = ("projected", "tokens", "features", "projected+tokens")
"""Values of `--embedding`. The first is what FARE was published with; `features` is behind the projector."""
ORIGINAL = "original"
STEPS_OF_ATTACK = 2
BUDGET = replace(measure.SEEDS, samples={})
CHOICE: dict[str, Any] = {"steps": 20, "eps": "2/255"}
"""Captions of the validation style by which a learning rate is chosen: the mean of clean and attacked accuracy."""


@cache
def llava_folder(output_dir: Path) -> Path:
    """The lab's LLaVA as a folder of its own, as a model of the Hub has it."""
    folder = output_dir / "llava"
    if not (folder / "model.safetensors").exists():
        for part in load_llava():
            part.save_pretrained(folder)
    return folder


def affordable_steps(arm: str, output_dir: Path, steps: int, batch: int) -> int:
    """Steps of an arm for the operations of `steps` steps of the first one."""
    images = batch * steps * cost(ARMS[0], output_dir)
    return round(images / (batch * cost(arm, output_dir)))


def cost(arm: str, output_dir: Path) -> int:
    """Operations of one image in one step."""
    if arm == "features":
        tower, reading = load_vision_tower(str(llava_folder(output_dir)))
        return reading.flops(tower).step(STEPS_OF_ATTACK)
    config = load_encoder(str(encoder_folder("clip"))).config
    flops: Flops = count_flops(config, "tokens" if arm == "tokens" else "projected")
    return flops.step(STEPS_OF_ATTACK)


def train(arm: str, rate: str, seed: int, args: argparse.Namespace) -> Path:
    """The encoder of one training, which is not made twice."""
    folder = args.output_dir / arm / f"lr-{rate}" / f"seed-{seed}"
    if not (folder / "encoder" / "model.safetensors").exists():
        steps = affordable_steps(arm, args.output_dir, args.steps, int(recipes.COMMON["per_device_train_batch_size"]))
        options = recipes.recipe("fare-4", steps, rate) | recipes.DRAWINGS | {"embedding": arm, "seed": str(seed)}
        options |= {"model": str(llava_folder(args.output_dir))} if arm == "features" else {}
        print(f"{arm}, learning rate {rate}, seed {seed}: {steps} steps", flush=True)
        subprocess.run(recipes.command(options, folder), check=True, env=os.environ | recipes.ALLOCATOR)
    return folder / "encoder"


def choose_rate(arm: str, args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The learning rate that is best on the validation style with seed 0, and what each one gave there."""
    path = args.output_dir / arm / "choice.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for rate in args.learning_rates:
        if rate not in found:
            clean, attacked = (row.value for row in validated(train(arm, rate, 0, args), args.validation_images))
            found[rate] = {"clean": clean, CHOICE["eps"]: attacked}
            path.write_text(json.dumps(found, indent=2) + "\n")
            print(f"{arm}, learning rate {rate}: {clean:.1%} clean, {attacked:.1%} at {CHOICE['eps']}", flush=True)
    return max(args.learning_rates, key=lambda rate: sum(found[rate].values())), found


def validated(encoder: Path, images: int) -> list[Row]:
    """Captions of the validation style, clean and attacked."""
    test = measure.part("fxemoji", images)
    wanted = [test.class_names[label] for label in test.labels.tolist()]
    targets = [zero_shot_prompts(test.class_names, "fxemoji")[label] for label in test.labels.tolist()]
    names: dict[str, Any] = {"prompt": measure.PROMPT, "model": encoder.parent.name, "dataset": "fxemoji"}
    options: dict[str, Any] = {
        "threat_models": [ThreatModel("linf", CHOICE["eps"])],
        "steps": CHOICE["steps"],
        "max_new_tokens": 14,
    }
    vlm, processor = seeing_through(encoder)
    options["correct"] = NamesConcept(all_concepts())
    return evaluate_captions(vlm, processor, test.pixels, targets, wanted, **names, **options).rows


def seeing_through(encoder: Path | None) -> measure.Vlm:
    """The lab's LLaVA with another tower; None is its own."""
    llava = load_llava()
    if encoder is not None:
        swap_vision_tower(llava[0], str(encoder))
    return llava


def rows_of(name: str, encoder: Path | None, seed: int, args: argparse.Namespace) -> list[Row]:
    """Everything that is measured of one tower, saved or made."""
    folder = args.output_dir / "reports" / name / f"seed-{seed}"
    if not (folder / "report.json").exists():
        llava, budget = seeing_through(encoder), args.budget
        rows = measure.measure_captions(name, llava, budget, seed=seed).rows
        rows += measure.measure_questions(name, llava, budget, seed=seed)
        rows += measure.measure_targeted(name, llava, budget, seed=seed)
        RobustnessReport(rows, environment(seed=seed)).save(folder)
        print(f"{name}, seed {seed}: measured", flush=True)
    return RobustnessReport.load(folder).rows


def figure(row: Row) -> tuple[str, str, str, str]:
    """What a row measures."""
    return row.task, row.dataset, row.metric, row.threat_model.to_dict()["eps"] if row.threat_model else "clean"


def values(rows: list[Row]) -> list[float]:
    """What each image gave, of all seeds."""
    return [float(value) for row in rows for value in (row.scores if row.scores is not None else row.outcomes or "")]


def images(rows: list[Row]) -> list[str]:
    """Which image each of the values is of: the same for all seeds."""
    return [group for row in rows for group in (row.clusters or " ".join(map(str, range(row.n)))).split()]


def together(reports: dict[str, list[list[Row]]]) -> Iterator[dict[str, Any]]:
    """A line for each figure of each arm: its values, their mean, and the difference to the first arm."""
    by_figure = {arm: _transposed(seeds) for arm, seeds in reports.items()}
    for arm, figures in by_figure.items():
        for what, rows in figures.items():
            found = [row.value for row in rows]
            line: dict[str, Any] = dict(zip(("task", "dataset", "metric", "eps"), what, strict=True)) | {"arm": arm}
            line |= {"n": rows[0].n, "seeds": found, "mean": sum(found) / len(found)}
            base = by_figure[ARMS[0]].get(what, [])
            if arm not in (ARMS[0], ORIGINAL) and len(base) == len(rows) and values(rows):
                line["difference"], interval = paired_interval(values(base), values(rows), images(rows))
                line["interval"] = interval if has_width(interval) else None
            yield line


def _transposed(seeds: list[list[Row]]) -> dict[tuple[str, str, str, str], list[Row]]:
    figures: dict[tuple[str, str, str, str], list[Row]] = {}
    for rows in seeds:
        for row in rows:
            figures.setdefault(figure(row), []).append(row)
    return figures


def table(lines: list[dict[str, Any]]) -> str:
    """Means in percent, and the difference to the first arm in points with its interval."""
    head = (
        f"| task, set | eps | arm | mean | seeds | difference to {ARMS[0]} |\n| --- | --- | --- | ---: | --- | --- |\n"
    )
    order = list(dict.fromkeys((line["task"], line["dataset"], line["metric"], line["eps"]) for line in lines))
    cells = []
    for line in sorted(
        lines, key=lambda line: order.index(tuple(line[k] for k in ("task", "dataset", "metric", "eps")))
    ):
        seeds = ", ".join(f"{100 * value:.1f}" for value in line["seeds"])
        what = f"{line['task']}, {line['dataset']} ({line['metric']})"
        cells.append(
            f"| {what} | {line['eps']} | {line['arm']} | {100 * line['mean']:.1f} | {seeds} | {_change(line)} |"
        )
    return head + "\n".join(cells) + "\n"


def _change(line: dict[str, Any]) -> str:
    """The difference to the first arm; empty where there is none."""
    if "difference" not in line:
        return ""
    ends = line["interval"] and "[" + ", ".join(f"{100 * end:+.1f}" for end in line["interval"]) + "]"
    return f"{100 * line['difference']:+.1f} {ends or '(no interval)'}"


def main() -> None:
    """Trains and measures what is missing, then puts it together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/vlm-embeddings"))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500, help=f"of {ARMS[0]}; others take as many operations")
    parser.add_argument("--learning_rates", nargs="+", default=["1e-3", "3e-3"])
    parser.add_argument("--validation_images", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="smaller parts of the sets")
    args = parser.parse_args()
    args.budget = replace(measure.QUICK, samples={}) if args.quick else BUDGET
    args.output_dir.mkdir(parents=True, exist_ok=True)
    reports, choices = {ORIGINAL: [rows_of(ORIGINAL, None, 0, args)]}, {}
    for arm in args.arms:
        rate, found = choose_rate(arm, args)
        choices[arm] = {"chosen": rate, "validation": found}
        reports[arm] = [rows_of(arm, train(arm, rate, seed, args), seed, args) for seed in args.seeds]
    lines = list(together(reports))
    content = {
        "learning_rates": choices,
        "figures": lines,
        "environment": environment(),
        "torch_threads": torch.get_num_threads(),
    }
    (args.output_dir / "study.json").write_text(json.dumps(content, indent=2) + "\n")
    (args.output_dir / "study.md").write_text(table(lines))
    print(table(lines))


if __name__ == "__main__":
    main()
