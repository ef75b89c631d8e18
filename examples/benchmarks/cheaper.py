"""Which of the cheaper trainings is worth it? Robust accuracy on the lab for the same number of operations.

    python examples/benchmarks/cheaper.py --output examples/benchmarks/results/cheaper.json

Every arm is FARE-4 from the lab's CLIP with as many steps as a budget of operations pays for
(`fare_hf.encoders.flops`), on the same fixed images, with several seeds (order of the images, random starts). Judged
on the validation style by APGD on the cross entropy and on the targeted DLR loss. The lines of two
arms were measured before their options left the library, for they did not pay: attacks that begin at the signs of the
sample's last perturbation (`2 warm steps`: ATTA, arXiv 1912.11969), and low-rank updates (`lora`; `examples/lora.py`).
`2 steps in fp8` tells on a CPU, which is slow at it, what the 8 bits do to the robustness, and nothing of the time.
With `--jobs` so many run at once, one thread each; operations are the same, CPU seconds are of that load.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from fare_hf import FareConfig, FareTrainer, ThreatModel
from fare_hf.encoders import load_encoder
from fare_hf.encoders.flops import count_flops
from fare_hf.evaluation import environment
from fare_hf.lab import encoder_folder, load_clip, load_training_set, measure
from fare_hf.training.attack import attack_steps_at
from fare_hf.training.trainable import trained_share

FEW: dict[str, Any] = {"attack_steps": 2, "attack_step_size": "3/255"}
ARMS: dict[str, dict[str, Any]] = {
    "10 steps": {"attack_steps": 10, "attack_step_size": "1/255"},
    "2 steps": FEW,
    "1 step": {"attack_steps": 1, "attack_step_size": "5/255"},
    "1 to 3 steps": {"attack_steps": 3, "attack_step_size": "3/255", "attack_steps_start": 1},
    "2 steps in bf16": FEW | {"attack_bf16": True},
    "2 steps in fp8": FEW | {"attack_fp8": True},
    "2 steps, first 2 of 4 blocks": FEW | {"trained_blocks": 2},
}
BATCH, LEARNING_RATE = 32, 3e-3
"""The lab's own recipe (`fare_hf.lab.recipes`)."""


def trainer_of(
    arm: dict[str, Any], images: list[dict[str, Any]] | Dataset, processor: Any, seed: int, steps: int
) -> FareTrainer:
    """A training of one arm."""
    options: dict[str, Any] = {
        "per_device_train_batch_size": BATCH,
        "learning_rate": LEARNING_RATE,
        "warmup_steps": 0.1,
    }
    options |= {"save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    with tempfile.TemporaryDirectory() as folder:
        config = FareConfig(folder, eps="4/255", max_steps=steps, seed=seed, **options | arm)
    encoder = load_encoder(str(encoder_folder("clip")))
    return FareTrainer(encoder, config, train_dataset=images, processing_class=processor)


def affordable(trainer: FareTrainer, budget: int) -> int:
    """Steps that a budget of operations pays for; a schedule is counted step by step, for its own length."""
    flops, share = count_flops(trainer.model.config), trained_share(trainer.model)

    def cost(steps: int) -> int:
        counts = [attack_steps_at(trainer.args, step / steps).count for step in range(steps)]
        return BATCH * sum(flops.step(count, trained=share) for count in counts)

    steps = 1
    while cost(steps + 1) <= budget:
        steps += 1
    return steps


def run(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains and measures one arm with one seed."""
    torch.set_num_threads(args.threads)
    return trained_and_measured(name, ARMS[name], drawings(args.images), seed, budget_of(args), args.samples)


def trained_and_measured(
    name: str, arm: dict[str, Any], data: tuple[Any, Any], seed: int, budget: int, samples: int
) -> dict[str, Any]:
    """One arm with as many steps as a budget of operations pays for, on images and with their processor."""
    steps = affordable(trainer_of(arm, *data, seed, 1), budget)
    trainer = trainer_of(arm, *data, seed, steps)
    begin = time.process_time()
    trainer.train()
    seconds = time.process_time() - begin
    part = measure.Budget({"fxemoji": samples}, steps=20, target_classes=2)
    rows = measure.measure_zero_shot(name, trainer.model, load_clip(), part, [ThreatModel("linf", "4/255")])
    clean, robust = (row.value for row in rows)
    line = {"arm": name, "seed": seed, "steps": steps, "cpu_seconds": round(seconds, 1), "n": samples}
    return line | {"clean": clean, "robust": robust, "attack": rows[1].attack, "eps": "4/255"}


@cache
def drawings(count: int) -> tuple[list[dict[str, Any]], Any]:
    """The images to train on, drawn once a process, and their processor."""
    dataset = load_training_set("drawings")
    return [dataset[index] for index in range(count)], dataset.processor


def budget_of(args: argparse.Namespace) -> int:
    """Operations that each arm may spend."""
    return args.budget * BATCH * count_flops(load_encoder(str(encoder_folder("clip"))).config).step(10)


def runs(wanted: list[tuple[str, int]], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The lines of what is wanted, as they are done."""
    if args.jobs == 1:
        yield from (run(name, seed, args) for name, seed in wanted)
        return
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, name, seed, args) for name, seed in wanted]):
            yield done.result()


def table(lines: list[dict[str, Any]]) -> str:
    """Means over the seeds, with the lowest and highest robust accuracy."""
    text = [
        "| arm | steps | clean | at 4/255 (lowest to highest) | CPU seconds |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in dict.fromkeys(line["arm"] for line in lines):
        of = [line for line in lines if line["arm"] == name]
        robust = [100 * line["robust"] for line in of]
        means = [statistics.mean(line[key] for line in of) for key in ("clean", "cpu_seconds")]
        span = f"{statistics.mean(robust):.1f} ({min(robust):.1f} to {max(robust):.1f})"
        text.append(f"| {name} | {of[0]['steps']} | {100 * means[0]:.1f} | {span} | {means[1]:.0f} |")
    return "\n".join(text) + "\n"


def main() -> None:
    """Prints a line a run and a table at the end; finished runs in the output file are not run again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=int, default=36, help="in steps of the arm `10 steps` (default 36)")
    parser.add_argument("--images", type=int, default=640, help="drawings to train on (default 640)")
    parser.add_argument("--samples", type=int, default=252, help="images to judge on (default 252)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each (default 1: all threads)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; the table goes beside it, as .md")
    args = parser.parse_args()
    args.threads = torch.get_num_threads() if args.jobs == 1 else 1
    lines: list[dict[str, Any]] = json.loads(args.output.read_text())["lines"] if args.output.exists() else []
    done = {(line["arm"], line["seed"]) for line in lines}
    wanted = [(name, seed) for seed in args.seeds for name in args.arms if (name, seed) not in done]
    command = " ".join(["python", "examples/benchmarks/cheaper.py", *sys.argv[1:]])
    found = {"command": command, "budget_flops": budget_of(args), "threads": args.threads, "batch": BATCH}
    found |= {"images": args.images, "learning_rate": LEARNING_RATE, "environment": environment(), "lines": lines}
    for line in runs(wanted, args):
        print(json.dumps(line), flush=True)
        lines.append(line)
        lines.sort(key=lambda each: each["seed"])
        args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        args.output.with_suffix(".md").write_text(table(lines), encoding="utf-8")
    print(table(lines))


if __name__ == "__main__":
    main()
