"""Trainings under the real launcher, with several processes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.paths import EXAMPLES, ROOT, TESTS
from PIL import Image
from safetensors.torch import load_file

SCRIPT = TESTS / "helpers" / "distributed" / "tiny_run.py"

CONFIGURATIONS = EXAMPLES / "accelerate"


def start(options: Any, *launcher: str, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    """Runs a script in new processes, one thread each."""
    paths = [str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, *launcher, str(script), json.dumps(options)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=560)


def noise(number: int) -> bytes:
    """An image of noise, as PNG."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_images(folder: Path) -> Path:
    """Twenty images in a folder."""
    folder.mkdir(parents=True)
    for number in range(20):
        (folder / f"{number}.png").write_bytes(noise(number))
    return folder


OPTIONS: dict[str, Any] = {
    "max_steps": 5,
    "logging_steps": 5,
    "optim": "sgd",
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
}

# With --cpu the launcher starts one process only; --multi_gpu is torchrun, and the run itself says use_cpu.
LAUNCH = "-m accelerate.commands.launch --mixed_precision no --dynamo_backend no --num_processes 2"

TWO = f"{LAUNCH} --multi_gpu --num_machines 1 --main_process_port 0"

FSDP = f"{LAUNCH} --config_file {CONFIGURATIONS / 'fsdp.yaml'} --main_process_port 0"


def relative_error(folder: Path, expected: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over norm, of all weights that a run has saved and of those expected."""
    saved = {
        name.removeprefix("vision_model."): value for name, value in load_file(folder / "model.safetensors").items()
    }
    expected = {name.removeprefix("vision_model."): value for name, value in expected.items()}
    assert saved.keys() == expected.keys()
    both = [(saved[name].double(), value.double()) for name, value in expected.items()]
    return (sum((a - b).square().sum() for a, b in both) / sum(b.square().sum() for _, b in both)).sqrt().item()


def moved(trainer: Any) -> float:
    """Relative change of the weights from the original's."""
    both = list(zip(trainer.model.parameters(), trainer.original.parameters(), strict=True))
    return (sum((a - b).square().sum() for a, b in both) / sum(b.square().sum() for _, b in both)).sqrt().item()
