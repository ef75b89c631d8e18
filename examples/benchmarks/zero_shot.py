"""How many images a second APGD attacks in zero-shot classification, by precision.

    python examples/benchmarks/zero_shot.py --model vit-l-14 --batch_size 128 --output zero_shot.json      # on a GPU

APGD on the cross entropy of random class texts, by turns in one process: an encoder in fp32, the same where products
may be rounded to TF32, and one in bf16 (pixels stay in fp32). `images_per_second` is of runs of 100 steps, from runs
of `--steps`; the labels are what the encoder says, so that all images are attacked.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from turns import DEVICE, arguments, fp32_products, medians, random_clip, take_turns, write

from fare_hf import ThreatModel
from fare_hf.attacks import apgd
from fare_hf.data.pixels import Normalization
from fare_hf.encoders import matmul_patch_embedding
from fare_hf.evaluation.zero_shot.classification import logits_function

FULL = 100
"""Steps of the run whose images per second are told."""
ARMS = {"fp32": (torch.float32, "ieee"), "tf32": (torch.float32, "tf32"), "bf16": (torch.bfloat16, "ieee")}


def attack(logits_of: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, steps: int, matmul: str) -> None:
    """One run of APGD."""
    with fp32_products(matmul):
        labels = logits_of(pixels).argmax(1)
        apgd(
            lambda points: F.cross_entropy(logits_of(points), labels, reduction="none"),
            pixels,
            ThreatModel("linf", "4/255"),
            steps=steps,
        )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of each precision, and the ratio to fp32."""
    encoder, processor = random_clip(args.model)
    encoder.to(DEVICE)
    size, normalization = encoder.config.image_size, Normalization.from_processor(processor)
    pixels = torch.rand(args.batch_size, 3, size, size).to(DEVICE)
    texts = F.normalize(torch.randn(args.classes, encoder.config.projection_dim), dim=-1)
    models = {dtype: copy.deepcopy(encoder).to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    with matmul_patch_embedding(models[torch.float32]), matmul_patch_embedding(models[torch.bfloat16]):
        logits = {dtype: logits_function(model, texts, normalization) for dtype, model in models.items()}
        arms = {name: partial(attack, logits[dtype], pixels, args.steps, how) for name, (dtype, how) in ARMS.items()}
        seconds = take_turns(arms, args.rounds)
    rates = {name: args.batch_size * args.steps / FULL / value for name, value in medians(seconds).items()}
    found: dict[str, Any] = {"images_per_second": {name: round(rate, 2) for name, rate in rates.items()}}
    found["speed_up"] = {name: round(rate / rates["fp32"], 3) for name, rate in rates.items() if name != "fp32"}
    return found | {"seconds": seconds}


def main() -> None:
    """Prints the rates and writes them down."""
    parser = arguments(__doc__, "vit-b-32", 16)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10, help="of a run that is timed")
    parser.add_argument("--rounds", type=int, default=2, help="after one that is not counted")
    args = parser.parse_args()
    write(measure(args), args)


if __name__ == "__main__":
    main()
