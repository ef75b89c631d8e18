"""Whether the loader keeps up: images per second from JPEG files to pixels, as a ratio to what one H100 eats.

    python examples/benchmarks/loader.py --output examples/benchmarks/results/loader-cpu.json

Makes its own JPEGs of about 500 x 375 pixels (as in ImageNet), in a folder and in parquet shards, and reads them as a
training does: decode, resize, crop to --size, stack. By turns, so that what else the machine does meets all alike.
One H100 eats about 100 images/s in FARE training of ViT-L/14 at 224 px; the ratio is to that.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from transformers import CLIPImageProcessor

from fare_hf.data.batches import collate_pixels
from fare_hf.data.opening import load_images
from fare_hf.data.pixel_datasets import PixelDataset, PixelStream
from fare_hf.data.streaming import TrainingStream
from fare_hf.evaluation import environment

EATEN = 100
"""Images per second of one H100 at ViT-L/14, 224 px."""


def jpeg(number: int) -> bytes:
    """A picture with structure at all scales, so that its JPEG is about as large as a photograph's."""
    rng = np.random.default_rng(number)
    layers = [rng.uniform(0, 255, (375 // step + 1, 500 // step + 1, 3)).astype(np.uint8) for step in (125, 25, 5, 1)]
    pictures = [np.asarray(Image.fromarray(layer).resize((500, 375), Image.Resampling.BICUBIC)) for layer in layers]
    weights = (0.45, 0.3, 0.15, 0.1)
    mixed = sum(weight * picture.astype(np.float32) for weight, picture in zip(weights, pictures, strict=True))
    file = io.BytesIO()
    Image.fromarray(np.asarray(mixed, dtype=np.float32).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write(folder: Path, images: int, shards: int) -> int:
    """The images as files in `folder/files` and as parquet in `folder/shards`; returns bytes an image."""
    for name in ("files", "shards"):
        (folder / name).mkdir()
    encoded = [jpeg(number) for number in range(images)]
    for number, content in enumerate(encoded):
        (folder / "files" / f"{number:06d}.jpg").write_bytes(content)
    features = datasets.Features({"image": datasets.Image()})
    for shard in range(shards):
        rows = [{"bytes": content, "path": f"{n}.jpg"} for n, content in enumerate(encoded[shard::shards])]
        datasets.Dataset.from_dict({"image": rows}, features).to_parquet(folder / "shards" / f"train-{shard}.parquet")
    return sum(map(len, encoded)) // images


def rate(folder: Path, kind: str, workers: int, args: argparse.Namespace) -> float:
    """Images per second over `--images`, after the workers have filled their queues and while they go on filling."""
    size = {"height": args.size, "width": args.size}
    processor = CLIPImageProcessor(size={"shortest_edge": args.size}, crop_size=size)
    options: dict[str, Any] = {"collate_fn": collate_pixels, "num_workers": workers}
    batches, ahead = args.images // args.batch_size, 2 * workers + 1  # a worker is two batches ahead
    if kind == "files":
        images: Any = PixelDataset(load_images(str(folder / kind)), processor)
        sampler = RandomSampler(images, num_samples=(batches + 2 * ahead) * args.batch_size)
        loader: Any = DataLoader(images, args.batch_size, sampler=sampler, **options)
    else:
        stream = PixelStream(load_images(str(folder / kind), streaming=True), processor, shuffle_buffer=100)
        loader = DataLoader(TrainingStream(stream, 0, 0, 1, args.batch_size), args.batch_size, **options)
    taken = iter(loader)
    for _ in islice(taken, ahead):
        pass
    begin = time.perf_counter()
    count = sum(len(batch["index"]) for batch in islice(taken, batches))
    return count / (time.perf_counter() - begin)


def main() -> None:
    """Prints the rates and writes them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="passes of each kind, by turns; the median counts")
    parser.add_argument("--load", help="what else the machine did, for the record")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    if args.images < args.batch_size:
        parser.error(f"--images {args.images} is less than a batch of {args.batch_size}.")
    kinds = [(kind, workers) for kind in ("files", "shards") for workers in args.workers]
    rates: dict[tuple[str, int], list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        size = write(Path(folder), args.images, shards=4)
        for _ in range(args.rounds):
            for kind, workers in kinds:
                rates[kind, workers].append(rate(Path(folder), kind, workers, args))
    lines = []
    for (kind, workers), values in rates.items():
        median = statistics.median(values)
        line = {"kind": kind, "workers": workers, "images_per_second": round(median, 1)}
        lines.append({**line, "of_an_h100": round(median / EATEN, 2)})
    found: dict[str, Any] = {"rates": lines}
    found |= {"bytes_an_image": size, "settings": {k: v for k, v in vars(args).items() if k != "output"}}
    found |= {"all": {f"{kind}, {workers} workers": values for (kind, workers), values in rates.items()}}
    found["environment"] = environment(seed=0)
    print(json.dumps({key: found[key] for key in ("rates", "bytes_an_image", "settings")}, indent=2))
    if args.output is not None:
        args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
