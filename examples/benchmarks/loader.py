"""Whether the loader keeps up: images per second from JPEG files to pixels, as a ratio to what one H100 eats.

    python examples/benchmarks/loader.py --output examples/benchmarks/results/loader-cpu.json

Makes its own JPEGs of about 500 x 375 pixels (as in ImageNet), in a folder, in parquet shards and in tar archives
(webdataset), and reads them as a training does, with and without `--fast_images`: decode, resize, crop to --size,
stack. By turns, so that what else the machine does meets all alike; without workers CPU time counts. One H100 eats
about 100 images/s in FARE training of ViT-L/14 at 224 px, at an MFU of 40 % that is assumed; the ratio is to that.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tarfile
import tempfile
import time
from itertools import islice, product
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from transformers import CLIPImageProcessor

from fare_hf.data.batches import collate_pixels
from fare_hf.data.pixel_datasets import load_pixels
from fare_hf.data.streaming import TrainingStream
from fare_hf.evaluation import environment

KINDS = ("files", "shards", "tars")
EATEN = 100
"""Images per second of one H100 at ViT-L/14, 224 px."""


def jpeg(number: int, size: tuple[int, int] = (500, 375)) -> bytes:
    """A picture with structure at all scales, so that its JPEG is about as large as a photograph's."""
    rng, (width, height) = np.random.default_rng(number), size
    shapes = [(height // step + 1, width // step + 1, 3) for step in (125, 25, 5, 1)]
    layers = [rng.uniform(0, 255, shape).astype(np.uint8) for shape in shapes]
    pictures = [np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.BICUBIC)) for layer in layers]
    weights = (0.45, 0.3, 0.15, 0.1)
    mixed = sum(weight * picture.astype(np.float32) for weight, picture in zip(weights, pictures, strict=True))
    file = io.BytesIO()
    Image.fromarray(np.asarray(mixed, dtype=np.float32).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write(folder: Path, images: int, shards: int) -> int:
    """The images in a folder for each of `KINDS`; returns bytes an image."""
    for name in KINDS:
        (folder / name).mkdir()
    encoded = [jpeg(number) for number in range(images)]
    for number, content in enumerate(encoded):
        (folder / "files" / f"{number:06d}.jpg").write_bytes(content)
    features = datasets.Features({"image": datasets.Image()})
    for shard in range(shards):
        rows = [{"bytes": content, "path": f"{n}.jpg"} for n, content in enumerate(encoded[shard::shards])]
        datasets.Dataset.from_dict({"image": rows}, features).to_parquet(folder / "shards" / f"train-{shard}.parquet")
        with tarfile.open(folder / "tars" / f"train-{shard}.tar", "w") as archive:
            for number, content in list(enumerate(encoded))[shard::shards]:
                member = tarfile.TarInfo(f"{number:06d}.jpg")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return sum(map(len, encoded)) // images


def rate(folder: Path, kind: str, workers: int, fast: bool, args: argparse.Namespace) -> tuple[float, float]:
    """Images per second over `--images`, after the workers have filled their queues and while they go on filling; and
    images per second of this process's CPU time, in which other processes have no part."""
    size = {"height": args.size, "width": args.size}
    processor = CLIPImageProcessor(size={"shortest_edge": args.size}, crop_size=size)
    options: dict[str, Any] = {"collate_fn": collate_pixels, "num_workers": workers}
    batches, ahead = args.images // args.batch_size, 2 * workers + 1  # a worker is two batches ahead
    reading: dict[str, Any] = {"labels": False, "fast": fast, "streaming": kind != "files", "shuffle_buffer": 100}
    images: Any = load_pixels(str(folder / kind), "train", processor, **reading, report=lambda line: None)
    if kind == "files":
        sampler = RandomSampler(images, num_samples=(batches + 2 * ahead) * args.batch_size)
        loader: Any = DataLoader(images, args.batch_size, sampler=sampler, **options)
    else:
        loader = DataLoader(TrainingStream(images, 0, 0, 1, args.batch_size), args.batch_size, **options)
    taken = iter(loader)
    for _ in islice(taken, ahead):
        pass
    begin = time.perf_counter(), time.process_time()
    count = sum(len(batch["index"]) for batch in islice(taken, batches))
    return count / (time.perf_counter() - begin[0]), count / (time.process_time() - begin[1])


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
    rates: dict[tuple[str, int, bool], list[tuple[float, float]]]
    rates = {arm: [] for arm in product(KINDS, args.workers, (False, True))}
    with tempfile.TemporaryDirectory() as folder:
        size = write(Path(folder), args.images, shards=4)
        for _ in range(args.rounds):
            for arm in rates:
                rates[arm].append(rate(Path(folder), *arm, args))
    lines = []
    for (kind, workers, fast), values in rates.items():
        slow, which = rates[kind, workers, False], 0 if workers else 1  # of CPU time where one process does all
        line = {"kind": kind, "workers": workers, "fast": fast}
        line["images_per_second"] = round(statistics.median(wall for wall, _ in values), 1)
        if not workers:
            line["images_per_cpu_second"] = round(statistics.median(cpu for _, cpu in values), 1)
        ratios = [own[which] / other[which] for own, other in zip(values, slow, strict=True)]
        line["factor"] = round(statistics.median(ratios), 2)
        lines.append({**line, "of_an_h100": round(statistics.median(pair[which] for pair in values) / EATEN, 2)})
    found: dict[str, Any] = {"rates": lines}
    found |= {"bytes_an_image": size, "settings": {k: v for k, v in vars(args).items() if k != "output"}}
    found |= {"all": {", ".join(map(str, arm)): values for arm, values in rates.items()}}
    found["environment"] = environment(seed=0)
    print(json.dumps({key: found[key] for key in ("rates", "bytes_an_image", "settings")}, indent=2))
    if args.output is not None:
        args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
