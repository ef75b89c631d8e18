"""What the parts of the quickstart's measuring cost: CPU seconds of an image, on one thread.

    python examples/benchmarks/quickstart_parts.py --output examples/benchmarks/results/quickstart-parts.json

Each encoder is attacked at 4/255 alone, as the quickstart does, and at 2/255 and 4/255, as it did before: what
survives the smaller ball takes most of the time. `fare_hf.lab.quickstart_plan` has the figures of 4/255. The FARE
encoder is the one that is shipped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from turns import write

from fare_hf import swap_vision_tower
from fare_hf.encoders import load_encoder
from fare_hf.lab import encoder_folder, load_clip, load_llava, measure

ENCODERS = {"CLIP": "clip", "FARE": "fare-4", "TeCoA": "tecoa-4"}


def seconds(measured: Callable[[], Any], images: int) -> float:
    """CPU seconds of an image."""
    begin = time.process_time()
    measured()
    return round((time.process_time() - begin) / images, 4)


def zero_shot(budget: measure.Budget) -> dict[str, dict[str, float]]:
    """Of each encoder, at both radii and at the larger alone; the sets are composed before."""
    images, clip, found = sum(count or 0 for count in budget.samples.values()), load_clip(), {}
    for name in budget.samples:
        measure.part(name, 1)
    for name, folder in ENCODERS.items():
        encoder = load_encoder(str(encoder_folder(folder)))
        arms = {"4/255": measure.THREAT_MODELS[-1:], "2/255 and 4/255": measure.THREAT_MODELS}
        found[name] = {
            arm: seconds(partial(measure.measure_zero_shot, name, encoder, clip, budget, balls), images)
            for arm, balls in arms.items()
        }
    return found


def language(budget: measure.Budget) -> dict[str, dict[str, float]]:
    """Of the LLaVA with either tower, at 4/255."""
    llava, found, balls = load_llava(), {}, measure.THREAT_MODELS[-1:]
    for name in ("CLIP", "FARE"):
        if name == "FARE":
            swap_vision_tower(llava[0], str(encoder_folder("fare-4")))
        captions = partial(measure.measure_captions, name, llava, budget, balls)
        sentences = partial(measure.measure_targeted, name, llava, budget, balls)
        found[f"LLaVA + {name}"] = {
            "caption": seconds(captions, budget.captions or 1),
            "sentence": seconds(sentences, budget.targeted * len(budget.targeted_sets)),
        }
    return found


def main() -> None:
    """Prints the seconds and writes them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=40, help="of the drawings; of the other sets and answers fewer")
    parser.add_argument("--load", help="what else the machine did, for the record")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    few = max(1, args.samples * 3 // 10)
    samples = {"twemoji": args.samples, "fashion": few, "digits": few}
    budget = replace(measure.QUICK, samples=samples, captions=few, targeted=max(1, few // 2))
    write({"cpu_seconds_of_an_image": zero_shot(budget) | language(budget)}, args)


if __name__ == "__main__":
    main()
