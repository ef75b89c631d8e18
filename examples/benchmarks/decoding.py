"""How many images a second a core decodes and resizes, by decoder, and what becomes of the pixels.

    pip install simplejpeg opencv-python-headless imagecodecs pyvips pyvips-binary     # what is there is compared
    python examples/benchmarks/decoding.py --output examples/benchmarks/results/decoding-cpu.json

Writes JPEGs of 500 x 375 pixels (as in ImageNet) and of 1600 x 1200, and makes pixels of CLIP at 224 px of them: by
`pillow`, as a training does by default; by `pillow, draft`, which decodes fewer coefficients where an image is much
larger than it is wanted; and by `FastPixels` (`--fast_images`), whose resize is torch's, with several decoders: that
of Pillow, simplejpeg (its own), OpenCV, imagecodecs, libvips. One thread, by turns, CPU time. `difference` is to
`pillow`, in levels of 255. `cores` says how many feed 8 GPUs that eat `--eaten` images a second each.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loader import EATEN, jpeg
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor
from turns import write

from fare_hf.data.decoding import to_rgb
from fare_hf.data.fast_pixels import FastPixels
from fare_hf.data.pixels import unnormalized

Decoder = Callable[[bytes], Any]
GPUS = 8
SIZES = {"500 x 375": (500, 375), "1600 x 1200": (1600, 1200)}


def draft(content: bytes, side: int) -> Image.Image:
    """A JPEG at the smallest eighth of its size whose short edge is at least `side`."""
    image = Image.open(io.BytesIO(content), formats=["JPEG"])
    image.draft("RGB", (side, side))
    return image.convert("RGB")


def decoders() -> dict[str, Decoder]:
    """JPEG to (H, W, 3) bytes, by the libraries that are here."""
    found: dict[str, Decoder] = {"Pillow": lambda content: np.array(to_rgb(content))}
    if find_spec("simplejpeg"):
        import simplejpeg

        found["simplejpeg"] = lambda content: simplejpeg.decode_jpeg(content, "RGB")
    if find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        found["OpenCV"] = lambda content: cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    if find_spec("imagecodecs"):
        import imagecodecs

        found["imagecodecs"] = lambda content: imagecodecs.jpeg8_decode(content)
    if find_spec("pyvips"):
        import pyvips

        found["libvips"] = lambda content: pyvips.Image.new_from_buffer(content, "").numpy()
    return found


def arms(side: int) -> dict[str, Callable[[bytes], Tensor]]:
    """Name -> JPEG to pixels."""
    processor = unnormalized(
        CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    )
    fast = FastPixels(processor)

    def slow(image: Image.Image) -> Tensor:
        return processor(images=image, return_tensors="pt")["pixel_values"][0]

    found: dict[str, Callable[[bytes], Tensor]] = {"pillow": lambda content: slow(to_rgb(content))}
    found["pillow, draft"] = lambda content: slow(draft(content, side))
    for name, decode in decoders().items():
        found[f"torch, {name}"] = lambda content, decode=decode: fast.pixels(decode(content))  # type: ignore[misc]
    found["fast_images"] = lambda content: fast.pixels(fast.read(content))
    return found


def compare(size: tuple[int, int], args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of each arm, its factor to the first, and the difference of its pixels to the first's."""
    contents = [jpeg(number, size) for number in range(args.images)]
    made = arms(args.side)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(args.rounds):
        for name in list(made)[:: -1 if turn % 2 else 1]:
            begin = time.process_time()
            for content in contents:
                made[name](content)
            seconds[name].append((time.process_time() - begin) / len(contents))
    wanted = [made["pillow"](content) for content in contents]
    median = {name: statistics.median(values) for name, values in seconds.items()}
    lines: dict[str, dict[str, Any]] = {}
    for name, arm in made.items():
        rate = 1 / median[name]
        ratios = [own / first for own, first in zip(seconds["pillow"], seconds[name], strict=True)]
        lines[name] = {"images_per_second": round(rate, 1), "factor": round(statistics.median(ratios), 2)}
        lines[name] |= {"cores": math.ceil(GPUS * args.eaten / rate), "difference": difference(arm, contents, wanted)}
    return {"bytes_an_image": sum(map(len, contents)) // len(contents), "arms": lines}


def difference(arm: Callable[[bytes], Tensor], contents: list[bytes], wanted: list[Tensor]) -> dict[str, float]:
    """Largest and mean difference in levels, and the share of values that differ at all, and by more than one."""
    levels = torch.stack([255 * (arm(c) - w).abs() for c, w in zip(contents, wanted, strict=True)]).round()
    found = {"max": levels.max().item(), "mean": levels.mean().item()}
    return found | {"share": (levels > 0).float().mean().item(), "share_above_1": (levels > 1).float().mean().item()}


def main() -> None:
    """Prints the rates and writes them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7, help="passes of each arm, by turns; the median counts")
    parser.add_argument("--eaten", type=float, default=EATEN, help="images per second of a GPU")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--load", help="what else the machine did, for the record")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {name: compare(SIZES[name], args) for name in args.sizes}
    write(found, args)


if __name__ == "__main__":
    main()
