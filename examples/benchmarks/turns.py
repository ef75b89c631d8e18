"""What the benchmarks share: arms that take turns in one process, and results that are written as they come."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from fare_hf.evaluation import environment
from fare_hf.training.estimate import SHAPES

MODELS = {
    "vit-b-32": SHAPES["openai/clip-vit-base-patch32"],
    "vit-b-16": SHAPES["openai/clip-vit-base-patch16"],
    "vit-l-14": SHAPES["openai/clip-vit-large-patch14"],
    "vit-l-14-336": SHAPES["openai/clip-vit-large-patch14-336"],
    "vit-h-14": SHAPES["laion/CLIP-ViT-H-14-laion2B-s32B-b79K"],
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"image_size": 32, "patch_size": 8, "projection_dim": 16},
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def arguments(doc: str | None, model: str, batch_size: int) -> argparse.ArgumentParser:
    """A parser with the options that most benchmarks have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=model, choices=list(MODELS))
    parser.add_argument("--batch_size", type=int, default=batch_size)
    parser.add_argument("--load", help="what else the machine did, for the record")
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser


def random_clip(name: str) -> tuple[Any, CLIPImageProcessor]:
    """An encoder of a shape of `MODELS` with random weights, in fp32 on the CPU, and its processor."""
    shape = CLIPVisionConfig(**MODELS[name])
    torch.manual_seed(0)
    size: Any = shape.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return CLIPVisionModelWithProjection(shape), processor


def now() -> float:
    """The time when the device has done its work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def take_turns(arms: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm in each round but a first one, every other round in the opposite order."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name in list(arms)[:: -1 if turn % 2 else 1]:
            begin = now()
            arms[name]()
            seconds[name].append(now() - begin)
    return {name: values[1:] for name, values in seconds.items()}


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each arm."""
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextmanager
def fp32_products(precision: str) -> Iterator[None]:
    """Inside, matrix products in fp32 are exact to its rounding ("ieee") or may be rounded to TF32 ("tf32")."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, precision
    try:
        yield
    finally:
        matmul.fp32_precision = before


class Kernels:
    """Which kernels took the time between `start` and `stop`: of a GPU its own, of a CPU torch's operators."""

    def __init__(self) -> None:
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (DEVICE.type == "cuda")
        self.profile = torch.profiler.profile(activities=kinds)

    def start(self) -> None:
        """From here on."""
        now()
        self.profile.start()

    def stop(self, most: int = 30) -> dict[str, Any]:
        """Milliseconds in all, and the kernels that took most: milliseconds, number of calls, name."""
        now()
        self.profile.stop()
        gpu = DEVICE.type == "cuda"
        events = [one for one in self.profile.key_averages() if (one.device_type == DeviceType.CUDA) == gpu]
        times = [(one.self_device_time_total if gpu else one.self_cpu_time_total) / 1e3 for one in events]
        rows = [(round(time, 3), one.count, one.key) for time, one in zip(times, events, strict=True) if time > 0]
        return {"milliseconds": round(sum(row[0] for row in rows), 1), "largest": sorted(rows, reverse=True)[:most]}


def release() -> None:
    """Gives back what no tensor holds, and forgets the peak."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def write(found: dict[str, Any], args: argparse.Namespace, quiet: bool = False) -> None:
    """Writes a result with its settings and environment, and prints its figures."""
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "worker")}
    if not quiet:
        print(json.dumps({key: value for key, value in found.items() if key != "seconds"}, indent=2), flush=True)
    if args.output is not None:
        whole = found | {"settings": settings, "environment": environment(seed=0)}
        args.output.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
