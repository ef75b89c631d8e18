"""What robustness costs: the lab's accuracy over the operations of the training, for the settings that won.

    python examples/benchmarks/cost_curve.py --output examples/benchmarks/results/cost-curve.json

Arms of `cheaper.py`: FARE-4 from the lab's CLIP, with as many steps as each budget of operations pays for, on images
composed anew in every step (`lab:images`). Each point is a training with a cosine schedule of its own. Judged on
the validation style, clean and by APGD on the cross entropy and on the targeted DLR loss. Writes the points as JSON, a
table beside it (.md) and the curves (.png); points in the file are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from cheaper import ARMS, BATCH, trained_and_measured

from fare_hf.encoders import load_encoder
from fare_hf.encoders.flops import count_flops
from fare_hf.evaluation import environment
from fare_hf.evaluation.report.plots import new_figure, save_figure
from fare_hf.lab import encoder_folder, load_training_set

CURVES = ("10 steps", "2 steps", "2 steps, first 2 of 4 blocks")


def point(name: str, budget: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one arm for a budget of operations, and measures it."""
    images = load_training_set("images", seed=args.seed)
    arm, data = ARMS[name] | {"learning_rate": args.learning_rate}, (images, images.processor)
    return {"flops": budget} | trained_and_measured(name, arm, data, args.seed, budget, args.samples)


def table(lines: list[dict[str, Any]]) -> str:
    """Clean and robust accuracy, a line a budget, as parts of the largest one."""
    arms = list(dict.fromkeys(line["arm"] for line in lines))
    largest = max(line["flops"] for line in lines)
    text = [f"| operations | {' | '.join(arms)} |", f"| --- | {' | '.join('---:' for _ in arms)} |"]
    for flops in sorted({line["flops"] for line in lines}):
        found = {line["arm"]: line for line in lines if line["flops"] == flops}
        cells = [
            f"{100 * found[arm]['clean']:.1f} / {100 * found[arm]['robust']:.1f} ({found[arm]['steps']} steps)"
            if arm in found
            else ""
            for arm in arms
        ]
        text.append(f"| {flops:.1e} ({flops / largest:.0%}) | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Clean (dashed) and robust accuracy over operations, on a logarithmic axis."""
    figure = new_figure(6.5, 4.5, layout="constrained")
    axes = figure.add_subplot()
    for number, arm in enumerate(dict.fromkeys(line["arm"] for line in lines)):
        of = sorted((line for line in lines if line["arm"] == arm), key=lambda line: line["flops"])
        operations = [line["flops"] for line in of]
        for key, style in (("clean", "--"), ("robust", "-")):
            values = [100 * line[key] for line in of]
            label = f"{arm}, {'clean' if key == 'clean' else 'at 4/255'}"
            axes.plot(operations, values, style, marker="o", color=f"C{number}", label=label)
    axes.set_xscale("log")
    axes.set_xlabel("operations of the training")
    axes.set_ylabel("accuracy in percent")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path)


def main() -> None:
    """Measures the points that are missing, saving after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=list(CURVES), choices=list(ARMS), metavar="ARM")
    help_ = "operations, in steps of the arm `10 steps` (default 36 90 180 360)"
    parser.add_argument("--budgets", type=int, nargs="+", default=[36, 90, 180, 360], metavar="STEPS", help=help_)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0, help="of one file: other seeds go to files of their own")
    parser.add_argument("--samples", type=int, default=252, help="images to judge on (default 252)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    args = parser.parse_args()
    lines: list[dict[str, Any]] = json.loads(args.output.read_text())["lines"] if args.output.exists() else []
    one = BATCH * count_flops(load_encoder(str(encoder_folder("clip"))).config).step(10)
    command = " ".join(["python", "examples/benchmarks/cost_curve.py", *sys.argv[1:]])
    found = {"command": command, "learning_rate": args.learning_rate, "batch": BATCH, "environment": environment()}
    found |= {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "lines": lines}
    done = {(line["arm"], line["flops"]) for line in lines}
    for budget in (budget * one for budget in args.budgets):
        for name in (name for name in args.arms if (name, budget) not in done):
            lines.append(point(name, budget, args))
            print(json.dumps(lines[-1]), flush=True)
            args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            args.output.with_suffix(".md").write_text(table(lines), encoding="utf-8")
    draw(lines, args.output.with_suffix(".png"))
    print(table(lines))


if __name__ == "__main__":
    main()
