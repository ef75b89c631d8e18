"""What a second process is worth: images per second of two processes and of one, the same batch in each process.

    python examples/benchmarks/processes.py --output examples/benchmarks/results/processes-cpu.json

Starts this file under `accelerate launch`, one process then two, in turns. On a CPU each process has one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from turns import random_clip

from fare_hf import FareConfig, FareTrainer
from fare_hf.evaluation import environment


def worker(args: argparse.Namespace) -> None:
    """One of the processes: a few steps; the main process writes its images per second."""
    encoder, processor = random_clip(args.model)
    size = encoder.config.image_size
    samples = [{"pixel_values": torch.rand(3, size, size), "index": n} for n in range(2 * args.batch_size)]
    options: dict[str, Any] = {"per_device_train_batch_size": args.batch_size, "attack_steps": args.attack_steps}
    options |= {"bf16": True, "max_steps": args.steps, "warmup_steps": 0, "logging_steps": 1, "disable_tqdm": True}
    options |= {"use_cpu": not torch.cuda.is_available(), "save_strategy": "no", "dataloader_drop_last": True}
    config = FareConfig(str(Path(args.worker).parent / "run"), **options)
    trainer = FareTrainer(encoder, config, samples, processing_class=processor)
    trainer.train()
    if trainer.is_world_process_zero():
        rates = [line["images_per_second"] for line in trainer.state.log_history if "images_per_second" in line]
        found = {"processes": trainer.args.world_size, "rates": rates[1:]}
        Path(args.worker).write_text(json.dumps(found))


def rates_of(processes: int, args: argparse.Namespace) -> list[float]:
    """Images per second of each step but the first."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "rates.json"
        words = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
        words += ["--num_machines", "1", "--mixed_precision", "bf16", "--dynamo_backend", "no"]
        words += ["--num_cpu_threads_per_process", "1", "--main_process_port", "0"]
        # Of --cpu the launcher makes one process whatever their number; --multi_gpu is torchrun, with CPUs too.
        words += ["--multi_gpu"] if processes > 1 else []
        words += [__file__, "--worker", str(result), "--model", args.model, "--batch_size", str(args.batch_size)]
        words += ["--attack_steps", str(args.attack_steps), "--steps", str(args.steps)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        found = json.loads(result.read_text())
        if found["processes"] != processes:
            raise RuntimeError(f"the launcher started {found['processes']} processes, not {processes}.")
        return found["rates"]


def main() -> None:
    """Prints the ratio and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit-b-32", help="of step.py")
    parser.add_argument("--batch_size", type=int, default=4, help="images of a process")
    parser.add_argument("--attack_steps", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="of a run; the first is not counted")
    parser.add_argument("--turns", type=int, default=2, help="runs of either kind")
    parser.add_argument("--load", help="what else the machine did, for the record")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(args.turns):
        for processes in rates:
            rates[processes] += rates_of(processes, args)
    found: dict[str, Any] = {"images_per_second": {str(n): statistics.median(values) for n, values in rates.items()}}
    found["factor"] = round(found["images_per_second"]["2"] / found["images_per_second"]["1"], 3)
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "worker")}
    found |= {"all": {str(n): values for n, values in rates.items()}, "settings": settings}
    found["environment"] = environment(seed=0)
    print(json.dumps({key: found[key] for key in ("images_per_second", "factor", "settings")}, indent=2))
    if args.output is not None:
        args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
