"""FSDP2 on one device against plain: the same losses, and what sharding costs.

    python examples/benchmarks/fsdp.py --model vit-b-32 --batch_size 32 --output fsdp.json

Starts this file under `accelerate launch` twice, in one process each: by `examples/accelerate/fsdp.yaml`, then
without it. On a CPU, where accelerate never shards, it is made to (`tests/helpers/distributed/sharded_on_cpu.py`).
Fails, after the result is written, where a loss differs by more than `MOST_DIFFERENCE`.
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
from turns import DEVICE, arguments, random_clip, write

from fare_hf import FareConfig, FareTrainer

ROOT = Path(__file__).resolve().parents[2]
FSDP = ROOT / "examples" / "accelerate" / "fsdp.yaml"
MOST_DIFFERENCE = 1e-3
"""Relative, of a loss: one device does the same operations, and bf16 rounds what is added in another order."""


def worker(args: argparse.Namespace) -> None:
    """The training under the launcher."""
    if args.sharded and DEVICE.type == "cpu":
        sys.path.insert(0, str(ROOT / "tests"))
        from helpers.distributed.sharded_on_cpu import shard_on_cpu

        shard_on_cpu()
    encoder, processor = random_clip(args.model)
    size = encoder.config.image_size
    samples = [{"pixel_values": torch.rand(3, size, size), "index": n} for n in range(4 * args.batch_size)]
    options: dict[str, Any] = {"per_device_train_batch_size": args.batch_size, "attack_steps": 2}
    options |= {"attack_step_size": "3/255", "bf16": True, "max_steps": args.steps, "warmup_steps": 0}
    options |= {"use_cpu": DEVICE.type == "cpu", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    config = FareConfig(str(args.worker.parent / "run"), **options)
    trainer = FareTrainer(encoder, config, samples, processing_class=processor)
    trainer.train()
    log = [line for line in trainer.state.log_history if "images_per_second" in line]
    found = {"losses": [line["loss"] for line in log], "rates": [line["images_per_second"] for line in log][1:]}
    args.worker.write_text(json.dumps(found | {"sharded": trainer.is_fsdp_enabled}))


def start(args: argparse.Namespace, sharded: bool) -> dict[str, Any]:
    """One training.

    Raises:
        RuntimeError: it was not sharded, or was.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "found.json"
        words = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
        words += ["--mixed_precision", "bf16", "--dynamo_backend", "no", "--main_process_port", "0"]
        words += ["--config_file", str(FSDP)] if sharded else []
        words += [__file__, "--worker", str(result), "--model", args.model, "--batch_size", str(args.batch_size)]
        subprocess.run([*words, "--steps", str(args.steps), *(["--sharded"] if sharded else [])], check=True)
        found = json.loads(result.read_text())
    if found["sharded"] != sharded:
        raise RuntimeError(f"the launcher was asked for sharded={sharded}, and the run says {found['sharded']}.")
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The largest relative difference of the losses, and the ratio of the speeds."""
    sharded, whole = (start(args, flag) for flag in (True, False))
    ours, theirs = (torch.tensor(run["losses"], dtype=torch.float64) for run in (sharded, whole))
    found: dict[str, Any] = {"loss_difference": (ours / theirs - 1).abs().max().item()}  # NaN where one is
    rates = [statistics.median(run["rates"]) for run in (sharded, whole)]
    return found | {"speed_ratio": round(rates[0] / rates[1], 3), "all": {"fsdp": sharded, "plain": whole}}


def main() -> None:
    """Prints the difference and writes it down."""
    parser = arguments(__doc__, "vit-b-32", 8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--sharded", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    found = measure(args)
    write(found, args)
    if not found["loss_difference"] <= MOST_DIFFERENCE:  # NaN is none either
        raise SystemExit(f"fsdp.py: error: losses differ by {found['loss_difference']:.3g}, {found['all']}.")


if __name__ == "__main__":
    main()
