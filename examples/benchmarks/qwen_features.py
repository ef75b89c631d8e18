"""FARE on all that the language model of a Qwen2.5-VL of 7B reads of an image: speed and memory by batch size.

    python examples/benchmarks/qwen_features.py --batch_sizes 1 4 16 --output features.json      # on a GPU

The tower of Qwen2.5-VL-7B-Instruct (32 blocks of width 1280, windows of 112 pixels, features of width 3584) with
random weights, and no language model, whose configuration alone is read. Steps of `FareTrainer` in bf16 on images of
448 pixels a side, 256 features each; a size that does not fit is told as null. What was found is written after each.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from step import Clock
from torch import nn
from transformers import Qwen2_5_VLConfig
from turns import DEVICE, release, write

from fare_hf import FareConfig, FareTrainer
from fare_hf.encoders.flops import peak_flops
from fare_hf.training.logging.measurements import peak_memory
from fare_hf.vlm.features import VlmFeatures
from fare_hf.vlm.tower_files import unloaded_tower

VISION: dict[str, Any] = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
VISION |= {"out_hidden_size": 3584, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}
TINY: dict[str, Any] = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4}
TINY |= {"out_hidden_size": 48, "window_size": 56, "fullatt_block_indexes": [1]}
TINY_SIDE = 112


def random_tower(tiny: bool, device: torch.device) -> tuple[Any, VlmFeatures]:
    """The tower with random weights in fp32, all of them trainable, and how the language model reads it."""
    # Imported where it is needed: its module asks for torchvision in some versions of transformers.
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vision = TINY if tiny else VISION
    text = {"hidden_size": vision["out_hidden_size"], "num_attention_heads": 4, "num_key_value_heads": 4}
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=text | {"num_hidden_layers": 1})
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        Qwen2VLImageProcessorPil().save_pretrained(folder)
        tower, features = unloaded_tower(folder, image_side=TINY_SIDE if tiny else None)
    torch.manual_seed(0)
    tower.to(device)
    features.to(device)
    for name, part in (*tower.named_parameters(), *features.around.named_parameters()):
        if part.ndim > 1:
            nn.init.normal_(part, std=0.02)
        elif name.endswith("weight"):
            nn.init.ones_(part)
    return tower, features


def measure_size(tower: Any, features: VlmFeatures, batch_size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the steps of one batch size but for the first, peak memory, and operations of an image.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    release()
    pixels = torch.rand(3, features.image_side, features.image_side)
    samples = [{"pixel_values": pixels, "index": number} for number in range(batch_size)]
    options: dict[str, Any] = {"per_device_train_batch_size": batch_size, "attack_steps": args.attack_steps}
    options |= {"bf16": True, "max_steps": args.rounds + 1, "warmup_steps": 0, "logging_strategy": "no"}
    options |= {"use_cpu": DEVICE.type == "cpu", "save_strategy": "no", "disable_tqdm": True}
    clock = Clock({})
    with tempfile.TemporaryDirectory() as folder:
        config = FareConfig(folder, embedding="features", dataloader_drop_last=True, **options)
        own = {"processing_class": features.processor, "reading": features, "callbacks": [clock]}
        trainer = FareTrainer(copy.deepcopy(tower), config, samples, **own)
        trainer.train()
    found = {"seconds": clock.seconds["trainer"][1:], "peak_gib": round(peak_memory(DEVICE) / 2**30, 2)}
    return found | {"flops": trainer.flops.step(args.attack_steps)}


def measure(args: argparse.Namespace) -> None:
    """Writes images per second by batch size, their factor to the first, and what share of the peak that is."""
    tower, features = random_tower(args.tiny, DEVICE)
    with torch.no_grad():
        shape = features.embed(tower, torch.rand(1, 3, features.image_side, features.image_side).to(DEVICE)).shape
    found: dict[str, Any] = {"features": shape[1], "width": shape[2], "images_per_second": {}, "factor": {}}
    found |= {"mfu": {}, "peak_gib": {}, "seconds": {}}
    peak = peak_flops(DEVICE)
    for name in map(str, args.batch_sizes):
        try:
            one = measure_size(tower, features, int(name), args)
        except torch.OutOfMemoryError:
            found["peak_gib"][name] = None
            continue
        rate = int(name) / statistics.median(one["seconds"])
        found["images_per_second"][name] = round(rate, 3)
        found["factor"][name] = round(rate / next(iter(found["images_per_second"].values())), 3)
        found["mfu"][name] = None if peak is None else round(one["flops"] * rate / peak, 4)
        found["seconds"][name], found["peak_gib"][name] = one["seconds"], one["peak_gib"]
        found["tera_flop_an_image"] = one["flops"] / 1e12
        write(found, args, quiet=True)
    write(found, args)


def main() -> None:
    """Prints the rates and writes them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small tower, to see whether it runs")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--attack_steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="steps after one that is not counted")
    parser.add_argument("--output", type=Path, help="JSON file")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
