"""How long the training of the lab's quickstart takes: `accelerate launch -m fare_hf.train`, as `fare-hf quickstart`.

    python examples/benchmarks/quickstart_training.py --output quickstart.json

`seconds_in_all` holds the start of the processes and the saving; the others are from what the run logged itself. One
checkpoint is saved, at the end, for its log.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from turns import write

from fare_hf.lab.recipes import ALLOCATOR, QUICK_STEPS, command, quick_recipe


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one training, and its images per second."""
    options = quick_recipe(args.max_steps)
    options |= {"per_device_train_batch_size": str(args.batch_size)} if args.batch_size else {}
    options["save_strategy"] = "steps"
    options["save_steps"] = str(args.max_steps)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        subprocess.run(command(options, Path(folder) / "run"), check=True, env=os.environ | ALLOCATOR)
        seconds = time.perf_counter() - begin
        state = Path(folder) / "run" / f"checkpoint-{args.max_steps}" / "trainer_state.json"
        log = [line for line in json.loads(state.read_text())["log_history"] if "images_per_second" in line]
    rate = statistics.median(line["images_per_second"] for line in log)
    images = args.max_steps * int(options["per_device_train_batch_size"])
    found = {"seconds_in_all": round(seconds, 1), "training_seconds": round(images / rate, 1)}
    return found | {"images_per_second": rate, "loss": log[-1]["loss"]}


def main() -> None:
    """Prints the seconds and writes them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=QUICK_STEPS)
    parser.add_argument("--batch_size", type=int, help="default: the recipe's")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    write(measure(args), args)


if __name__ == "__main__":
    main()
