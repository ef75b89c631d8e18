"""OpenFlamingo's own code on an exported encoder, in an environment of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.environments import environment, run
from helpers.open_clip_itself import STUBS
from helpers.paths import EXAMPLES
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel

from fare_hf.convert import convert_to_open_clip

pytestmark = pytest.mark.slow
EXAMPLE = EXAMPLES / "open_flamingo_encoder.py"
SCRIPT = """
import runpy
example = runpy.run_path(sys.argv[1])
encoder = example["vision_encoder"](sys.argv[2])
pixels = load_file(sys.argv[3] + "/inputs.safetensors")["pixels"]
save_file({"features": example["features"](encoder, pixels).contiguous()}, sys.argv[3] + "/features.safetensors")
"""


def test_the_features_are_those_of_transformers(clip_folder: Path, tmp_path: Path) -> None:
    minor = int(torch.__version__.split(".")[1]) + 15
    packages = [f"torchvision==0.{minor}.0", "open-flamingo==2.0.1", "einops", "einops-exts", "open-clip-torch>=3.3"]
    python = environment("open-flamingo", [*packages, "timm", "ftfy", "wcwidth"], dependencies=False)
    convert_to_open_clip(clip_folder, tmp_path / "open_clip")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    save_file({"pixels": pixels}, tmp_path / "inputs.safetensors")
    run(python, STUBS + SCRIPT, str(EXAMPLE), str(tmp_path / "open_clip"), str(tmp_path))
    features = load_file(tmp_path / "features.safetensors")["features"]
    model = CLIPVisionModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        expected = model.post_layernorm(model(pixels).last_hidden_state)[:, 1:]
    assert features.shape == expected.shape == (2, 16, 32)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
