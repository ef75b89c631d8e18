"""Converts a CLIP of a published shape, at full depth and width, there and back; prints what it took.

python tests/full_depth.py ViT-L-14 FOLDER
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from helpers.open_clip_files import PREPROCESS, random_state
from safetensors.torch import load_file, save_file

from fare_hf.convert import convert_from_open_clip, convert_to_open_clip

# As open_clip publishes them: embedding, vision (width, layers, pixels, patch, more), text (width, heads, layers).
SHAPES: dict[str, tuple[int, tuple[int, int, int, int, dict[str, Any]], tuple[int, int, int]]] = {
    "ViT-B-32": (512, (768, 12, 224, 32, {}), (512, 8, 12)),
    "ViT-B-16": (512, (768, 12, 224, 16, {}), (512, 8, 12)),
    "ViT-L-14": (768, (1024, 24, 224, 14, {}), (768, 12, 12)),
    "ViT-L-14-336": (768, (1024, 24, 336, 14, {}), (768, 12, 12)),
    "ViT-H-14": (1024, (1280, 32, 224, 14, {"head_width": 80}), (1024, 16, 24)),
    "ViT-g-14": (1024, (1408, 40, 224, 14, {"head_width": 88, "mlp_ratio": 4.3637}), (1024, 16, 24)),
    "ViT-bigG-14": (1280, (1664, 48, 224, 14, {"head_width": 104, "mlp_ratio": 4.9231}), (1280, 20, 32)),
}


def config_of(name: str) -> dict[str, Any]:
    """The `model_cfg` of a shape."""
    embedding, (width, layers, pixels, patch, more), (text, heads, depth) = SHAPES[name]
    vision = {"image_size": pixels, "layers": layers, "width": width, "patch_size": patch, **more}
    tower = {"context_length": 77, "vocab_size": 49408, "width": text, "heads": heads, "layers": depth}
    return {"embed_dim": embedding, "quick_gelu": "L" in name, "vision_cfg": vision, "text_cfg": tower}


def peak() -> float:
    """GB that this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main(name: str, place: Path) -> None:
    """Prints one JSON object: parameters, differences both ways, peaks of memory in GB and seconds."""
    torch.set_num_threads(1)
    source = place / "source"
    source.mkdir(parents=True)
    content = {"model_cfg": config_of(name), "preprocess_cfg": PREPROCESS}
    (source / "open_clip_config.json").write_text(json.dumps(content))
    state = random_state(content["model_cfg"])
    parameters = sum(tensor.numel() for tensor in state.values())
    save_file(state, source / "open_clip_model.safetensors")
    del state
    found: dict[str, Any] = {"shape": name, "parameters": parameters, "made_gb": peak()}
    start = time.process_time()
    found["from"] = convert_from_open_clip(source, place / "hf").differences
    found |= {"from_gb": peak(), "from_seconds": time.process_time() - start}
    start = time.process_time()
    found["to"] = convert_to_open_clip(place / "hf", place / "back").differences
    found |= {"to_gb": peak(), "to_seconds": time.process_time() - start}
    before, after = (load_file(place / part / "open_clip_model.safetensors") for part in ("source", "back"))
    found["equal"] = before.keys() == after.keys() and all(torch.equal(t, after[n]) for n, t in before.items())
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
