"""What 8-bit floats are worth in the attack of a training step: its time and the loss that it finds.

    python examples/benchmarks/attack_precision.py --model vit-l-14 --batch_size 128 --output fp8.json      # on a GPU

The arms `bf16` and `fp8` attack the same images with the same random starts, by turns in one process. What they found
is judged by the encoder in fp32. Weights are random; whether a trained encoder is attacked as strongly in 8 bits is
what `cheaper.py` measures. A GPU without 8-bit tensor cores has the one arm.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from typing import Any

import torch
from turns import DEVICE, arguments, medians, random_clip, take_turns, write

from fare_hf import FareConfig
from fare_hf.data.pixels import Normalization
from fare_hf.encoders import embed, freeze, matmul_patch_embedding
from fare_hf.encoders.float8 import check_float8
from fare_hf.encoders.precision import attack_mode
from fare_hf.encoders.reading import EncoderReading
from fare_hf.objectives import FareObjective
from fare_hf.training.attack import BatchAttack


def precisions() -> dict[str, bool]:
    """Name of an arm -> whether in 8 bits, as far as the device can."""
    try:
        check_float8(DEVICE)
    except ValueError:
        return {"bf16": False}
    return {"bf16": False, "fp8": True}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and losses of the arms, and their ratios."""
    encoder, processor = random_clip(args.model)
    freeze(encoder.to(DEVICE))
    size, normalization = encoder.config.image_size, Normalization.from_processor(processor)
    batch = {"pixel_values": torch.rand(args.batch_size, 3, size, size), "index": torch.arange(args.batch_size)}
    batch = {key: value.to(DEVICE) for key, value in batch.items()}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        config = FareConfig(folder, attack_steps=args.attack_steps, use_cpu=DEVICE.type == "cpu")

    def attack(name: str, eight: bool) -> None:
        hold = partial(attack_mode, dtype=torch.bfloat16, float8=eight)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            run = BatchAttack(config, FareObjective(), EncoderReading("projected", normalization), hold)
            found[name] = run(encoder, encoder, batch, 0)

    with matmul_patch_embedding(encoder):
        arms = {name: partial(attack, name, eight) for name, eight in precisions().items()}
        seconds = take_turns(arms, args.rounds)
    losses = {name: loss(encoder, normalization, part.pixels, batch["pixel_values"]) for name, part in found.items()}
    median = medians(seconds)
    result: dict[str, Any] = {
        "median_seconds": {name: round(value, 4) for name, value in median.items()},
        "loss": losses,
    }
    if "fp8" in median:
        result["speed_up"] = round(median["bf16"] / median["fp8"], 3)
        result["loss_ratio"] = round(losses["fp8"] / losses["bf16"], 4)
    return result | {"seconds": seconds}


@torch.no_grad()
def loss(encoder: Any, normalization: Normalization, attacked: torch.Tensor, clean: torch.Tensor) -> float:
    """The mean squared distance of attacked and clean embeddings, in fp32."""
    parts = zip(attacked.split(32), clean.split(32), strict=True)
    values = [FareObjective()(*(embed(encoder, normalization(part)) for part in both)) for both in parts]
    return round(torch.cat(values).mean().item(), 6)


def main() -> None:
    """Prints the ratios and writes them down."""
    parser = arguments(__doc__, "vit-b-32", 16)
    parser.add_argument("--attack_steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="after one that is not counted")
    args = parser.parse_args()
    write(measure(args), args)


if __name__ == "__main__":
    main()
