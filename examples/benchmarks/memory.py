"""How much memory a step takes, and how large a batch fits.

    python examples/benchmarks/memory.py --model vit-l-14-336 --batch_size 16 --output memory.json      # on a GPU

The peak of two steps of `FareTrainer` in bf16 with activation checkpointing (two, as AdamW's moments are there from
the end of the first), beside what `fare_hf.encoders.memory` foretells; then larger batches, twice as many each time,
and between the last that fitted and the first that did not. The number of attack steps changes nothing: one is made.
On a CPU the peak is that of the process, libraries included.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from turns import DEVICE, arguments, random_clip, release, write

from fare_hf import FareConfig, FareTrainer
from fare_hf.encoders.memory import count_memory
from fare_hf.training.logging.measurements import peak_memory

GIB = 2**30


def largest(fits: Callable[[int], bool], start: int, most: int, step: int) -> int:
    """The largest multiple of `step` from `start` to `most` that fits, by doubling and halving; 0 if none does."""
    if not fits(start):
        return 0
    good, bad = start, start
    while good < most and bad == good:
        bad = min(2 * good, most)
        if fits(bad):
            good = bad
    while bad - good > step:
        middle = good + max(step, (bad - good) // 2 // step * step)
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def two_steps(encoder: Any, processor: Any, batch_size: int, checkpointing: bool) -> dict[str, float]:
    """Peak GiB of two steps: of tensors, and of what was reserved for them.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    release()
    size = encoder.config.image_size
    pixels = torch.rand(3, size, size)
    samples = [{"pixel_values": pixels, "index": number} for number in range(2 * batch_size)]
    options: dict[str, Any] = {"activation_checkpointing": checkpointing, "bf16": True}
    options |= {"use_cpu": DEVICE.type == "cpu", "disable_tqdm": True, "dataloader_drop_last": True}
    with tempfile.TemporaryDirectory() as folder:
        config = FareConfig(
            folder,
            per_device_train_batch_size=batch_size,
            attack_steps=1,
            attack_step_size="4/255",
            max_steps=2,
            warmup_steps=0,
            save_strategy="no",
            logging_strategy="no",
            **options,
        )
        FareTrainer(copy.deepcopy(encoder), config, samples, processing_class=processor).train()
    reserved = torch.cuda.max_memory_reserved() if DEVICE.type == "cuda" else peak_memory(DEVICE)
    return {"peak_gib": round(peak_memory(DEVICE) / GIB, 2), "reserved_gib": round(reserved / GIB, 2)}


def measure(args: argparse.Namespace) -> None:
    """Writes the peak as soon as it is known, then the largest batch."""
    encoder, processor = random_clip(args.model)
    peak = two_steps(encoder, processor, args.batch_size, True)
    foretold = count_memory(encoder.config, args.batch_size, half=True, checkpointing=True).peak
    found: dict[str, Any] = peak | {"foretold_gib": round(foretold / GIB, 2), "tried": {}}
    write(found, args, quiet=True)

    def fits(batch_size: int) -> bool:
        try:
            found["tried"][str(batch_size)] = two_steps(encoder, processor, batch_size, True)["peak_gib"]
        except torch.OutOfMemoryError:
            found["tried"][str(batch_size)] = None
        write(found, args, quiet=True)
        return found["tried"][str(batch_size)] is not None

    found["largest_batch"] = largest(fits, args.batch_size, args.most, args.batch_size)
    write(found, args)


def main() -> None:
    """Prints what it found and writes it down."""
    parser = arguments(__doc__, "vit-l-14-336", 16)
    parser.add_argument("--most", type=int, default=1024, help="images of the largest batch that is tried")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
