"""open_clip in an environment of its own, on the same inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fare_hf.convert.open_clip_config import read_open_clip_config
from fare_hf.convert.proof import probe_sentences

# open_clip imports torchvision, whose registry build may lack the operators of a CPU torch: empty ones are enough.
STUBS = """
import json, sys
import torch
names = "nms qnms roi_align qroi_align roi_pool ps_roi_align ps_roi_pool deform_conv2d _roi_align_backward "
names += "_roi_pool_backward _ps_roi_align_backward _ps_roi_pool_backward _deform_conv2d_backward"
if torch.version.cuda is None:
    library = torch.library.Library("torchvision", "DEF")
    for name in names.split():
        library.define(name + "() -> ()")
import open_clip
from safetensors.torch import load_file, save_file
"""

# Loads folders as a user does, and embeds the same inputs.
EMBED = """
found = {}
for folder in sys.argv[1].split(","):
    model = open_clip.create_model("local-dir:" + folder).eval()
    inputs = load_file(folder + "/inputs.safetensors")
    with torch.no_grad():
        found[folder + "|image"] = model.encode_image(inputs["pixels"]).contiguous()
        found[folder + "|text"] = model.encode_text(inputs["ids"]).contiguous()
save_file(found, sys.argv[2])
print(open_clip.__version__)
"""


def packages() -> list[str]:
    """open_clip with the torchvision of this torch (0.15 minor versions behind it)."""
    minor = int(torch.__version__.split(".")[1]) + 15
    return [f"torchvision==0.{minor}.0", "open-clip-torch>=3.3", "timm", "ftfy", "wcwidth"]


def write_inputs(folder: Path, config: dict[str, Any]) -> None:
    spec = read_open_clip_config(config, "test")
    assert spec.text is not None
    size = config["vision_cfg"]["image_size"]
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    save_file({"pixels": pixels, "ids": probe_sentences(spec.text)}, folder / "inputs.safetensors")
