"""How much memory a merge takes: a made-up LLaVA of 2 GB in 8 files, merged in a process of its own.

    python examples/merge_memory.py --gigabytes 2 --files 8

The tower is a ViT-L/14 at 336 px in bf16 (0.6 GB), the encoder one in fp32 (1.2 GB), as they are published; the rest
stands for a language model. Peak memory is read from the process (VmHWM), after the imports and after the merge.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlavaConfig,
)

LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
MERGE = """
import sys, time
from fare_hf.hub import merge_vision_tower
def peak():  # of this program alone: ru_maxrss begins with what the parent had
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before, start = peak(), time.perf_counter()
merge = merge_vision_tower(*sys.argv[1:4])
print(before, peak(), time.perf_counter() - start, len(merge.rewritten))
"""


def write_encoder(folder: Path, size: int, small: bool) -> dict[str, torch.Tensor]:
    """A random ViT-L/14 (or a tiny one) as a robust encoder; returns those that it was "fine-tuned" from."""
    shape = {**LARGE, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4} if small else LARGE
    config = CLIPVisionConfig(**shape, image_size=size, patch_size=14, projection_dim=768)
    model: Any = CLIPVisionModelWithProjection(config)
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(folder)
    state = model.vision_model.state_dict().items()
    return {f"vision_tower.vision_model.{name}": (tensor * 1.01).bfloat16() for name, tensor in state}


def write_vlm(
    folder: Path, tower: dict[str, torch.Tensor], vision: CLIPVisionConfig, gigabytes: float, files: int
) -> None:
    """The tower in the first files, the rest filled up; 1 GB is 2**30 bytes."""
    folder.mkdir(parents=True)
    text = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    config = LlavaConfig(vision_config=vision, text_config=text, architectures=["LlavaForConditionalGeneration"])
    config.save_pretrained(folder)
    budget = int(gigabytes * 2**30) // files
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in tower.items():
        if sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > budget:
            shards.append({})
        shards[-1][name] = tensor
    weight_map: dict[str, str] = {}
    for number in range(files):
        shard = shards[number] if number < len(shards) else {}
        while (left := budget - sum(t.nbytes for t in shard.values())) > 1 << 20:
            name = f"language_model.model.layers.{number}.filler_{len(shard)}.weight"
            shard[name] = torch.randint(-999, 999, (min(left, 1 << 26) // 2048, 1024), dtype=torch.int16).view(
                torch.bfloat16
            )
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": budget * files}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def main() -> None:
    """Write, merge, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--small_tower", action="store_true", help="a narrow tower, for a quick trial")
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        place = Path(temporary)
        tower = write_encoder(place / "encoder", 336, args.small_tower)
        vision = CLIPVisionConfig.from_pretrained(place / "encoder")
        write_vlm(place / "vlm", tower, vision, args.gigabytes, args.files)
        words = [sys.executable, "-c", MERGE, str(place / "vlm"), str(place / "encoder"), str(place / "robust")]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        before, peak, seconds, rewritten = (float(word) for word in done.stdout.split()[-4:])
        sizes = [path.stat().st_size for path in (place / "vlm").glob("*.safetensors")]
        written = sum(path.stat().st_size for path in (place / "robust").iterdir())
    gb = 2.0**30
    print(f"checkpoint {sum(sizes) / gb:.2f} GiB in {len(sizes)} files, largest {max(sizes) / gb:.2f} GiB")
    print(f"files with the tower: {rewritten:.0f}; result {written / gb:.2f} GiB, the other files copied")
    print(f"peak memory {peak / gb:.2f} GiB, of which imports {before / gb:.2f} GiB; {seconds:.1f} s")
    bound = before / gb + 0.3
    print(f"bound (imports + 0.3 GiB) {bound:.2f} GiB: {'kept' if peak / gb <= bound else 'EXCEEDED'}")


if __name__ == "__main__":
    main()
