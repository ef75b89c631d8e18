"""Several processes and killed processes: the real launcher, a real SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.tiny_run import tiny_trainer
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "distributed" / "tiny_run.py"


def start(options: dict[str, Any], *launcher: str) -> subprocess.CompletedProcess[str]:
    """Runs `tiny_run.py` in new processes, one thread each."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, *launcher, str(SCRIPT), json.dumps(options)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=560)


def test_two_processes_equal_one(legacy_vision_folder: Path, tmp_path: Path) -> None:
    """`accelerate launch` with two processes of 4 images, against one of 8: same batches, same attack, same log.

    Fails without the frozen unused parameters of `tokens` (DDP waits for their gradients), and without the epoch
    callback (accelerate tells the sharded sampler its epoch, and then not the data set).
    """
    options = {"model": str(legacy_vision_folder), "max_steps": 5, "logging_steps": 5, "optim": "sgd"}
    options |= {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "embedding": "tokens"}
    # With --cpu the launcher starts one process only; --multi_gpu is torchrun, and the run itself says use_cpu.
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launcher += " --dynamo_backend no --main_process_port 0"
    two = {**options, "per_device_train_batch_size": 4, "output_dir": str(tmp_path / "two")}
    result = start(two, *launcher.split())
    assert result.returncode == 0, result.stderr[-3000:]
    one = tiny_trainer(output_dir=str(tmp_path / "one"), **options)
    one.train()
    saved = load_file(tmp_path / "two" / "model.safetensors")
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(saved[f"vision_model.{name}"], value, rtol=0, atol=1e-6, msg=name)
    assert json.loads((tmp_path / "two" / "facts.json").read_text()) == {"processes": 2, "epochs": [0, 1]}
    theirs = json.loads((tmp_path / "two" / "log.json").read_text())["log_history"][0]
    for key in ("loss", "grad_norm", "attack_gain", "cosine_clean", "cosine_adversarial"):
        assert theirs[key] == pytest.approx(one.state.log_history[0][key], rel=1e-4), key


def test_killed_and_resumed_equals_uninterrupted_to_the_bit(legacy_vision_folder: Path, tmp_path: Path) -> None:
    """SIGKILL between two checkpoints, in the middle of an epoch; for the class whose resume the Trainer breaks."""
    options = {"embedding": "pooled", "save_strategy": "steps", "save_steps": 2, "max_steps": 7}
    options |= {"model": str(legacy_vision_folder), "gradient_accumulation_steps": 2, "logging_steps": 1}
    options |= {"per_device_train_batch_size": 4}
    whole = tiny_trainer(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    killed = start({**options, "output_dir": str(tmp_path / "killed"), "kill_at": 3})
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["checkpoint-2"]
    resumed = tiny_trainer(output_dir=str(tmp_path / "killed"), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-2"))
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (whole, resumed)]
    assert losses[0] == losses[1]
