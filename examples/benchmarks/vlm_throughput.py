"""What batching is worth: APGD through the lab's LLaVA, one image at a time and in batches, in one run.

    python examples/benchmarks/vlm_throughput.py

The batch-1 harness runs the same attack on the same images one by one, as the published evaluation does.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from fare_hf.attacks import ThreatModel, apgd
from fare_hf.encoders import frozen, matmul_patch_embedding
from fare_hf.lab import load_llava
from fare_hf.lab.measure import PROMPT, part
from fare_hf.vlm import VlmLoss, generate_text


def main() -> None:
    """Prints one line a batch size: images per second of attack and answer, and the factor to batch 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    args = parser.parse_args()
    vlm, processor = load_llava()
    test = part("twemoji", args.images)
    texts = [f"a photo of a {test.class_names[label]}" for label in test.labels.tolist()]
    threat_model = ThreatModel("linf", "4/255")
    alone = None
    with frozen(vlm), matmul_patch_embedding(vlm):
        for size in args.batch_sizes:
            begin = time.perf_counter()
            for batch in torch.arange(len(test)).split(size):
                loss = VlmLoss(vlm, processor, PROMPT, [texts[index] for index in batch.tolist()])
                found = apgd(loss, test.pixels[batch], threat_model, steps=args.steps)
                generate_text(vlm, processor, found.pixels, PROMPT, max_new_tokens=14)
            rate = len(test) / (time.perf_counter() - begin)
            alone = rate if alone is None else alone
            line = {"batch_size": size, "images_per_second": round(rate, 3), "factor": round(rate / alone, 2)}
            line |= {"images": len(test), "steps": args.steps, "threads": torch.get_num_threads()}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
