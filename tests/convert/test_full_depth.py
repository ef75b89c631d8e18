"""Conversion of the published shapes at full depth and width, random weights: differences, memory, the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.environments import environment, run
from helpers.full_depth import SHAPES, config_of
from helpers.open_clip_itself import EMBED, STUBS, packages, write_inputs
from helpers.paths import ROOT, TESTS
from safetensors.torch import load_file
from transformers import CLIPModel

from fare_hf.convert.proof import TOLERANCE, difference

pytestmark = pytest.mark.slow
# The two largest take 16 and 30 GB: `python tests/full_depth.py ViT-g-14 FOLDER`.
FITTING = [name for name in SHAPES if name not in ("ViT-g-14", "ViT-bigG-14")]


@pytest.mark.parametrize("name", FITTING)
def test_there_and_back_at_full_depth(name: str, tmp_path: Path) -> None:
    """In a process of its own, for its peak of memory; ViT-L/14 also through the open_clip package."""
    place = tmp_path / name
    command = [sys.executable, str(TESTS / "helpers" / "full_depth.py"), name, str(place)]
    paths = [str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")]
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["equal"]
    assert all(value <= TOLERANCE for value in (*found["from"].values(), *found["to"].values()))  # max loses NaN
    gigabytes = 4 * found["parameters"] / 1e9
    assert found["from_gb"] <= 3.5 * gigabytes + 1.5 and found["to_gb"] <= 4.5 * gigabytes + 1.5
    if name == "ViT-L-14":
        against_the_package(place, name)
    shutil.rmtree(place)


def against_the_package(place: Path, name: str) -> None:
    """open_clip's own outputs, before the conversion and after there and back, beside those of transformers."""
    folders = [place / "source", place / "back"]
    for folder in folders:
        write_inputs(folder, config_of(name))
    python = environment("open-clip", packages(), dependencies=False)
    run(python, STUBS + EMBED, ",".join(map(str, folders)), str(place / "found.safetensors"))
    real, inputs = load_file(place / "found.safetensors"), load_file(place / "source" / "inputs.safetensors")
    model = CLIPModel.from_pretrained(place / "hf").eval()
    with torch.no_grad():
        image = model.get_image_features(inputs["pixels"]).pooler_output
        text = model.get_text_features(inputs["ids"]).pooler_output
    for part, ours in (("image", image), ("text", text)):
        before, after = (real[f"{folder}|{part}"] for folder in folders)
        assert torch.equal(before, after)
        print(f"{name} {part}: transformers against open_clip {difference(ours, before):.1e}")
        assert difference(ours, before) <= TOLERANCE
