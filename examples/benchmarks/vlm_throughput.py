"""What batching is worth: APGD through the lab's LLaVA, one image at a time and in batches, in one run.

    python examples/benchmarks/vlm_throughput.py --output examples/benchmarks/results/vlm_throughput.json

The batch-1 harness runs the same attack on the same images one by one, as the published evaluation does. Both arms
take turns, so that what else the machine does meets both. Beside the factor of the whole stand those of its parts
(tokens, attack, answer), and the share of a step that is matrix products: what batching cannot shorten.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fare_hf.attacks import ThreatModel, apgd
from fare_hf.encoders import frozen, matmul_patch_embedding
from fare_hf.evaluation import environment
from fare_hf.lab import load_llava
from fare_hf.lab.measure import PROMPT, part
from fare_hf.vlm import VlmLoss, generate_text

PARTS = ("tokens", "attack", "answer")
PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::_scaled_dot_product")


def main() -> None:
    """Prints a JSON object, and writes it with `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32], help="the first is the harness")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    llava, test = load_llava(), part("twemoji", args.images)
    texts = [f"a photo of a {test.class_names[label]}" for label in test.labels.tolist()]
    seconds: dict[int, Counter[str]] = {size: Counter() for size in args.batch_sizes}
    shares = {}
    with frozen(llava[0]), matmul_patch_embedding(llava[0]):
        one_round(llava, test.pixels[:1], texts[:1], 1, 1, Counter())  # what is done once a process
        for turn in range(args.rounds):
            for size in args.batch_sizes if turn % 2 == 0 else args.batch_sizes[::-1]:
                one_round(llava, test.pixels, texts, size, args.steps, seconds[size])
        for size in args.batch_sizes:
            shares[size] = share_of_products(llava, test.pixels[:size], texts[:size])
    settings = {"images": len(test), "steps": args.steps, "rounds": args.rounds, "threads": torch.get_num_threads()}
    found = {"settings": settings, "arms": arms(seconds, shares), "environment": environment(seed=0)}
    print(text := json.dumps(found, indent=2))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")


def one_round(
    llava: Any, pixels: torch.Tensor, texts: list[str], size: int, steps: int, seconds: Counter[str]
) -> None:
    """All images in batches of one size; adds up what the parts took."""
    vlm, processor = llava
    for batch in torch.arange(len(pixels)).split(size):
        with timed(seconds, "tokens"):
            loss = VlmLoss(vlm, processor, PROMPT, [texts[index] for index in batch.tolist()])
        with timed(seconds, "attack"):
            found = apgd(loss, pixels[batch], ThreatModel("linf", "4/255"), steps=steps)
        with timed(seconds, "answer"):
            generate_text(vlm, processor, found.pixels, PROMPT, max_new_tokens=14)


@contextmanager
def timed(seconds: Counter[str], name: str) -> Iterator[None]:
    """Adds the wall time of a block."""
    begin = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - begin  # type: ignore[assignment]


def share_of_products(llava: Any, pixels: torch.Tensor, texts: list[str]) -> float:
    """Share of matrix products and attention in the time of the operators of one step."""
    loss, points = VlmLoss(llava[0], llava[1], PROMPT, texts), pixels.clone().requires_grad_(True)
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        torch.autograd.grad(loss(points).sum(), points)
    events = watched.key_averages()
    products = sum(event.self_cpu_time_total for event in events if event.key.startswith(PRODUCTS))
    return round(products / sum(event.self_cpu_time_total for event in events), 3)


def arms(seconds: dict[int, Counter[str]], shares: dict[int, float]) -> list[dict[str, Any]]:
    """One entry a batch size, its factors to the first."""
    alone = seconds[next(iter(seconds))]
    return [
        {
            "batch_size": size,
            "seconds": {name: round(took[name], 2) for name in PARTS},
            "factor": round(sum(alone.values()) / sum(took.values()), 2),
            "factors": {name: round(alone[name] / took[name], 2) for name in PARTS},
            "share_of_matrix_products": shares[size],
        }
        for size, took in seconds.items()
    ]


if __name__ == "__main__":
    main()
